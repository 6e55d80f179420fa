"""YOCO's cuts, flips and mixes in halves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.sample.cutting.yoco import FlipDraws, flipped, halves

X, Y = torch.randn(6, 3, 9, 7), torch.arange(6)


def test_halves_of_odd_sides():
    assert [half.shape[2] for half in halves(X, 2)] == [4, 5]
    assert [half.shape[3] for half in halves(X, 3)] == [3, 4]


def by_hand(image, width, flips):
    parts = halves(image[None], 3 if width else 2)
    return torch.cat(
        [part.flip(3) if flip else part for part, flip in zip(parts, flips, strict=True)], 3 if width else 2
    )[0]


def test_each_row_is_cut_and_flipped_by_its_own_coins():
    rng = np.random.default_rng(0)
    width, flips = rng.random(6) < 0.5, rng.random((6, 2)) < 0.5
    expected = torch.stack([by_hand(*row) for row in zip(X, width, flips, strict=True)])
    assert torch.equal(flipped(X, width, flips), expected)


def test_flipping_both_halves_of_a_cut_across_the_height_flips_the_image():
    coins = np.array([False]), np.array([[True, True]])
    assert torch.equal(flipped(X, *coins), X.flip(3))


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_coins_are_fair(per):
    piece = mixwell.create(f"yoco(per={per})").options[0].alone
    rng = np.random.default_rng(0)
    drawn = [piece.draw(4, rng) for _ in range(1000)]
    assert drawn[0].flips.shape == ((4, 2) if per == "sample" else (1, 2))
    for coins in (np.concatenate([d.width for d in drawn]), np.concatenate([d.flips for d in drawn]).ravel()):
        assert stats.binomtest(int(coins.sum()), coins.size).pvalue > 1e-4


def test_labels_stay():
    _, targets = mixwell.create("yoco", 6).mix_batch(X, Y)
    assert torch.equal(targets.dense(), torch.eye(6))


def test_a_mix_in_halves_has_one_partner_and_the_areas_mean_share():
    recipe = mixwell.create("yoco(mixup(per=batch), per=batch)", 6)
    for step in range(10):
        mixed, targets = recipe.mix_batch(X, Y, clock=mixwell.Clock(step))
        own, other = X, X[targets.sources[:, 1]]
        lam = ((mixed - other) / (own - other).where(own != other, torch.ones(()))).where(own != other, torch.nan)
        shares = lam[targets.sources[:, 1] != Y].nanmean((0, 1))
        assert len(shares.flatten().round(decimals=3).unique()) == 2
        torch.testing.assert_close(shares.mean(), targets.weights[0, 0], atol=1e-4, rtol=0)


def test_boxes_lie_inside_their_halves():
    recipe = mixwell.create("yoco(cutmix)", 6)
    mixed, targets = recipe.mix_batch(X, Y)
    assert targets.sources.shape == (6, 2)
    (option,) = recipe.options
    mix = option.mix(X, mixwell.Scene(mixwell.Batch(X, Y), option.draw(6, recipe._streams, 0)))
    assert torch.equal(mix.images, mixed)
    torch.testing.assert_close(mix.masks.mean((2, 3)), targets.weights)


def test_augmentations_of_single_images_run_on_each_half():
    """An inner YOCO flips quarters: rows keep their pixels as sets, and some row is mirrored in one part only."""
    recipe = mixwell.create("yoco(yoco(per=batch), per=batch)", 6)
    changed = 0
    for _ in range(20):
        mixed, _ = recipe.mix_batch(X, Y)
        assert torch.equal(mixed.sort(dim=3).values, X.sort(dim=3).values)
        changed += not torch.equal(mixed, X) and not torch.equal(mixed, X.flip(3))
    assert changed > 10


def test_options_must_agree_in_their_partners():
    with pytest.raises(mixwell.IncompatibleRecipe, match="same partners"):
        mixwell.create("yoco(0.5*mixup | 0.5*ricap)", 6)


def test_a_draw_can_be_given():
    piece = mixwell.create("yoco").options[0].alone
    scene = mixwell.Scene(
        mixwell.Batch(X, Y), mixwell.Draws({piece: FlipDraws(np.array([True]), np.array([[1, 0]]) > 0)})
    )
    (image,) = piece.images(scene.draws[piece], scene)
    assert torch.equal(image[:, :, :, :3], X[:, :, :, :3].flip(3))
    assert torch.equal(image[:, :, :, 3:], X[:, :, :, 3:])
