"""AMR: what the players and the classifier learn from, how codes are mixed, and what labels say about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.mix import Partners
from mixwell.core.turns import Turn
from mixwell.sample.generative.amr import CodeShares, Resynthesis, deviation, how_mixed, judged, mix_codes

Make = Callable[..., nn.Module]

PIXELS = mixwell.Pixels((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SMALL = "depth=4, latent=6"
LABELS = torch.arange(5)


def codes_of(rows: int = 5, channels: int = 6) -> Tensor:
    """Row r, channel c show 10·r + c everywhere."""
    values = 10 * torch.arange(rows)[:, None] + torch.arange(channels)
    return values.float()[:, :, None, None].expand(-1, -1, 2, 3)


def partners_of(*columns: list[int]) -> Partners:
    return Partners.at(torch.tensor(columns).T, LABELS)


def bound(
    cnn: Make, given: str = "", size: tuple[int, int] = (16, 16), channels: int = 3
) -> tuple[mixwell.Recipe, nn.Module, Resynthesis]:
    """A recipe of small players, its network and its blend."""
    pixels = PIXELS if channels == len(PIXELS.mean) else mixwell.Pixels((0.5,), (0.25,))
    net = cnn(channels=channels)
    recipe = mixwell.create(f"amr({', '.join(filter(None, (SMALL, given)))})", 7, pixels=pixels)
    recipe.bind(net, torch.randn(2, channels, *size))
    return recipe, net, recipe.options[0].blend


def images_of(rows: int = 5, size: tuple[int, int] = (16, 16), channels: int = 3) -> Tensor:
    return torch.randn(rows, channels, *size)


def stepped(recipe: mixwell.Recipe, net: nn.Module, images: Tensor, step: int = 0, lr: float = 0.0) -> dict[str, Turn]:
    """The turns of a step, each followed by its own gradient step."""
    groups: dict[str, list[nn.Parameter]] = {}
    for group in recipe.parameter_groups(net):
        groups.setdefault(group["turn"], []).extend(group["params"])
    found = {}
    for turn in recipe.turns(net, images, torch.arange(len(images)) % 7, clock=mixwell.Clock(step)):
        for parameter in groups[turn.group]:
            parameter.grad = None
        turn.loss.backward()
        with torch.no_grad():
            for parameter in groups[turn.group]:
                parameter -= lr * parameter.grad
        found[turn.group] = turn
    return found


# Codes


def test_codes_are_summed_by_the_shares_of_row_source_and_channel() -> None:
    codes, partners, shares = codes_of(), partners_of([1, 2, 3, 4, 0], [2, 3, 4, 0, 1]), torch.rand(5, 3, 6)
    wanted = torch.einsum("bkd,bkdhw->bdhw", shares, codes[partners.sources])
    torch.testing.assert_close(mix_codes(codes, partners, shares), wanted)
    one = shares[:1, :, :1]
    wanted = torch.einsum("k,bkdhw->bdhw", one[0, :, 0], codes[partners.sources])
    torch.testing.assert_close(mix_codes(codes, partners, one), wanted)


@pytest.mark.parametrize("mixer", ["mixup", "mixup2", "fm", "fm2"])
@pytest.mark.parametrize("rows", [1, 5])
def test_shares_sum_to_1(mixer: str, rows: int) -> None:
    shares = CodeShares(mixer, latent=6)
    rng = np.random.default_rng(0)
    found = shares.of(shares.draw(rows, rng), torch.rand(rows, dtype=torch.float64), torch.empty(0))
    assert found.shape == (rows, 2, 1 if mixer == "mixup" else 6)
    assert found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


@pytest.mark.parametrize("mixer", ["mixup", "fm"])
@pytest.mark.parametrize("k", [3, 4])
def test_shares_of_several_images(mixer: str, k: int) -> None:
    shares = CodeShares(mixer, k, 6)
    found = shares.of(shares.draw(4000, np.random.default_rng(0)), torch.full((1,), torch.nan), torch.empty(0))
    assert found.shape == (4000, k, 1 if mixer == "mixup" else 6)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    assert ((found.mean(0) - 1 / k).abs() < 5 * 0.5 / 4000**0.5).all(), "five standard deviations"
    if mixer == "fm":
        assert ((found == 0) | (found == 1)).all()
    else:
        variance = (k - 1) / (k**2 * (k + 1))  # of a share under Dirichlet(1, …, 1)
        assert (found.var(0) / variance - 1).abs().max() < 0.15


@pytest.mark.parametrize("mixer", ["fm", "fm2"])
def test_each_channel_is_of_one_image(mixer: str) -> None:
    shares, partners, codes = CodeShares(mixer, latent=6), partners_of([1, 2, 3, 4, 0]), codes_of()
    found = shares.of(shares.draw(5, np.random.default_rng(0)), torch.rand(5), codes)
    mixed = mix_codes(codes, partners, found)
    own, other = mixed == codes, mixed == partners.of(codes)
    assert (own | other).all()
    assert torch.equal(own.float().mean((2, 3)), found[:, 0])


def test_coins_are_fair_or_follow_lambda() -> None:
    rng, lam = np.random.default_rng(0), torch.rand(4000)
    fair, led = CodeShares("fm", latent=8), CodeShares("fm2", latent=8)
    own = fair.of(fair.draw(4000, rng), lam, lam)[:, 0]
    assert (own.mean() - 0.5).abs() < 5 * 0.5 / (4000 * 8) ** 0.5
    assert torch.corrcoef(torch.stack((own.mean(1), lam)))[0, 1].abs() < 5 / 4000**0.5
    own = led.of(led.draw(4000, rng), lam, lam)[:, 0]
    assert ((own - lam[:, None]).mean(0).abs() < 5 * 0.5 / 4000**0.5).all()
    # Of one row the channels have a probability in common: two differ with probability E[2p(1-p)] = 1/3, not 1/2.
    assert ((own[:, 0] != own[:, 1]).float().mean() - 1 / 3).abs() < 5 * 0.5 / 4000**0.5


def test_lambda_0_and_1_leave_one_image() -> None:
    for mixer in ("mixup", "fm2"):
        shares = CodeShares(mixer, latent=6)
        drawn = shares.draw(2, np.random.default_rng(0))
        found = shares.of(drawn, torch.tensor([0.0, 1.0]), torch.empty(0))
        assert (found[0, 0] == 0).all()
        assert (found[1, 0] == 1).all()


def test_how_much_a_mix_was_mixed() -> None:
    torch.testing.assert_close(how_mixed(torch.tensor([0.0, 0.25, 0.5, 0.9])), torch.tensor([0.0, 0.5, 1.0, 0.2]))


# Losses


def test_a_critic_that_does_not_know_costs_log_2() -> None:
    logits = torch.zeros(4, dtype=torch.bfloat16)
    for wanted in (0.0, 1.0):
        assert judged(logits, wanted, "bce").item() == pytest.approx(math.log(2))
        assert judged(logits, wanted, "mse").item() == pytest.approx(0.25)
        assert judged(logits, wanted, "bce").dtype == torch.float32


def test_judgement_is_of_probabilities() -> None:
    logits, wanted = torch.randn(6), torch.rand(6)
    p = logits.sigmoid()
    torch.testing.assert_close(judged(logits, 1.0, "bce"), -p.log().mean())
    torch.testing.assert_close(judged(logits, 0.0, "bce"), -(1 - p).log().mean())
    torch.testing.assert_close(judged(logits, wanted, "mse"), (p - wanted).square().mean())


def test_deviations() -> None:
    made, wanted = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    torch.testing.assert_close(deviation(made, wanted, "l1"), (made - wanted).abs().mean())
    torch.testing.assert_close(deviation(made, wanted, "l2"), (made - wanted).square().mean())


# A step


def test_the_auto_encoder_learns_in_every_fifth_step_and_before_the_critic(cnn: Make) -> None:
    recipe, net, _ = bound(cnn)
    for step in range(7):
        first = ["amr/autoencoder"] if step % 5 == 0 else []
        assert [*stepped(recipe, net, images_of(), step)] == [*first, "amr/critic", "main"]


def test_each_player_has_its_own_adam(cnn: Make) -> None:
    recipe, net, blend = bound(cnn)
    groups = {group["turn"]: group for group in recipe.parameter_groups(net)}
    assert set(groups) == {"main", "amr/autoencoder", "amr/critic"}
    for turn, player in (("amr/autoencoder", blend.autoencoder), ("amr/critic", blend.critic)):
        assert set(groups[turn]["params"]) == set(player.parameters())
        settings = {name: value for name, value in groups[turn].items() if name not in ("params", "turn")}
        assert settings == {"optimizer": "adam", "lr": 1e-4, "betas": (0.5, 0.99), "weight_decay": 1e-5}
    assert set(groups["main"]["params"]) == set(net.parameters())


def test_each_turn_moves_its_own_parameters_alone(cnn: Make) -> None:
    recipe, net, blend = bound(cnn, "beta=1")
    parts = {"amr/autoencoder": blend.autoencoder, "amr/critic": blend.critic, "main": net}
    for turn in recipe.turns(net, images_of(), LABELS):
        for part in parts.values():
            part.zero_grad()
        turn.loss.backward()
        for name, part in parts.items():
            moved = [parameter.grad is not None for parameter in part.parameters()]
            assert all(moved) if name == turn.group else not any(moved)


def test_a_step_codes_once_and_the_critic_sees_what_the_auto_encoder_showed(cnn: Make) -> None:
    recipe, net, blend = bound(cnn)
    coded: list[Tensor] = []
    decoded: list[Tensor] = []
    judged_images: list[Tensor] = []
    blend.autoencoder.encoder.register_forward_hook(lambda _, args, codes: coded.append(codes.detach()))
    blend.autoencoder.decoder.register_forward_hook(lambda _, args, images: decoded.append(images.detach()))
    blend.critic.register_forward_hook(lambda _, args, logits: judged_images.append(args[0].detach()))
    images = images_of()
    turns = stepped(recipe, net, images, lr=1e-3)
    assert len(coded) == 1
    raw = PIXELS.raw(images) * 2 - 1
    again, mixed, shown = decoded
    for got, wanted in zip(judged_images, (again, mixed, raw, again, mixed), strict=True):
        torch.testing.assert_close(got, wanted)
    assert not torch.equal(shown, mixed), "the classifier's mix has partners of its own"
    loss = 50 * (again - raw).abs().mean()
    torch.testing.assert_close(turns["amr/autoencoder"].parts["reconstruction"], loss)


def test_the_players_losses_under_an_undecided_critic(cnn: Make) -> None:
    recipe, net, blend = bound(cnn, "rec_weight=2, beta=3")
    blend.critic.forward = lambda images: images.mean((1, 2, 3)) * 0
    found = {}
    for turn in recipe.turns(net, images_of(), LABELS):
        found[turn.group] = turn
    parts = found["amr/autoencoder"].parts
    assert found["amr/critic"].loss.item() == pytest.approx(3 * math.log(2))
    assert (parts["reconstruction_judged"] + parts["mix_judged"]).item() == pytest.approx(2 * math.log(2))
    torch.testing.assert_close(found["amr/autoencoder"].loss, sum(parts.values()))
    assert set(parts) == {"reconstruction", "reconstruction_judged", "mix_judged", "consistency"}


def test_acai_has_its_critic_tell_the_share(cnn: Make) -> None:
    recipe, net, blend = bound(cnn, "variant=acai")
    blend.critic.forward = lambda images: images.mean((1, 2, 3)) * 0
    option = recipe.options[0]
    draws = mixwell.Draws({piece: piece.draw(5, np.random.default_rng(0)) for piece, _ in option.drawing})
    found = {turn.group: turn.parts for turn in recipe.turns(net, images_of(), LABELS, draws=draws)}
    lam = draws[blend].lam
    wanted = np.square(0.5 - 2 * np.minimum(lam, 1 - lam)).mean()
    assert found["amr/critic"]["mix"].item() == pytest.approx(wanted, rel=1e-4)
    assert found["amr/critic"]["image"] == found["amr/critic"]["reconstruction"] == 0.25
    assert set(found["amr/autoencoder"]) == {"reconstruction", "mix_judged"}
    assert found["amr/autoencoder"]["mix_judged"] == 0.25


def mix_of(recipe: mixwell.Recipe, images: Tensor, **given: Any) -> mixwell.Mix:
    """The classifier's mix of a step, with some draws given by slot."""
    option = recipe.options[0]
    drawn = {piece: piece.draw(len(images), np.random.default_rng(0)) for piece, _ in option.drawing}
    drawn |= {getattr(option, slot): value for slot, value in given.items()}
    batch = mixwell.Batch(images, torch.arange(len(images)), recipe.pixels)
    return option.mix(images, mixwell.Scene(batch, mixwell.Draws(drawn)))


