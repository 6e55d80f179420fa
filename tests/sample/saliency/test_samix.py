"""SAMix: its mixer, what the mixer is taught, and that the rest is AutoMix."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mixwell
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.nets.taught import TaughtMix
from mixwell.sample.saliency.automix import LessonDraws, MixBlockBlend, PairLesson, area_loss
from mixwell.sample.saliency.samix import SAMixer, SAMixLoss, encoded, local_loss, mask_variance

Make = Callable[..., nn.Module]

PARTNER = torch.tensor([2, 0, 1, 3])


@pytest.fixture(params=["cnn", "vit"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A network with BatchNorm, and one with tokens."""
    return request.getfixturevalue(request.param)()


def batch(rows: int = 7, size: tuple[int, int] = (32, 32)) -> tuple[Tensor, Tensor]:
    """Images, and a class of its own for each of up to seven."""
    return torch.randn(rows, 3, *size), torch.arange(rows) % 7


def bound(net: nn.Module, text: str = "samix") -> tuple[mixwell.Recipe, MixBlockBlend]:
    recipe = mixwell.create(text, num_classes=7).bind(net, example=torch.randn(2, 3, 32, 32))
    (option,) = recipe.options
    return recipe, option.blend


def sharp(channels: int = 6, **options: Any) -> SAMixer:
    """A mixer with weights far from those it begins with."""
    mixer = SAMixer(channels, **options)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter)
    return mixer


def train(
    recipe: mixwell.Recipe, net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, data: tuple[Tensor, Tensor]
) -> list[float]:
    """The losses of some steps on one batch."""
    losses = []
    for step in steps:
        torch.manual_seed(step)  # of dropout
        clock = mixwell.Clock(step, total=10)
        loss = recipe(net, *data, clock=clock)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recipe.after_step(net, clock)
        losses.append(loss.item())
    return losses


# λ'


def test_encoded_lam_is_monotone_keeps_its_middle_and_ends_and_is_symmetric() -> None:
    lam = torch.linspace(0, 1, 101, dtype=torch.float64)
    for k in (0, 0.25, 1, 10):
        got = encoded(lam, k)
        torch.testing.assert_close(got[[0, 50, 100]], torch.tensor([0, 0.5, 1], dtype=torch.float64))
        torch.testing.assert_close(got + got.flip(0), torch.ones_like(lam))
        assert (got.diff() >= 0).all()


def test_small_k_pull_lam_to_the_middle_and_large_ones_are_capped() -> None:
    lam = torch.tensor([0.1, 0.3, 0.6, 0.8])
    away = [(encoded(lam, k) - 0.5).abs() for k in (0, 0.25, 1, 10)]
    assert all((nearer < farther).all() for nearer, farther in itertools.pairwise(away))
    assert (away[-1] < (lam - 0.5).abs()).all()
    assert torch.equal(encoded(lam, 10), encoded(lam, 50))
    assert torch.equal(encoded(lam, -1), lam)


# The mixer


