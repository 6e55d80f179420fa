"""Windows of a map's places: their sums, where they are in images, and how they move from one image to another."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mixwell.core.mix import Partners, onto
from mixwell.ops.boxes import kept
from mixwell.ops.gather import gathered

__all__ = ["moved", "sides_in_pixels", "window_sums", "windows_at"]


def window_sums(maps: Float[Tensor, "b h w"], sides: Int64[Tensor, "#b 2"]) -> Float[Tensor, "b h w"]:
    """The sum of each window, at the place of its top left corner; NaN where it would leave the map.

    In fp64, where windows over equal values have equal sums.

    Args:
        maps: (B, H, W) floating.
        sides: (B, 2) or (1, 2) height and width of the windows in places.
    """
    sums, outside = maps.double(), []
    for axis, side in enumerate(maps.shape[1:]):  # along the height, then along the width, and transposed in between
        ends = torch.arange(side, device=maps.device) + sides[:, axis, None]
        upto = F.pad(sums.transpose(1, 2).cumsum(2), (1, 0))
        index = ends.clamp_max(side)[:, None].expand(*upto.shape[:2], -1)
        sums = upto.gather(2, index) - upto[:, :, :-1]
        outside.append(ends > side)
    return sums.masked_fill(outside[0][:, :, None] | outside[1][:, None], torch.nan)


def sides_in_pixels(
    sides: Int64[np.ndarray, "#b 2"], grid: tuple[int, int], size: tuple[int, int]
) -> Int64[np.ndarray, "#b 2"]:
    """Height and width of windows at the size of an image: ⌊s·H/h⌋ of s places, but a pixel at least where s is not 0.

    Args:
        sides: (B, 2) or (1, 2) height and width in places.
        grid: rows and columns of the map.
        size: height and width of the image.
    """
    pixels: np.ndarray = np.maximum(sides * np.array(size) // np.array(grid), np.minimum(sides, 1))
    return pixels


def windows_at(
    corners: Int64[Tensor, "b 2"], sides: Int64[np.ndarray, "#b 2"], grid: tuple[int, int], size: tuple[int, int]
) -> Int64[Tensor, "b 4"]:
    """Windows as boxes (top, bottom, left, right), half-open, at the size of an image, from the pixel ⌊c·H/h⌋ on.

    Windows of equal sides are equally large wherever they lie, also where the places are not.

    Args:
        corners: (B, 2) row and column of the top left places.
        sides, grid, size: as in `sides_in_pixels`.
    """
    low = torch.stack([corners[:, axis] * size[axis] // grid[axis] for axis in (0, 1)], 1)
    return torch.stack((low, low + onto(sides_in_pixels(sides, grid, size), low)), 2).flatten(1)


def moved(
    images: Float[Tensor, "b c h w"], partners: Partners, into: Int64[Tensor, "b 4"], out_of: Int64[Tensor, "b 4"]
) -> Float[Tensor, "b c h w"]:
    """The images with boxes of their partners in boxes of the same size, in the same memory layout.

    Args:
        images: (B, C, H, W).
        into: (B, 4) where the partner is shown.
        out_of: (B, 4) what of it.
    """
    size = (images.shape[2], images.shape[3])
    rows, columns = (
        (torch.arange(side, device=images.device) + (out_of - into)[:, low : low + 1]).clamp(0, side - 1)
        for low, side in ((0, size[0]), (2, size[1]))
    )
    # With weights 0 and 1 lerp copies exactly, and is several times as fast as `where` with a mask that broadcasts.
    return gathered(images, partners.column(), rows, columns).lerp_(images, kept(into, size, images.dtype))
