"""StackMix's stacks, labels and evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mixwell

X, Y = torch.randn(6, 3, 8, 12), torch.arange(6)


@pytest.mark.parametrize(("axis", "dim"), [("height", 2), ("width", 3)])
def test_halves_are_the_image_and_its_partner(axis, dim):
    mixed, targets = mixwell.create(f"stackmix(axis={axis})", 6).mix_batch(X, Y)
    own, other = mixed.chunk(2, dim)
    assert torch.equal(own, X)
    assert torch.equal(other, X[targets.sources[:, 1]])
    assert set(targets.dense().unique().tolist()) <= {0.0, 0.5, 1.0}


def test_a_row_that_meets_itself_is_what_evaluation_sees():
    recipe = mixwell.create("stackmix", 6)
    for _ in range(20):
        mixed, targets = recipe.mix_batch(X, Y)
        alone = targets.sources[:, 0] == targets.sources[:, 1]
        assert torch.equal(mixed[alone], recipe.eval_images(X)[alone])
        assert (targets.dense()[alone].max(1).values == 1).all()


def test_resize_keeps_the_size_of_one_image():
    recipe = mixwell.create("stackmix(resize=true)", 6)
    mixed, _ = recipe.mix_batch(X, Y)
    assert mixed.shape == recipe.eval_images(X).shape == X.shape
    torch.testing.assert_close(mixed[:, :, :4], X.unflatten(2, (4, 2)).mean(3))


def test_a_recipe_mixes_first():
    """CutMix→StackMix: four sources, each half cut as its image was."""
    recipe = mixwell.create("stackmix(cutmix)", 6)
    mixed, targets = recipe.mix_batch(X, Y)
    own, other = mixed.chunk(2, 2)
    assert targets.sources.shape == (6, 4)
    torch.testing.assert_close(targets.weights.sum(1), torch.ones(6))
    partner = recipe.mix_batch(X, Y, clock=mixwell.Clock(0))[1].sources[:, 2]
    assert torch.equal(other, own[partner])
    assert torch.equal(targets.weights[:, 2:], targets.weights[partner, :2])


def test_a_switch_inside_switches():
    recipe = mixwell.create("stackmix(0.5*mixup | 0.5*none)", 6)
    counts = {recipe.mix_batch(X, Y)[1].sources.shape[1] for _ in range(30)}
    assert counts == {2, 4}


def test_recipes_that_need_a_network_are_refused():
    with pytest.raises(mixwell.IncompatibleRecipe, match="stackmix runs the recipe it was given on images alone, but"):
        mixwell.create("stackmix(manifold_mixup)", 6)
    with pytest.raises(mixwell.IncompatibleRecipe, match="add decouplemix beside it"):
        mixwell.create("stackmix(mixup + decouplemix)", 6)


def test_labels_of_pairs_work_beside_a_plain_stack_only():
    assert mixwell.create("stackmix + decouplemix", 6)
    with pytest.raises(mixwell.IncompatibleRecipe, match="exactly two sources"):
        mixwell.create("stackmix(cutmix) + decouplemix", 6)


def test_networks_with_global_pooling_train_and_are_evaluated_on_stacks():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    seen = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[2:]))
    recipe = mixwell.create("stackmix", 6)
    loss = recipe(net, X, Y)
    loss.backward()
    assert torch.isfinite(net[0].weight.grad).all()
    recipe.predictor(net)(recipe.eval_images(X))
    assert seen == [torch.Size((16, 12))] * 2
