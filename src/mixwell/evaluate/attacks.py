"""How accurate a network stays under attack: FGSM and PGD.

Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572; Madry et al.,
"Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083.

Untargeted, in the maximum norm, of pixels in [0, 1], with the true label, against the network in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mixwell.core.rng import Streams
from mixwell.data.items import size_of
from mixwell.evaluate.metrics import classes_of
from mixwell.evaluate.subject import Progress, Subject, silent
from mixwell.probe.trace import untouched

__all__ = ["ATTACKS", "Attack", "attacked", "fgsm", "pgd"]

Classify = Callable[[Tensor], Tensor]
"""Pixels (B, C, H, W) in [0, 1] → logits (B, K), differentiable."""


@dataclass(frozen=True)
class Attack:
    """A setting of projected gradient descent.

    Attributes:
        epsilon: how far a pixel may be moved, in [0, 1].
        step: how far a step moves it.
        steps: how many.
        random_start: begin anywhere within epsilon, or at the image.
    """

    epsilon: float
    step: float
    steps: int
    random_start: bool


ATTACKS: Mapping[str, Attack] = {
    "fgsm": Attack(8 / 255, 8 / 255, 1, False),
    "pgd10": Attack(8 / 255, 2 / 255, 10, True),
    "pgd20_small": Attack(2 / 255, 0.5 / 255, 20, True),
}
"""Those of OpenMixup (fgsm, pgd10) and of PixMix (pgd20_small)."""


def fgsm(
    classify: Classify, pixels: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], *, epsilon: float
) -> Float[Tensor, "b c h w"]:
    """Move each pixel by epsilon along the sign of the loss's gradient, and clip to [0, 1]."""
    return pgd(classify, pixels, labels, epsilon=epsilon, step=epsilon, steps=1)


def pgd(
    classify: Classify,
    pixels: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    *,
    epsilon: float,
    step: float,
    steps: int,
    start: Float[Tensor, "b c h w"] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Move each pixel `steps` times by `step` along the sign of the loss's gradient; clip to within epsilon of the
    image and to [0, 1] each time.

    Gradients are taken with respect to the images alone: the network's parameters get none.

    Args:
        classify: pixels → logits (B, K); its network in evaluation mode.
        pixels: (B, C, H, W) in [0, 1]; not modified.
        labels: (B,) class ids.
        epsilon, step, steps: see `Attack`.
        start: what is added to the images at first, in [-epsilon, epsilon]; nothing if not given.
    """
    low, high = (pixels - epsilon).clamp_(min=0), (pixels + epsilon).clamp_(max=1)
    moved = pixels if start is None else (pixels + start).clamp_(0, 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(classify(moved), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach().add(gradient.sign_(), alpha=step)
        moved = torch.minimum(torch.maximum(moved, low), high)
    return moved


def attacked(
    subject: Subject,
    attacks: Mapping[str, Attack] = ATTACKS,
    *,
    images: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """Accuracy under each attack.

    The start of an image depends on the seed and on its place among the images, not on the batch size.

    Args:
        subject: what is attacked.
        attacks: by name.
        images: how many test images, every class in proportion; None for all.
        seed: of their choice and of the starts.
        progress: called with the passes done and to do, each weighted by its attack's steps.
    """
    generators = {name: Streams(seed).at(f"attacks/{name}", 0) for name in attacks}
    right, count, done = dict.fromkeys(attacks, 0), 0, 0
    size = size_of(subject.some(images, seed), "test")
    total = size * sum(attack.steps for attack in attacks.values())
    with untouched(subject.net):
        for batch in subject.batches(images, seed):
            pixels = subject.trained.data.pixels.raw(batch.images).clamp_(0, 1)
            pixels = pixels.to(subject.device, memory_format=subject.layout)
            labels = classes_of(batch.labels).to(subject.device)
            count += len(batch)
            for name, attack in attacks.items():
                start = None
                if attack.random_start:
                    drawn = generators[name].random(tuple(pixels.shape), dtype=np.float32)
                    start = torch.from_numpy((2 * drawn - 1) * np.float32(attack.epsilon))
                    start = start.to(pixels, memory_format=subject.layout)
                moved = pgd(
                    subject.logits_of_pixels,
                    pixels,
                    labels,
                    epsilon=attack.epsilon,
                    step=attack.step,
                    steps=attack.steps,
                    start=start,
                )
                with torch.no_grad():
                    right[name] += int((subject.logits_of_pixels(moved).argmax(1) == labels).sum())
                done += len(batch) * attack.steps
                progress(done, total)
    return {name: found / count for name, found in right.items()}
