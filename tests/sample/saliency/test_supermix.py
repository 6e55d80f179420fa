"""SuperMix: masks, their search, which rows are trained on, what the student minimises."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Partners
from mixwell.sample.saliency.supermix import (
    Round,
    SearchedMix,
    cyclic,
    masks_of,
    search,
    smoothed,
    told_apart,
    wanted_of,
)

PIXELS = mixwell.Pixels((0.5,), (0.25,))


class Patterns(nn.Module):
    """A teacher of 8 classes, each a pattern of 4 × 4 colours.

    Attributes:
        rows: of every batch that it was shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patterns = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.rows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        return torch.einsum("bcij,kcij->bk", F.adaptive_avg_pool2d(images, 4), self.patterns.to(images))


def pictures(rows: int = 6, size: tuple[int, int] = (24, 16)) -> Tensor:
    """Image i is of class i; up to 8, always the same."""
    noise = torch.randn(8, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    return (0.7 * F.interpolate(Patterns().patterns, size) + F.interpolate(noise, size))[:rows]


def recipe_of(parameters: str = "", teacher: nn.Module | None = None, **options) -> mixwell.Recipe:
    recipe = mixwell.create(f"supermix({parameters})", 8, pixels=PIXELS, **options)
    recipe.options[0].blend.teacher.use(teacher or Patterns())
    return recipe


def mix_of(images: Tensor, parameters: str = "", shares: np.ndarray | None = None, **options) -> SearchedMix:
    blend = recipe_of(parameters, **options).options[0].blend
    batch = mixwell.Batch(images, torch.arange(len(images)), PIXELS)
    drawn = blend.draw(len(images), np.random.default_rng(0)) if shares is None else shares.astype(np.float32)
    return blend.mix(images, Partners.alone(batch), torch.full((1,), torch.nan), drawn, Scene(batch))


def rounds_of(images: Tensor, k: int = 2, judge: Callable[[Tensor], Tensor] | None = None, **options) -> list[Round]:
    judge = judge or Patterns()
    sources = cyclic(len(images), k)
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet([3] * k, len(images))).to(images)
    classes = judge(images).argmax(1)[sources]
    return list(search(images, sources, wanted_of(classes, shares, 8), judge, **options))


def test_partners_follow_in_the_batch():
    assert torch.equal(cyclic(4, 3), torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]))
    mix = mix_of(pictures(), "k=3")
    assert torch.equal(mix.sources, cyclic(6, 3))


