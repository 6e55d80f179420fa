"""Rectangles as tensors: half-open (top, bottom, left, right), one per row, without a loop."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["area_of", "box_masks", "boxes_of"]


def boxes_of(lam: Float[Tensor, " #b"], centres: Float[Tensor, "#b 2"], size: tuple[int, int]) -> Int[Tensor, "b 4"]:
    """Boxes of area 1 - λ around random centres, clipped at the border.

    A side is 2·(⌊side·√(1-λ)⌋ // 2) pixels before clipping: always even, as in the official code of CutMix.

    Args:
        lam: (B,) or (1,) share that stays outside.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
        size: height and width.
    """
    extent = _extent(size, lam.device)
    # ⌊⌊side·cut⌋ / 2⌋ = ⌊side·cut / 2⌋
    half = ((1 - lam.detach()).clamp_min_(0).sqrt_()[:, None] * (extent * 0.5)).long()
    middle = (centres.to(lam.device) * extent).long()
    edges = torch.stack((middle - half, middle + half), 2).clamp_min_(0)
    return torch.minimum(edges, extent[:, None]).flatten(1)


@lru_cache(maxsize=64)
def _extent(size: tuple[int, int], device: torch.device) -> Int[Tensor, " 2"]:
    return torch.tensor(size, device=device)


def area_of(boxes: Int[Tensor, "b 4"], size: tuple[int, int]) -> Float[Tensor, " b"]:
    """Exact share of the image that each box covers, in fp64."""
    return (boxes[:, 1::2] - boxes[:, ::2]).prod(1).double() / (size[0] * size[1])


def box_masks(boxes: Int[Tensor, "b 4"], size: tuple[int, int]) -> Bool[Tensor, "b 1 h w"]:
    """True inside each box."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
