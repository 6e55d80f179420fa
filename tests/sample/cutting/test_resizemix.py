"""ResizeMix's thumbnails: torch's own pixels, never cut, at the authors' places, and labelled by their area."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mixwell
from mixwell.core.mix import Partners
from mixwell.sample.cutting.resizemix import UniformScale, paste, scales_of, thumbnail_boxes

X = torch.randn(6, 3, 24, 40)
PERM = torch.tensor([3, 0, 5, 1, 2, 4])
PARTNERS = Partners.at(PERM[:, None], torch.arange(6))
SCALES = np.array([0.1, 0.3, 0.37, 0.55, 0.7, 0.8])


def box_by_hand(scale, centre, size):
    """The authors' algorithm for one image: top, bottom, left, right."""
    box = []
    for side, place in zip(size, centre, strict=True):
        extent = int(np.floor(side * scale))
        low = np.clip(int(place * side) - extent // 2, 0, side)
        high = np.clip(low + extent, 0, side)
        box += [int(np.clip(high - extent, 0, side)), int(high)]
    return box


@pytest.mark.parametrize("size", [(24, 40), (32, 32), (100, 11)], ids=str)
def test_boxes_are_the_authors(size):
    scales, centres = np.random.default_rng(0).uniform(0.1, 0.8, 500), np.random.default_rng(1).random((500, 2))
    boxes = thumbnail_boxes(scales, centres, size)
    assert boxes.tolist() == [box_by_hand(scale, centre, size) for scale, centre in zip(scales, centres, strict=True)]
    sides = boxes[:, 1::2] - boxes[:, ::2]
    assert np.array_equal(sides, np.floor(scales[:, None] * size)), "a thumbnail was cut"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("which", [slice(None), *(slice(k, k + 1) for k in range(6))], ids=str)
def test_the_patch_is_torchs_thumbnail_of_the_whole_partner(which, mode, layout):
    scales = SCALES[which]
    boxes = thumbnail_boxes(scales, np.random.default_rng(2).random((len(scales), 2)), (24, 40))
    mixed = paste(X.contiguous(memory_format=layout), PARTNERS, scales, boxes, mode)
    assert mixed.is_contiguous(memory_format=layout)
    for row in range(6):
        at = row % len(scales)
        smooth = {"antialias": True} if mode == "bilinear" else {}
        top, bottom, left, right = boxes[at]
        expected = X[row : row + 1].clone()
        expected[:, :, top:bottom, left:right] = F.interpolate(
            X[PERM[row]][None], scale_factor=float(scales[at]), mode=mode, **smooth
        )
        torch.testing.assert_close(mixed[row], expected[0], **({} if smooth else {"atol": 0, "rtol": 0}))


def test_lambda_keeps_round_scales():
    """Without care 1 - (1 - 0.55²) is 0.55 less one bit, and 20 pixels give a thumbnail of 10."""
    scales = np.arange(1, 101) / 100
    assert np.array_equal(scales_of(1 - scales**2), scales)


def test_scale_and_place_follow_the_paper():
    rows = 4000
    (option,) = mixwell.create("resizemix").options
    ratio, rng = option.ratio, np.random.default_rng(0)
    scales = ratio.draw(rows, rng)
    assert stats.kstest(scales, stats.uniform(0.1, 0.7).cdf).pvalue > 1e-4
    np.testing.assert_allclose(ratio.lam(scales, mixwell.Scene(mixwell.Batch(X, torch.arange(len(X))))), 1 - scales**2)
    centres = option.blend.draw(rows, rng)
    assert stats.kstest(centres.ravel(), "uniform").pvalue > 1e-4
    for one, other in ((scales, centres[:, 0]), (scales, centres[:, 1]), (centres[:, 0], centres[:, 1])):
        assert stats.pearsonr(one, other).pvalue > 1e-4


def test_thumbnails_at_the_border_are_over_represented():
    """Centres near the border are shifted inwards: of side ½, half of all touch it."""
    centres = np.random.default_rng(0).random((4000, 2))
    top = thumbnail_boxes(np.full(1, 0.5), centres, (64, 64))[:, 0]
    touching = int(((top == 0) | (top == 32)).sum())
    # Middles 0 to 16 and 48 to 63 of 64.
    assert stats.binomtest(touching, 4000, 33 / 64).pvalue > 1e-4


def test_the_label_is_the_area_in_whole_pixels():
    images, targets = mixwell.create("resizemix", 6, seed=1).mix_batch(X, torch.arange(6))
    shown = (images == X).all(1).float().mean((1, 2))
    mixed = targets.sources[:, 0] != targets.sources[:, 1]
    assert mixed.any()
    torch.testing.assert_close(targets.weights[mixed, 0], shown[mixed], atol=2e-3, rtol=0)  # pixels may agree by chance
    pixels = targets.weights[:, 1] * 24 * 40
    torch.testing.assert_close(pixels, pixels.round())
    assert ((targets.weights[:, 0] >= 1 - 0.64) & (targets.weights[:, 0] < 1)).all()


def test_the_authors_code_has_one_scale_per_batch_and_a_place_for_each_image():
    (option,) = mixwell.create("resizemix(per=batch, places=sample)").options
    rng = np.random.default_rng(0)
    assert option.ratio.draw(6, rng).shape == (1,)
    draws = {option.pairing: np.arange(6), option.ratio: np.array([0.3]), option.blend: option.blend.draw(6, rng)}
    mix = option.mix(X, mixwell.Scene(mixwell.Batch(X, torch.arange(6)), mixwell.Draws(draws)))
    assert len(mix.weights.unique(dim=0)) == 1
    assert len(mix.masks.unique(dim=0)) == 6


def test_a_thumbnail_has_at_least_one_pixel_and_none_without_scale():
    centres = np.array([[0.5, 0.5]])
    assert thumbnail_boxes(np.array([0.1]), centres, (3, 9)).tolist() == [[1, 2, 4, 5]]
    boxes = thumbnail_boxes(np.array([0.0, 1.0]), centres, (24, 40))
    two = Partners.at(torch.tensor([[1], [0]]), torch.arange(2))
    mixed = paste(X[:2], two, np.array([0.0, 1.0]), boxes)
    assert torch.equal(mixed, torch.stack((X[0], X[0])))


@pytest.mark.parametrize(("low", "high"), [(0, 0.5), (0.6, 0.5), (0.1, 1.1)])
def test_scales_must_be_a_range_within_the_image(low, high):
    with pytest.raises(mixwell.ParameterError, match=r"the (smallest|largest) scale must be a number in"):
        UniformScale(low, high)


def test_scale_is_a_pair():
    with pytest.raises(mixwell.ParameterError, match="the smallest and the largest scale"):
        mixwell.create("resizemix(scale=(0.1, 0.2, 0.3))")


@pytest.mark.parametrize("options", ["interpolation=bilinear", "per=batch, places=sample"])
def test_a_step_of_training(cnn, options):
    model = cnn()
    loss = mixwell.create(f"resizemix({options})", 7)(model, X, torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_nearest_by_size_follows_whole_pixels():
    """A thumbnail of 10 of 24 rows shows the rows ⌊i·24/10⌋."""
    images = torch.arange(24.0).view(1, 1, 24, 1).expand(2, 1, 24, 24)
    partners = mixwell.Partners.at(torch.tensor([[1], [0]]), torch.arange(2))
    mixed = paste(images, partners, np.array([10.5 / 24]), np.array([[2, 12, 3, 13]]), "nearest-size")
    assert mixed[0, 0, 2:12, 5].tolist() == [i * 24 // 10 for i in range(10)]
