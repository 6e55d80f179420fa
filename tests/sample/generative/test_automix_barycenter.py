"""AutoMix by barycenters: the rendered half and the clean one, distances of images, and what the U-Net learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.sample.generative.automix_barycenter import (
    Barycenters,
    FirstHalf,
    UNetMix,
    distances,
    reconstruction,
)

Make = Callable[..., nn.Module]
PIXELS = mixwell.Pixels((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
MEASURES = ["norm1", "norm2", "kl", "js"]


def bound(cnn: Make, given: str = "", pixels: mixwell.Pixels | None = None, channels: int = 3) -> mixwell.Recipe:
    """A recipe with a small U-Net, bound to the small network."""
    text = f"automix_barycenter({', '.join(filter(None, ('width=4', given)))})"
    return mixwell.create(text, 7, pixels=pixels).bind(cnn(channels=channels), torch.randn(2, channels, 16, 16))


def mix_of(recipe: mixwell.Recipe, images: Tensor, **given: Any) -> Barycenters:
    """The mix of a step, with some draws given by slot; every row has a class of its own."""
    option = recipe.options[0]
    drawn = {piece: piece.draw(len(images), np.random.default_rng(0)) for piece, _ in option.drawing}
    drawn |= {getattr(option, slot): value for slot, value in given.items()}
    batch = mixwell.Batch(images, torch.arange(len(images)), recipe.pixels)
    mix = option.mix(images, mixwell.Scene(batch, mixwell.Draws(drawn)))
    assert isinstance(mix, Barycenters)
    return mix


# Distances


@pytest.mark.parametrize("distance", MEASURES)
def test_an_image_is_at_no_distance_from_itself(distance: str) -> None:
    images = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(distances(images, images, distance), torch.zeros(4))
    assert (distances(images, torch.randn_like(images), distance) > 0).all()


def test_norms_compare_images_scaled_as_a_whole() -> None:
    images, made = torch.randn(4, 3, 5, 6), 7 * torch.randn(4, 3, 5, 6)
    for distance in ("norm1", "norm2"):
        found = distances(images, made, distance)
        assert ((found >= 0) & (found <= 1)).all()
        torch.testing.assert_close(distances(3 * images - 2, 5 * made + 1, distance), found)
    assert not torch.allclose(distances(images[:2], made[:2]), distances(images, made)[:2]), "all rows have one scale"


def test_images_that_touch_0_or_1_are_not_scaled_as_in_the_authors_code() -> None:
    other = torch.tensor([[0.0, 1.0]])
    touching = torch.tensor([[0.0, 0.5]])
    torch.testing.assert_close(distances(touching, other), torch.tensor([0.25]))
    torch.testing.assert_close(distances(touching - 1, other), torch.tensor([0.0]))
    torch.testing.assert_close(distances(touching + 0.5, other), torch.tensor([0.25]))


def test_images_without_contrast_are_at_a_finite_distance() -> None:
    flat = torch.full((2, 3, 4, 4), 0.3, requires_grad=True)
    loss = distances(flat, torch.randn(2, 3, 4, 4)).sum()
    (gradient,) = torch.autograd.grad(loss, flat)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_divergences_are_of_softmax_probabilities() -> None:
    images, made = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    p, q = (x.flatten(1).log_softmax(1) for x in (images, made))
    torch.testing.assert_close(distances(images, made, "kl"), F.kl_div(q, p, reduction="none", log_target=True).sum(1))
    torch.testing.assert_close(distances(images, made, "js"), distances(made, images, "js"))


@pytest.mark.parametrize("distance", MEASURES)
def test_reconstruction_weighs_both_distances(distance: str) -> None:
    own, other, made, lam = *torch.randn(3, 4, 3, 5, 6), torch.rand(4)
    near, far = distances(own, made, distance), distances(other, made, distance)
    kinds = {kind: reconstruction(own, other, made, lam, kind, distance) for kind in (1, 2, 3)}
    torch.testing.assert_close(kinds[1], (lam * near + (1 - lam) * far).mean())
    torch.testing.assert_close(kinds[2], ((1 - lam) * near + lam * far).mean())
    weight = lam[:, None, None, None]
    torch.testing.assert_close(kinds[3], distances(weight * own + (1 - weight) * other, made, distance).mean())


# The mix


@pytest.mark.parametrize("rows", [2, 3, 7, 8])
def test_the_second_half_stays_clean(cnn: Make, rows: int) -> None:
    images = torch.randn(rows, 3, 16, 16)
    mix, half = mix_of(bound(cnn), images), rows // 2
    assert torch.equal(mix.images[half:], images[half:])
    assert (mix.images[:half] != images[:half]).any((1, 2, 3)).all()
    assert torch.equal(mix.images[:half], mix.made)
    assert torch.equal(mix.own, images[:half])
    assert torch.equal(mix.other, images[mix.sources[:half, 1]])
    assert (mix.sources[:half] < half).all()
    assert torch.equal(mix.sources[half:], torch.arange(half, rows)[:, None].expand(-1, 2))
    assert torch.equal(mix.weights[half:, 0], torch.ones(rows - half))
    torch.testing.assert_close(mix.targets().dense(rows).sum(1), torch.ones(rows))


def test_labels_follow_lambda(cnn: Make) -> None:
    lam, partner = np.array([0.2, 0.5, 1.0, 0.3, 0.3, 0.3, 0.3]), np.array([1, 2, 0, 3, 4, 5, 6])
    mix = mix_of(bound(cnn), torch.randn(7, 3, 16, 16), ratio=lam, pairing=partner)
    wanted = torch.eye(7)
    wanted[:3, :3] = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(mix.targets().dense(7), wanted)
    assert mix_of(bound(cnn, "per=batch"), torch.randn(7, 3, 16, 16)).weights[:3].unique(dim=0).shape == (1, 2)


def test_a_single_image_is_left_alone(cnn: Make) -> None:
    recipe, net = bound(cnn), cnn()
    recipe.bind(net, torch.randn(2, 3, 16, 16))
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(mix_of(recipe, images).images, images)
    (turn,) = recipe.turns(net.eval(), images, torch.zeros(1, dtype=torch.int64))
    assert turn.parts["automix_barycenter"] == 0
    torch.testing.assert_close(turn.loss, F.cross_entropy(net(images), torch.zeros(1, dtype=torch.int64)))


def test_partners_are_uniform_in_the_first_half() -> None:
    pairing, rng = FirstHalf(), np.random.default_rng(0)
    drawn = np.stack([pairing.draw(9, rng) for _ in range(4000)])
    assert (np.sort(drawn[:, :4], 1) == np.arange(4)).all()
    assert (drawn[:, 4:] == np.arange(4, 9)).all()
    for row in range(4):
        counts = np.bincount(drawn[:, row], minlength=4)
        assert (abs(counts / 4000 - 1 / 4) < 5 * (3 / 16 / 4000) ** 0.5).all(), "five standard deviations"


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_each_channel_is_the_images_at_the_rate_lambda(per: str) -> None:
    blend, rng = UNetMix(4, per=per), np.random.default_rng(0)
    drawn = [blend.draw(5, rng).places for _ in range(4000)]
    assert [places.shape for places in drawn[0]] == [(1 if per == "batch" else 2, n) for n in (4, 8, 16, 32, 32)]
    first, deep = (np.stack([places[level] for places in drawn]) for level in (0, 4))
    assert (np.sort(deep, 2) == np.arange(32)).all()
    assert (abs((first < 3).mean(0) - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5).all()
    assert abs(np.corrcoef(first[:, 0, 0], deep[:, 0, 0])[0, 1]) < 5 / 4000**0.5, "every level has an order of its own"


def test_the_authors_bracket_takes_mean_by_std_from_what_is_rendered(cnn: Make) -> None:
    images = torch.randn(6, 3, 16, 16)
    paper, code = (mix_of(bound(cnn, f"rule={rule}", PIXELS), images) for rule in ("paper", "code"))
    shift = torch.tensor(PIXELS.mean) / torch.tensor(PIXELS.std)
    torch.testing.assert_close(paper.images[:3] - code.images[:3], shift[:, None, None].expand(3, 3, 16, 16))
    assert torch.equal(paper.images[3:], code.images[3:])
    with pytest.raises(mixwell.BatchError, match="raw pixels"):
        mix_of(bound(cnn, "rule=code"), images)


# What is learnt


def gradients(
    recipe: mixwell.Recipe, net: nn.Module, images: Tensor
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Of the network and of the U-Net, after one step."""
    (turn,) = recipe.turns(net, images, torch.arange(len(images)))
    net.zero_grad()
    recipe.zero_grad()
    turn.loss.backward()
    return [p.grad for p in net.parameters()], [p.grad for p in recipe.parameters()]


