"""Blurs: out of focus, frosted glass, motion, zoom."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mixwell.evaluate.corrupting.draws import Draws
from mixwell.evaluate.corrupting.resample import along, gaussian_matrix, mirrored, zoom_matrix

__all__ = ["defocus_blur", "disc", "glass_blur", "motion", "motion_blur", "zoom_blur"]

Images = Float[Tensor, "b c h w"]

_TRUNCATE = 4.0
"""skimage's default, in deviations."""
_NEGLIGIBLE = 1e-7


def defocus_blur(images: Images, draws: Draws, radius: float, alias: float) -> Images:
    """Average over a disc; what lies beyond an edge is mirrored."""
    kernel = disc(radius, alias)
    reach = len(kernel) // 2
    height, width = images.shape[2:]
    rows, columns = (
        torch.from_numpy(mirrored(np.arange(-reach, size + reach), size)).to(images.device) for size in (height, width)
    )
    wide = images.index_select(2, rows).index_select(3, columns)
    total = torch.zeros_like(images)
    for i, j in zip(*np.nonzero(kernel), strict=True):
        total.add_(wide[:, :, i : i + height, j : j + width], alpha=float(kernel[i, j]))
    return total


def disc(radius: float, alias: float) -> Float[np.ndarray, "k k"]:
    """A disc of sum 1, its edge softened by a Gaussian of deviation `alias`, 3 pixels wide, or 5 beyond radius 8."""
    side = np.arange(-max(8, math.ceil(radius)), max(8, math.ceil(radius)) + 1)
    kernel = (side**2 + side[:, None] ** 2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    reach = 1 if radius <= 8 else 2
    soft = np.exp(-0.5 * (np.arange(-reach, reach + 1) / alias) ** 2)
    soft /= soft.sum()
    matrix = np.zeros((len(side), len(side)))
    place = np.arange(len(side))
    for weight, away in zip(soft, range(-reach, reach + 1), strict=True):
        np.add.at(matrix, (place, mirrored(place + away, len(side))), weight)
    kernel = matrix @ kernel @ matrix.T
    used = np.flatnonzero(kernel.max(0) > _NEGLIGIBLE)
    kernel = kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1]
    return np.where(kernel > _NEGLIGIBLE, kernel, 0)


def glass_blur(images: Images, draws: Draws, sigma: float, reach: float, rounds: float) -> Images:
    """Blur, let pixels change places with near ones, blur again.

    As in the code that made CIFAR-C and ImageNet-C, pixels are visited from the last to the first, and each takes over
    a random neighbour's value, at most `reach` away. That code means to exchange the two, but the view of the array
    that it reads from has been overwritten by then, so the neighbour keeps its value.
    """
    height, width = images.shape[2:]
    rows, columns = (gaussian_matrix(size, sigma, truncate=_TRUNCATE) for size in (height, width))

    def blurred(x: Images) -> Images:
        return along(along(x, rows, 2), columns, 3)

    x = blurred(images).flatten(2)
    for turn in range(int(rounds)):
        source = _shattered(draws.uniform(f"places {turn}", 2, height, width), int(reach))
        x = x.gather(2, source[:, None].expand_as(x))
    return blurred(x.view_as(images))


def _shattered(uniform: Float[Tensor, "b 2 h w"], reach: int) -> Int64[Tensor, "b hw"]:
    """Where each pixel's value comes from after one round.

    A pixel takes over the value of a neighbour. If that neighbour was visited before, it holds a value that it took
    over itself, and so on; these chains are followed in strides that double.
    """
    height, width = uniform.shape[2:]
    own = torch.arange(height * width, device=uniform.device).view(height, width)
    step = (uniform * (2 * reach)).long() - reach
    visited = torch.zeros_like(own, dtype=torch.bool)
    visited[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    near = torch.where(visited, own + step[:, 0] * width + step[:, 1], own).flatten(1)
    last = (near <= own.flatten()) | ~visited.flatten()[near]
    follow = torch.where(last, own.flatten(), near)
    for _ in range((height * width).bit_length()):
        further = follow.gather(1, follow)
        if torch.equal(further, follow):
            break
        follow = further
    return near.gather(1, follow)


def motion_blur(images: Images, draws: Draws, radius: float, sigma: float) -> Images:
    """Blur by motion at an angle of -45° to 45° from the horizontal."""
    angle = (draws.uniform("angle") * 90 - 45).deg2rad()
    return motion(images, angle, int(radius), sigma)


def motion(
    images: Float[Tensor, "b c h w"], angle: Float[Tensor, " b"], radius: int, sigma: float
) -> Float[Tensor, "b c h w"]:
    """ImageMagick's motion blur: half a Gaussian along a line, by whole pixels, edges continued.

    Args:
        images: of any range.
        angle: (B,) in radians from the horizontal, downwards.
        radius: the line has 2·radius + 1 pixels.
        sigma: the Gaussian's deviation in pixels.
    """
    height, width = images.shape[2:]
    weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)
    along_line = torch.stack((angle.sin(), angle.cos()))[..., None, None]
    flat = images.flatten(2)
    total = flat * float(weights[0])
    for away, weight in enumerate(weights[weights > _NEGLIGIBLE].tolist()[1:], 1):
        down, right = (along_line * away - 0.5).ceil().long()
        place = (row + down).clamp(0, height - 1) * width + (column + right).clamp(0, width - 1)
        total.add_(flat.gather(2, place.flatten(1)[:, None].expand_as(flat)), alpha=weight)
    return total.view_as(images)


def zoom_blur(images: Images, draws: Draws, stop: float, step: float) -> Images:
    """The mean of the image and its enlargements by 1, 1 + step … below `stop`.

    Floating point lets `stop` itself in where `numpy.arange` does; so it was in CIFAR-C.
    """
    height, width = images.shape[2:]
    factors = np.arange(1, stop, step)
    total = images.clone()
    for factor in factors.tolist():
        total += along(along(images, zoom_matrix(height, factor), 2), zoom_matrix(width, factor), 3)
    return total / (len(factors) + 1)