@pytest.mark.parametrize("residual", [True, False])
def test_convolves_scaled_stacked_features(residual: bool) -> None:
    """Convolving once and gathering is the same as convolving what the paper stacks."""
    mixer, x, lam = sharp(lam_mul=0.7, lam_residual=residual).eval(), torch.randn(4, 6, 3, 5), torch.rand(4)
    share = encoded(lam, 0.25).view(-1, 1, 1, 1)
    own, other = (1 + 0.7 * share, 1 + 0.7 * (1 - share)) if residual else (share, 1 - share)
    a, b = x * own, x[PARTNER] * other
    both = torch.cat((a, b), 1)
    wanted = mixer.query(both), mixer.key(both), mixer.value(F.elu(mixer.norm(mixer.inner(b))))
    for got, want in zip(mixer.maps(x, PARTNER, lam.view(-1, 1, 1, 1)), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_masks_on_non_square_grids() -> None:
    mask = sharp()(torch.randn(4, 6, 3, 5), PARTNER, torch.rand(4), (12, 10))
    assert mask.shape == (4, 1, 12, 10)
    assert ((mask > 0) & (mask < 1)).all()
    assert mask.std() > 0.01


def test_masks_depend_on_lam_unless_it_is_left_out() -> None:
    x = torch.randn(4, 6, 4, 4)
    for lam_mul, same in ((1.0, False), (0.0, True)):
        mixer = sharp(lam_mul=lam_mul).eval()
        low, high = (mixer(x, PARTNER, torch.tensor([lam]), (8, 8)) for lam in (0.2, 0.9))
        assert torch.allclose(low, high, atol=1e-3) == same


def test_one_lam_is_every_rows_lam() -> None:
    mixer, x = sharp(), torch.randn(4, 6, 4, 4)
    one = mixer(x, PARTNER, torch.tensor([0.3]), (8, 8))
    torch.testing.assert_close(one, mixer(x, PARTNER, torch.full((4,), 0.3), (8, 8)))


def test_which_image_is_first_matters() -> None:
    mixer, x, half = sharp().eval(), torch.randn(2, 6, 4, 4), torch.tensor([0.5])
    one, two = mixer(x, torch.tensor([1, 0]), half, (8, 8))
    assert not torch.allclose(one, 1 - two, atol=1e-2)


def test_begins_at_one_half() -> None:
    mask = SAMixer(16)(torch.randn(4, 16, 4, 4), PARTNER, torch.rand(4), (8, 8))
    assert (mask - 0.5).abs().max() < 0.05


def test_runs_in_fp32_under_autocast() -> None:
    mixer, x, lam = sharp(), torch.randn(4, 6, 4, 4).bfloat16(), torch.rand(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mixer(x, PARTNER, lam, (8, 8))
    assert got.dtype == torch.float32
    assert torch.equal(got, mixer(x.float(), PARTNER, lam, (8, 8)))


def test_each_lam_mul_k_is_chosen_as_often() -> None:
    mixer, lam = sharp(lam_mul_k=(-1, 0, 1)), torch.full((1, 1, 1, 1), 0.3)
    by_chance = np.random.default_rng(0).random((3000, 2))
    chosen = [round(mixer.scales(lam, chance)[0].item() - 1, 4) for chance in by_chance]
    wanted = [round(encoded(torch.tensor(0.3), k).item(), 4) for k in (-1, 0, 1)]
    assert all(abs(chosen.count(value) - 1000) < 5 * math.sqrt(3000 * 2 / 9) for value in wanted)
    assert sum(map(chosen.count, wanted)) == 3000


def test_dropped_values_follow_what_was_drawn_and_nothing_else() -> None:
    mixer, x, lam = sharp(dropout=0.3).eval(), torch.randn(4, 6, 40, 50), torch.rand(4, 1, 1, 1)
    read = mixer.read(x)
    kept = mixer.paired(read, PARTNER, lam)[2]
    dropped = [mixer.paired(read, PARTNER, lam, np.array([0.5, chance]))[2] for chance in (0.1, 0.1, 0.2)]
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    gone = dropped[0] == 0
    torch.testing.assert_close(dropped[0][~gone], kept[~gone] / 0.7)
    assert gone.float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / gone.numel()))


def test_the_norms_statistics_follow_both_batches_of_a_step(net: nn.Module) -> None:
    recipe, blend = bound(net)
    recipe(net, *batch())
    assert blend.mixer.norm.num_batches_tracked == 2
    assert blend.mixer.norm.running_mean.any()


# What it is taught


def test_variance_is_each_images_or_the_batchs() -> None:
    mask = torch.rand(5, 1, 6, 8) * torch.rand(5, 1, 1, 1)
    each = torch.stack([((row - row.mean()) ** 2).mean() for row in mask]).mean()
    torch.testing.assert_close(mask_variance(mask, torch.rand(5)), each)
    torch.testing.assert_close(mask_variance(mask, torch.rand(1)), ((mask - mask.mean()) ** 2).mean())


def test_mask_loss_is_bounded_and_rewards_variance() -> None:
    loss = SAMixLoss()

    def of(mask: Tensor, lam: float) -> float:
        targets = mixwell.Targets.of(torch.arange(len(mask)))
        return loss.about_mask(PairLesson(mask, targets, None, mask, torch.tensor([lam]))).item()

    half = torch.tensor([0.0, 1.0]).repeat(8).view(1, 1, 4, 4)
    assert of(half, 0.5) == pytest.approx(-0.5)
    assert of(torch.zeros(1, 1, 4, 4), 0.0) == pytest.approx(0.9)
    assert of(torch.full((1, 1, 4, 4), 0.5), 0.5) == 0
    for _ in range(20):
        mask, lam = torch.rand(3, 1, 4, 4) ** 3, torch.rand(1)
        assert -0.5 <= of(mask, lam.item()) <= 0.9
        wanted = area_loss(mask, lam, 0.1) - 2 * mask.var(correction=0)
        assert of(mask, lam.item()) == pytest.approx(wanted.item(), abs=1e-6)


