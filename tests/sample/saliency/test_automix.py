"""AutoMix: what the mixer, the classifier and the teacher each learn from."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mixwell
from mixwell.core.mix import Partners
from mixwell.sample.saliency.automix import LessonDraws, MixBlockBlend, TaughtMix, area_loss, gamma_at

Make = Callable[..., nn.Module]


@pytest.fixture(params=["cnn", "vit"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A network with BatchNorm, and one with tokens."""
    return request.getfixturevalue(request.param)()


def batch(rows: int = 7, size: tuple[int, int] = (32, 32)) -> tuple[Tensor, Tensor]:
    """Images, and a class of its own for each of up to seven."""
    return torch.randn(rows, 3, *size), torch.arange(rows) % 7


def bound(net: nn.Module, text: str = "automix", **options: Any) -> tuple[mixwell.Recipe, MixBlockBlend]:
    recipe = mixwell.create(text, num_classes=7, **options).bind(net, example=torch.randn(2, 3, 32, 32))
    (option,) = recipe.options
    return recipe, option.blend


def sharpen(blend: MixBlockBlend, std: float = 0.5) -> None:
    """Weights with which masks differ from ½."""
    for parameter in blend.mixer.parameters():
        nn.init.normal_(parameter, std=std)


def mixed(
    blend: MixBlockBlend,
    images: Tensor,
    labels: Tensor,
    lam: Tensor,
    /,
    **draws: Any,
) -> TaughtMix:
    """A mix with the previous image, whose lesson mixes with the one before that."""
    rows = len(images)
    partner = draws.pop("classifiers", torch.arange(rows).roll(1))
    given = {
        "partner": np.roll(np.arange(rows), 2),
        "lam": np.full(rows, 0.7),
        "adjust": np.zeros(rows),
        "judged": 0.5,
    } | draws
    scene = mixwell.Scene(mixwell.Batch(images, labels))
    mix = blend.mix(images, Partners.at(partner[:, None], labels), lam, LessonDraws(**given), scene)
    assert isinstance(mix, TaughtMix)
    return mix


def steps(recipe: mixwell.Recipe, net: nn.Module, count: int) -> list[float]:
    """Train on one batch."""
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05, momentum=0.9)
    images, labels = batch()
    losses = []
    for step in range(count):
        clock = mixwell.Clock(step, total=10)
        loss = recipe(net, images, labels, clock=clock)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recipe.after_step(net, clock)
        losses.append(loss.item())
    return losses


# The mix


def test_masks_show_the_partner_where_the_mixer_says(net: nn.Module) -> None:
    _, blend = bound(net)
    sharpen(blend)
    images, labels = batch()
    mix = mixed(blend, images, labels, torch.full((7,), 0.4, dtype=torch.float64))
    own, other = mix.masks.unbind(1)
    torch.testing.assert_close(own + other, torch.ones_like(own))
    assert ((own > 0) & (own < 1)).all()
    assert own.std() > 1e-3
    torch.testing.assert_close(mix.images, own[:, None] * images + other[:, None] * images.roll(1, 0))
    torch.testing.assert_close(mix.area, own.mean((1, 2)))
    torch.testing.assert_close(mix.apply(images), mix.images)
    assert mix.sources.tolist() == [[row, (row - 1) % 7] for row in range(7)]