def test_shares_are_dirichlet():
    blend = recipe_of("k=3, alpha=2").options[0].blend
    lam = blend.draw(20000, np.random.default_rng(0))
    np.testing.assert_allclose(lam.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(lam.mean(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(lam.var(0), (1 / 3) * (2 / 3) / 7, rtol=0.05)


@pytest.mark.parametrize("k", [2, 3])
def test_masks_begin_equal_and_are_normalised_sigmoids(k: int):
    assert torch.equal(masks_of(torch.zeros(2, k, 8, 8), (20, 12)), torch.full((2, k, 20, 12), 1 / k))
    logits = 4 * torch.randn(5, k, 8, 8)
    up = F.interpolate(logits, (20, 12), mode="bilinear").sigmoid()
    torch.testing.assert_close(masks_of(logits, (20, 12)), up / up.sum(1, keepdim=True))


def test_masks_of_far_negative_logits_are_finite():
    masks = masks_of(torch.tensor([-200.0, -203.0]).view(1, 2, 1, 1), (2, 2))
    torch.testing.assert_close(masks[0, 1], torch.full((2, 2), 1 / (1 + torch.tensor(3.0).exp().item())))


@pytest.mark.parametrize(("sigma", "taps", "before"), [(1.0, 5, 2), (2.0, 10, 4), (0.2, 1, 0)])
def test_smoothing_is_a_gaussian_with_zeros_around(sigma: float, taps: int, before: int):
    spike = torch.zeros(1, 1, 31, 31)
    spike[0, 0, 15, 15] = 1
    seen = smoothed(spike, sigma)[0, 0]
    rows = seen.sum(1).nonzero()[:, 0]
    assert len(rows) == taps
    assert rows[0] == 15 - (taps - 1 - before)
    torch.testing.assert_close(seen.sum(), torch.tensor(1.0))
    torch.testing.assert_close(seen, seen.T)
    torch.testing.assert_close(smoothed(torch.ones(2, 3, 31, 31), sigma)[:, :, 15, 15], torch.ones(2, 3))


def test_the_search_finds_masks_under_which_all_are_recognised():
    images = pictures()
    found = rounds_of(images)
    assert not found[-1].failed.any()
    mix = mix_of(images, "max_unsuccessful_fraction=0")
    assert mix.valid.all()
    said = Patterns()(mix.images)
    torch.testing.assert_close(said, mix.said)
    for row in range(6):
        assert set(said[row].topk(2).indices.tolist()) == {row, (row + 1) % 6}


def test_a_loss_is_the_divergence_and_how_far_masks_are_from_binary():
    images = pictures(4)
    judge = Patterns()
    first, second = rounds_of(images, judge=judge, max_iter=2)[:2]
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet([3, 3], 4)).float()
    sources = cyclic(4, 2)
    wanted = wanted_of(sources, shares, 8)
    for logits, one in ((torch.zeros(4, 2, 8, 8), first), (first.logits, second)):
        masks = masks_of(logits, (24, 16))
        log_p = judge(torch.einsum("rkhw,rkchw->rchw", masks, images[sources])).log_softmax(1)
        divergence = (torch.special.xlogy(wanted, wanted) - wanted * log_p).sum(1)
        expected = divergence + 25 * (masks * (masks - 1)).abs().mean((1, 2, 3))
        torch.testing.assert_close(one.loss, expected[one.rows])
    slope = (first.gradient * first.direction).sum((1, 2, 3))
    torch.testing.assert_close(first.step, (first.loss / slope).clamp(1e-4, 2000))


def test_masks_rest_once_their_mix_succeeded():
    found = rounds_of(pictures(), max_iter=30)
    assert len({len(one.rows) for one in found}) > 1
    for before, after in pairwise(found):
        assert torch.equal(after.rows, before.rows[before.failed])
        done = torch.ones(6, dtype=torch.bool)
        done[after.rows] = False
        assert torch.equal(after.logits[done], before.logits[done])
        assert not torch.equal(after.logits[~done], before.logits[~done])


def test_rows_that_succeeded_are_shown_to_the_teacher_no_more_and_the_others_fare_alike():
    images, judge = pictures().double(), Patterns()
    found = rounds_of(images, judge=judge)
    assert judge.rows == [6, 6, *(len(one.rows) for one in found)]
    last = found[-1].rows
    assert 0 < len(last) < 6
    sources, shares = cyclic(6, 2), torch.from_numpy(np.random.default_rng(0).dirichlet([3, 3], 6))
    alone = list(search(images, sources, wanted_of(sources, shares, 8), Patterns(), last))
    torch.testing.assert_close(alone[-1].logits[last], found[-1].logits[last])
    assert len(alone) == len(found)


@pytest.mark.parametrize("tolerated", [0, 3, 5])
def test_the_search_ends_once_no_more_than_tolerated_fail(tolerated: int):
    found = rounds_of(pictures(), tolerated=tolerated)
    assert int(found[-1].failed.sum()) <= tolerated
    assert all(int(one.failed.sum()) > tolerated for one in found[:-1])
    assert not rounds_of(pictures(), tolerated=6)


def test_the_codes_tolerance_of_70_percent_is_the_share_that_may_fail():
    images = pictures()
    lenient, strict = mix_of(images), mix_of(images, "max_unsuccessful_fraction=0")
    assert strict.valid.sum() == 6
    assert 2 <= lenient.valid.sum() < 6
    assert torch.equal(lenient.valid, mix_of(images, "max_iter=1, max_unsuccessful_fraction=0").valid)


def test_images_that_the_teacher_takes_for_one_class_are_not_searched():
    images = pictures(6)
    images[1] = images[0]
    assert told_apart(torch.tensor([[0, 1, 2], [0, 1, 0], [3, 3, 1]])).tolist() == [True, False, False]
    mix = mix_of(images, "max_unsuccessful_fraction=0")
    assert mix.valid.tolist() == [False, True, True, True, True, True]
    torch.testing.assert_close(mix.masks[0], torch.full_like(mix.masks[0], 0.5))
    torch.testing.assert_close(mix.said[0], mix.said_clean[0])


def test_the_order_of_the_images_is_the_order_of_the_masks():
    images = pictures(2)
    shares = np.array([[0.3, 0.7], [0.7, 0.3]])
    mix = mix_of(images, shares=shares)
    torch.testing.assert_close(mix.masks[0], mix.masks[1].flip(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mix.images[0], mix.images[1], rtol=1e-3, atol=1e-4)


def test_a_mix_lies_between_its_images_and_its_shares_are_the_masks():
    images = pictures(5)
    mix = mix_of(images, "k=3")
    parts = images[mix.sources]
    assert (mix.images >= parts.amin(1) - 1e-5).all()
    assert (mix.images <= parts.amax(1) + 1e-5).all()
    torch.testing.assert_close(mix.weights, mix.masks.mean((2, 3)))
    assert mix.shares.shape == (5, 3)


@pytest.mark.parametrize("label", ["teacher", "dirichlet"])
@pytest.mark.parametrize("gamma", [2.0, 1.0, 0.5])
def test_the_student_learns_successful_mixes_and_the_clean_batch(cnn, label: str, gamma: float):
    images, labels = pictures(), torch.tensor([3, 3, 1, 0, 5, 2])
    images[1] = images[0]
    model, recipe = cnn(8).eval(), recipe_of(f"label={label}, gamma={gamma}")
    (turn,) = recipe.turns(model, images, labels)
    option = recipe.options[0]
    draws = option.draw(6, recipe._streams, 0)
    scene = Scene(mixwell.Batch(images, labels, PIXELS), draws)
    mix = option.mix(images, scene)
    if label == "teacher":
        wanted = F.one_hot(Patterns()(mix.images).argmax(1), 8).float()
    else:
        wanted = torch.einsum("rk,rkc->rc", mix.shares, F.one_hot(labels, 8).float()[mix.sources])
    torch.testing.assert_close(turn.targets.dense(), wanted)
    assert 0 < mix.valid.sum() < 6
    mixed = F.cross_entropy(model(mix.images)[mix.valid], wanted[mix.valid])
    torch.testing.assert_close(turn.loss, gamma * (mixed + F.cross_entropy(model(images), labels)))


def test_distillation_on_the_clean_batch(cnn):
    images, labels = pictures(), torch.arange(6)
    model, recipe = cnn(8).eval(), recipe_of("gamma=1.8, distill=0.2, temperature=3")
    (turn,) = recipe.turns(model, images, labels)
    p, q = (Patterns()(images) / 3).softmax(1), (model(images) / 3).softmax(1)
    expected = 0.2 * 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(turn.parts["supermix/Distillation"], expected.detach())
    (without,) = recipe_of("gamma=1.8").turns(model, images, labels)
    torch.testing.assert_close(turn.loss, without.loss + expected)


def test_without_a_success_the_clean_batch_is_trained_alone(cnn):
    images, labels = pictures(1).expand(4, -1, -1, -1).clone(), torch.arange(4)
    model = cnn(8).eval()
    (turn,) = recipe_of().turns(model, images, labels)
    assert turn.parts["criterion"] == 0
    torch.testing.assert_close(turn.loss, 2 * F.cross_entropy(model(images), labels))
    turn.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_no_gradient_is_needed_around_the_search():
    images = pictures()
    with torch.no_grad():
        quiet = mix_of(images)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(quiet.images, mix_of(images).images)
    assert torch.is_grad_enabled()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 16, 8))
    mix_of(images, "max_iter=2", teacher=teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_trained_beforehand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cnn):
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    recipe = mixwell.create("supermix(teacher_epochs=2, max_iter=3)", 8, pixels=PIXELS)
    images, labels, model = pictures(), torch.arange(6), cnn(8)
    with pytest.raises(mixwell.MixwellError, match=r"supermix looks .*recipe\.prepare\(batches, data\)"):
        recipe(model, images, labels)
    recipe.prepare(lambda: [mixwell.Batch(images, labels)] * 4, "patterns")
    assert not recipe.owns
    recipe(model, images, labels).backward()


def test_a_teacher_of_other_classes_is_told(cnn):
    recipe = mixwell.create("supermix", 7, pixels=PIXELS)
    recipe.options[0].blend.teacher.use(Patterns())
    with pytest.raises(mixwell.ModelError, match="tells 8 classes, but the recipe was made for 7"):
        recipe(cnn(), pictures(), torch.arange(6))
    with pytest.raises(mixwell.ParameterError, match="k must be at most the teacher's 8 classes, got 9"):
        mix_of(pictures(), "k=9")


@pytest.mark.parametrize("text", ["k=3, width=4, sigma=2", "label=dirichlet, distill=0.2", "prob=0.5"])
@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_a_step_trains(request: pytest.FixtureRequest, text: str, net: str):
    model = request.getfixturevalue(net)(8)
    recipe = recipe_of(f"{text}, max_iter=3")
    with torch.autocast("cpu", torch.bfloat16):
        (turn,) = recipe.turns(model, pictures(5, size=(32, 32)), torch.arange(5))
    turn.loss.backward()
    assert turn.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    "text",
    [
        "k=1",
        "alpha=0",
        "lambda_s=-1",
        "sigma=0.1",
        "width=0",
        "max_iter=0",
        "max_unsuccessful_fraction=1",
        "gamma=-1",
        "distill=-1",
        "distill=0.1, temperature=0",
        "label=soft",
        "teacher_epochs=0",
    ],
)
def test_parameters_out_of_range(text: str):
    with pytest.raises(mixwell.ParameterError, match=text.rpartition("=")[0].rpartition(" ")[2]):
        mixwell.create(f"supermix({text})")
