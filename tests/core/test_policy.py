"""Recipes inside pieces, recipes that come with a method, and rows that count differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mixwell
from mixwell.core.algebra import parse
from mixwell.core.axes import Need
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.plain import Permutation
from mixwell.core.policy import Inner, picked

X, Y = torch.randn(6, 3, 8, 8), torch.arange(6)


def scene():
    return mixwell.Scene(mixwell.Batch(X, Y))


def test_picked_is_the_first_option_whose_cumulative_weight_is_beyond():
    assert [picked([0.5, 0.25, 0.25], point) for point in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [0, 0, 1, 1, 2, 2]
    assert picked([0.2, 0.3, 0.5 - 1e-12], 1 - 1e-13) == 2
    assert picked([0.0, 1.0], 0.0) == 1


def test_an_inner_recipe_mixes_images_of_its_owners_choice():
    inner = Inner(parse("cutmix"), "owner")
    draws = inner.draw(6, np.random.default_rng(0))
    mix = inner.mix(X[:, :, :4], draws, scene())
    assert mix.images.shape == (6, 3, 4, 8)
    assert torch.equal(mix.images, inner.mix(X[:, :, :4], draws, scene()).images)
    partners = mixwell.Partners.at(torch.arange(6)[:, None], Y)
    assert torch.equal(inner.mix(X, draws, scene(), partners).images, X)


def test_an_inner_switch_draws_its_option():
    inner = Inner(parse("0.3*mixup | 0.7*none"), "owner")
    rng = np.random.default_rng(0)
    options = [inner.draw(2, rng).option for _ in range(2000)]
    assert 0.25 < options.count(0) / 2000 < 0.35
    assert {inner.draw(2, rng, 1).option for _ in range(5)} == {1}
    assert inner.gives == frozenset({Need.PAIR, Need.SIMPLEX, Need.OWN_ROW})
    assert not inner.plain
    assert Inner(parse("none"), "owner").plain


@pytest.mark.parametrize("text", ["manifold_mixup", "cutmix + transmix", "puzzlemix", "augmix"])
def test_what_acts_beyond_images_cannot_be_inside(text):
    with pytest.raises(mixwell.IncompatibleRecipe, match="owner runs the recipe it was given on images alone"):
        Inner(parse(text), "owner")


def test_several_partners_come_from_a_permutation_each():
    pairing = Permutation(3)
    draws = pairing.draw(50, np.random.default_rng(0))
    assert draws.shape == (3, 50)
    assert all(sorted(row) == list(range(50)) for row in draws)
    assert len({tuple(row) for row in draws}) == 3
    partners = pairing.partners(draws, mixwell.Scene(mixwell.Batch(torch.zeros(50, 1), torch.arange(50))))
    assert partners.sources.shape == (50, 4)
    assert torch.equal(partners.sources[:, 0], torch.arange(50))
    assert torch.equal(partners.of(torch.arange(50.0)[:, None], 2)[:, 0].long(), torch.from_numpy(draws[2]))


def test_a_pairing_of_one_cannot_serve_a_blend_of_four():
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"gives each image 1 partner, but .* mixes it with 2"):
        mixwell.create("k_mixup + cut_thumbnail(variant=multiple)")


def test_rows_count_as_much_as_they_are_told():
    logits, targets = torch.randn(4, 5), mixwell.Targets.of(torch.arange(4), 5)
    criterion = SoftCrossEntropy()
    rows, counts = criterion.rows(logits, targets), torch.tensor([1.0, 0.5, 0.0, 2.0])
    torch.testing.assert_close(criterion(logits, targets, None, counts), (rows * counts).sum() / counts.sum())
    valid = torch.tensor([True, False, True, True])
    torch.testing.assert_close(
        criterion(logits, targets, valid, counts), (rows * counts)[valid].sum() / counts[valid].sum()
    )
    nothing = criterion(logits.requires_grad_(), targets, None, torch.zeros(4))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(logits.grad, torch.zeros(4, 5))


def test_evaluation_sees_images_as_the_pieces_say():
    recipe = mixwell.create("stackmix", 6)
    assert recipe.eval_images(X).shape == (6, 3, 16, 8)
    assert mixwell.create("mixup", 6).eval_images(X) is X


def test_prepare_reaches_every_piece(monkeypatch):
    seen = []
    recipe = mixwell.create("0.5*mixup | 0.5*cutmix", 6, pixels=mixwell.Pixels((0.5,), (0.25,)))
    for option in recipe.options:
        monkeypatch.setattr(option.blend, "prepare", lambda workshop: seen.append(next(iter(workshop.batches()))))
    assert recipe.prepare(lambda: [mixwell.Batch(X, Y)], "test") is recipe
    assert len(seen) == 2
    assert all(batch.pixels == recipe.pixels for batch in seen)
    assert isinstance(recipe, nn.Module)
