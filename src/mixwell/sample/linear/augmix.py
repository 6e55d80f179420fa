"""AugMix: an image is mixed with random chains of augmentations of itself, and its views must agree.

Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: A Simple Data Processing Method to Improve Robustness and
Uncertainty", ICLR 2020, arXiv:1912.02781.

A few chains of one to three random operations are averaged with Dirichlet weights, and the average with the clean image
with a Beta weight; the label stays. The network sees the clean image and two such views, is trained on the clean one,
and pays for the Jensen–Shannon divergence of its three predictions.
Equations: chain(x) → `mixwell.ops.augment.augment`; m·x_orig + (1-m)·Σ_i w_i·chain_i(x) → `augmented`; JS(p_orig;
p_augmix1; p_augmix2) → `jensen_shannon`.

Paper and code: the algorithm gives the weight m to the clean image, the authors' code to the chains, and so do we; with
m ~ Beta(α, α) both are one distribution. Chains are 8-bit and equal the code's Pillow images grey level by grey level;
the clean image is not rounded. The code's geometric operations make square images; ours keep the size, and translate by
shares of the width and of the height. ImageNet takes `severity=1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Criterion, Need, Scene, SelfBlend, Step, Term
from mixwell.core.batch import Pixels
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.augment import augment, parameters_of, quantised

__all__ = ["AugmentationChains", "ChainDraws", "JensenShannon", "augmented", "jensen_shannon"]


class ChainDraws(NamedTuple):
    """What V views of B images are made of, in K chains of at most D operations each.

    Attributes:
        operations: (V, B, K, D) positions in `mixwell.ops.augment.OPERATIONS`, -1 after a chain's end.
        levels: (V, B, K, D) s ~ U(0.1, severity).
        flips: (V, B, K, D) where a parameter's sign is negative.
        weights: (V, B, K) of the chains, sum 1.
        shares: (V, B) m, the weight of the chains against the clean image.
    """

    operations: Int[np.ndarray, "v b k d"]
    levels: Float[np.ndarray, "v b k d"]
    flips: Bool[np.ndarray, "v b k d"]
    weights: Float[np.ndarray, "v b k"]
    shares: Float[np.ndarray, "v b"]


def augmented(
    images: Float[Tensor, "b c h w"],
    chains: UInt8[Tensor, "b k c h w"],
    weights: Float[Tensor, "b k"],
    shares: Float[Tensor, " b"],
    pixels: Pixels,
) -> Float[Tensor, "b c h w"]:
    """(1-m)·x + m·Σ_k w_k·chain_k, normalised; computed in fp32 at least.

    Args:
        images: (B, C, H, W) x, normalised.
        chains: (B, K, C, H, W) what the image's chains made of its pixels, on the same device.
        weights: (B, K) w, sum 1.
        shares: (B,) m.
        pixels: the images' normalisation.
    """
    clean = images.to(torch.promote_types(images.dtype, torch.float32))
    scaled = (weights / 255).to(clean.device, clean.dtype, non_blocking=True)[..., None, None, None]
    mixed = torch.zeros_like(clean)
    for k in range(chains.shape[1]):
        mixed += chains[:, k] * scaled[:, k]
    share = shares.to(clean.device, clean.dtype, non_blocking=True)[:, None, None, None]
    return torch.lerp(clean, pixels.normalise(mixed), share).to(images.dtype)


def jensen_shannon(logits: Sequence[Float[Tensor, "r c"]]) -> Float[Tensor, " r"]:
    """Jensen–Shannon divergence of the predictions for each row's views, in [0, log V], in fp32.

    The mean over views of KL(p ‖ M), M the views' mean prediction and at least 1e-7. Gradients reach every view.

    Args:
        logits: V tensors (R, C).
    """
    log_p = torch.stack([view.float() for view in logits]).log_softmax(-1)
    p = log_p.exp()
    log_mean = p.mean(0).clamp(1e-7, 1).log()
    return (p * (log_p - log_mean)).sum(-1).mean(0)


class AugmentationChains(SelfBlend):
    """The clean image and two views that are mixed from augmentation chains; with jsd=False one such view alone.

    Args:
        severity: upper bound of the operations' levels, in [0.1, 10].
        width: chains per view.
        depth: operations per chain; -1 draws 1, 2 or 3.
        alpha: of the chains' Dirichlet weights and of m ~ Beta(α, α).
        ops: how many operations of `mixwell.ops.augment.OPERATIONS` to draw from.
        jsd: whether views are made for a loss that compares them.
    """

    def __init__(
        self,
        severity: float = 3.0,
        width: int = 3,
        depth: int = -1,
        alpha: float = 1.0,
        ops: Literal[9, 13] = 9,
        jsd: bool = True,
    ) -> None:
        super().__init__()
        self.severity = number_in("severity", severity, 0.1, 10)
        self.width = int(number_in("width", width, 1))
        if depth != -1 and depth < 1:
            raise ParameterError(f"depth must be a whole number ≥ 1, or -1 to draw 1, 2 or 3 per chain, got {depth!r}.")
        self.depth = depth
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.ops = ops
        self.jsd = jsd
        self.gives = frozenset({Need.VIEWS} if jsd else ())

    def draw(self, rows: int, rng: Generator) -> ChainDraws:
        views, longest = 2 if self.jsd else 1, 3 if self.depth == -1 else self.depth
        chains = (views, rows, self.width)
        operations = rng.integers(self.ops, size=(*chains, longest))
        if self.depth == -1:
            operations[np.arange(longest) >= rng.integers(1, longest, size=(*chains, 1), endpoint=True)] = -1
        return ChainDraws(
            operations,
            rng.uniform(0.1, self.severity, operations.shape),
            rng.random(operations.shape) > 0.5,
            rng.dirichlet(np.full(self.width, self.alpha), chains[:2]),
            rng.beta(self.alpha, self.alpha, chains[:2]),
        )

    def images(self, draws: ChainDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        """The clean batch and two views; with jsd=False one view.

        Raises:
            BatchError: the images have no pixel grid, or their normalisation is not known.
        """
        batch = scene.batch
        if batch.images.ndim != 4:
            raise BatchError(
                f"augmix augments pixel grids: expected images (B, C, H, W), got {tuple(batch.images.shape)}. Take a "
                "recipe such as mixup."
            )
        levels = quantised(batch.raw)
        assert batch.pixels is not None, "raw pixels are known"
        parameters = parameters_of(draws.operations, draws.levels, draws.flips, (levels.shape[2], levels.shape[3]))
        chains = augment(levels, draws.operations, parameters)
        weights, shares = torch.from_numpy(draws.weights), torch.from_numpy(draws.shares)
        views = [
            augmented(batch.images, *of_view, batch.pixels) for of_view in zip(chains, weights, shares, strict=True)
        ]
        return (batch.images, *views) if self.jsd else tuple(views)


class JensenShannon(Term):
    """The Jensen–Shannon divergence of the predictions for all views of an image.

    Args:
        weight: of the term, ≥ 0.
    """

    needs = frozenset({Need.VIEWS})

    def __init__(self, weight: float = 12.0) -> None:
        super().__init__()
        self.weight = number_in("weight", weight, 0)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        rows = jensen_shannon((step.outputs.logits, *step.outputs.others))
        return self.weight * step.mix.mean(rows)


@method("augmix", section="1.1", paper="1912.02781", venue="ICLR 2020")
def augmix(
    severity: float = 3.0,
    width: int = 3,
    depth: int = -1,
    alpha: float = 1.0,
    ops: Literal[9, 13] = 9,
    jsd: bool = True,
    weight: float = 12.0,
) -> Pieces:
    """Args:
    severity: upper bound of the operations' levels, in [0.1, 10]; the paper takes 3 on CIFAR and 1 on ImageNet.
    width: augmentation chains per view.
    depth: operations per chain; -1 draws 1, 2 or 3.
    alpha: chains are weighted by a Dirichlet(α, …, α) draw, their mix against the clean image by Beta(α, α).
    ops: 9 operations, or all 13 with the colour, contrast, brightness and sharpness that ImageNet-C tests.
    jsd: whether to train on the clean image with two views and the divergence; else on one view alone.
    weight: of the divergence; has no effect without it.
    """
    chains = AugmentationChains(severity, width, depth, alpha, ops, jsd)
    return Pieces(essential=(chains, JensenShannon(weight)) if jsd else chains)
