"""FGSM and PGD against a plain loop, and what must hold of any attack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixwell.evaluate import ATTACKS, Subject, attacked, fgsm, pgd
from mixwell.evaluate.metrics import accuracy


def by_hand(
    net: nn.Module, image: Tensor, label: int, epsilon: float, step: float, steps: int, start: Tensor
) -> Tensor:
    """One image, through the loss's own gradient, pixel by pixel within its bounds."""
    moved = (image + start).clamp(0, 1)
    for _ in range(steps):
        moved = moved.clone().requires_grad_(True)
        loss = -net(moved[None]).log_softmax(1)[0, label]
        loss.backward()
        moved = moved.detach() + step * torch.sign(moved.grad)
        delta = torch.clamp(moved - image, -epsilon, epsilon)
        moved = torch.clamp(image + delta, 0, 1)
    return moved.detach()


@pytest.mark.parametrize(("epsilon", "step", "steps", "random"), [(0.1, 0.1, 1, False), (0.06, 0.02, 5, True)])
def test_it_moves_as_a_plain_loop_over_images_does(
    cnn: Callable[..., nn.Module], epsilon: float, step: float, steps: int, random: bool
) -> None:
    net, images, labels = cnn().eval().double(), torch.rand(6, 3, 12, 14, dtype=torch.float64), torch.arange(6)
    start = (2 * torch.rand_like(images) - 1) * epsilon * random
    found = pgd(net, images, labels, epsilon=epsilon, step=step, steps=steps, start=start if random else None)
    for row in range(6):
        wanted = by_hand(net, images[row], row, epsilon, step, steps, start[row])
        torch.testing.assert_close(found[row], wanted, atol=1e-12, rtol=0)
    if steps == 1:
        assert torch.equal(found, fgsm(net, images, labels, epsilon=epsilon))


def test_it_stays_in_the_ball_and_in_the_range_and_raises_the_loss(cnn: Callable[..., nn.Module]) -> None:
    net, labels = cnn().eval(), torch.arange(20) % 7
    images = torch.rand(20, 3, 12, 12).round(decimals=1)
    before = images.clone()
    found = pgd(net, images, labels, epsilon=0.05, step=0.02, steps=8)
    assert torch.equal(images, before)
    assert float((found - images).abs().max()) <= 0.05 + 1e-6
    assert float((found - images).abs().max()) > 0.04
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    with torch.no_grad():
        assert F.cross_entropy(net(found), labels) > F.cross_entropy(net(images), labels)


def test_no_trace_is_left_in_the_network(
    subject_of: Callable[..., Subject], global_random_states: Callable[[], tuple[bytes, ...]]
) -> None:
    subject = subject_of()
    net = subject.net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = global_random_states()
    attacked(subject, images=40)
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert global_random_states() == random


def test_a_trained_network_is_less_accurate_under_attack(subject_of: Callable[..., Subject]) -> None:
    subject = subject_of()
    clean = accuracy(*subject.test)
    found = attacked(subject)
    assert clean > 0.6
    assert found["pgd10"] <= found["fgsm"] + 0.02 < clean
    assert found["pgd10"] < found["pgd20_small"] < clean


def test_starts_do_not_depend_on_the_batch_size(subject_of: Callable[..., Subject], monkeypatch) -> None:
    seen: dict[int, list[Tensor]] = {}
    for batch_size in (7, 100):
        starts = seen.setdefault(batch_size, [])

        def watch(*given, start, starts=starts, **settings):
            starts.append(start)
            return given[1]

        monkeypatch.setattr("mixwell.evaluate.attacks.pgd", watch)
        attacked(subject_of(batch_size=batch_size), {"pgd10": ATTACKS["pgd10"]}, images=50, seed=5)
    small, large = (torch.cat(starts) for starts in seen.values())
    assert torch.equal(small, large)
    assert len(small) == 50
    assert float(small.abs().max()) <= 8 / 255
    assert float(small.abs().max()) > 0.99 * 8 / 255
    assert abs(float(small.mean())) < 0.05 * 8 / 255
    assert float(torch.corrcoef(small.flatten(1)).triu(1).abs().max()) < 0.4


def test_it_sees_through_what_is_done_to_images_before_the_network(subject_of: Callable[..., Subject]) -> None:
    """BC+ subtracts each image's mean: the gradient along constant images is 0, and pixels are those of the data."""
    subject = subject_of("bc('bc+')", epochs=1)
    images, labels = subject.levels(30, 0)
    pixels = (images.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(subject.logits_of_pixels(pixels), labels), pixels)
    assert float(gradient.abs().sum()) > 0
    assert float(gradient.sum((1, 2, 3)).abs().max()) < 1e-4 * float(gradient.abs().sum((1, 2, 3)).max())
    moved = partial(pgd, subject.logits_of_pixels, pixels.detach(), labels, epsilon=0.1, step=0.1, steps=1)()
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
