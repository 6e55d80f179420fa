"""Every piece that changes the moments of hidden maps: what it may do to a map, where, and beside whom."""

from __future__ import annotations

import itertools

import pytest
import torch

import mixwell
from mixwell.core.axes import Scene, Statistics
from mixwell.core.registry import method_of
from mixwell.core.rng import Streams

STATISTICS = [
    slug
    for slug in mixwell.methods()
    for pieces in [method_of(slug).build()]
    if any(isinstance(piece, Statistics) for piece in (*pieces.essential, *pieces.suggested))
]
EVERY = pytest.mark.parametrize("slug", STATISTICS)

MAPS = list(
    itertools.product(
        [1, 2, 7],
        [(5, 9), (8, 8)],
        [torch.float16, torch.bfloat16, torch.float32, torch.float64],
        [torch.contiguous_format, torch.channels_last],
    )
)

# What the small network's modules are given, in its order, and the site that each comes from.
BEHIND = {"layer1.0": "stem", "layer2.0": "layer1", "layer3.0": "layer2", "dropout": "layer3"}


def always(slug, prob=1):
    """The method, acting on every batch (or none)."""
    return f"{slug}(prob={prob})" if "prob" in method_of(slug).parameters else slug


@pytest.fixture
def changed(cnn):
    """`changed(slug, maps)`: the maps as the piece's first site hands them on."""

    def change(slug, maps, seed=0):
        rows = len(maps)
        recipe = mixwell.create(always(slug), 7).bind(cnn(7), torch.randn(2, 3, 16, 16))
        (option,) = recipe.options
        draws = option.draw(rows, Streams(seed), 0)
        drawn = draws[option.statistics]
        scene = Scene(mixwell.Batch(torch.randn(rows, 3, 16, 16), torch.arange(rows)), draws)
        return option.statistics.change(maps, option.statistics.sites(drawn)[0], drawn, scene, None)

    return change


def test_there_are_some():
    assert STATISTICS


@pytest.mark.matrix(keep=24)
@pytest.mark.parametrize("case", MAPS, ids=str)
@EVERY
def test_maps_of_any_shape_precision_and_layout(slug, case, changed):
    rows, size, dtype, layout = case
    maps = (torch.randn(rows, 8, *size) * 3 + 1).to(dtype).contiguous(memory_format=layout)
    kept = maps.clone()
    found = changed(slug, maps)
    assert found.shape == maps.shape
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)
    assert torch.isfinite(found).all()
    assert torch.equal(maps, kept)
    reference = changed(slug, maps.double())
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float32: 1e-3, torch.float64: 0}[dtype]
    torch.testing.assert_close(found.double(), reference, rtol=tolerance, atol=tolerance)


@EVERY
def test_an_image_alone_keeps_its_moments(slug, changed):
    """Its partner is itself."""
    maps = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(changed(slug, maps), maps)


@EVERY
def test_equal_images_change_nothing(slug, changed):
    maps = torch.randn(1, 8, 6, 6).expand(5, -1, -1, -1)
    torch.testing.assert_close(changed(slug, maps), maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@EVERY
def test_gradients_are_finite_even_of_constant_maps(slug, dtype, changed):
    maps = torch.randn(6, 8, 6, 6)
    maps[1], maps[2], maps[3, 2] = 0, 4, -1
    maps = maps.to(dtype).requires_grad_()
    found = changed(slug, maps)
    found.float().square().mean().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad.abs().max() > 0


@EVERY
def test_a_seed_decides(slug, changed):
    maps = torch.randn(7, 8, 6, 6)
    assert torch.equal(changed(slug, maps, seed=3), changed(slug, maps, seed=3))
    assert not torch.allclose(changed(slug, maps, seed=3), changed(slug, maps, seed=4))


@EVERY
def test_it_acts_at_its_sites_and_not_before(slug, cnn):
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    model, given = cnn(7).eval(), {name: [] for name in BEHIND}
    for name in BEHIND:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: given[name].append(args[0].detach().clone())
        )
    recipe = mixwell.create(always(slug), 7).bind(model, images)
    sites = recipe.options[0].statistics.sites_used()
    assert recipe.sites == set(sites)
    for seen in given.values():
        seen.clear()
    model(images)
    recipe(model, images, labels)
    reached = False
    for name, site in BEHIND.items():
        plain, acted = given[name]
        reached = reached or site in sites
        assert torch.equal(plain, acted) != reached, f"what {name} is given"
    assert reached


@EVERY
def test_a_gate_that_stays_shut_leaves_plain_training(slug, cnn):
    model, images = cnn(7).eval(), torch.randn(6, 3, 16, 16)
    (shut,) = mixwell.create(always(slug, prob=0), 7).turns(model, images, torch.arange(6))
    (plain,) = mixwell.create("none", 7).turns(model, images, torch.arange(6))
    assert torch.equal(shut.loss, plain.loss)
    assert torch.equal(shut.targets.dense(), plain.targets.dense())


@EVERY
def test_evaluation_sees_nothing_of_it(slug, cnn):
    model, images = cnn(7).eval(), torch.randn(6, 3, 16, 16)
    before = model(images)
    recipe = mixwell.create(always(slug), 7)
    (turn,) = recipe.turns(model, images, torch.arange(6))
    assert not torch.allclose(turn.logits, before)
    assert torch.equal(model(images), before)
    assert torch.equal(recipe.eval_images(images), images)
    assert recipe.predictor(model) is model


@pytest.mark.parametrize("host", ["cutmix", "mixup", "ricap", "manifold_mixup", "augmix", "cutmix + transmix"])
@EVERY
def test_it_trains_beside_what_mixes_images(slug, host, network_for):
    """Before and behind mixes at the input and at hidden sites, and on views."""
    pixels = mixwell.Pixels((0.5,), (0.25,))
    recipe = mixwell.create(f"{host} + {always(slug)}", 7, seed=1, pixels=pixels)
    model = network_for(recipe)
    optimiser = torch.optim.SGD(recipe.parameter_groups(model), lr=0.05)
    for _ in range(4):
        (turn,) = recipe.turns(model, torch.randn(6, 3, 32, 32), torch.arange(6))
        optimiser.zero_grad()
        turn.loss.backward()
        optimiser.step()
        assert torch.isfinite(turn.loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        torch.testing.assert_close(turn.targets.total, torch.ones(6))
        torch.testing.assert_close(turn.targets.dense().sum(1), torch.ones(6))