def test_the_u_net_learns_from_both_losses_and_the_network_from_one(cnn: Make) -> None:
    images, found = torch.randn(6, 3, 16, 16), {}
    for weight in (0, 2):
        recipe, net = bound(cnn, f"rec_weight={weight}"), cnn().eval()
        recipe.bind(net, images)
        found[weight] = gradients(recipe, net, images)
    torch.testing.assert_close(found[0][0], found[2][0])
    assert any(grad.abs().sum() > 0 for grad in found[0][1]), "the classifier's loss reaches the U-Net"
    moved = [not torch.allclose(one, other) for one, other in zip(found[0][1], found[2][1], strict=True)]
    assert sum(moved) > len(moved) / 2


def test_the_loss_is_the_divergence_and_the_weighted_reconstruction(cnn: Make) -> None:
    recipe, net, images = bound(cnn, "rec_weight=2, recon_type=3, distance=kl"), cnn().eval(), torch.randn(6, 3, 16, 16)
    recipe.bind(net, images)
    option = recipe.options[0]
    draws = mixwell.Draws({piece: piece.draw(6, np.random.default_rng(0)) for piece, _ in option.drawing})
    (turn,) = recipe.turns(net, images, torch.arange(6), draws=draws)
    mix = mix_of(recipe, images)
    wanted, log_p = mix.targets().dense(7), net(mix.images).log_softmax(1)
    torch.testing.assert_close(turn.parts["criterion"], F.kl_div(log_p, wanted, reduction="batchmean"))
    lam = mix.weights[:3, 0]
    torch.testing.assert_close(
        turn.parts["automix_barycenter"], 2 * reconstruction(mix.own, mix.other, mix.made, lam, 3, "kl")
    )
    torch.testing.assert_close(turn.loss, sum(turn.parts.values()))


