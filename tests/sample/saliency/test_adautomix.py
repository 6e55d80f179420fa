"""AdAutoMix: its mixer of several images, who is mixed, and who is taught what in which step."""

from __future__ import annotations

import copy
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
from mixwell.core.rng import Streams
from mixwell.sample.saliency.adautomix import (
    AdaptiveMask,
    AdversarialBlend,
    AdversarialDraws,
    AdversarialMix,
    composed,
    normalised,
    similarity,
)

Make = Callable[..., nn.Module]


@pytest.fixture(params=["cnn", "vit"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A network with BatchNorm, and one with tokens."""
    return request.getfixturevalue(request.param)()


def batch(rows: int = 7, size: tuple[int, int] = (32, 32)) -> tuple[Tensor, Tensor]:
    """Images, and a class of its own for each of up to seven."""
    return torch.randn(rows, 3, *size), torch.arange(rows) % 7


def bound(net: nn.Module, text: str = "adautomix", std: float = 0.5) -> tuple[mixwell.Recipe, AdversarialBlend]:
    """A recipe whose masks differ from each other."""
    recipe = mixwell.create(text, num_classes=7).bind(net, example=torch.randn(2, 3, 32, 32))
    blend = recipe.options[0].blend
    for parameter in blend.mixer.parameters():
        nn.init.normal_(parameter, std=std)
    return recipe, blend


def sharp(channels: int = 6, **options: Any) -> AdaptiveMask:
    """A mixer with weights far from those it begins with."""
    mixer = AdaptiveMask(channels, **options)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter)
    return mixer


def rolled(rows: int, *shifts: int) -> np.ndarray:
    """(N, B) the row that is `shift` before each, for each shift."""
    return np.stack([np.roll(np.arange(rows), shift) for shift in shifts])


def turn_of(recipe: mixwell.Recipe, net: nn.Module, data: tuple[Tensor, Tensor], step: int, count: int = 3) -> Any:
    """The turn of a step whose classifier's mixes are of the rows 1, 2, … before each, and the mixer's of those 3, ….

    The raw shares are 0.5, 0.9 and 0.2; a pair's λ is 0.4.
    """
    rows, option = len(data[0]), recipe.options[0]
    blend = option.blend
    raw = np.tile([0.5, 0.9, 0.2][: blend.counts.most], (rows, 1))
    draws = {
        option.pairing: rolled(rows, 1, 2, 6)[: blend.partners] if blend.partners > 1 else rolled(rows, 1)[0],
        blend: AdversarialDraws(rolled(rows, 3, 4, 5)[: blend.counts.most], raw),
        blend.counts: count,
    }
    if option.ratio is not None:
        draws[option.ratio] = np.full(rows, 0.4)
    (turn,) = recipe.turns(net, *data, clock=mixwell.Clock(step), draws=mixwell.Draws(draws))
    return turn


def mixed(recipe: mixwell.Recipe, images: Tensor, labels: Tensor, shares: np.ndarray, **given: Any) -> AdversarialMix:
    """A mix by hand, of three images or of as many as `count` says, with the given raw shares."""
    blend, rows = recipe.options[0].blend, len(images)
    count = given.pop("count", 3)
    partners = given.pop("classifiers", rolled(rows, 1, 2, 3)[: blend.partners])
    mixers = given.pop("mixers", rolled(rows, 3, 4, 5)[: blend.counts.most])
    lam = given.pop("lam", torch.full((1,), torch.nan))
    scene = mixwell.Scene(mixwell.Batch(images, labels), mixwell.Draws({blend.counts: count}))
    at = mixwell.Partners.at(torch.from_numpy(partners.T.copy()), labels)
    mix = blend.mix(images, at, lam, AdversarialDraws(mixers, shares), scene)
    assert isinstance(mix, AdversarialMix)
    return mix


def train(
    recipe: mixwell.Recipe, net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, data: tuple[Tensor, Tensor]
) -> list[dict[str, float]]:
    """The parts of the losses of some steps on one batch."""
    parts = []
    for step in steps:
        torch.manual_seed(step)  # of dropout
        clock = mixwell.Clock(step, total=20)
        (turn,) = recipe.turns(net, *data, clock=clock)
        optimizer.zero_grad()
        turn.loss.backward()
        optimizer.step()
        recipe.after_step(net, clock)
        parts.append({name.rpartition("/")[2]: part.item() for name, part in turn.parts.items()})
    return parts


# Functions


def test_normalised_shares_sum_to_1_and_keep_their_proportions() -> None:
    raw = np.array([[0.5, 0.9, 0.2], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]])
    got = normalised(raw)
    np.testing.assert_allclose(got.sum(1), 1)
    np.testing.assert_allclose(got, [[0.3125, 0.5625, 0.125], [0, 0, 1], [1 / 3] * 3])


def test_composing_is_the_sum_of_masked_images_and_equal_images_stay_as_they_are() -> None:
    images = [torch.randn(4, 3, 5, 6) for _ in range(4)]
    masks = torch.randn(4, 4, 5, 6).softmax(1)
    for count in (2, 3, 4):
        shown = masks[:, :count] / masks[:, :count].sum(1, keepdim=True)
        wanted = sum(image * mask for image, mask in zip(images, shown.split(1, 1), strict=False))
        torch.testing.assert_close(composed(images[:count], shown), wanted)
        for dtype in (torch.float32, torch.float16):
            same = [images[0].to(dtype)] * count
            assert torch.equal(composed(same, shown), same[0])


def test_similarity_is_the_weighted_cosine_of_each_row_with_its_sources() -> None:
    clean, mixes = torch.randn(5, 7), torch.randn(3, 7)
    sources = torch.tensor([[0, 1], [3, 3], [4, 2]])
    shares = torch.tensor([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]])
    wanted = sum(
        shares[row, k] * (mixes[row] @ clean[sources[row, k]]) / mixes[row].norm() / clean[sources[row, k]].norm()
        for row in range(3)
        for k in range(2)
    )
    torch.testing.assert_close(similarity(mixes, clean, sources, shares), wanted / 3)
    itself = similarity(clean[:3], clean, torch.tensor([[0, 0], [1, 1], [2, 2]]), shares)
    torch.testing.assert_close(itself, torch.tensor(1.0))


# The mixer


@pytest.mark.parametrize("lam_concat", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_image_attends_to_the_others_and_finds_its_own_values(lam_concat: bool, count: int) -> None:
    mixer, x = sharp(lam_concat=lam_concat), torch.randn(4, 6, 3, 5)
    sources = torch.stack([torch.randperm(4) for _ in range(count)], 1)
    shares = torch.rand(4, count)

    def slot(k: int) -> Tensor:
        channel = shares[:, k].view(-1, 1, 1, 1).expand(4, 1, 3, 5)
        return torch.cat((x[sources[:, k]], channel), 1) if lam_concat else x[sources[:, k]]

    keys = [mixer.key(slot(k)).relu().flatten(2) for k in range(count)]
    logits = []
    for k in range(count):
        query = mixer.query(slot(k)).relu().flatten(2)
        products = sum(query.transpose(1, 2) @ keys[other] for other in range(count) if other != k)
        found = (products / math.sqrt(3)).softmax(2) @ mixer.value(slot(k)).flatten(2).transpose(1, 2)
        logits.append(found.view(4, 1, 3, 5))
    wanted = F.interpolate(torch.cat(logits, 1), (12, 10), mode="bilinear").softmax(1)
    got = mixer(x, sources, shares, (12, 10))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(got.sum(1), torch.ones(4, 12, 10))
    assert got.std() > 0.01


def test_permuting_the_images_permutes_their_masks() -> None:
    mixer, x = sharp(lam_concat=True), torch.randn(5, 6, 4, 4)
    sources, shares = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.rand(2, 3)
    order = [2, 0, 1]
    torch.testing.assert_close(
        mixer(x, sources[:, order], shares[:, order], (8, 8)), mixer(x, sources, shares, (8, 8))[:, order]
    )


def test_equal_images_have_equal_shares_unless_the_mixer_is_told_others() -> None:
    x, itself = torch.randn(3, 6, 4, 4), torch.arange(3)[:, None].expand(3, 2)
    shares = torch.tensor([[0.2, 0.8]] * 3)
    torch.testing.assert_close(sharp()(x, itself, shares, (8, 8)), torch.full((3, 2, 8, 8), 0.5))
    assert not torch.allclose(sharp(lam_concat=True)(x, itself, shares, (8, 8)), torch.tensor(0.5), atol=1e-2)


def test_runs_in_fp32_under_autocast() -> None:
    mixer, x, sources = sharp(lam_concat=True), torch.randn(4, 6, 4, 4).bfloat16(), torch.randint(4, (4, 3))
    shares = torch.rand(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mixer(x, sources, shares, (8, 8))
    assert got.dtype == torch.float32
    assert torch.equal(got, mixer(x.float(), sources, shares, (8, 8)))


# Who is mixed


def test_draws() -> None:
    for per, count in (("sample", 3000), ("batch", 1)):
        (option,) = mixwell.create(f"adautomix(per={per})").options
        drawn = option.draw(3000, Streams(1), 0)
        own, pairing = drawn[option.blend], drawn[option.pairing]
        assert own.raw.shape == (count, 3)
        permutations = np.concatenate((own.partners, pairing))
        assert (np.sort(permutations, 1) == np.arange(3000)).all()
        together = [(one == two).sum() for i, one in enumerate(permutations) for two in permutations[:i]]
        assert max(together) < 10, "permutations are independent, of slots and of batches"
        assert (permutations == np.arange(3000)).sum(1).max() < 10, "the first slot is permuted too"
        if per == "sample":
            assert own.raw.mean() == pytest.approx(0.5, abs=0.02)
            assert own.raw.var() == pytest.approx(1 / 12, rel=0.05)


def test_shares_are_normalised_betas_and_no_dirichlet_draws() -> None:
    (option,) = mixwell.create("adautomix").options
    first = normalised(option.blend.draw(20000, np.random.default_rng(0)).raw)[:, 0]
    assert first.mean() == pytest.approx(1 / 3, abs=0.005)
    assert first.var() < 0.9 / 18, "Dirichlet(1, 1, 1) has the variance 1/18"


def test_three_images_are_all_partners_and_both_batches_have_the_same_shares(net: nn.Module) -> None:
    recipe, _ = bound(net)
    images, labels = batch()
    mix = mixed(recipe, images, labels, np.tile([0.5, 0.9, 0.2], (7, 1)))
    assert mix.sources.T.tolist() == rolled(7, 1, 2, 3).tolist()
    assert mix.lesson.targets.sources.T.tolist() == rolled(7, 3, 4, 5).tolist()
    wanted = torch.tensor([0.3125, 0.5625, 0.125]).expand(7, 3)
    torch.testing.assert_close(mix.shares, wanted)
    torch.testing.assert_close(mix.lesson.targets.weights, wanted)
    assert mix.lam is None
    assert mix.area is None
    torch.testing.assert_close(mix.masks.sum(1), torch.ones(7, 32, 32))
    torch.testing.assert_close(mix.images, torch.einsum("rkhw,rkchw->rchw", mix.masks, images[mix.sources]))
    torch.testing.assert_close(mix.weights, mix.masks.mean((2, 3)))
    assert (mix.masks.std((2, 3)) > 1e-4).all()
    assert mix.apply(torch.randn(7, 2, 8, 8)).shape == (7, 2, 8, 8)


def test_pairs_are_an_image_and_its_partner_with_a_lam_for_each_batch(net: nn.Module) -> None:
    recipe, blend = bound(net, "adautomix(mix_samples=2)")
    images, labels = batch()
    lam = torch.linspace(0.2, 0.8, 7)
    mix = mixed(recipe, images, labels, np.tile([0.9, 0.1], (7, 1)), count=2, lam=lam)
    assert mix.sources.tolist() == [[row, (row - 1) % 7] for row in range(7)]
    torch.testing.assert_close(mix.shares, torch.stack((lam, 1 - lam), 1))
    torch.testing.assert_close(mix.lesson.targets.weights, torch.tensor([[0.9, 0.1]] * 7))
    assert mix.lesson.targets.sources.tolist() == [[row, (row - 3) % 7] for row in range(7)]
    torch.testing.assert_close(mix.images, torch.lerp(images, images.roll(1, 0), mix.masks[:, 1:]))
    torch.testing.assert_close(mix.area, mix.masks[:, 0].mean((1, 2)))
    assert mixwell.core.axes.Need.OWN_ROW in blend.gives


def test_the_number_of_images_is_drawn_for_all_ranks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    (option,) = mixwell.create("adautomix(mix_samples=4, is_random=true)").options

    def drawn() -> list[int]:
        return [option.draw(5, Streams(0), step)[option.blend.counts] for step in range(900)]

    counts = drawn()
    assert set(counts) == {2, 3, 4}
    assert all(abs(counts.count(n) - 300) < 5 * math.sqrt(200) for n in (2, 3, 4))
    monkeypatch.setenv("RANK", "3")
    assert drawn() == counts


def test_random_numbers_of_images_make_pairs_or_more(cnn: Make) -> None:
    net = cnn()
    recipe, _ = bound(net, "adautomix(is_random=true)")
    images, labels = batch()
    raw = np.tile([0.5, 0.9, 0.2], (7, 1))
    pair, three = (mixed(recipe, images, labels, raw, count=count) for count in (2, 3))
    assert pair.sources.tolist() == [[row, (row - 1) % 7] for row in range(7)]
    torch.testing.assert_close(pair.shares, torch.tensor([[0.9, 0.1]] * 7))
    torch.testing.assert_close(pair.lesson.targets.weights, torch.tensor([[0.5, 0.5]] * 7))
    assert three.sources.shape == (7, 3)
    for count in (2, 3):
        assert turn_of(recipe, net, (images, labels), 0, count).loss.isfinite()


def test_extreme_first_shares_make_averages_of_the_classifiers_images_only(net: nn.Module) -> None:
    recipe, _ = bound(net)
    images, labels = batch(5)
    raw = np.array([[0.03, 0.5, 0.47], [0.04, 0.5, 0.46], [0.5, 0.01, 0.49], [0.98, 0.01, 0.01], [0.9, 0.05, 0.05]])
    mix = mixed(recipe, images, labels, raw)
    constant = (mix.masks - torch.from_numpy(raw).float()[:, :, None, None]).abs().amax((1, 2, 3)) < 1e-6
    assert constant.tolist() == [True, False, False, True, False]
    assert (mix.lesson.images - torch.einsum("rk,rkchw->rchw", mix.shares, images[mix.sources])).abs().amax() > 1e-3


# Who is taught what


def test_the_classifiers_mix_has_no_path_to_the_mixer_and_the_lesson_has(net: nn.Module) -> None:
    recipe, blend = bound(net)
    mix = mixed(recipe, *batch(), np.tile([0.5, 0.9, 0.2], (7, 1)))
    assert not mix.images.requires_grad
    assert not mix.masks.requires_grad
    gradients = torch.autograd.grad(mix.lesson.images.square().sum(), [*blend.mixer.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_labels_follow_the_drawn_shares(net: nn.Module) -> None:
    recipe, _ = bound(net)
    turn = turn_of(recipe, net, batch(), 0)
    eye = torch.eye(7)
    wanted = 0.3125 * eye.roll(-1, 1) + 0.5625 * eye.roll(-2, 1) + 0.125 * eye.roll(-6, 1)
    torch.testing.assert_close(turn.targets.dense(), wanted)


@pytest.mark.parametrize("cosine", ["apart", "together"])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_the_loss_of_three_images_is_the_sum_of_its_parts(cnn: Make, cosine: str, step: int) -> None:
    net = cnn().eval()  # no dropout and no statistics of batches, so that the passes can be repeated
    recipe, blend = bound(net, f"adautomix(beta=0.2, cosine={cosine}, linear_share=0.3)")
    blend.mixed_head.weight.data.normal_()
    blend.teacher.head.weight.data.normal_()
    images, labels = batch()
    turn = turn_of(recipe, net, (images, labels), step)
    raw = np.tile([0.5, 0.9, 0.2], (7, 1))
    mix = mixed(recipe, images, labels, raw, classifiers=rolled(7, 1, 2, 6))
    shares, cross_entropy = (0.3125, 0.5625, 0.125), F.cross_entropy

    def coce(logits: Tensor, *shifts: int) -> Tensor:
        return sum(lam * cross_entropy(logits, labels.roll(s)) for lam, s in zip(shares, shifts, strict=True))

    def classified(x: Tensor) -> Tensor:
        return mixwell.Probe(net).run(x, head=blend.mixed_head).logits

    linear = sum(lam * images.roll(s, 0) for lam, s in zip(shares, (1, 2, 6), strict=True))
    judged, clean = blend.teacher.logits(mix.lesson.images), blend.teacher.logits(images)
    mixers = coce(judged, 3, 4, 5)
    if step % 2 == 0:
        near = sum(
            lam * F.cosine_similarity(judged, clean.roll(s, 0)) for lam, s in zip(shares, (3, 4, 5), strict=True)
        )
        mixers = -0.2 * mixers + (0.8 if cosine == "apart" else -0.8) * near.mean()
    torch.testing.assert_close(turn.parts["adautomix/AdversarialLoss"], mixers.detach())
    wanted = (
        coce(classified(mix.images), 1, 2, 6)
        + 0.7 * cross_entropy(net(images), labels)
        + 0.3 * coce(classified(linear), 1, 2, 6)
        + mixers
    )
    torch.testing.assert_close(turn.loss, wanted)


def test_pairs_have_no_averages_and_all_weight_on_clean_images(cnn: Make) -> None:
    net = cnn().eval()
    recipe, _ = bound(net, "adautomix(mix_samples=2)")
    images, labels = batch()
    turn = turn_of(recipe, net, (images, labels), 1, count=2)
    torch.testing.assert_close(turn.parts["adautomix/CleanAndLinear"], F.cross_entropy(net(images), labels).detach())
    torch.testing.assert_close(turn.targets.dense(), 0.4 * torch.eye(7) + 0.6 * torch.eye(7).roll(-1, 1))


def test_adversarial_gradients_of_the_mixer_are_minus_beta_times_the_cooperative_ones(cnn: Make) -> None:
    net = cnn().eval()
    recipe, blend = bound(net, "adautomix(beta=1)")
    blend.teacher.head.weight.data.normal_()
    data, (option,) = batch(), recipe.options

    def gradients(step: int) -> list[Tensor]:
        mix = mixed(recipe, *data, np.tile([0.5, 0.9, 0.2], (7, 1)))
        scene = mixwell.Scene(mixwell.Batch(*data), clock=mixwell.Clock(step))
        done = mixwell.Step(scene, mix, mixwell.Outputs(torch.zeros(7, 7)))
        value = option.terms[1].value(done, option.targets(done), option.criterion)
        return [*torch.autograd.grad(value, [*blend.mixer.parameters()])]

    against, together = gradients(0), gradients(1)
    assert any(gradient.any() for gradient in together)
    torch.testing.assert_close(against, [-gradient for gradient in together])


@pytest.mark.parametrize("step", [0, 1])
def test_the_mixers_part_teaches_the_mixer_only(net: nn.Module, step: int) -> None:
    recipe, blend = bound(net)
    data, (option,) = batch(), recipe.options
    mix = mixed(recipe, *data, np.tile([0.5, 0.9, 0.2], (7, 1)))
    done = mixwell.Step(
        mixwell.Scene(mixwell.Batch(*data), clock=mixwell.Clock(step)), mix, mixwell.Outputs(torch.zeros(7, 7))
    )
    option.terms[1].value(done, option.targets(done), option.criterion).backward()
    taught = {name for name, parameter in blend.named_parameters() if parameter.grad is not None}
    assert taught == {f"mixer.{conv}.{kind}" for conv in ("query", "key", "value") for kind in ("weight", "bias")}
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_step_teaches_the_network_both_heads_and_the_mixer(net: nn.Module) -> None:
    recipe, blend = bound(net)
    recipe(net, *batch()).backward()
    for trained in (net, blend.mixed_head, blend.mixer):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
    assert blend.mixer.value.weight.grad.any()
    assert all(p.grad is None for p in blend.teacher.parameters())


def test_the_predictor_is_the_moving_average_with_its_clean_classifier(net: nn.Module) -> None:
    recipe, blend = bound(net, "adautomix(momentum=0.9, final_momentum=0.99, hold=1)")
    before = [p.clone() for p in blend.teacher.parameters()]
    train(recipe, net, torch.optim.SGD(recipe.parameter_groups(net), lr=0.05), range(1), batch())
    for k, old, q in zip(
        blend.teacher.parameters(), before, [*net.parameters(), *blend.mixed_head.parameters()], strict=True
    ):
        torch.testing.assert_close(k, 0.9 * old + 0.1 * q)
    assert recipe.predictor(net) is blend.teacher.net


# The recipe


@pytest.mark.parametrize("text", ["adautomix", "adautomix(mix_samples=2)"])
def test_trains_the_classifier_and_in_odd_steps_the_mixer_with_it(net: nn.Module, text: str) -> None:
    recipe, blend = bound(net, text)
    before = copy.deepcopy(blend.mixer.state_dict())
    optimizer = torch.optim.AdamW(recipe.parameter_groups(net), lr=3e-3)
    parts = train(recipe, net, optimizer, range(40), batch())
    assert all(math.isfinite(value) for step in parts for value in step.values())
    clean = [step["CleanAndLinear"] for step in parts]
    assert np.mean(clean[-6:]) < 0.9 * np.mean(clean[:6])
    assert all(step["AdversarialLoss"] > 1 for step in parts[1::2])
    assert all(step["AdversarialLoss"] < 1 for step in parts[::2])
    assert not torch.equal(before["value.weight"], blend.mixer.value.weight)


@pytest.mark.parametrize(
    "options",
    [
        "mix_samples=5",
        "is_random=true",
        "lam_concat=true, upsample=nearest",
        "per=batch",
        "cosine=together",
        "linear_share=0",
        "linear_share=1",
        "beta=0",
        "stage=1, reduction=99",
        "alpha=0.01",
    ],
)
def test_trains_with(cnn: Make, options: str) -> None:
    net = cnn()
    recipe, _ = bound(net, f"adautomix({options})")
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05)
    parts = train(recipe, net, optimizer, range(2), batch(5, (30, 45)))
    assert all(math.isfinite(value) for step in parts for value in step.values())
    assert str(mixwell.create(str(recipe), num_classes=7)) == str(recipe)


def test_a_resumed_training_goes_on_bit_by_bit(net: nn.Module, tmp_path: Path) -> None:
    """At an odd step: whose turn it is follows from the clock, not from how often something ran."""
    data, other_net, text = batch(), copy.deepcopy(net), "adautomix(is_random=true)"
    recipe, _ = bound(net, text)
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05, momentum=0.9)
    train(recipe, net, optimizer, range(3), data)
    save_file(recipe.state_dict(), tmp_path / "recipe.safetensors")

    other, _ = bound(other_net, text)
    other_optimizer = torch.optim.SGD(other.parameter_groups(other_net), lr=0.05, momentum=0.9)
    other.load_state_dict(load_file(tmp_path / "recipe.safetensors"))
    other_net.load_state_dict(copy.deepcopy(net.state_dict()))
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    straight = train(recipe, net, optimizer, range(3, 6), data)
    assert train(other, other_net, other_optimizer, range(3, 6), data) == straight
    for name, value in recipe.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("adautomix + decouplemix", "two sources"),
        ("k_mixup + adautomix", "gives each image 1 partner, but adautomix mixes it with 3"),
        ("manifold_mixup + adautomix", "adautomix"),
        ("adautomix + transmix", "adautomix"),
    ],
)
def test_what_does_not_fit_more_than_two_images_is_refused(text: str, why: str) -> None:
    with pytest.raises(mixwell.IncompatibleRecipe, match=why):
        mixwell.create(text, num_classes=7)


def test_pairs_take_other_methods_partners_and_losses(cnn: Make) -> None:
    net = cnn()
    recipe, _ = bound(net, "k_mixup(k=2) + adautomix(mix_samples=2) + decouplemix")
    optimizer = torch.optim.SGD(recipe.parameter_groups(net), lr=0.05)
    assert all(math.isfinite(step["criterion"]) for step in train(recipe, net, optimizer, range(2), batch()))


@pytest.mark.parametrize(
    "options",
    [
        *("mix_samples=1", "is_random=true, mix_samples=2", "alpha=0", "beta=1.5", "linear_share=-1", "reduction=0"),
        *("lam_margin=0.6", "momentum=1.5"),
    ],
)
def test_parameters_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(mixwell.ParameterError, match=options.partition("=")[0]):
        mixwell.create(f"adautomix({options})", num_classes=7)
