"""mixup: convex combinations of two images, and the same combination of their labels.

Zhang, Cissé, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.

Every image is averaged with a random partner, with a weight λ ~ Beta(α, α) for the image itself, and so is its label.
Equations: x̃ = λ·x_i + (1-λ)·x_j → `linear`; ỹ likewise → the mix's label shares.

Paper and code: the equations draw λ per pair (`per="sample"`); the authors' code draws one λ per batch (`per="batch"`).
Both pair by a random permutation in which a row may meet itself. Mixing normalised images is the same as mixing pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method

__all__ = ["Linear", "linear"]


def linear(
    own: Float[Tensor, "b ..."], other: Float[Tensor, "b ..."], lam: Float[Tensor, " #b"]
) -> Float[Tensor, "b ..."]:
    """λ·own + (1-λ)·other, row by row.

    Args:
        own, other: (B, ...) floating.
        lam: (B,) or (1,) in [0, 1], any dtype; on the CPU, or on the images' device.
    """
    return torch.lerp(other, own, _weight(own, lam))


def _weight(own: Tensor, lam: Tensor) -> Tensor:
    """λ as a tensor that broadcasts over the rows."""
    return lam.to(own.device, own.dtype, non_blocking=True).view(-1, *(1,) * (own.ndim - 1))


class Linear(Blend):
    """The weighted mean of an image and its partner."""

    gives = OF_A_PAIR | {Need.DIFFERENTIABLE}
    grid = False

    def mix(
        self, images: Float[Tensor, "b ..."], partners: Partners, lam: Float[Tensor, " #b"], draws: Any, scene: Scene
    ) -> Mix:
        shares = partners.shares(lam)

        def apply(x: Tensor) -> Tensor:
            other = partners.of(x)  # a fresh copy, so that without a graph to λ the mix can take its place
            if lam.requires_grad:
                return linear(x, other, lam)
            if x.dtype is torch.float32:  # the weights are at hand, and one view of them is enough
                ones = (1,) * (x.ndim - 1)
                return other.lerp_(x, shares.as_strided((len(shares), *ones), (shares.stride(0), *ones)))
            return other.lerp_(x, _weight(x, lam))

        return Mix(
            apply(images), partners.sources, shares, partners.pool, apply, lam=lam, area=lam, make_masks=_constant
        )


def _constant(mix: Mix) -> Float[Tensor, "r k 1 1"]:
    return mix.weights[:, :, None, None]


@method("mixup", section="1.1", paper="1710.09412", venue="ICLR 2018")
def mixup(alpha: float = 1.0, prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α); the paper takes 1 on CIFAR and 0.2 on ImageNet.
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch".
    """
    return Pieces(essential=Linear(), suggested=Beta(alpha, per=per), prob=prob)