def test_lambda_1_is_the_images_own_reconstruction(cnn: Make) -> None:
    recipe, _, blend = bound(cnn)
    images = images_of()
    mix = mix_of(recipe, images, ratio=np.ones(5))
    with torch.no_grad():
        made = blend.autoencoder.decode(blend.autoencoder.encode(PIXELS.raw(images) * 2 - 1))
    torch.testing.assert_close(mix.images, PIXELS.normalise((made + 1) / 2), rtol=1e-4, atol=1e-4)
    assert torch.equal(mix.weights, torch.tensor([[1.0, 0.0]]).expand(5, 2))
    assert not mix.images.requires_grad


def test_labels_follow_lambda_or_the_share_of_the_channels(cnn: Make) -> None:
    lam = np.linspace(0, 1, 5)
    mix = mix_of(bound(cnn)[0], images_of(), ratio=lam)
    np.testing.assert_allclose(mix.weights[:, 0].numpy(), lam, atol=1e-6)
    for given in ("mixer=mixup2", "mixer=fm", "mixer=fm2", "k=3", "mixer='fm', k=3"):
        recipe, _, blend = bound(cnn, given)
        draws, rest = blend.draw(5, np.random.default_rng(1)), {"ratio": lam} if blend.takes_lam else {}
        mix = mix_of(recipe, images_of(), blend=draws, **rest)
        shares = blend.shares.of(draws.shown, torch.from_numpy(lam), torch.empty(0))
        torch.testing.assert_close(mix.weights, shares.mean(2))
        torch.testing.assert_close(mix.weights.sum(1), torch.ones(5))
        assert len(mix.weights.unique(dim=0)) > 1


