"""Rectangles: half-open (top, bottom, left, right), one per row, without a loop.

Boxes follow from numbers that are drawn on the host, so they are computed there, as arrays; only masks live on a
device, and boxes around places that only the device knows (`boxes_at`, `kept`, `scaled`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mixwell.core.mix import onto, with_rest

__all__ = [
    "all_but",
    "area_of",
    "boxes_around",
    "boxes_at",
    "boxes_between",
    "boxes_of",
    "boxes_within",
    "kept",
    "outside",
    "pair_masks",
    "scaled",
]


def boxes_of(
    lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "b 4"]:
    """Boxes of area 1 - λ around random centres, clipped at the border.

    A side is 2·(⌊side·√(1-λ)⌋ // 2) pixels before clipping: always even, as in the official code of CutMix.

    Args:
        lam: (B,) or (1,) share that stays outside.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
        size: height and width.
    """
    return boxes_around(np.sqrt(np.maximum(1 - lam, 0)), centres, size)


def boxes_around(
    cuts: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "b 4"]:
    """Boxes with sides of 2·(⌊side·cut⌋ // 2) pixels around random centres, clipped at the border.

    Args:
        cuts: (B,) or (1,) share of the image's sides, ≥ 0.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
        size: height and width.
    """
    extent = _extent(size)
    # ⌊⌊side·cut⌋ / 2⌋ = ⌊side·cut / 2⌋
    half = (cuts[:, None] * (extent * 0.5)).astype(np.int64)
    middle = (centres * extent).astype(np.int64)
    return boxes_between(np.maximum(middle - half, 0), np.minimum(middle + half, extent))


def boxes_within(
    sides: Int64[np.ndarray, "#b 2"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "b 4"]:
    """Boxes of exactly the given sides around random centres, shifted inwards where they would cross the border.

    Args:
        sides: (B, 2) or (1, 2) height and width in pixels, at most the image's.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
        size: height and width of the image.
    """
    extent = _extent(size)
    low = np.clip((centres * extent).astype(np.int64) - sides // 2, 0, extent - sides)
    return boxes_between(low, low + sides)


def boxes_between(low: Int64[np.ndarray, "b 2"], high: Int64[np.ndarray, "b 2"]) -> Int64[np.ndarray, "b 4"]:
    """Boxes from their first row and column to those after their last."""
    boxes = np.empty((len(low), 4), np.int64)
    boxes[:, ::2], boxes[:, 1::2] = low, high
    return boxes


@lru_cache(maxsize=64)
def _extent(size: tuple[int, int]) -> Int64[np.ndarray, " 2"]:
    return np.array(size)


def area_of(boxes: Int64[np.ndarray, "b 4"], size: tuple[int, int]) -> Float[np.ndarray, " b"]:
    """Exact share of the image that each box covers, in fp64."""
    sides = boxes[:, 1::2] - boxes[:, ::2]
    area: np.ndarray = sides[:, 0] * sides[:, 1] / (size[0] * size[1])
    return area


def outside(
    boxes: Int64[np.ndarray, "b 4"],
    size: tuple[int, int],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 1 h w"]:
    """1 outside each box, 0 inside."""
    return kept(torch.from_numpy(boxes).to(device, non_blocking=True), size, dtype)


def all_but(rows: Float[Tensor, "b h"], columns: Float[Tensor, "b w"]) -> Float[Tensor, "b 1 h w"]:
    """1 - rows ⊗ columns: what is left outside of a region that is an outer product."""
    return torch.addcmul(rows.new_ones(()), rows[:, None, :, None], columns[:, None, None, :], value=-1)


def pair_masks(
    boxes: Int64[np.ndarray, "b 4"], size: tuple[int, int], device: torch.device | None = None
) -> Float[Tensor, "b 2 h w"]:
    """What is outside each box, and what is inside."""
    return with_rest(outside(boxes, size, device))


def boxes_at(centres: Int[Tensor, "b 2"], cuts: Float[np.ndarray, " #b"], size: tuple[int, int]) -> Int[Tensor, "b 4"]:
    """Boxes (top, bottom, left, right), half-open, with sides of 2·(⌊side·cut⌋ // 2) around given centres, clipped.

    Args:
        centres: (B, 2) row and column, on the device.
        cuts: (B,) or (1,) share of the map's sides, ≥ 0.
        size: height and width of the map.
    """
    extent = np.array(size)
    half = onto((cuts[:, None] * (extent * 0.5)).astype(np.int64), centres)
    low, high = (centres - half).clamp_min(0), torch.minimum(centres + half, onto(extent, centres))
    return torch.stack((low, high), 2).flatten(1)


def kept(
    boxes: Int[Tensor, "b 4"], size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b 1 h w"]:
    """`outside`, of boxes that are on the device."""
    edges = boxes[:, :, None]
    inside = []
    for axis, side in enumerate(size):
        place = torch.arange(side, device=boxes.device)
        inside.append(((place >= edges[:, 2 * axis]) & (place < edges[:, 2 * axis + 1])).to(dtype))
    rows, columns = inside
    return all_but(rows, columns)


def scaled(places: Int[Tensor, "b 2"], size: tuple[int, int], new: tuple[int, int]) -> Int[Tensor, "b 2"]:
    """The pixel on which the middle of a place falls at another resolution."""
    axes = [(2 * places[:, axis] + 1) * new[axis] // (2 * size[axis]) for axis in (0, 1)]
    return torch.stack(axes, 1)
