"""Superpixels of a whole batch: SLIC on a grid of seeds, without a loop over images.

Achanta, Shaji, Smith, Lucchi, Fua, Süsstrunk, "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI
2012: k-means in colour and place, started from a regular grid. Each pixel is compared with the 3×3 seeds around the one
in whose cell it lies, so every step is a small matrix product per cell. The reference is scikit-image's `slic`, whose
scaling of colours, blur, seeds and number of steps are taken over. Its last step, which joins stray pixels to a
neighbour, is not: a superpixel may have a few pixels apart from the rest.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mixwell.core.mix import layout_of, onto

__all__ = ["blurred", "lab", "seed_grid", "superpixel_means", "superpixels"]

_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear sRGB to XYZ."""
_WHITE = (0.95047, 1.0, 1.08883)
"""XYZ of the white point D65."""
_FAR = 1e12
"""Beyond every squared distance."""
_MANY = 8
"""Channels from which on it pays to take pixels for rows, if they lie so in memory."""


def lab(rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """sRGB in [0, 1] → CIE Lab (white point D65): lightness in [0, 100], the others about ±100."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = rgb.new_tensor(_TO_XYZ) / rgb.new_tensor(_WHITE)[:, None]
    xyz = torch.einsum("oc,bchw->bohw", matrix, linear)
    root = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def blurred(maps: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """The maps under a Gaussian of `sigma` pixels, cut off at 4σ, the border mirrored."""
    if sigma == 0:
        return maps
    rows, columns = (onto(_blur(side, sigma), maps).to(maps.dtype) for side in maps.shape[2:])
    smooth: Tensor = rows @ maps @ columns.mT
    return smooth


@lru_cache(maxsize=64)
def _blur(side: int, sigma: float) -> Float[np.ndarray, "side side"]:
    """The blur of a line as a matrix."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    seen = (np.arange(side)[:, None] + offsets) % (2 * side)  # a mirrored line repeats after two lengths
    seen = np.where(seen < side, seen, 2 * side - 1 - seen)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], seen), weights / weights.sum())
    return matrix.astype(np.float32)