def test_every_row_shows_its_own_sources(cnn: Make) -> None:
    """A row's mix does not depend on other rows than its partner."""
    recipe, _, _ = bound(cnn)
    images, given = images_of(), {"pairing": np.array([1, 0, 3, 4, 2]), "ratio": np.full(5, 0.4)}
    mix, other = mix_of(recipe, images, **given), images.clone()
    other[2:] = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(mix_of(recipe, other, **given).images[:2], mix.images[:2])
    assert mix.sources.tolist() == [[0, 1], [1, 0], [2, 3], [3, 4], [4, 2]]


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((24, 40), 4), ((9, 5), 3), ((33, 18), 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_any_size_trains(cnn: Make, size: tuple[int, int], channels: int, rows: int) -> None:
    recipe, net, _ = bound(cnn, size=size, channels=channels)
    images = images_of(rows, size, channels)
    turns = stepped(recipe, net, images, lr=1e-3)
    assert all(torch.isfinite(turn.loss) for turn in turns.values())
    assert mix_of(recipe, images).images.shape == images.shape


def test_other_partners_and_ratios_may_be_asked_for(cnn: Make) -> None:
    net = cnn()
    for text in (
        f"k_mixup(k=2) + amr({SMALL})",
        f"bc + amr({SMALL})",
        f"augmix + amr({SMALL})",
        f"0.5*amr({SMALL}) | 0.5*none",
    ):
        recipe = mixwell.create(text, 7, pixels=PIXELS).bind(net, images_of())
        assert torch.isfinite(torch.stack([turn.loss for turn in recipe.turns(net, images_of(), LABELS)])).all()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("variant=acai, mixer=fm", "mixer='mixup' and k=2"),
        ("variant=acai, k=3", "mixer='mixup' and k=2"),
        ("mixer=mixup2, k=3", "mixes two codes"),
        ("k=1", "k must be a whole number ≥ 2"),
        ("betas=(0.5,)", "betas must be two numbers"),
        ("latent=0", "latent must be a whole number ≥ 1"),
        ("scales=1", "scales must be a whole number ≥ 2"),
        ("update_g_every=0", "update_g_every must"),
        ("alpha=0", "alpha must"),
    ],
)
def test_parameters_out_of_range(given: str, what: str) -> None:
    with pytest.raises(mixwell.ParameterError, match=what):
        mixwell.create(f"amr({given})", 7)


