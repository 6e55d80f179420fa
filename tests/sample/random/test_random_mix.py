"""RandomMix's choice among recipes."""

from __future__ import annotations

import pytest
import torch

import mixwell

X, Y = torch.randn(4, 3, 8, 8), torch.arange(4)


def test_the_papers_candidates_and_weights():
    recipe = mixwell.create("random_mix", 4)
    assert [type(option.blend).__name__ for option in recipe.options] == [
        "Linear", "Box", "ResizedPaste", "FourierMask",
    ]  # fmt: skip
    assert recipe.weights == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_weights_of_the_grammar_and_in_proportion():
    assert mixwell.create("random_mix(0.25*mixup | 0.75*cutmix)").weights == [0.25, 0.75]
    assert mixwell.create("random_mix(mixup | cutmix)").weights == [0.5, 0.5]
    assert mixwell.create("random_mix(mixup | cutmix, weights=(1, 3))").weights == [0.25, 0.75]
    assert mixwell.create("random_mix(weights=(1, 1, 1, 1))").weights == [0.25] * 4


def test_a_weight_of_0_removes_a_candidate():
    recipe = mixwell.create("random_mix(mixup | cutmix, weights=(0, 2))")
    assert [type(option.blend).__name__ for option in recipe.options] == ["Box"]


def test_one_candidate_is_that_method():
    """The same draws, not just the same method."""
    alone, chosen = mixwell.create("cutmix", 4, seed=3), mixwell.create("random_mix(cutmix)", 4, seed=3)
    for _ in range(3):
        one, other = alone.mix_batch(X, Y), chosen.mix_batch(X, Y)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1].dense(), other[1].dense())


def test_candidates_are_any_recipes(vit):
    recipe = mixwell.create("random_mix(cutmix + transmix | manifold_mixup) + decouplemix", 7)
    assert [type(option.label).__name__ for option in recipe.options] == ["AttentionShares", "Shares"]
    images = torch.randn(4, 3, 32, 32)
    net = vit(7)
    assert all(torch.isfinite(recipe(net, images, Y)) for _ in range(4))
    assert str(mixwell.create(str(recipe), 7)) == str(recipe)


def test_bad_weights():
    with pytest.raises(mixwell.ParameterError, match="2 recipes and 3 weights"):
        mixwell.create("random_mix(mixup | cutmix, weights=(1, 2, 3))")
    with pytest.raises(mixwell.ParameterError, match="every weight is 0"):
        mixwell.create("random_mix(mixup | cutmix, weights=(0, 0))")
    with pytest.raises(mixwell.ParameterError, match="weights must be a number in"):
        mixwell.create("random_mix(mixup | cutmix, weights=(1, -1))")
