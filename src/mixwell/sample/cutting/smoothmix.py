"""SmoothMix: show the partner inside a blob with soft edges, the image outside it.

Lee, Zaheer, Astrid, Lee, "SmoothMix: a Simple Yet Effective Data Augmentation to Train Robust Classifiers", CVPR
Workshops 2020, doi:10.1109/CVPRW50498.2020.00386.

A mask G with one random centre, a Gaussian or a square whose edges are ramps, blends the partner in without the hard
edges of CutMix. λ is not drawn but measured: 1 - mean(G) weights the image's own label.
Equations: G → `circle_masks`, `square_masks`; x̃ = (1-G)⊙x_i + G⊙x_j → `SoftMask`; λ → the mix's label shares.

The paper names the roles the other way round. There is no official code; a known port (OpenMixup) gives mean(G), the
partner's share, to the image itself, which is not followed. Images that are not square get ellipses and rectangles. How
a ramp lies on the square's edge is our reading: centred on it, and k/2 of the image's side wide.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import all_but
from mixwell.ops.gaussian import distances, profiles

__all__ = ["SoftMask", "circle_masks", "square_masks"]

Variant = Literal["circle", "square"]

_NARROW, _WIDE = 0.25, 0.5
"""The paper's range of σ for circles, in image sides."""


def circle_masks(
    draws: Float[np.ndarray, "r 3"], size: tuple[int, int], like: Tensor
) -> tuple[Float[Tensor, "r 1 h w"], Float[Tensor, " r"]]:
    """What outside of a Gaussian shows the image itself, 1 - G, and its mean per row.

    Args:
        draws: (R, 3) of `SoftMask.draw`; the last number is σ, between 0.25 and 0.5 of the image's sides.
        size: height and width.
        like: a tensor on the masks' device.

    Returns:
        fp32 masks, and fp64 means on the CPU.
    """
    sigma = _NARROW + (_WIDE - _NARROW) * draws[:, 2]
    rows, columns = (profiles(draws[:, axis] * side, sigma * side, side) for axis, side in enumerate(size))
    mean = torch.from_numpy(1 - rows.mean(1) * columns.mean(1))
    down, across = (onto(profile.astype(np.float32), like) for profile in (rows, columns))
    return all_but(down, across), mean


def square_masks(
    draws: Float[np.ndarray, "r 3"], size: tuple[int, int], like: Tensor, edge: float = 0.2
) -> tuple[Float[Tensor, "r 1 h w"], Float[Tensor, " r"]]:
    """What outside of a square with ramps shows the image itself, 1 - G, and its mean per row.

    A square narrower than its ramps never reaches G = 1.

    Args:
        draws: (R, 3) of `SoftMask.draw`; the last number is the square's side, as a share of the image's.
        size: height and width.
        like: a tensor on the masks' device.
        edge: k > 0.

    Returns:
        fp32 masks and means, on that device.
    """
    outside = []
    for axis, side in enumerate(size):
        inner = draws[:, 2:] * side / 2 - np.abs(distances(draws[:, axis] * side, side))
        outside.append(onto(np.clip(0.5 - inner / (edge * side / 2), 0, 1).astype(np.float32), like))
    down, across = outside
    keep = torch.maximum(down[:, None, :, None], across[:, None, None, :])
    return keep, keep.mean((1, 2, 3))


class SoftMask(Blend):
    """Keep the image outside a soft blob, show the partner inside it.

    Args:
        variant: a Gaussian "circle", or a "square" with ramps.
        edge: k, how soft the square's edges are; has no effect on circles.
        per: one blob per "sample", or one per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}
    takes_lam = False

    def __init__(self, variant: Variant = "circle", edge: float = 0.2, per: Per = "sample") -> None:
        super().__init__()
        self.variant = variant
        self.edge = number_in("edge", edge, 0, open_low=True)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, 3) or (1, 3), uniform in [0, 1): the centre's row and column, and what gives the blob's extent."""
        return rng.random((1 if self.per == "batch" else rows, 3))

    def masks(
        self, draws: np.ndarray, size: tuple[int, int], like: Tensor
    ) -> tuple[Float[Tensor, "r 1 h w"], Float[Tensor, " r"]]:
        """What shows the image itself, and its mean per row."""
        if self.variant == "circle":
            return circle_masks(draws, size, like)
        return square_masks(draws, size, like, self.edge)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        size = (images.shape[2], images.shape[3])
        keep, own = self.masks(draws, size, images)

        def apply(x: Tensor) -> Tensor:
            seen = keep if x.shape[2:] == size else self.masks(draws, (x.shape[2], x.shape[3]), x)[0]
            return partners.under(x, seen)

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        return Mix.of_pair(apply(images), partners, own, apply, area=own, make_masks=masks)


@method("smoothmix", section="1.3", paper="doi:10.1109/CVPRW50498.2020.00386", venue="CVPR Workshops 2020")
def smoothmix(variant: Variant = "circle", edge: float = 0.2, prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    variant: "circle" for Gaussians with σ ~ U(0.25, 0.5) of the image's sides (the paper's SmoothMix_C), "square" for
        squares with ramps and a side ~ U(0, 1) of the image's (SmoothMix_S).
    edge: k, how soft the edges of squares are; has no effect on circles.
    prob: share of the batches that are mixed.
    per: one blob per "sample" or per "batch".
    """
    return Pieces(essential=SoftMask(variant, edge, per), prob=prob)