def test_what_cannot_act_is_told(cnn: Make) -> None:
    for text in ("amr + manifold_mixup", "amr + cutmix"):
        with pytest.raises(mixwell.IncompatibleRecipe):
            mixwell.create(text, 7, pixels=PIXELS)
    with pytest.raises(mixwell.IncompatibleRecipe, match="mix_batch"):
        mixwell.create("amr", 7, pixels=PIXELS).mix_batch(images_of(), LABELS)
    net = cnn()
    unknown = mixwell.create(f"amr({SMALL})", 7).bind(net, images_of())
    with pytest.raises(mixwell.BatchError, match="raw pixels"):
        next(unknown.turns(net, images_of(), LABELS))


@pytest.mark.usefixtures("one_thread")
def test_training_makes_the_players_better(cnn: Make) -> None:
    net = cnn()
    recipe = mixwell.create("amr(depth=8, latent=6, update_g_every=1, rec_weight=1000)", 7, pixels=PIXELS)
    images = PIXELS.normalise(F.interpolate(torch.rand(8, 3, 2, 2), (16, 16), mode="bilinear"))
    recipe.bind(net, images)
    optimisers = {group["turn"]: torch.optim.Adam(group["params"], lr=5e-3) for group in recipe.parameter_groups(net)}
    reconstruction = []
    for step in range(40):
        for turn in recipe.turns(net, images, torch.arange(8) % 7, clock=mixwell.Clock(step)):
            optimisers[turn.group].zero_grad()
            turn.loss.backward()
            optimisers[turn.group].step()
            if turn.group == "amr/autoencoder":
                reconstruction.append(turn.parts["reconstruction"].item())
    assert np.mean(reconstruction[-10:]) < 0.65 * reconstruction[0]