def seed_grid(count: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """The first seed, the distance of seeds and their number, for about `count` superpixels in an image."""
    exact = (size[0] * size[1] / count) ** 0.5
    exact = exact if exact <= min(size) else max(size) / count  # one row of seeds in long, low images
    first, step = int(exact // 2), max(1, round(exact))
    down, across = (_seeds_on(side, first, step) for side in size)
    return first, step, down * across


def _seeds_on(side: int, first: int, step: int) -> int:
    """How many seeds lie on a line."""
    return max(1, (side - first - 1) // step + 1)


@lru_cache(maxsize=64)
def _cells(side: int, first: int, step: int) -> tuple[Int64[np.ndarray, " gt"], Int64[np.ndarray, " side"], int]:
    """A line cut into one cell per seed, all padded to one length.

    Returns:
        pixels: (G·T,) the pixel in each place of the padded cells, -1 for padding.
        places: (side,) where each pixel is.
        count: G.
    """
    count = _seeds_on(side, first, step)
    cell = np.arange(side) * count // side
    longest = int(np.bincount(cell).max())
    places = cell * longest + np.arange(side) - np.searchsorted(cell, cell)
    pixels = np.full(count * longest, -1)
    pixels[places] = np.arange(side)
    return pixels, places, count


@lru_cache(maxsize=64)
def _around(down: int, across: int) -> tuple[Int64[np.ndarray, "t 9"], Float[np.ndarray, "t 9"]]:
    """The 3×3 seeds around each seed of a grid, and 1 for those that exist; the others are named as the seed itself."""
    i, j, di, dj = np.ogrid[:down, :across, -1:2, -1:2]
    row, column = i + di, j + dj
    exists = (row >= 0) & (row < down) & (column >= 0) & (column < across)
    labels = np.where(exists, row * across + column, i * across + j)
    return labels.reshape(-1, 9), exists.reshape(-1, 9).astype(np.float32)


@torch.no_grad()
def superpixels(
    raw: Float[Tensor, "b c h w"], count: int, sigma: float = 5.0, compactness: float = 10.0, steps: int = 10
) -> Int64[Tensor, "b h w"]:
    """Cut each image into about `count` superpixels. Runs in fp32 with autocast off.

    Args:
        raw: (B, C, H, W) pixels in [0, 1]. Three channels are RGB and compared in Lab; one channel is grey; any other
            number is compared as it is, each channel on the scale of Lab's lightness.
        count: superpixels wanted; the grid of seeds decides how many there are.
        sigma: blur before the comparison, in pixels.
        compactness: how much place counts against colour.
        steps: of k-means.

    Returns:
        (B, H, W) labels in [0, K), K the number of seeds, row by row; a superpixel may have lost all its pixels.
    """
    size = (raw.shape[2], raw.shape[3])
    first, step, _ = seed_grid(count, size)
    (rows, row_places, down), (columns, column_places, across) = (_cells(side, first, step) for side in size)
    with torch.autocast(raw.device.type, enabled=False):
        colours = blurred(_colours(raw.float().contiguous()), sigma) * (step / compactness)
        features = _in_cells(colours, rows, columns, (down, across), first, step)
        nearest = _nearest(features, (down, across), step, steps)
    labels = onto(_around(down, across)[0], raw).expand(len(raw), -1, -1).gather(2, nearest)
    cells = labels.view(len(raw), down, across, len(rows) // down, len(columns) // across)
    spread = cells.transpose(2, 3).reshape(len(raw), len(rows), len(columns))
    return spread.index_select(1, onto(row_places, raw)).index_select(2, onto(column_places, raw))


def _colours(raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
    """What pixels are compared by, after each image was stretched to [0, 1]."""
    low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
    stretched = (raw - low) / torch.where(high > low, high - low, 1)
    if raw.shape[1] == 3:
        return lab(stretched)
    if raw.shape[1] == 1:
        return lab(stretched.expand(-1, 3, -1, -1))
    return 100 * stretched


def _in_cells(
    colours: Float[Tensor, "b c h w"],
    rows: Int64[np.ndarray, " gt"],
    columns: Int64[np.ndarray, " gt2"],
    grid: tuple[int, int],
    first: int,
    step: int,
) -> Float[Tensor, "b t f p"]:
    """The pixels of each cell: colours, row and column as seen from the cell's seed, and 1; all 0 in padding."""
    seeds = [
        np.repeat(first + step * np.arange(count), len(line) // count)
        for count, line in zip(grid, (rows, columns), strict=True)
    ]
    place = np.stack(np.broadcast_arrays((rows - seeds[0])[:, None], columns - seeds[1], 1))
    there = (rows >= 0)[:, None] & (columns >= 0)
    gathered = colours.index_select(2, onto(rows.clip(0), colours)).index_select(3, onto(columns.clip(0), colours))
    known = onto((place * there).astype(np.float32), colours).expand(len(colours), -1, -1, -1)
    features = torch.cat((gathered * onto(there.astype(np.float32), colours), known), 1)
    cells = features.view(*features.shape[:2], grid[0], len(rows) // grid[0], grid[1], len(columns) // grid[1])
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(len(cells), grid[0] * grid[1], cells.shape[1], -1)


def _nearest(
    features: Float[Tensor, "b t f p"], grid: tuple[int, int], step: int, steps: int
) -> Int64[Tensor, "b t p"]:
    """Which of the 3×3 seeds around its cell each pixel belongs to after k-means.

    Places are seen from a cell's seed, so that squared distances keep their precision in large images.
    """
    rows, cells, known = len(features), len(features[0]), features.shape[2] - 1
    labels, exists = (onto(array, features) for array in _around(*grid))
    far = (1 - exists) * _FAR
    # A cell's sums for the seed at its offset k are, seen from that seed, those of the cell at offset 8 - k.
    backwards = (labels * 9 + torch.arange(8, -1, -1, device=features.device)).flatten()
    shifts = features.new_zeros(9, known)
    shifts[:, -2:] = onto(step * (np.indices((3, 3)).reshape(2, 9).T - 1).astype(np.float32), features)

    def distances() -> Tensor:
        """Squared, up to what is the same for all seeds."""
        around = centres.index_select(1, labels.flatten()).view(rows, cells, 9, known) + shifts
        return torch.cat((-2 * around, around.square().sum(3, keepdim=True) + far[:, :, None]), 3) @ features

    # Seeds have no colour yet, so that the first assignment is by place alone; a pixel halfway goes up and to the left.
    centres = features.new_zeros(rows, cells, known)
    centres[:, :, -2:] = 0.01
    for _ in range(steps - 1):
        away = distances()
        chosen = away.eq_(away.amin(2, keepdim=True))  # several times as fast as argmin
        sums = chosen @ features.mT
        sums[..., :-1] -= sums[..., -1:] * shifts
        sums = sums.flatten(1, 2).index_select(1, backwards).view(rows, cells, 9, known + 1)
        sums = (sums * exists[:, :, None]).sum(2)
        centres = torch.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:].clamp_min(1), centres)
    away = distances()
    ranks = torch.arange(9, device=features.device)[:, None]
    return torch.where(away == away.amin(2, keepdim=True), ranks, 9).amin(2)


def superpixel_means(
    images: Float[Tensor, "b c h w"], segments: Int[Tensor, "b h w"], count: int
) -> Float[Tensor, "b c k"]:
    """The mean of each superpixel, in fp32 at least; 0 for unused labels.

    Args:
        images: (B, C, H, W) floating.
        segments: (B, H, W) labels in [0, count).
        count: K.
    """
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    b, c = wide.shape[:2]
    if c >= _MANY and layout_of(wide) is torch.channels_last:  # pixels are rows, and so are those of the gradient
        rows = wide.permute(0, 2, 3, 1).reshape(-1, c)
        labels = (segments.flatten(1).long() + count * torch.arange(b, device=segments.device)[:, None]).flatten()
        totals = rows.new_zeros(b * count, c).scatter_add_(0, labels[:, None].expand_as(rows), rows)
        pixels = rows.new_zeros(b * count).scatter_add_(0, labels, rows.new_ones(()).expand(len(rows)))
        return (totals / pixels.clamp_min(1)[:, None]).view(b, count, c).transpose(1, 2)
    wide, labels = wide.flatten(2), segments.flatten(1)[:, None].long()
    totals = wide.new_zeros(b, c, count).scatter_add_(2, labels.expand_as(wide), wide)
    pixels = wide.new_zeros(b, 1, count).scatter_add_(2, labels, torch.ones_like(wide[:, :1]))
    return totals / pixels.clamp_min(1)
