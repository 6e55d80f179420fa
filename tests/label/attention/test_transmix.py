"""TransMix's labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixwell
from mixwell.label.attention.transmix import attended
from mixwell.ops.boxes import pair_masks
from mixwell.ops.tokens import grid_of, token_shares


def masks_of(box, size=(32, 32)):
    return pair_masks(np.array([box]), size)


def areas_of(masks):
    return masks.mean((2, 3))


def test_by_hand():
    """A 2×2 grid; the box covers the upper right token."""
    masks = masks_of([0, 16, 16, 32])
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.2]])
    torch.testing.assert_close(token_shares(masks, attention), torch.tensor([[5 / 8, 3 / 8]]))
    torch.testing.assert_close(attended(areas_of(masks), masks, attention), torch.tensor([[0.6875, 0.3125]]))


def test_uniform_attention_and_an_aligned_box_give_cutmix():
    masks = masks_of([8, 24, 0, 16])
    torch.testing.assert_close(attended(areas_of(masks), masks, torch.full((1, 16), 0.06)), areas_of(masks))


@pytest.mark.parametrize(("box", "share"), [([0, 32, 0, 32], [0.0, 1.0]), ([4, 4, 4, 4], [1.0, 0.0])])
def test_whole_and_empty_boxes(box, share):
    masks = masks_of(box)
    assert attended(areas_of(masks), masks, torch.rand(1, 16) + 0.01).tolist() == [share]


def test_a_box_between_the_sampled_pixels_keeps_half_its_area():
    """Each token takes its top-left pixel, and this box covers none."""
    masks = masks_of([1, 7, 1, 7])
    shares = attended(areas_of(masks), masks, torch.rand(1, 16) + 0.01)
    torch.testing.assert_close(shares[0, 1], torch.tensor(36 / 1024 / 2))


def test_shares_stay_within_half_of_the_area():
    for _ in range(50):
        top, left = torch.randint(0, 20, (2,)).tolist()
        masks = masks_of([top, top + 12, left, left + 12])
        shares = attended(areas_of(masks), masks, torch.rand(1, 16).softmax(1))
        half = areas_of(masks)[0, 1] / 2
        assert half - 1e-6 <= shares[0, 1] <= half + 0.5 + 1e-6
        torch.testing.assert_close(shares.sum(1), torch.ones(1))


def test_the_scale_of_the_attention_does_not_matter():
    masks, attention = masks_of([0, 20, 5, 30]), torch.rand(1, 16)
    for factor in (1e-4, 7.0):
        torch.testing.assert_close(token_shares(masks, attention * factor), token_shares(masks, attention))


def test_half_precision_attention_does_not_underflow():
    masks, attention = masks_of([0, 20, 5, 30]), torch.rand(1, 16)
    tiny = (attention * 2e-7).half()
    assert torch.isfinite(token_shares(masks, tiny)).all()


def test_token_grids_of_non_square_images():
    assert grid_of(15, 24 / 40, "x") == (3, 5)
    assert grid_of(15, 40 / 24, "x") == (5, 3)
    assert grid_of(14 * 14, 1.0, "x") == (14, 14)
    masks = masks_of([0, 8, 0, 40], (24, 40))
    attention = torch.arange(15.0)[None]
    torch.testing.assert_close(token_shares(masks, attention)[0, 1], attention[0, :5].sum() / attention.sum())


def test_images_are_those_of_cutmix(vit):
    """The same seed cuts the same boxes; only the labels differ."""
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    model = vit().eval()
    (cut,) = mixwell.create("cutmix", 7, seed=3).turns(model, images, labels)
    (attention,) = mixwell.create("cutmix + transmix", 7, seed=3).turns(model, images, labels)
    assert torch.equal(cut.logits, attention.logits)
    assert torch.equal(cut.targets.sources, attention.targets.sources)
    assert not torch.allclose(cut.targets.weights, attention.targets.weights)


def test_the_other_branch_is_mixup_with_its_own_labels(vit):
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    model = vit().eval()
    (turn,) = mixwell.create("transmix(switch_prob=0.0, mixup_alpha=0.3)", 7).turns(model, images, labels)
    weights = turn.targets.weights
    mixed = weights[:, :1, None, None] * images + weights[:, 1:, None, None] * images[turn.targets.sources[:, 1]]
    torch.testing.assert_close(turn.logits, model(mixed).detach(), rtol=1e-4, atol=1e-4)
