"""Saliency maps of images that need no network.

Filters are sums of shifted maps or, on a CPU, products with small matrices: for maps of one channel both are faster
than convolutions, and in fp32 under autocast too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import exp

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["blurred", "fine_grained", "fine_grained_bytes", "grey_levels", "spectral_residual"]

_SCALES = (12, 24, 48, 28, 56, 112)
"""Half sides of the surroundings in pixels, as OpenCV has them."""
_LARGEST = 128
"""Longer images have their spectrum taken at 128×128."""
_BLOCK = 16
"""Filtered places that are computed by one matrix."""


def grey_levels(pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Brightness of 8-bit images by OpenCV's fixed-point weights, the first of three channels taken for blue; fp32.

    Images of one channel keep it; of other counts, the channels' mean. All are whole numbers.
    """
    channels = pixels.shape[1]
    if channels == 3:  # sums of 24 bits are exact in fp32
        first, second, third = (weight / 2**15 for weight in (3735, 19235, 9798))
        grey = pixels[:, 0].float().mul_(first).add_(pixels[:, 1], alpha=second).add_(pixels[:, 2], alpha=third)
        return grey.add_(0.5).floor_()
    return pixels.sum(1, dtype=torch.int32).add_(channels // 2).floor_divide_(channels).float()


def fine_grained(pixels: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w"]:
    """Static fine-grained saliency, to the bit as OpenCV computes it for images of up to 2¹⁶ pixels, 2 or more a side.

    On- and off-centre contrasts of a pixel with the mean of its surroundings, over six scales. Sums above 255 wrap, as
    there; an image without contrast is 0 everywhere. In larger images sums are exact here and rounded there.

    Args:
        pixels: (B, C, H, W).
    """
    grey = grey_levels(pixels)
    for _ in range(2):
        grey = _filtered(_mirrored(grey, 1), (0.5, 0.25)).add_(0.5).floor_()
    return _contrasts(grey, grey, wrap=False)


def fine_grained_bytes(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w"]:
    """What OpenCV's fine-grained saliency makes of floating images, though it was written for 8-bit ones.

    It sums floats, but takes the byte at x of a row's memory for the grey level of pixel x: mostly noise. Means may lie
    outside the 256 levels, and contrasts above 255 wrap. Equal to the bit where OpenCV uses fused instructions
    throughout, as for widths that are multiples of 8.

    Args:
        images: (B, C, H, W), taken in fp32.
    """
    wide = images.detach().float()
    if images.shape[1] == 3:
        # Each product and sum rounded once, as OpenCV's fused instructions do: the lowest bits matter.
        grey = wide[:, 1] * 0.587
        for channel, weight in ((0, 0.114), (2, 0.299)):
            factor = torch.tensor(weight, dtype=torch.float32).double().item()
            grey = (wide[:, channel].double() * factor + grey.double()).float()
    else:
        grey = wide.mean(1)
    for _ in range(2):
        grey = _filtered(_mirrored(grey, 1), (0.5, 0.25))
    return _contrasts(grey.contiguous().view(torch.uint8)[..., : grey.shape[2]].float(), grey, wrap=True)


def _contrasts(level: Float[Tensor, "b h w"], grey: Float[Tensor, "b h w"], wrap: bool) -> UInt8[Tensor, "b h w"]:
    """Contrasts of each pixel's level with the mean grey of its surroundings, kept in a byte each if they `wrap`."""
    height, width = grey.shape[1:]
    exact = torch.float32 if 255 * height * width < 2**24 else torch.float64
    sums = grey.cumsum(2, dtype=exact).cumsum(1).float()
    # Σ over all rows and columns before a place, with as many repeated beyond the borders as the largest scale sees.
    most = min(max(_SCALES), max(height, width))
    sums = F.pad(F.pad(sums, (1, 0, 1, 0))[:, None], (most,) * 4, mode="replicate")[:, 0]
    signed, size = (torch.zeros_like(level, dtype=torch.int32) for _ in range(2))
    for reach, (times, others) in _surroundings(height, width, level.device).items():
        low, high = most - reach + 1, most + reach + 1
        upper, lower = sums[:, low : low + height], sums[:, high : high + height]
        around = lower[:, :, high : high + width] - upper[:, :, high : high + width]
        around.sub_(lower[:, :, low : low + width] - upper[:, :, low : low + width])
        contrast = torch.sub(level, around.sub_(level).div_(others), out=around).to(torch.int32)
        if wrap:
            contrast.fmod_(256)
        signed.add_(contrast, alpha=times)
        size.add_(contrast.abs_(), alpha=times)
    on, off = _levels((size + signed).float()), _levels((size - signed).float())  # both twice as large
    greatest = torch.maximum(on, off).amax((1, 2), keepdim=True).clamp_min_(1)
    return on.add_(off).mul_(255).div_(greatest).to(torch.int32).to(torch.uint8)  # as an integer first, since it wraps


@lru_cache(maxsize=16)
def _surroundings(height: int, width: int, device: torch.device) -> dict[int, tuple[int, Float[Tensor, "h w"]]]:
    """How often each scale counts, and how many other pixels surround a pixel; scales that see all are the same."""

    def seen(side: int, reach: int) -> Tensor:
        place = torch.arange(side)
        return (place + reach + 1).clamp_max(side) - (place - reach + 1).clamp_min(0)

    scales = Counter(min(reach, max(height, width)) for reach in _SCALES)
    others = {reach: torch.outer(seen(height, reach), seen(width, reach)) - 1 for reach in scales}
    return {reach: (times, others[reach].clamp_min(1).float().to(device)) for reach, times in scales.items()}


def _levels(contrast: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Contrast in 256 levels of its own greatest."""
    most = contrast.amax((1, 2), keepdim=True).clamp_min_(1)
    return contrast.mul_(255).div_(most).floor_()


def blurred(maps: Float[Tensor, "b h w"], taps: int = 7, sigma: float = 3.0) -> Float[Tensor, "b h w"]:
    """Gaussian blur with `taps` weights per axis; the border is mirrored, or repeated where a map is too small."""
    reach = taps // 2
    weights = [exp(-0.5 * (place / sigma) ** 2) for place in range(reach + 1)]
    total = 2 * sum(weights) - 1
    shares = tuple(weight / total for weight in weights)
    if not maps.is_cpu:
        return _filtered(_mirrored(maps, reach), shares)
    down, across = (_matrix_of(size, shares, _beyond(maps, reach)) for size in maps.shape[1:])
    return torch.from_numpy(_multiplied(maps.detach().numpy(), down, across, reach))


def spectral_residual(images: Float[Tensor, "b c h w"], smooth: bool = True) -> Float[Tensor, "b h w"]:
    """Spectral-residual saliency; ≥ 0, fp32, detached.

    The log spectrum of the grey image less its 3×3 mean, with the image's own phases, transformed back.

    Args:
        images: (B, C, H, W); three channels are weighted as RGB, others averaged. Taller than 128 pixels, they are
            taken at 128×128.
        smooth: whether the map is blurred.
    """
    channels = images.shape[1]
    weights = (0.2989, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    wide = images.detach().float()
    grey = wide[:, 0] * weights[0]
    for channel, weight in enumerate(weights[1:], 1):
        grey.add_(wide[:, channel], alpha=weight)
    size = grey.shape[1:]
    shrink = size[0] > _LARGEST
    if shrink:
        grey = _resampled(grey, (_LARGEST, _LARGEST))
    spectrum = torch.fft.fft2(grey)
    # The residual's exponential over the magnitude is the exponential of minus the mean.
    log = _power(spectrum).add_(1e-10).log_()
    mean = _filtered(F.pad(log[:, None], (1, 1, 1, 1), mode="replicate")[:, 0], (1 / 3, 1 / 3))
    found = _power(torch.fft.ifft2(spectrum * mean.mul_(-0.5).exp_())).sqrt_()
    if smooth:
        found = blurred(found)
    return _resampled(found, (size[0], size[1])) if shrink else found


def _power(spectrum: Tensor) -> Float[Tensor, "b h w"]:
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)


def _mirrored(maps: Float[Tensor, "b h w"], reach: int) -> Float[Tensor, "b y x"]:
    """Maps with `reach` more places at every border, mirrored, or repeated where a map is too small."""
    return F.pad(maps[:, None], (reach,) * 4, mode=_beyond(maps, reach))[:, 0]


def _beyond(maps: Float[Tensor, "b h w"], reach: int) -> str:
    """What lies beyond the borders, in the words of `F.pad`."""
    return "reflect" if min(maps.shape[1:]) > reach else "replicate"


def _filtered(maps: Float[Tensor, "b y x"], weights: Sequence[float]) -> Float[Tensor, "b h w"]:
    """Maps under a symmetric filter along rows, then along columns; `weights` from the middle to the end."""
    return _filtered_along(_filtered_along(maps, 2, weights), 1, weights)


def _filtered_along(maps: Float[Tensor, "b y x"], axis: int, weights: Sequence[float]) -> Float[Tensor, "b h w"]:
    reach = len(weights) - 1
    side = maps.shape[axis] - 2 * reach
    out = maps.narrow(axis, reach, side) * weights[0]
    for away, weight in enumerate(weights[1:], 1):
        pair = maps.narrow(axis, reach - away, side) + maps.narrow(axis, reach + away, side)
        out.add_(pair, alpha=weight)
    return out


@lru_cache(maxsize=16)
def _matrix_of(size: int, weights: tuple[float, ...], mode: str) -> Float[np.ndarray, "n n"]:
    """What each place of a line, along the columns, gives to each filtered one, along the rows."""
    reach = len(weights) - 1
    lines = F.pad(torch.eye(size)[None, None], (reach, reach, 0, 0), mode=mode)[0]
    return _filtered_along(lines, 2, weights)[0].T.contiguous().numpy()


def _multiplied(
    maps: Float[np.ndarray, "b h w"], down: Float[np.ndarray, "h h"], across: Float[np.ndarray, "w w"], reach: int
) -> Float[np.ndarray, "b h w"]:
    """Maps under a filter along rows, then along columns, by its matrices.

    On a CPU this is faster than sums of shifted maps: it goes block by block, since only a band of a matrix is not 0.
    """
    rows = maps.reshape(-1, len(across))
    filtered = np.empty(rows.shape, maps.dtype)
    lines, found = filtered.reshape(maps.shape), np.empty(maps.shape, maps.dtype)
    for to, near in _bands(len(across), reach):
        np.matmul(rows[:, near], across[to, near].T, out=filtered[:, to])
    for to, near in _bands(len(down), reach):
        np.matmul(down[to, near], lines[:, near], out=found[:, to])
    return found


def _bands(size: int, reach: int) -> list[tuple[slice, slice]]:
    """Blocks of a line, and the places that reach them."""
    return [
        (slice(first, first + _BLOCK), slice(max(first - reach, 0), first + _BLOCK + reach))
        for first in range(0, size, _BLOCK)
    ]


def _resampled(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b y x"]:
    return F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)[:, 0]
