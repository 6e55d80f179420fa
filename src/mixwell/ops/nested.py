"""Boxes inside boxes: shares of a stick that is broken again and again, as half-open (top, bottom, left, right).

Like all boxes they follow from numbers that are drawn on the host, and are computed there, as arrays. Only the breaks,
which depend on each other, are gone through one by one.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from mixwell.core.mix import Partners
from mixwell.ops.boxes import area_of, outside

__all__ = ["nest", "nested_boxes", "nested_masks", "segment_areas", "stick_breaks"]


def stick_breaks(shares: Float32[np.ndarray, "b k"]) -> Float32[np.ndarray, "b k-1"]:
    """Which share v_k of what is left of a stick each break takes off: v_k = φ_k / (1 - φ_0 - … - φ_{k-1}).

    Args:
        shares: (B, K) φ, rows that sum to 1.
    """
    breaks = shares[:, :-1].copy()
    left = 1 - breaks[:, 0]
    for which in range(1, breaks.shape[1]):
        breaks[:, which] /= left + np.float32(1e-10)
        left = left * (1 - breaks[:, which])
    return breaks


def nested_boxes(
    breaks: Float32[np.ndarray, "b breaks"], places: Float[np.ndarray, "b breaks 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "breaks b 4"]:
    """Boxes of which each lies in the one before it, the first in the image.

    A box has the share 1 - v_k of the one around it: sides of √(1 - v_k) times its sides, rounded, halves to even.
    Where one of them is not shorter than the side around it, the box lies in the top left corner, as in the official
    code.

    Args:
        breaks: (B, K - 1) v, see `stick_breaks`.
        places: (B, K - 1, 2) uniform in [0, 1): row and column, among all places inside the box around.
        size: height and width of the image.
    """
    boxes = np.empty((breaks.shape[1], len(breaks), 4), np.int64)
    low, sides = np.zeros((len(breaks), 2), np.int64), np.array([size])
    for which, box in enumerate(boxes):
        cuts = np.rint(sides * np.sqrt(np.maximum(1 - breaks[:, which, None], 0))).astype(np.int64)
        free = sides - cuts
        low = low + (places[:, which] * (free + 1)).astype(np.int64) * (free > 0).all(1, keepdims=True)
        box[:, ::2], box[:, 1::2] = low, low + cuts
        sides = cuts
    return boxes


def segment_areas(boxes: Int64[np.ndarray, "breaks b 4"], size: tuple[int, int]) -> Float[np.ndarray, "b breaks+1"]:
    """Exact share of the image of what lies outside the first box, between each and the next, and in the last; fp64."""
    areas = np.stack([area_of(box, size) for box in boxes], 1)
    return -np.diff(areas, axis=1, prepend=1, append=0)


def nested_masks(
    boxes: Int64[np.ndarray, "breaks b 4"], size: tuple[int, int], device: torch.device | None = None
) -> Float[Tensor, "b breaks+1 h w"]:
    """1 in each segment, 0 elsewhere: outside the first box, between each and the next, and in the last."""
    beyond = _each_outside(boxes, size, device, torch.float32)
    ends = beyond.new_zeros((1, *beyond.shape[1:]))
    return torch.cat((beyond, ends + 1)).diff(dim=0, prepend=ends).squeeze(2).movedim(0, 1)


def nest(
    images: Float[Tensor, "b c h w"], partners: Partners, boxes: Int64[np.ndarray, "breaks #b 4"]
) -> Float[Tensor, "b c h w"]:
    """The images with the pixels of their first partners in the first boxes, of their second in the second …

    Args:
        images: (B, C, H, W) floating.
        partners: as many of each row as there are breaks.
        boxes: (K - 1, B, 4); (K - 1, 1, 4) for the same boxes in all images.
    """
    if boxes.shape[1] == 1:
        mixed = images.clone()
        for which, (top, bottom, left, right) in enumerate(boxes[:, 0].tolist()):
            mixed[:, :, top:bottom, left:right] = partners.of(images[:, :, top:bottom, left:right], which)
        return mixed
    mixed = images
    for which, keep in enumerate(_each_outside(boxes, images.shape[2:], images.device, images.dtype)):
        # With weights 0 and 1 lerp copies exactly, and is several times as fast as `where` or an index per pixel.
        mixed = partners.of(images, which).lerp_(mixed, keep)
    return mixed


def _each_outside(
    boxes: Int64[np.ndarray, "breaks b 4"], size: tuple[int, ...], device: torch.device | None, dtype: torch.dtype
) -> Float[Tensor, "breaks b 1 h w"]:
    height, width = size
    return outside(boxes.reshape(-1, 4), (height, width), device, dtype).view(*boxes.shape[:2], 1, height, width)