def test_local_loss_is_a_softmax_of_two_classes() -> None:
    logits, classes = torch.randn(6, 7), torch.stack((torch.arange(6), torch.arange(6) + 1), 1)
    lam = torch.rand(6)
    shares = torch.stack((lam, 1 - lam), 1)
    gap = logits[range(6), classes[:, 0]] - logits[range(6), classes[:, 1]]
    wanted = -lam * F.logsigmoid(gap) - (1 - lam) * F.logsigmoid(-gap)
    local = local_loss(logits, classes, shares)
    torch.testing.assert_close(local, wanted)
    everywhere = SoftCrossEntropy().rows(logits, mixwell.Targets(torch.arange(7), classes, shares))
    assert (local < everywhere).all()


def test_local_loss_of_one_class_teaches_nothing() -> None:
    logits = torch.randn(3, 7, requires_grad=True)
    loss = local_loss(logits, torch.tensor([[2, 2]] * 3), torch.tensor([[0.3, 0.7]] * 3))
    torch.testing.assert_close(loss.detach(), torch.full((3,), math.log(2)))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-6


def test_balanced_objective_is_local_and_eta_times_everywhere() -> None:
    logits = torch.randn(5, 7, requires_grad=True)
    targets = mixwell.Targets(torch.arange(7), torch.tensor([[0, 1]] * 5), torch.tensor([[0.3, 0.7]] * 5), 7)
    criterion = SoftCrossEntropy()
    everywhere = criterion(logits, targets)
    assert torch.equal(SAMixLoss().about_logits(logits, targets, criterion), everywhere)
    local = local_loss(logits, targets.classes, targets.weights).mean()
    balanced = SAMixLoss(eta=0.5).about_logits(logits, targets, criterion)
    torch.testing.assert_close(balanced, local + 0.5 * everywhere)
    (gradient,) = torch.autograd.grad(SAMixLoss(eta=0).about_logits(logits, targets, criterion), logits)
    assert gradient[:, :2].all()
    assert not gradient[:, 2:].any()


def test_eta_is_the_papers_option_and_no_part_of_the_codes_objective() -> None:
    assert mixwell.create("samix").options[0].terms[1].eta is None
    assert mixwell.create("samix(objective=balanced)").options[0].terms[1].eta == 0.5
    assert mixwell.create("samix(objective=balanced, eta=1)").options[0].terms[1].eta == 1
    with pytest.raises(mixwell.ParameterError, match="eta"):
        mixwell.create("samix(eta=1)")


def test_the_loss_is_the_sum_of_its_parts(cnn: Make) -> None:
    net = cnn().eval()  # no dropout and no statistics of batches, so that the passes can be repeated
    recipe, blend = bound(net, "samix(objective=balanced, gamma=0.5, epsilon=0, mask_adjust=0)")
    for parameter in blend.mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    images, labels = batch()
    (option,) = recipe.options
    drawn = LessonDraws(np.roll(np.arange(7), 2), np.full(7, 0.7), np.zeros(7), 0.5)
    draws = {option.pairing: np.roll(np.arange(7), 1), option.ratio: np.full(7, 0.4), blend: drawn}
    (turn,) = recipe.turns(net, images, labels, draws=mixwell.Draws(draws))
    partners = mixwell.Partners.at(torch.arange(7).roll(1)[:, None], labels)
    scene = mixwell.Scene(mixwell.Batch(images, labels))
    mix = blend.mix(images, partners, torch.full((7,), 0.4), drawn, scene)
    assert isinstance(mix, TaughtMix)
    lesson = mix.lesson
    cross_entropy = F.cross_entropy

    def mce(logits: Tensor, lam: float, shift: int) -> Tensor:
        return lam * cross_entropy(logits, labels) + (1 - lam) * cross_entropy(logits, labels.roll(shift))

    judged = blend.teacher.logits(lesson.images)
    gap = judged.gather(1, labels[:, None]) - judged.gather(1, labels.roll(2)[:, None])
    wanted = (
        mce(mixwell.Probe(net).run(mix.images, head=blend.mixed_head).logits, 0.4, 1)
        + cross_entropy(net(images), labels)
        - (0.7 * F.logsigmoid(gap) + 0.3 * F.logsigmoid(-gap)).mean()
        + 0.5 * mce(judged, 0.7, 2)
        + 0.5 * (1 - lesson.mask.mean((1, 2, 3)) - 0.7).abs().mean()
        - 0.5 * 2 * lesson.mask.var((1, 2, 3), correction=0).mean()
    )
    torch.testing.assert_close(turn.loss, wanted)


