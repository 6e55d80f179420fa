"""RICAP: show random crops of four images in the four corners around a random point.

Takahashi, Matsubara, Uehara, "Data Augmentation Using Random Image Cropping and Patching for Deep CNNs", ACML 2018 and
IEEE Transactions on Circuits and Systems for Video Technology 2020, arXiv:1811.09030.

A point splits the canvas into four corners, and each shows a crop, not resized, of another image of the batch; the
label is shared by the corners' areas. There is no own row: all four images are drawn.
Equations: w = round(β_w·I_x), h = round(β_h·I_y), β ~ Beta(β, β) → `corner_points`; W_k = w_k·h_k / (I_x·I_y) →
`corner_areas`, the mix's label shares; x_k, y_k ~ U → `crop_shifts`; patching → `patched`.

Variants: the mosaic of object detectors (Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and Accuracy of Object
Detection", 2020, arXiv:2004.10934) stitches four whole images at a random point of a canvas of twice the size. Nobody
published a rule for classification; ours cuts the middle of that canvas out, without resizing (`variant="mosaic"`).
There the images fill everything: it is RICAP with a uniform point and crops that are anchored at the images' inner
corners. `variant="stitch"` puts four whole images side by side, halves the result, and labels with ¼ each. `stitched`
builds the detectors' canvas.

Paper and code: the authors' code draws one point and one crop per corner for the whole batch (`per="batch"`). It takes
the first draw for rows and names it the width.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.plain import Permutation
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import boxes_between, outside
from mixwell.ops.corners import corner_areas, corner_masks, corner_points, crop_shifts, patched, stitched

__all__ = ["CornerDraws", "FourCorners", "Stitch"]

Variant = Literal["ricap", "mosaic", "stitch"]
Crops = Literal["random", "inner"]

_INNER = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
"""Crops that end where the corners meet: the last place in the top left image, the first in the bottom right."""


class CornerDraws(NamedTuple):
    """Where images are split, and what their corners show.

    Attributes:
        point: (B, 2) or (1, 2) in [0, 1]: row, column.
        crops: (B, 4, 2) or (1, 4, 2) in [0, 1]: where each corner's crop begins, from the first place to the last.
    """

    point: np.ndarray
    crops: np.ndarray


class FourCorners(Blend):
    """Show crops of four partners in the corners around a random point.

    Args:
        beta: the point's row and column are Beta(β, β) shares of the sides.
        crops: "random", or anchored at the images' "inner" corners, which meet at the point.
        per: one point and crops per "sample", or per "batch".
    """

    gives = frozenset({Need.MASKS, Need.SIMPLEX})
    partners = 4
    takes_lam = False
    aligned = False

    def __init__(self, beta: float = 0.3, crops: Crops = "random", per: Per = "sample") -> None:
        super().__init__()
        self.beta = number_in("beta", beta, 0, open_low=True, hint="0.3 is the paper's; 1 takes uniform points.")
        self.crops = crops
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> CornerDraws:
        count = 1 if self.per == "batch" else rows
        point = rng.beta(self.beta, self.beta, (count, 2))
        return CornerDraws(
            point, rng.random((count, 4, 2)) if self.crops == "random" else _INNER[None].repeat(count, 0)
        )

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: CornerDraws,
        scene: Scene,
    ) -> Mix:
        size = (images.shape[2], images.shape[3])
        points = corner_points(draws.point, size)

        def apply(x: Tensor) -> Tensor:
            there = (x.shape[2], x.shape[3])
            points = corner_points(draws.point, there)
            return patched(x, partners, points, crop_shifts(points, draws.crops, there))

        def masks(mix: Mix) -> Tensor:
            return corner_masks(points, size, images.device)

        def origins(mix: Mix) -> Tensor:
            crops = _crop_boxes(points, crop_shifts(points, draws.crops, size), size)
            return 1 - outside(crops, size, images.device).view(len(points), 4, *size)

        areas = corner_areas(points, size).astype(np.float32)
        return _of_four(apply(images), partners, areas, apply=apply, make_masks=masks, make_origins=origins)


def _crop_boxes(
    points: Int64[np.ndarray, "b 2"], shifts: Int64[np.ndarray, "b 4 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "n 4"]:
    """Where in its source each corner's crop lies."""
    after = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    low = points[:, None] * after + shifts
    high = np.where(after, size, points[:, None]) + shifts
    return boxes_between(low.reshape(-1, 2), high.reshape(-1, 2))


class Stitch(Blend):
    """Show four whole partners side by side, at half the size."""

    gives = frozenset({Need.MASKS, Need.SIMPLEX})
    partners = 4
    takes_lam = False
    aligned = False

    def mix(
        self, images: Float[Tensor, "b c h w"], partners: Partners, lam: Float[Tensor, " #b"], draws: None, scene: Scene
    ) -> Mix:
        def apply(x: Tensor) -> Tensor:
            height, width = x.shape[2:]
            if height % 2 or width % 2:  # the middle line shows two images
                return _halved(stitched(_four(partners, x), (height, width), (2 * height, 2 * width)))
            return stitched(_four(partners, _halved(x)), (height // 2, width // 2), (height, width))

        def masks(mix: Mix) -> Tensor:
            height, width = images.shape[2:]
            return _halved(corner_masks(np.array([[height, width]]), (2 * height, 2 * width), images.device))

        def origins(mix: Mix) -> Tensor:
            return torch.ones(1, 4, 1, 1, device=images.device)

        areas = np.full((1, 4), 0.25, np.float32)
        return _of_four(apply(images), partners, areas, apply=apply, make_masks=masks, make_origins=origins)


def _four(partners: Partners, x: Tensor) -> list[Tensor]:
    return [partners.of(x, which) for which in range(4)]


def _halved(x: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h w"]:
    """Means of 2 × 2 pixels, several times as fast as `avg_pool2d` on the CPU."""
    lines = x[..., ::2, :] + x[..., 1::2, :]
    return (lines[..., ::2] + lines[..., 1::2]).mul_(0.25)


def _of_four(images: Tensor, partners: Partners, areas: Float[np.ndarray, "#b 4"], **kept: Any) -> Mix:
    """A mix of each row's four partners, without the row itself."""
    weights = onto(areas, images).expand(len(images), 4)
    return Mix(images, partners.index, weights, partners.pool, **kept)


@method("ricap", section="1.4", paper="1811.09030", venue="ACML 2018")
def ricap(beta: float = 0.3, variant: Variant = "ricap", prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    beta: the point's row and column are Beta(β, β) shares of the sides; for "ricap" only.
    variant: "ricap", "mosaic" (images that meet with their inner corners at a uniform point) or "stitch" (whole images
        at half the size).
    prob: share of the batches that are mixed.
    per: one point and crops per "sample" or per "batch".
    """
    if variant not in get_args(Variant):
        raise ParameterError(f"variant must be 'ricap', 'mosaic' or 'stitch', got {variant!r}.")
    if variant != "ricap" and beta != 0.3:
        raise ParameterError(f"beta is a parameter of variant='ricap', got {beta!r} with {variant!r}. Leave it out.")
    blends: dict[Variant, Blend] = {
        "ricap": FourCorners(beta, per=per),
        "mosaic": FourCorners(1.0, "inner", per),
        "stitch": Stitch(),
    }
    return Pieces(essential=(blends[variant], Permutation(4)), prob=prob)