def test_classifiers_mix_has_no_path_to_the_mixer_and_the_lesson_has(net: nn.Module) -> None:
    _, blend = bound(net)
    mix = mixed(blend, *batch(), torch.full((7,), 0.4))
    assert not mix.images.requires_grad
    assert not mix.masks.requires_grad
    gradients = torch.autograd.grad(mix.lesson.images.square().sum(), [*blend.mixer.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_a_row_that_meets_itself_stays_itself(net: nn.Module) -> None:
    _, blend = bound(net)
    sharpen(blend)
    images, labels = batch()
    itself = torch.arange(7)
    mix = mixed(blend, images, labels, torch.rand(7), classifiers=itself, partner=itself.numpy())
    assert torch.equal(mix.images, images)
    assert torch.equal(mix.lesson.images, images)


def test_the_lesson_has_its_own_partners_and_lam(net: nn.Module) -> None:
    _, blend = bound(net)
    sharpen(blend)
    images, labels = batch()
    lesson = mixed(blend, images, labels, torch.full((7,), 0.4), lam=np.linspace(0, 1, 7)).lesson
    partner = np.roll(np.arange(7), 2)
    assert lesson.targets.classes.tolist() == [[row, partner[row]] for row in range(7)]
    torch.testing.assert_close(lesson.targets.weights[:, 0], torch.linspace(0, 1, 7))
    torch.testing.assert_close(lesson.images, (1 - lesson.mask) * images + lesson.mask * images[partner])


def test_small_shares_are_mixed_linearly_for_the_classifier_only(net: nn.Module) -> None:
    _, blend = bound(net)
    sharpen(blend)
    images, labels = batch()
    lam = torch.tensor([0.02, 0.08, 0.3, 0.5, 0.7, 0.93, 0.99])
    mix = mixed(blend, images, labels, lam, lam=lam.double().numpy())
    linear = lam.view(-1, 1, 1, 1) * images + (1 - lam.view(-1, 1, 1, 1)) * images.roll(1, 0)
    for row in range(7):
        if row in (2, 3, 4):
            assert not torch.allclose(mix.images[row], linear[row], atol=1e-3)
        else:
            torch.testing.assert_close(mix.images[row], linear[row])
    assert all(lesson_mask.std() > 0 for lesson_mask in mix.lesson.mask)


def test_masks_are_adjusted_to_the_classifiers_lam_and_the_code_takes_the_mixers(net: nn.Module) -> None:
    lam = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    for rule, wanted in (("paper", lam), ("code", lam.flip(0))):
        _, blend = bound(net, f"automix(mask_adjust=0.5, rule={rule})")
        sharpen(blend)
        coins = np.array([0.0, 0.4, 0.6, 0.9, 0.1, 0.2, 0.5])
        images, labels = batch()
        mix = mixed(blend, images, labels, lam, lam=lam.flip(0).double().numpy(), adjust=coins)
        adjusted = torch.from_numpy(coins < 0.5)
        torch.testing.assert_close(mix.area[adjusted], wanted[adjusted])
        assert not torch.isclose(mix.area[~adjusted], wanted[~adjusted], atol=1e-4).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_layout_are_the_images(cnn: Make, dtype: torch.dtype) -> None:
    _, blend = bound(cnn())
    blend.teacher.net.to(dtype)
    images, labels = batch(5, (24, 40))
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    mix = mixed(blend, images, labels, torch.full((5,), 0.4))
    for made in (mix.images, mix.lesson.images):
        assert made.dtype == dtype
        assert made.shape == images.shape
        assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    coarse = mix.apply(torch.randn(5, 2, 6, 10, dtype=dtype))
    assert coarse.shape == (5, 2, 6, 10)


# Labels and losses


def test_labels_follow_the_drawn_lam_not_the_area(net: nn.Module) -> None:
    for per in ("sample", "batch"):
        recipe, blend = bound(net, f"automix(per={per})")
        sharpen(blend)
        images, labels = batch()
        lam = np.full(1 if per == "batch" else 7, 0.9)
        option = recipe.options[0]
        lesson = LessonDraws(np.arange(7), lam, np.zeros(len(lam)), 0.5)
        draws = mixwell.Draws({option.pairing: np.roll(np.arange(7), 1), option.ratio: lam, blend: lesson})
        (turn,) = recipe.turns(net, images, labels, draws=draws)
        torch.testing.assert_close(turn.targets.dense(), 0.9 * torch.eye(7) + 0.1 * torch.eye(7).roll(1, 0))


def test_area_loss_is_zero_within_epsilon_and_linear_beyond() -> None:
    mask = torch.stack([torch.full((1, 4, 4), value) for value in (0.3, 0.5, 0.9)])
    lam = torch.tensor([0.75, 0.2, 0.2])
    assert area_loss(mask, lam, 0.1).item() == pytest.approx((0 + 0.2 + 0) / 3, abs=1e-6)
    batch_area = 1 - (0.3 + 0.5 + 0.9) / 3
    assert area_loss(mask, torch.tensor([0.1]), 0.1).item() == pytest.approx(batch_area - 0.2, abs=1e-6)


def test_gamma_is_constant_or_falls_to_zero() -> None:
    assert [gamma_at(mixwell.Clock(step, 10), 0.1, "constant") for step in (0, 9)] == [0.1, 0.1]
    falling = [gamma_at(mixwell.Clock(step, 10), 0.1, "cosine") for step in (0, 5, 10)]
    assert falling == pytest.approx([0.1, 0.05, 0])
    assert gamma_at(mixwell.Clock(5), 0.1, "cosine") == 0.1


def test_the_loss_is_the_sum_of_its_four_parts(net: nn.Module) -> None:
    net.eval()  # no dropout, so that the passes can be repeated
    recipe, blend = bound(net, "automix(gamma=0.5, epsilon=0)")
    sharpen(blend)
    images, labels = batch()
    option = recipe.options[0]
    lesson_draws = LessonDraws(np.roll(np.arange(7), 2), np.full(7, 0.7), np.zeros(7), 0.5)
    lam = torch.full((7,), 0.4)
    draws = {option.pairing: np.roll(np.arange(7), 1), option.ratio: lam.double().numpy(), blend: lesson_draws}
    (turn,) = recipe.turns(net, images, labels, draws=mixwell.Draws(draws))
    mix = mixed(blend, images, labels, lam)
    probe = mixwell.Probe(net)
    cross_entropy = nn.functional.cross_entropy

    def mce(logits: Tensor, lam: float, shift: int) -> Tensor:
        return lam * cross_entropy(logits, labels) + (1 - lam) * cross_entropy(logits, labels.roll(shift))

    wanted = (
        mce(probe.run(mix.images, head=blend.mixed_head).logits, 0.4, 1)
        + cross_entropy(net(images), labels)
        + mce(blend.teacher.logits(mix.lesson.images), 0.7, 2)
        + 0.5 * (1 - mix.lesson.mask.mean((1, 2, 3)) - 0.7).abs().mean()
    )
    torch.testing.assert_close(turn.loss, wanted)


def test_the_mixers_part_teaches_the_mixer_only(net: nn.Module) -> None:
    recipe, blend = bound(net)
    sharpen(blend)
    images, labels = batch()
    option = recipe.options[0]
    scene = mixwell.Scene(mixwell.Batch(images, labels))
    mix = mixed(blend, images, labels, torch.full((7,), 0.4))
    step = mixwell.Step(scene, mix, mixwell.Outputs(torch.randn(7, 7)))
    _, mixers = option.terms
    mixers.value(step, option.targets(step), option.criterion).backward()
    assert {name for name, p in recipe.named_parameters() if p.grad is not None} == {
        f"options.0.blend.mixer.{conv}.{kind}" for conv in ("query", "value") for kind in ("weight", "bias")
    }
    assert all(conv.weight.grad.any() for conv in (blend.mixer.query, blend.mixer.value))
    assert all(p.grad is None for p in net.parameters())


def test_the_step_teaches_the_network_both_heads_and_the_mixer(net: nn.Module) -> None:
    recipe, blend = bound(net)
    recipe(net, *batch()).backward()
    for trained in (net, blend.mixed_head, blend.mixer.value):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
    assert blend.mixer.value.weight.grad.any()
    assert all(p.grad is None for p in blend.teacher.parameters())


def test_without_the_teachers_judgement_only_the_area_counts(net: nn.Module) -> None:
    recipe, blend = bound(net, "automix(mixer_prob=0.5)")
    images, labels = batch()
    assert mixed(blend, images, labels, torch.full((7,), 0.4), judged=0.49).lesson.judge is not None
    mix = mixed(blend, images, labels, torch.full((7,), 0.4), judged=0.51)
    option = recipe.options[0]
    step = mixwell.Step(mixwell.Scene(mixwell.Batch(images, labels)), mix, mixwell.Outputs(torch.randn(7, 7)))
    value = option.terms[1].value(step, option.targets(step), option.criterion)
    torch.testing.assert_close(value, 0.1 * area_loss(mix.lesson.mask, mix.lesson.lam, 0.1))


# Draws


def test_draws() -> None:
    for per, count in (("sample", 4000), ("batch", 1)):
        draws = MixBlockBlend(per=per).draw(4000, np.random.default_rng(0))
        assert sorted(draws.partner) == list(range(4000))
        assert draws.lam.shape == draws.adjust.shape == (count,)
    draws = MixBlockBlend(alpha=2).draw(4000, np.random.default_rng(0))
    assert draws.lam.mean() == pytest.approx(0.5, abs=0.015)
    assert draws.lam.var() == pytest.approx(0.05, rel=0.08)
    assert draws.adjust.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(draws.lam, draws.adjust)[0, 1]) < 0.06


def test_the_two_batches_of_a_step_are_drawn_apart(cnn: Make) -> None:
    recipe, blend = bound(cnn())
    option = recipe.options[0]
    draws = option.draw(500, recipe._streams, 0)
    assert (draws[option.pairing] == draws[blend].partner).sum() < 10
    assert abs(np.corrcoef(draws[option.ratio], draws[blend].lam)[0, 1]) < 0.15


# The teacher


def test_after_a_step_the_teacher_is_the_moving_average(net: nn.Module) -> None:
    recipe, blend = bound(net, "automix(momentum=0.9, final_momentum=0.99, hold=0)")
    before = [p.clone() for p in blend.teacher.parameters()]
    steps(recipe, net, 1)
    trained = [*net.parameters(), *blend.mixed_head.parameters()]
    for k, old, q in zip(blend.teacher.parameters(), before, trained, strict=True):
        torch.testing.assert_close(k, 0.9 * old + 0.1 * q)
        assert k.grad is None


@pytest.mark.parametrize("method", ["automix", "samix", "adautomix"])
def test_a_training_too_short_for_the_average_is_told_what_suits_it(cnn: Make, method: str) -> None:
    net = cnn()
    recipe, _ = bound(net, method)
    with pytest.warns(UserWarning, match="will still hold 64% of its initial weights") as told:
        recipe.after_step(net, mixwell.Clock(0, total=900))
    wanted = re.search(r"Take (momentum=[\d.]+, final_momentum=[\d.]+)\.$", str(told[0].message))
    assert wanted is not None
    advised, _ = bound(cnn(), f"{method}({wanted[1]})")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advised.after_step(net, mixwell.Clock(0, total=900))
        recipe.after_step(net, mixwell.Clock(1, total=900))
        recipe.after_step(net, mixwell.Clock(0, total=7000))
        recipe.after_step(net, mixwell.Clock(0))


def test_the_predictor_is_the_teacher_with_its_clean_classifier(net: nn.Module) -> None:
    recipe, blend = bound(net)
    steps(recipe, net, 2)
    predictor = recipe.predictor(net).eval()
    net.eval()
    images, _ = batch()
    assert not torch.allclose(predictor(images), net(images), atol=1e-3)
    with torch.no_grad():
        blend.teacher.head.weight.fill_(100)
    assert predictor(images).abs().max() < 50


def test_the_teacher_behaves_like_the_network_even_after_an_evaluation(cnn: Make) -> None:
    net = cnn()
    net.get_submodule("layer1").eval()  # frozen statistics
    recipe, blend = bound(net)
    recipe.predictor(net).eval()
    before = {name: buffer.clone() for name, buffer in blend.teacher.net.named_buffers()}
    recipe(net, *batch())
    moved = {name for name, buffer in blend.teacher.net.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {name for name in before if not name.startswith("layer1")}


# The recipe


def test_trains(net: nn.Module) -> None:
    recipe, blend = bound(net)
    before = copy.deepcopy(blend.mixer.state_dict())
    losses = steps(recipe, net, 12)
    assert all(np.isfinite(losses))
    assert np.mean(losses[-4:]) < losses[0]
    assert not torch.equal(before["value.weight"], blend.mixer.value.weight)


@pytest.mark.parametrize(
    "options",
    [
        "lam_concat=true",
        "upsample=bilinear",
        "per=batch",
        "mask_adjust=0.5",
        "stage=1",
        "stage='layer3'",
        "reduction=99",
    ],
)
def test_trains_with(cnn: Make, options: str) -> None:
    net = cnn()
    recipe, _ = bound(net, f"automix({options})")
    assert all(np.isfinite(steps(recipe, net, 2)))
    assert str(mixwell.create(str(recipe), num_classes=7)) == str(recipe)


@pytest.mark.parametrize("rows", [2, 5])
def test_trains_on_any_size(cnn: Make, rows: int) -> None:
    net = cnn()
    recipe, _ = bound(net)
    loss = recipe(net, *batch(rows, (30, 45)))
    loss.backward()
    assert loss.isfinite()


def test_states_round_trip_through_a_file(net: nn.Module, tmp_path: Path) -> None:
    recipe, _ = bound(net)
    other_net = copy.deepcopy(net)
    other, _ = bound(other_net)
    steps(recipe, net, 2)
    save_file(recipe.state_dict(), tmp_path / "recipe.safetensors")
    other.load_state_dict(load_file(tmp_path / "recipe.safetensors"))
    other_net.load_state_dict(net.state_dict())
    for one, two in zip(recipe.state_dict().items(), other.state_dict().items(), strict=True):
        assert one[0] == two[0]
        assert torch.equal(one[1], two[1])
    images, labels = batch()
    values = []
    for trained, owner in ((net, recipe), (other_net, other)):
        torch.manual_seed(0)
        values.append(owner(trained, images, labels, clock=mixwell.Clock(2)).item())
    assert values[0] == values[1]


def test_needs_example_images_when_it_is_bound(cnn: Make) -> None:
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"automix: .*recipe\.bind\(model, example=images\)"):
        mixwell.create("automix", num_classes=7).bind(cnn())
    with pytest.raises(mixwell.IncompatibleRecipe, match="mix_batch"):
        mixwell.create("automix", num_classes=7).mix_batch(*batch())


def test_owned_parameters_must_be_given_to_the_optimiser(cnn: Make) -> None:
    net = cnn()
    recipe, _ = bound(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    images, labels = batch(2, (8, 8))

    def train() -> None:
        for _ in range(40):
            recipe(net, images, labels).backward()
            optimizer.step()
            recipe.after_step(net)

    with pytest.raises(mixwell.OwnershipError, match="blend"):
        train()


def test_batches_that_a_switch_leaves_plain_are_the_networks_own(cnn: Make) -> None:
    net = cnn().eval()  # no dropout
    recipe = mixwell.create("0.5*automix | 0.5*none", num_classes=7).bind(net, example=torch.randn(2, 3, 32, 32))
    images, labels = batch(3, (16, 16))
    turns = [turn for step in range(12) for turn in recipe.turns(net, images, labels, clock=mixwell.Clock(step))]
    plain = [turn for turn in turns if set(turn.parts) == {"criterion"}]
    assert 0 < len(plain) < 12
    for turn in plain:
        torch.testing.assert_close(turn.loss, nn.functional.cross_entropy(net(images), labels))


@pytest.mark.parametrize(
    "options",
    ["alpha=0", "reduction=0", "lam_margin=0.6", "momentum=1.5", "final_momentum=0.5", "epsilon=-1", "gamma=-1"],
)
def test_parameters_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(mixwell.ParameterError, match=options.partition("=")[0]):
        mixwell.create(f"automix({options})", num_classes=7)
