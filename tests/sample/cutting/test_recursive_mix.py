"""RecursiveMix's history, boxes and loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.ops.boxes import area_of
from mixwell.sample.cutting.recursive_mix import pasted

SIZE = (12, 16)


def batch(rows=6, size=SIZE):
    return torch.randn(rows, 3, *size), torch.arange(rows) % 7


def steps(recipe, net, *batches, epochs=None):
    """The targets of consecutive steps."""
    found = []
    for place, (images, labels) in enumerate(batches):
        clock = mixwell.Clock(place, epoch=0 if epochs is None else epochs[place])
        found += [turn.targets for turn in recipe.turns(net, images, labels, clock=clock)]
    return found


@pytest.fixture
def made(cnn):
    net = cnn(7)
    return mixwell.create("recursive_mix", 7).bind(net, batch(size=(32, 32))[0]), net


def test_the_first_batch_stays_and_the_second_shows_it(made):
    first, second = steps(*made, batch(size=(32, 32)), batch(size=(32, 32)))
    assert torch.equal(first.weights[:, 0], torch.ones(6))
    assert not first.pool.is_floating_point()
    assert torch.equal(second.sources, torch.stack((torch.arange(6), torch.arange(6, 12)), 1))
    assert (second.weights[:, 1] > 0).any()
    assert second.weights[:, 1].max() < 0.5
    torch.testing.assert_close(second.dense().sum(1), torch.ones(6))


def test_labels_recur(made):
    """What is two steps back weighs what its box's box weighs."""
    _, second, third = steps(*made, *(batch(size=(32, 32)) for _ in range(3)))
    torch.testing.assert_close(third.pool[6:], second.dense())


def test_every_epoch_begins_without_history(made):
    found = steps(*made, *(batch(size=(32, 32)) for _ in range(3)), epochs=[0, 0, 1])
    assert [bool((targets.weights[:, 1] > 0).any()) for targets in found] == [False, True, False]


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_batches_of_other_lengths(cnn, per):
    """A shorter batch meets the first old images; in a longer one the rest stays as it is."""
    net = cnn(7)
    recipe = mixwell.create(f"recursive_mix(per={per})", 7).bind(net, batch(size=(32, 32))[0])
    rows = (6, 2, 5)
    _, shorter, longer = steps(recipe, net, *(batch(count, (32, 32)) for count in rows))
    assert len(shorter) == 2
    assert (longer.weights[:2, 1] > 0).any()
    assert torch.equal(longer.weights[2:], torch.tensor([[1.0, 0.0]]).expand(3, 2))
    assert longer.sources.max() < len(longer.pool)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_one_box_for_all_and_one_each_paste_alike(interpolation):
    (images, _), old = batch(), torch.randn(4, 3, 9, 7)
    for box in ([2, 9, 3, 14], [0, 12, 0, 16], [5, 6, 7, 8], [4, 4, 2, 9]):
        one = pasted(images, old, np.array([box]), interpolation)
        each = pasted(images, old, np.array([box] * 4), interpolation)
        torch.testing.assert_close(each, one, atol=1e-5, rtol=0)
        assert torch.equal(one[4:], images[4:])


def test_boxes_have_at_most_the_share_alpha(made):
    recipe, _ = made
    piece = recipe.options[0].blend
    drawn = [piece.draw(50, np.random.default_rng(seed)) for seed in range(20)]
    area = np.concatenate([draws.area for draws in drawn])
    assert 0 <= area.min() < 0.01
    assert 0.49 < area.max() < 0.5
    assert area_of(np.array([[0, 6, 0, 8]]), SIZE) == 0.25


def test_the_boxes_loss_trains_its_own_head_and_not_the_past(made):
    recipe, net = made
    steps(recipe, net, batch(size=(32, 32)))
    images = batch(size=(32, 32))[0].requires_grad_()
    (turn,) = recipe.turns(net, images.detach(), torch.arange(6))
    turn.loss.backward()
    (consistency,) = recipe.options[0].terms
    assert consistency.head.weight.grad.abs().sum() > 0
    history = recipe.options[0].blend.history
    assert not any(kept.requires_grad for kept in (history.images, history.logits, history.labels))
    assert consistency.head.weight in {p for g in recipe.parameter_groups(net) for p in g["params"]}
    assert not any("head" in name and "options" in name for name in recipe.predictor(net).state_dict())


def test_the_loss_is_the_share_of_the_cross_entropy_with_what_was_said(made):
    recipe, net = made
    recipe.options[0].blend.per = "batch"
    steps(recipe, net, batch(size=(32, 32)))
    said = recipe.options[0].blend.history.logits
    (turn,) = recipe.turns(net, *batch(size=(32, 32)))
    bound = F.cross_entropy(said, said.softmax(1))  # the entropy: no prediction does better
    assert turn.parts["recursive_mix"] >= 0.5 * turn.targets.weights[0, 1] * bound - 1e-5
