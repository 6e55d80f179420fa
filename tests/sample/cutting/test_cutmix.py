"""CutMix's boxes and labels, and what its traps are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.mix import Partners
from mixwell.ops.boxes import area_of, boxes_of, pair_masks
from mixwell.sample.cutting.cutmix import paste

X = torch.randn(6, 3, 24, 40)
PARTNERS = Partners.at(torch.tensor([3, 0, 5, 1, 2, 4])[:, None], torch.arange(6))


def box_by_hand(lam, centre, size):
    """The authors' algorithm; with rows and columns as they stand in memory."""
    box = []
    for side, c in zip(size, centre, strict=True):
        cut, middle = int(side * np.sqrt(1 - lam)), int(c * side)
        box += [int(np.clip(middle - cut // 2, 0, side)), int(np.clip(middle + cut // 2, 0, side))]
    return box


@pytest.mark.parametrize("size", [(24, 40), (32, 32), (1, 9), (7, 5)], ids=str)
def test_boxes_are_the_authors(size):
    lam, centres = np.random.default_rng(0).random(500), np.random.default_rng(1).random((500, 2))
    expected = [box_by_hand(a, c, size) for a, c in zip(lam, centres, strict=True)]
    assert boxes_of(lam, centres, size).tolist() == expected


def test_rows_are_rows():
    """A flat image and a box in its right half."""
    (box,) = boxes_of(np.array([0.75]), np.array([[0.5, 0.9]]), (10, 100)).tolist()
    assert box == [3, 7, 65, 100]


def test_sides_below_two_pixels_give_no_box():
    assert boxes_of(np.array([0.99]), np.array([[0.5, 0.5]]), (10, 10)).tolist() == [[5, 5, 5, 5]]


def test_a_box_of_the_whole_size_is_clipped_where_it_stands():
    """λ = 0 does not mean that the whole image is pasted: its label share follows what really is."""
    corner, middle = np.array([[0.0, 0.0]]), np.array([[0.5, 0.5]])
    assert area_of(boxes_of(np.zeros(1), corner, (32, 32)), (32, 32)).item() == 0.25
    assert area_of(boxes_of(np.zeros(1), middle, (32, 32)), (32, 32)).item() == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("box", [[3, 20, 0, 17], [0, 24, 0, 40], [5, 5, 5, 5]], ids=str)
def test_one_box_for_all_and_one_each_paste_alike(box, layout):
    images = X.contiguous(memory_format=layout)
    one, each = np.array([box]), np.repeat(np.array([box]), 6, 0)
    expected = X.clone()
    expected[:, :, box[0] : box[1], box[2] : box[3]] = X[PARTNERS.index[:, 0], :, box[0] : box[1], box[2] : box[3]]
    for boxes in (one, each):
        pasted = paste(images, PARTNERS, boxes)
        assert torch.equal(pasted, expected)
        assert pasted.is_contiguous(memory_format=layout)


def test_masks_and_areas_count_the_same_pixels():
    rng = np.random.default_rng(0)
    boxes = boxes_of(rng.random(50), rng.random((50, 2)), (24, 40))
    counted = pair_masks(boxes, (24, 40))[:, 1].sum((1, 2)) / (24 * 40)
    np.testing.assert_allclose(area_of(boxes, (24, 40)), counted.numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_labels_are_the_pixels_that_are_shown(per):
    images, targets = mixwell.create(f"cutmix(per={per})", 6, seed=1).mix_batch(X, torch.arange(6))
    for row in range(6):
        if (own := targets.sources[row, 0]) != (other := targets.sources[row, 1]):
            shown = (images[row] == X[own]).all(0).float().mean()
            torch.testing.assert_close(targets.weights[row], torch.stack((shown, 1 - shown)))
            assert ((images[row] == X[own]) | (images[row] == X[other])).all()


def test_the_label_is_the_realised_area_not_lambda():
    recipe = mixwell.create("cutmix")
    (option,) = recipe.options
    draws = mixwell.Draws(
        {option.pairing: np.arange(6)[::-1].copy(), option.ratio: np.zeros(6), option.blend: np.zeros((6, 2))}
    )
    mix = option.mix(X, mixwell.Scene(mixwell.Batch(X, torch.arange(6)), draws))
    assert mix.lam.tolist() == [0] * 6
    torch.testing.assert_close(mix.weights[:, 0], torch.full((6,), 0.75))
