"""HMix's two levels and GMix's Gaussian: their means, their limits, and where paper and code differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.ops.boxes import area_of, boxes_of
from mixwell.sample.cutting.hmix_gmix import gmix_masks, hmix_boxes, hmix_masks

SIZE = (24, 40)
X = torch.randn(6, 3, *SIZE)
PERM = np.array([3, 0, 5, 1, 2, 4])
RNG = np.random.default_rng(0)
LAM, CENTRES = RNG.random(500), RNG.random((500, 2))
LIKE = torch.empty(0)


def mix_of(text, lam, centres, images=X):
    (option,) = mixwell.create(text).options
    draws = {option.pairing: PERM, option.ratio: np.asarray(lam), option.blend: np.asarray(centres)}
    return option.mix(images, mixwell.Scene(mixwell.Batch(images, torch.arange(6)), mixwell.Draws(draws)))


def box_by_hand(lam, centre, r, size):
    """The authors' algorithm."""
    box = []
    for side, place in zip(size, centre, strict=True):
        cut, middle = int(side * (np.sqrt(1 - lam) * np.sqrt(r))), int(place * side)
        box += [int(np.clip(middle - cut // 2, 0, side)), int(np.clip(middle + cut // 2, 0, side))]
    return box


@pytest.mark.parametrize("r", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("size", [SIZE, (32, 32), (7, 5)], ids=str)
def test_hmix_boxes_are_the_authors(size, r):
    expected = [box_by_hand(lam, centre, r, size) for lam, centre in zip(LAM, CENTRES, strict=True)]
    assert hmix_boxes(LAM, CENTRES, r, size).tolist() == expected


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_hmix_has_two_levels_and_lambda_in_the_mean(r):
    found = hmix_masks(LAM, CENTRES, r, SIZE)
    np.testing.assert_allclose(found.means, LAM, atol=1e-12)
    masks, boxes = found.on(LIKE)[:, 0], hmix_boxes(LAM, CENTRES, r, SIZE)
    torch.testing.assert_close(masks.double().mean((1, 2)), torch.from_numpy(LAM), atol=1e-6, rtol=0)
    for mask, (top, bottom, left, right), around in zip(masks, boxes, found.base, strict=True):
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (mask[inside] == 0).all()
        assert (mask[~inside] == np.float32(around)).all()
        assert around <= 1


def test_hmix_shows_nothing_but_the_partner_inside_the_box():
    lam = np.linspace(0.05, 0.6, 6)
    mix = mix_of("hmix_gmix", lam, CENTRES[:6])
    boxes = hmix_boxes(lam, CENTRES[:6], 0.5, SIZE)
    assert (area_of(boxes, SIZE) > 0).all()
    for row, (top, bottom, left, right) in enumerate(boxes):
        assert torch.equal(mix.images[row, :, top:bottom, left:right], X[PERM[row], :, top:bottom, left:right])
    torch.testing.assert_close(mix.weights[:, 0], torch.from_numpy(lam).float())


def test_hmix_without_a_box_is_mixup():
    lam = LAM[:6]
    mix = mix_of("hmix_gmix(r=0.0)", lam, CENTRES[:6])
    weight = torch.from_numpy(lam).float()[:, None, None, None]
    torch.testing.assert_close(mix.images, weight * X + (1 - weight) * X[PERM])


def test_hmix_at_r_1_the_codes_default_makes_up_for_what_the_border_cuts():
    """CutMix's box at the corner; the label is λ, not what the box leaves."""
    lam, corner = np.full(6, 0.5), np.zeros((6, 2))
    boxes = hmix_boxes(lam, corner, 1, SIZE)
    assert np.array_equal(boxes, boxes_of(lam, corner, SIZE))
    mix = mix_of("hmix_gmix(r=1.0)", lam, corner)
    torch.testing.assert_close(mix.weights[:, 0], torch.full((6,), 0.5))
    assert (1 - area_of(boxes, SIZE) > 0.8).all()


def test_hmix_of_a_box_as_large_as_the_image_is_the_partner():
    mix = mix_of("hmix_gmix(r=1.0)", np.zeros(6), np.full((6, 2), 0.5))
    assert torch.equal(mix.images, X[PERM])
    assert torch.equal(mix.weights, torch.tensor([[0.0, 1.0]]).expand(6, 2))


@pytest.mark.parametrize("size", [(32, 32), SIZE], ids=str)
def test_gmix_is_the_papers_gaussian(size):
    """Round on any image; on square ones the authors' kernel, whose exponent has the height squared."""
    masks = gmix_masks(LAM, CENTRES, size).on(LIKE)[:, 0].double().numpy()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for mask, lam, centre in zip(masks, LAM, CENTRES, strict=True):
        middle = (centre * size).astype(int)
        distance = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2
        kernel = np.exp(-np.pi * distance / (min(lam, 1 - lam) * size[0] * size[1]))
        np.testing.assert_allclose(mask, kernel if lam < 0.5 else 1 - kernel, atol=1e-6)
        assert mask[tuple(middle)] == (1 if lam < 0.5 else 0)


def test_gmix_labels_with_what_the_borders_leave():
    found = gmix_masks(LAM, CENTRES, SIZE)
    shown = found.on(LIKE).double().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(found.means, shown, atol=1e-6)
    smaller = np.minimum(found.means, 1 - found.means)
    assert (smaller <= np.minimum(LAM, 1 - LAM) + 0.06).all(), "a Gaussian holds more than its integral"
    corner, middle = np.zeros((1, 2)), np.full((1, 2), 0.5)
    for lam in (0.1, 0.9):
        ends = [gmix_masks(np.array([lam]), centre, (256, 256)).means[0] for centre in (corner, middle)]
        np.testing.assert_allclose(np.minimum(ends, 1 - np.array(ends)), [0.1 / 4, 0.1], atol=2e-3)


def test_gmix_mirrors_lambda():
    """Own and partner change places with λ and 1 - λ, but at ½, where the partner has the Gaussian."""
    lam = np.linspace(0.05, 0.45, 6)
    one, other = (
        mix_of("hmix_gmix(variant=gmix)", lam, CENTRES[:6]),
        mix_of("hmix_gmix(variant=gmix)", 1 - lam, CENTRES[:6]),
    )
    torch.testing.assert_close(one.masks, other.masks.flip(1))
    torch.testing.assert_close(one.weights, other.weights.flip(1))
    half = gmix_masks(np.array([0.5]), np.full((1, 2), 0.5), SIZE).on(LIKE)[0, 0]
    assert half[12, 20] == 0
    assert half[0, 0] > 0.5


@pytest.mark.parametrize(("lam", "kept"), [(1.0, X), (0.0, X[PERM])], ids=["own", "partner"])
def test_gmix_at_the_ends_shows_one_image(lam, kept):
    mix = mix_of("hmix_gmix(variant=gmix)", np.full(6, lam), CENTRES[:6])
    assert torch.equal(mix.images, kept)
    assert torch.equal(mix.weights, torch.tensor([[lam, 1 - lam]]).expand(6, 2))


@pytest.mark.parametrize("variant", ["hmix", "gmix"])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_labels_are_what_is_shown(variant, per):
    colours = torch.eye(6)[:, :, None, None].expand(6, 6, *SIZE).contiguous()
    images, targets = mixwell.create(f"hmix_gmix(variant={variant}, per={per})", 6, seed=2).mix_batch(
        colours, torch.arange(6)
    )
    torch.testing.assert_close(images.mean((2, 3)), targets.dense(), atol=1e-5, rtol=0)
    assert len(targets.weights.unique(dim=0)) == (6 if per == "sample" else 1)


@pytest.mark.parametrize("variant", ["hmix", "gmix"])
def test_lambda_and_places_are_drawn_as_the_paper_says(variant):
    (option,) = mixwell.create(f"hmix_gmix(variant={variant}, alpha=0.5)").options
    rng = np.random.default_rng(1)
    lam, centres = option.ratio.draw(4000, rng), option.blend.draw(4000, rng)
    assert stats.kstest(lam, stats.beta(0.5, 0.5).cdf).pvalue > 1e-4
    assert stats.kstest(centres.ravel(), "uniform").pvalue > 1e-4
    for one, other in ((lam, centres[:, 0]), (lam, centres[:, 1]), (centres[:, 0], centres[:, 1])):
        assert stats.pearsonr(one, other).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_gmix_in_other_precisions(dtype):
    text = "hmix_gmix(variant=gmix)"
    mix = mix_of(text, LAM[:6], CENTRES[:6], X.to(dtype).contiguous(memory_format=torch.channels_last))
    assert mix.images.dtype == dtype
    assert mix.images.is_contiguous(memory_format=torch.channels_last)
    expected = mix_of(text, LAM[:6], CENTRES[:6]).images
    tolerance = {torch.float64: 1e-6, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(mix.images.float(), expected, atol=tolerance, rtol=tolerance)


def test_r_is_a_share():
    with pytest.raises(mixwell.ParameterError, match=r"r must be a number in \[0, 1\]"):
        mixwell.create("hmix_gmix(r=1.5)")


def test_a_step_of_training_with_gmix(cnn):
    model = cnn()
    loss = mixwell.create("hmix_gmix(variant=gmix)", 7)(model, X, torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
