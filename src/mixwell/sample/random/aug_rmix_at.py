"""AugRmixAT: train on the image, an augmented and an adversarial version of it, all mixed alike.

Liu, Shen, Zhao, Nie, "AugRmixAT: A Data Processing and Training Method for Improving Multiple Robustness and
Generalization Performance", ICME 2022, arXiv:2207.10290.

Every image gets an AugMix view and a view that a projected gradient attack on the network made; one RandomMix with the
same partners, ratio and masks mixes all three, and the loss is their weighted mean. Equations: X̂ → `attacked`;
Σ_v w_v·L_v → `AllViews`.

Paper and code: no official code was found, and the paper's coefficients are not known: the attack's are those usual on
CIFAR, and the three losses weigh the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.algebra import Node, parse
from mixwell.core.axes import Criterion, Need, Scene, SelfBlend, Step, Term
from mixwell.core.errors import MixwellError, ParameterError, number_in
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.probe.trace import untouched
from mixwell.sample.linear.augmix import AugmentationChains, ChainDraws, jensen_shannon

__all__ = ["AdversarialViews", "AllViews", "attacked"]

Base = Literal["clean", "augmented"]


def attacked(
    loss: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, ""]],
    raw: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    eps: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 10,
) -> Float[Tensor, "b c h w"]:
    """Projected gradient ascent of the loss inside an L∞ ball.

    Gradients are taken with respect to the pixels alone; those of parameters stay as they were.

    Args:
        loss: of pixels in [0, 1], a scalar.
        raw: (B, C, H, W) pixels in [0, 1], the ball's centre.
        noise: where in the ball to start, in [-eps, eps].
        eps: the ball's radius.
        step: length of a step; its direction is the gradient's sign.
        steps: how many.
    """
    low, high = (raw - eps).clamp_min(0), (raw + eps).clamp_max(1)
    found = (raw + noise).clamp(0, 1)
    for _ in range(steps):
        with torch.enable_grad():
            found = found.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(found), found)
        found = torch.minimum(torch.maximum(found.detach() + step * gradient.sign(), low), high)
    return found.detach()


def uniform_noise(key: int, like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Uniform numbers in [-1, 1) that depend on the key alone, as drawn on the device."""
    generator = torch.Generator(like.device).manual_seed(key)
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) * 2 - 1


@dataclass(eq=False)
class AdversarialDraws:
    """What the augmented view drew, and the key of the attack's start, in [0, 2**63)."""

    chains: ChainDraws
    key: int


class AdversarialViews(SelfBlend):
    """The clean image, one AugMix view, and a view that was attacked.

    The attack sees the network in evaluation mode and leaves no trace in it.

    Args:
        chains: makes the augmented view.
        eps, step, steps: of the attack, in pixels of [0, 1].
        base: whether the "clean" or the "augmented" view is attacked.

    Attributes:
        noise: what expands the drawn key; a replay of given noise puts its own in its place.
    """

    gives = frozenset({Need.VIEWS})
    network = True

    def __init__(
        self,
        chains: AugmentationChains,
        eps: float = 8 / 255,
        step: float = 2 / 255,
        steps: int = 10,
        base: Base = "clean",
    ) -> None:
        super().__init__()
        self.chains = chains
        self.eps = number_in("eps", eps, 0, 1)
        self.step = number_in("step", step, 0, 1)
        self.steps = int(number_in("steps", steps, 0))
        self.base = base
        self.noise = uniform_noise

    def draw(self, rows: int, rng: Generator) -> AdversarialDraws:
        return AdversarialDraws(self.chains.draw(rows, rng), int(rng.integers(2**63)))

    def images(self, draws: AdversarialDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        """The three views, normalised.

        Raises:
            BatchError: the images have no pixel grid, or their normalisation is not known.
            MixwellError: there is no network to attack.
        """
        batch, looks = scene.batch, scene.views
        if looks is None:
            raise MixwellError(
                "aug_rmix_at attacks a network, but none is at hand. Use recipe(model, images, labels) in the loop."
            )
        (augmented,) = self.chains.images(draws.chains, scene)
        assert batch.pixels is not None, "raw pixels are known"
        pixels, dtype = batch.pixels, batch.images.dtype
        raw = (batch.raw if self.base == "clean" else pixels.raw(augmented)).float().clamp(0, 1)

        def loss(found: Tensor) -> Tensor:
            return looks.loss(looks.probe.run(pixels.normalise(found).to(dtype)).logits.float(), batch.labels)

        with untouched(looks.probe.net), torch.autocast(raw.device.type, enabled=False):
            start = self.eps * self.noise(draws.key, raw)
            adversarial = attacked(loss, raw, start, self.eps, self.step, self.steps)
        return batch.images, augmented, pixels.normalise(adversarial).to(dtype)


class AllViews(Term):
    """What training on all views adds to the loss of the first: Σ_v w_v·L_v - L_0, and γ times their divergence.

    Args:
        weights: w of the clean, the augmented and the adversarial view, ≥ 0.
        consistency: γ ≥ 0 of the Jensen–Shannon divergence of the three predictions.
    """

    needs = frozenset({Need.VIEWS})

    def __init__(self, weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3), consistency: float = 0.0) -> None:
        super().__init__()
        if len(weights) != 3:
            raise ParameterError(
                f"weights must be three numbers, of the clean, augmented and adversarial view, got {weights!r}."
            )
        self.weights = tuple(number_in("weights", weight, 0) for weight in weights)
        self.consistency = number_in("consistency", consistency, 0)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        views = (step.outputs.logits, *step.outputs.others)
        shares = (self.weights[0] - 1, *self.weights[1:])
        added = torch.stack(
            [share * criterion(logits, targets, step.mix.valid) for share, logits in zip(shares, views, strict=True)]
        ).sum()
        return added + self.consistency * jensen_shannon(views).mean() if self.consistency else added


@method("aug_rmix_at", section="1.5", paper="2207.10290", venue="ICME 2022")
def aug_rmix_at(
    mix: Node | None = None,
    eps: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 10,
    base: Base = "clean",
    weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3),
    consistency: float = 0.0,
    severity: float = 3.0,
    width: int = 3,
    depth: int = -1,
) -> Pieces:
    """Args:
    mix: the recipe that mixes all three views; random_mix if not given.
    eps: radius of the attack's L∞ ball, in pixels of [0, 1].
    step: length of the attack's steps; take 1.25·eps with steps=1 for a fast one.
    steps: of the attack, each a pass forward and backward.
    base: what is attacked, the "clean" or the "augmented" view.
    weights: of the losses of the clean, augmented and adversarial view.
    consistency: weight of the Jensen–Shannon divergence of the three predictions.
    severity: upper bound of the augmentations' levels, in [0.1, 10].
    width: augmentation chains of the augmented view.
    depth: operations per chain; -1 draws 1, 2 or 3.
    """
    chains = AugmentationChains(severity, width, depth, jsd=False)
    views = AdversarialViews(chains, eps, step, steps, base)
    return Pieces((views, AllViews(weights, consistency)), beside=parse("random_mix") if mix is None else mix)
