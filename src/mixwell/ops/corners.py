"""Four rectangles that meet at a point, in reading order: top left, top right, bottom left, bottom right.

Points, boxes and crops follow from numbers that are drawn on the host, so they are computed there, as arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mixwell.core.mix import Partners, layout_of, onto

__all__ = ["corner_areas", "corner_masks", "corner_points", "crop_shifts", "patched", "stitched", "tile_boxes"]


def corner_points(points: Float[np.ndarray, "b 2"], size: tuple[int, int]) -> Int64[np.ndarray, "b 2"]:
    """The rows and columns at which images are split, halves rounded to even.

    Args:
        points: (B, 2) row and column as shares of the sides, in [0, 1].
        size: height and width.
    """
    rounded: np.ndarray = np.rint(points * np.array(size)).astype(np.int64)
    return rounded


def _corner_sides(points: Int64[np.ndarray, "b 2"], size: tuple[int, int]) -> Int64[np.ndarray, "b 4 2"]:
    """Height and width of each corner."""
    sides = np.stack((points, np.array(size) - points), 1)
    return np.stack((sides[:, [0, 0, 1, 1], 0], sides[:, [0, 1, 0, 1], 1]), 2)


def corner_areas(points: Int64[np.ndarray, "b 2"], size: tuple[int, int]) -> Float[np.ndarray, "b 4"]:
    """Exact share of the image that each corner covers, in fp64."""
    areas: np.ndarray = _corner_sides(points, size).prod(2) / (size[0] * size[1])
    return areas


def corner_masks(
    points: Int64[np.ndarray, "b 2"], size: tuple[int, int], device: torch.device | None = None
) -> Float[Tensor, "b 4 h w"]:
    """1 inside each corner, 0 outside."""
    spans = []
    for axis, side in enumerate(size):
        before = np.arange(side) < points[:, axis, None]
        spans.append(torch.from_numpy(np.stack((before, ~before), 1).astype(np.float32)).to(device, non_blocking=True))
    rows, columns = spans
    return (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(1, 2)


def crop_shifts(
    points: Int64[np.ndarray, "b 2"], crops: Float[np.ndarray, "b 4 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "b 4 2"]:
    """How far each corner's crop of its source lies below and right of the corner itself.

    Args:
        points: (B, 2) where the corners meet.
        crops: (B, 4, 2) where the crops begin: in [0, 1], from the first possible row and column to the last.
        size: height and width.
    """
    sides = _corner_sides(points, size)
    free = np.array(size) - sides
    shifts: np.ndarray = np.minimum((crops * (free + 1)).astype(np.int64), free)
    shifts[:, 2:, 0] -= points[:, :1]
    shifts[:, 1::2, 1] -= points[:, 1:]
    return shifts


def patched(
    images: Float[Tensor, "b c h w"],
    partners: Partners,
    points: Int64[np.ndarray, "#b 2"],
    shifts: Int64[np.ndarray, "#b 4 2"],
) -> Float[Tensor, "b c h w"]:
    """Images whose four corners show crops of their four partners.

    Args:
        images: (B, C, H, W) floating.
        partners: four of each row.
        points: (B, 2) where the corners meet; (1, 2) for the same point in all images.
        shifts: (B, 4, 2) or (1, 4, 2), see `crop_shifts`.
    """
    if len(points) > 1:
        return _gathered(images, partners, points, shifts)
    (row, column), (height, width) = points[0].tolist(), images.shape[2:]
    mixed = torch.empty_like(images)
    for which, (down, across) in enumerate(shifts[0].tolist()):
        top, bottom = (row, height) if which > 1 else (0, row)
        left, right = (column, width) if which % 2 else (0, column)
        seen = images[:, :, top + down : bottom + down, left + across : right + across]
        mixed[:, :, top:bottom, left:right] = partners.of(seen, which)
    return mixed


def _gathered(
    images: Float[Tensor, "b c h w"],
    partners: Partners,
    points: Int64[np.ndarray, "b 2"],
    shifts: Int64[np.ndarray, "b 4 2"],
) -> Float[Tensor, "b c h w"]:
    """The same with a point for each image: every pixel is copied once, by its place in memory."""
    count, channels, height, width = images.shape
    pixels = height * width
    last = layout_of(images) is torch.channels_last
    planes = 1 if last else channels
    table = images.permute(0, 2, 3, 1).reshape(-1, channels) if last else images.reshape(-1)
    # Half the bytes are worth the conversion wherever the places fit.
    kind = torch.int32 if images.numel() < 2**31 else torch.int64
    # Each line of the mix is a piece of two lines of the sources: where their first columns would lie.
    half = 2 * np.arange(count)[:, None] + (np.arange(height) >= points[:, :1])
    shift = (shifts[:, :, 0] * width + shifts[:, :, 1]).reshape(-1, 2)
    lines = shift[half] + np.arange(0, pixels, width)[:, None]
    shown = partners.index.reshape(-1, 2).index_select(0, onto(half.reshape(-1), images)).view(count, height, 2)
    first = (shown * (planes * pixels) + onto(lines, images)).to(kind)
    left, right = first[:, :, :1], first[:, :, 1:]
    before = onto(np.arange(width) < points[:, 1:], images)[:, None].to(kind)
    index = torch.addcmul(right + torch.arange(width, dtype=kind, device=images.device), left - right, before)
    if not last:
        each = torch.arange(0, planes * pixels, pixels, dtype=kind, device=images.device)
        index = index.view(count, 1, pixels) + each[:, None]
    taken = table.index_select(0, index.view(-1))
    return taken.view(count, height, width, channels).permute(0, 3, 1, 2) if last else taken.view(images.shape)


def tile_boxes(
    sides: Sequence[tuple[int, int]], point: tuple[int, int], size: tuple[int, int]
) -> Int64[np.ndarray, "4 4"]:
    """Where on a canvas four tiles show whose inner corners meet at a point; what lies beyond the canvas is cut.

    Args:
        sides: height and width of each tile.
        point: row and column on the canvas.
        size: height and width of the canvas.
    """
    lengths = np.array(sides)
    after = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    low = np.maximum(np.array(point) - (1 - after) * lengths, 0)
    high = np.minimum(np.array(point) + after * lengths, np.array(size))
    return np.stack((low[:, 0], high[:, 0], low[:, 1], high[:, 1]), 1)


def stitched(
    tiles: Sequence[Shaped[Tensor, "b c _ _"]], point: tuple[int, int], size: tuple[int, int], fill: float = 0.0
) -> Shaped[Tensor, "b c h w"]:
    """A canvas on which the inner corners of four tiles of any sizes meet, as detectors build their mosaics.

    Args:
        tiles: four of (B, C, h, w), each with sides of its own.
        point: row and column on the canvas.
        size: height and width of the canvas.
        fill: what the canvas shows where no tile lies.
    """
    example = tiles[0]
    canvas = torch.empty(
        (*example.shape[:2], *size), dtype=example.dtype, device=example.device, memory_format=layout_of(example)
    ).fill_(fill)
    boxes = tile_boxes([(tile.shape[2], tile.shape[3]) for tile in tiles], point, size)
    for which, (tile, (top, bottom, left, right)) in enumerate(zip(tiles, boxes.tolist(), strict=True)):
        # The tile's own row 0 and column 0 on the canvas, which may lie beyond it.
        first = point[0] - (0 if which > 1 else tile.shape[2]), point[1] - (0 if which % 2 else tile.shape[3])
        shown = tile[:, :, top - first[0] : bottom - first[0], left - first[1] : right - first[1]]
        canvas[:, :, top:bottom, left:right] = shown
    return canvas