# The recipe


def test_a_quarter_of_the_masks_is_adjusted(cnn: Make) -> None:
    net = cnn()
    _, blend = bound(net)
    for parameter in blend.mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    images, labels = batch(8)
    coins = np.linspace(0, 0.99, 8)
    drawn = LessonDraws(np.arange(8), np.full(8, 0.7), coins, 0.5)
    partners = mixwell.Partners.at(torch.arange(8).roll(1)[:, None], labels)
    mix = blend.mix(images, partners, torch.full((8,), 0.35), drawn, mixwell.Scene(mixwell.Batch(images, labels)))
    adjusted = torch.isclose(mix.area, torch.tensor(0.35), atol=1e-5)
    assert adjusted.tolist() == (coins < 0.25).tolist()


def test_trains(net: nn.Module) -> None:
    recipe, blend = bound(net)
    before = copy.deepcopy(blend.mixer.state_dict())
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05, momentum=0.9)
    losses = train(recipe, net, optimizer, range(12), batch())
    assert all(np.isfinite(losses))
    assert np.mean(losses[-4:]) < losses[0]
    assert all(
        not torch.equal(before[f"{name}.weight"], getattr(blend.mixer, name).weight) for name in ("value", "norm")
    )


@pytest.mark.parametrize(
    "options",
    [
        "objective=balanced",
        "objective=balanced, eta=0",
        "lam_mul_k=(-1, 0.25, 1)",
        "lam_mul=0",
        "lam_residual=false",
        "dropout=0.1",
        "upsample=nearest",
        "per=batch, rule=code",
        "gamma_schedule=cosine, mixer_prob=0.8",
        "reduction=99",
    ],
)
def test_trains_with(cnn: Make, options: str) -> None:
    net = cnn()
    recipe, _ = bound(net, f"samix({options})")
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05)
    assert all(np.isfinite(train(recipe, net, optimizer, range(2), batch(5, (30, 45)))))
    assert str(mixwell.create(str(recipe), num_classes=7)) == str(recipe)


@pytest.mark.parametrize("text", ["samix(dropout=0.2)", "k_mixup(k=2) + samix + decouplemix"])
def test_a_resumed_training_goes_on_bit_by_bit(net: nn.Module, text: str, tmp_path: Path) -> None:
    data, other_net = batch(), copy.deepcopy(net)
    recipe, _ = bound(net, text)
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05, momentum=0.9)
    train(recipe, net, optimizer, range(2), data)
    save_file(recipe.state_dict(), tmp_path / "recipe.safetensors")

    other, _ = bound(other_net, text)
    other_optimizer = torch.optim.SGD(other.parameter_groups(other_net), lr=0.05, momentum=0.9)
    other.load_state_dict(load_file(tmp_path / "recipe.safetensors"))
    other_net.load_state_dict(copy.deepcopy(net.state_dict()))
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    straight = train(recipe, net, optimizer, range(2, 4), data)
    assert train(other, other_net, other_optimizer, range(2, 4), data) == straight
    for name, value in recipe.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_balanced_objective_needs_class_ids(cnn: Make) -> None:
    net = cnn()
    recipe, _ = bound(net, "samix(objective=balanced)")
    with pytest.raises(mixwell.BatchError, match="one class id per image"):
        recipe(net, torch.randn(4, 3, 16, 16), torch.rand(4, 7).softmax(1))


def test_the_page_says_what_is_not_here() -> None:
    assert "self-supervised" in mixwell.method_of("samix").doc


@pytest.mark.parametrize(
    "options", ["reduction=0", "lam_mul=2", "lam_mul_k=-2", "lam_mul_k=()", "dropout=1", "epsilon=-1", "momentum=1.5"]
)
def test_parameters_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(mixwell.ParameterError, match=options.partition("=")[0]):
        mixwell.create(f"samix({options})", num_classes=7)