def test_both_networks_share_an_optimiser(cnn: Make) -> None:
    recipe, net = bound(cnn), cnn()
    recipe.bind(net, torch.randn(2, 3, 16, 16))
    groups = recipe.parameter_groups(net)
    assert {group["turn"] for group in groups} == {"main"}
    held = {parameter for group in groups for parameter in group["params"]}
    assert held == {*net.parameters(), *recipe.options[0].blend.unet.parameters()}


@pytest.mark.usefixtures("one_thread")
def test_training_brings_what_is_rendered_nearer(cnn: Make) -> None:
    """With λ = 1, to the images themselves."""
    recipe, net = mixwell.create("automix_barycenter(width=8, rec_weight=100, distance=norm2)", 7), cnn()
    images = F.interpolate(torch.randn(8, 3, 2, 2), (16, 16), mode="bilinear")
    (option,) = recipe.bind(net, images).options
    groups = [{"params": group["params"]} for group in recipe.parameter_groups(net)]
    optimiser, parts = torch.optim.Adam(groups, lr=5e-3), []
    for step in range(50):
        drawn = {piece: piece.draw(8, np.random.default_rng(step)) for piece, _ in option.drawing}
        draws = mixwell.Draws({**drawn, option.ratio: np.ones(8)})
        (turn,) = recipe.turns(net, images, torch.arange(8) % 7, draws=draws)
        optimiser.zero_grad()
        turn.loss.backward()
        optimiser.step()
        parts.append(turn.parts["automix_barycenter"].item())
    assert np.mean(parts[-10:]) < 0.6 * np.mean(parts[:5])


# What cannot act


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("alpha=0", "alpha must"),
        ("width=0", "width must"),
        ("rec_weight=-1", "rec_weight must"),
        ("recon_type=4", "1 or 2"),
    ],
)
def test_parameters_out_of_range(given: str, what: str) -> None:
    with pytest.raises(mixwell.ParameterError, match=what):
        mixwell.create(f"automix_barycenter({given})", 7)


@pytest.mark.parametrize("other", ["k_mixup", "bc", "manifold_mixup", "cutmix"])
def test_partners_and_place_are_the_methods_own(other: str) -> None:
    with pytest.raises(mixwell.IncompatibleRecipe, match="automix_barycenter"):
        mixwell.create(f"{other} + automix_barycenter", 7)
