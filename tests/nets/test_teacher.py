"""The teacher: a frozen copy that follows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import mixwell
from mixwell.nets.teacher import Teacher, ema_update, momentum_at, second_head, share_of_start

Make = Callable[..., nn.Module]


def teacher_of(net: nn.Module, stage: int | str | None = None) -> tuple[Teacher, nn.Linear]:
    anatomy = mixwell.Probe(net, torch.randn(2, 3, 32, 32)).anatomy
    head = second_head(anatomy)
    return Teacher(anatomy, head, stage), head


def test_average_is_the_formula() -> None:
    averages, values = [torch.randn(3, 2), torch.randn(5)], [torch.randn(3, 2), torch.randn(5)]
    wanted = [0.9 * k + (1 - 0.9) * q for k, q in zip(averages, values, strict=True)]
    ema_update(averages, values, 0.9)
    torch.testing.assert_close(averages, wanted)


def test_momentum_is_held_then_follows_a_cosine_from_the_first_step() -> None:
    at = [momentum_at(mixwell.Clock(step, 1000), 0.99, 0.9999, 0.1) for step in range(1001)]
    assert set(at[:100]) == {0.99}
    assert at[100] == pytest.approx(0.9999 - 0.0099 * (math.cos(math.pi / 10) + 1) / 2)
    assert at[1000] == pytest.approx(0.9999)
    assert at == sorted(at)
    assert momentum_at(mixwell.Clock(700), 0.99, 0.9999) == 0.99


@pytest.mark.parametrize("total", [0, 1, 7, 900, 6000])
def test_what_is_left_of_the_first_weights(total: int) -> None:
    average, seen = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for step in range(total):
        ema_update([average], [seen], momentum_at(mixwell.Clock(step, total)))
    assert share_of_start(total) == pytest.approx(average.item(), rel=5e-3)


def test_features_of_the_last_stage_but_one(cnn: Make, vit: Make) -> None:
    x = torch.randn(3, 3, 32, 32)
    assert teacher_of(cnn())[0].features(x).shape == (3, 12, 16, 16)
    assert teacher_of(cnn(), 1)[0].features(x).shape == (3, 8, 32, 32)
    net = vit(depth=6)
    teacher, _ = teacher_of(net)
    want = mixwell.Want("features", "blocks.2")
    torch.testing.assert_close(teacher.features(x), mixwell.Probe(net).run(x, wants=[want])[want].detach())


def test_second_head_is_small_and_shaped_like_the_first(cnn: Make) -> None:
    _, head = teacher_of(cnn(classes=500))
    assert head.weight.shape == (500, 16)
    assert head.weight.detach().std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.bias.any()


def test_logits_are_the_second_heads_and_reach_only_the_images(cnn: Make) -> None:
    teacher, head = teacher_of(cnn())
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    logits = teacher.logits(x)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert head.weight.grad is None
    with torch.no_grad():
        teacher.head.bias += 1
        teacher.net.get_submodule("fc").bias += 5
    torch.manual_seed(0)
    first = teacher.logits(x)
    torch.manual_seed(0)
    with torch.no_grad():
        teacher.head.bias += 1
    torch.testing.assert_close(teacher.logits(x), first + 1)


def test_statistics_are_its_own(cnn: Make) -> None:
    net = cnn()
    teacher, head = teacher_of(net)
    before = {name: buffer.clone() for name, buffer in teacher.net.named_buffers()}
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    teacher.features(torch.randn(4, 3, 32, 32) + 3)
    after = dict(teacher.net.named_buffers())
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    net.train()(torch.randn(4, 3, 32, 32) - 3)
    kept = {name: buffer.clone() for name, buffer in after.items()}
    teacher.follow(net, head, 0.0)
    assert all(torch.equal(buffer, kept[name]) for name, buffer in teacher.net.named_buffers())
    assert all(torch.equal(k, q) for k, q in zip(teacher.net.parameters(), net.parameters(), strict=True))


def test_example_images_are_needed(cnn: Make) -> None:
    anatomy = mixwell.Probe(cnn()).anatomy
    with pytest.raises(mixwell.ModelError, match=r"recipe\.bind\(model, example=images\)"):
        Teacher(anatomy, second_head(anatomy))


def test_a_look_is_the_features_and_the_second_heads_logits_of_one_pass(cnn: Make) -> None:
    teacher, _ = teacher_of(cnn().eval())
    x = torch.randn(4, 3, 32, 32)
    features, logits = teacher.look(x)
    torch.testing.assert_close(features, teacher.features(x))
    torch.testing.assert_close(logits, teacher.logits(x))
    assert not logits.requires_grad
