"""Whatever `create` accepts trains: every method, through the network, with every kind of target and precision."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.core.axes import LossWrapper, Need, Slot
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.registry import method_of
from mixwell.sample.saliency.supermix import SearchedMasks

EVERY = pytest.mark.parametrize("slug", [*mixwell.methods(), "none"])

SHAPES = list(itertools.product([1, 2, 7], [(32, 32), (24, 40)], [1, 3, 4], [False, True], ["sample", "batch"]))


def labels_of(kind, rows=6, classes=7):
    ids = torch.arange(rows) % classes
    return {
        "int64": ids,
        "int32": ids.int(),
        "one-hot": F.one_hot(ids, classes).float(),
        "soft": torch.rand(rows, classes).softmax(1),
        "multi-hot": (torch.rand(rows, classes) > 0.5).float(),
    }[kind]


def skip_own_criterion(slug):
    if slug != "none" and any(piece.slot is Slot.CRITERION for piece in method_of(slug).build().essential):
        pytest.skip("the method brings its own criterion")
    if slug != "none" and any(
        isinstance(piece, LossWrapper) and type(piece).counts is not LossWrapper.counts
        for piece in method_of(slug).build().essential
    ):
        pytest.skip("rows do not count alike")
    if slug != "none" and any(isinstance(piece, SearchedMasks) for piece in method_of(slug).build().essential):
        pytest.skip("rows whose search failed do not count")


@pytest.mark.matrix(keep=24)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_two_steps_move_every_parameter_and_stay_finite(slug, case, recipe_for, network_for):
    rows, size, channels, channels_last, per = case
    # The network's first stage is given the image itself, and a single channel has no deviation over channels.
    elsewhere = {"site": 1} if (slug, channels) == ("moex", 1) else {}
    recipe = recipe_for(slug, per=per, seed=2, **elsewhere)
    model = network_for(recipe, channels=channels, size=size).train()
    images, labels = torch.randn(rows, channels, *size), torch.arange(rows)
    if channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    recipe.bind(model, images)
    groups = recipe.parameter_groups(model)
    optimisers = {group["turn"]: [] for group in groups}
    for group in groups:
        optimisers[group["turn"]].append(torch.optim.SGD(group["params"], lr=0.05))
    kept = images.clone(), labels.clone()
    for _ in range(2):
        for turn in recipe.turns(model, images, labels):
            for optimiser in optimisers[turn.group]:
                optimiser.zero_grad()
            turn.loss.backward()
            assert turn.loss.ndim == 0
            assert torch.isfinite(turn.loss)
            if turn.group == "main":
                for name, parameter in model.named_parameters():
                    assert parameter.grad is not None, f"{name} got no gradient"
                    assert torch.isfinite(parameter.grad).all(), name
            for optimiser in optimisers[turn.group]:
                optimiser.step()
        recipe.after_step(model)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EVERY
def test_a_step_under_autocast(slug, dtype, recipe_for, network_for, main_turn):
    recipe = recipe_for(slug)
    model = network_for(recipe)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    with torch.autocast("cpu", dtype):
        turn = main_turn(recipe, model, images, labels)
    turn.loss.backward()
    assert turn.logits.dtype == dtype
    assert turn.loss.dtype == torch.float32
    assert turn.targets.weights.dtype == torch.float32
    assert torch.isfinite(turn.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@EVERY
def test_networks_of_another_precision(slug, dtype, recipe_for, network_for, main_turn):
    recipe = recipe_for(slug)
    model, images = network_for(recipe).to(dtype), torch.randn(6, 3, 32, 32, dtype=dtype)
    recipe.bind(model, images)
    turn = main_turn(recipe, model, images, torch.arange(6))
    turn.loss.backward()
    assert turn.logits.dtype == dtype
    assert torch.isfinite(turn.loss)
    assert turn.targets.weights.dtype == torch.float32


@pytest.mark.parametrize("kind", ["int64", "int32", "one-hot", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@EVERY
def test_the_loss_is_soft_cross_entropy(slug, smoothing, kind, recipe_for, network_for, main_turn):
    option = recipe_for(slug).options[0]
    if type(option.criterion) is not SoftCrossEntropy or len(option.terms) or option.wrapper is not None:
        pytest.skip("the method minimises something else")
    if smoothing and Need.SIMPLEX in option.label.breaks:
        pytest.skip("torch takes the sum of a row's label shares for 1")
    recipe = recipe_for(slug, label_smoothing=smoothing)
    turn = main_turn(recipe, network_for(recipe), torch.randn(6, 3, 32, 32), labels_of(kind))
    assert turn.targets.pool.dtype == labels_of(kind).dtype
    expected = F.cross_entropy(turn.logits, turn.targets.dense(), label_smoothing=smoothing)
    torch.testing.assert_close(turn.loss, expected)
    torch.testing.assert_close(turn.parts["criterion"], expected)


@EVERY
def test_multi_label_targets(slug, recipe_for, network_for, main_turn):
    skip_own_criterion(slug)
    recipe = recipe_for(slug, criterion="bce")
    turn = main_turn(recipe, network_for(recipe), torch.randn(6, 3, 32, 32), labels_of("multi-hot"))
    wanted, total = turn.targets.dense(), turn.targets.total[:, None]
    expected = F.binary_cross_entropy_with_logits(turn.logits, wanted)
    expected = expected + ((total - 1) * F.softplus(turn.logits)).mean()  # Σ_k w_k·BCE(z, y_k), also where Σ_k w_k ≠ 1
    torch.testing.assert_close(turn.parts["criterion"], expected)


@EVERY
def test_a_criterion_of_ones_own(slug, recipe_for, network_for, main_turn):
    """Label for label, weighted with the shares: cross-entropy given as a callable is cross-entropy."""
    skip_own_criterion(slug)
    recipe = recipe_for(slug, criterion=nn.CrossEntropyLoss(reduction="none"))
    turn = main_turn(recipe, network_for(recipe), torch.randn(6, 3, 32, 32), torch.arange(6))
    torch.testing.assert_close(turn.parts["criterion"], F.cross_entropy(turn.logits, turn.targets.dense(7)))


def test_label_shares_in_a_step(slug, recipe_for, network_for, main_turn):
    """They name rows of the batch, and sum to 1 where the blend says so."""
    recipe = recipe_for(slug)
    for _ in range(8):
        targets = main_turn(recipe, network_for(recipe), torch.randn(6, 3, 32, 32), torch.arange(6)).targets
        if all(o.blend is None or Need.SIMPLEX in o.blend.gives - o.label.breaks for o in recipe.options):
            torch.testing.assert_close(targets.total, torch.ones(len(targets)))
            torch.testing.assert_close(targets.dense().sum(1), torch.ones(len(targets)))
        assert (targets.weights >= 0).all()
        assert targets.sources.min() >= 0
        assert targets.sources.max() < len(targets.pool)


@EVERY
def test_two_recipes_from_one_text_give_equal_losses(slug, recipe_for, network_for, main_turn):
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    first = recipe_for(slug, seed=4)
    second = mixwell.create(str(first), 7, seed=4, pixels=first.pixels)
    assert str(second) == str(first)
    for _ in range(4):
        one, two = (main_turn(recipe, network_for(recipe).eval(), images, labels) for recipe in (first, second))
        assert torch.equal(one.loss, two.loss)


def test_no_hook_stays_in_the_network(slug, recipe_for, network_for, main_turn):
    recipe = recipe_for(slug)
    model = network_for(recipe)
    for _ in range(4):
        main_turn(recipe, model, torch.randn(6, 3, 32, 32), torch.arange(6))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_compiled_network_trains_as_the_plain_one(slug, recipe_for, network_for):
    """Traced with the hooks in place: equal losses and gradients, step for step."""
    if not any(piece.network for option in recipe_for(slug).options for piece in option.pieces):
        pytest.skip("nothing happens inside the network")
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)

    def steps(compiled):
        recipe = recipe_for(slug, seed=1)
        model = network_for(recipe).eval()
        if compiled:
            recipe.install_hooks(model)
        callable_model = torch.compile(model, backend="eager") if compiled else model
        for _ in range(4):
            for turn in recipe.turns(callable_model, images, labels):
                model.zero_grad()
                turn.loss.backward()
                yield turn.loss.detach(), [parameter.grad for parameter in model.parameters()]

    for (loss, gradients), (expected, others) in zip(steps(True), steps(False), strict=True):
        torch.testing.assert_close(loss, expected)
        for one, other in zip(gradients, others, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
