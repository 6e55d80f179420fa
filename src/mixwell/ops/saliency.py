"""Saliency maps of images that need no network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

__all__ = ["blurred", "fine_grained", "grey_levels", "spectral_residual"]

_SCALES = (12, 24, 48, 28, 56, 112)
"""Half sides of the surroundings in pixels, as OpenCV has them."""
_LARGEST = 128
"""Longer images have their spectrum taken at 128×128."""


def grey_levels(pixels: UInt8[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
    """Brightness of 8-bit images by OpenCV's fixed-point weights, the first of three channels taken for blue.

    Images of one channel keep it; of other counts, the channels' mean.
    """
    levels = pixels.to(torch.int32)
    if pixels.shape[1] == 1:
        return levels[:, 0]
    if pixels.shape[1] != 3:
        return (levels.sum(1) + pixels.shape[1] // 2) // pixels.shape[1]
    weights = levels.new_tensor([3735, 19235, 9798]).view(1, 3, 1, 1)
    return ((levels * weights).sum(1) + 16384) >> 15


def fine_grained(pixels: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w"]:
    """Static fine-grained saliency, to the bit as OpenCV computes it.

    On- and off-centre contrasts of a pixel with the mean of its surroundings, over six scales. Sums above 255 wrap, as
    there; an image without contrast is 0 everywhere.

    Args:
        pixels: (B, C, H, W).
    """
    grey = grey_levels(pixels)
    for _ in range(2):
        padded = F.pad(grey[:, None].float(), (1, 1, 1, 1), mode="reflect")[:, 0].to(torch.int32)
        lines = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
        grey = (lines[:, :, :-2] + 2 * lines[:, :, 1:-1] + lines[:, :, 2:] + 8) >> 4
    height, width = grey.shape[1:]
    sums = F.pad(grey.cumsum(1, dtype=torch.int64).cumsum(2), (1, 0, 1, 0)).float()
    level = grey.float()
    rows, columns = torch.arange(height, device=grey.device), torch.arange(width, device=grey.device)
    on, off = torch.zeros_like(level), torch.zeros_like(level)
    for reach in _SCALES:
        top, bottom = (rows - reach + 1).clamp(0, height), (rows + reach + 1).clamp(0, height)
        left, right = (columns - reach + 1).clamp(0, width), (columns + reach + 1).clamp(0, width)
        bands = sums[:, bottom] - sums[:, top]
        around = bands[:, :, right] - bands[:, :, left]
        area = ((bottom - top)[:, None] * (right - left)).float()
        contrast = level - (around - level) / (area - 1)
        on += contrast.clamp_min(0).trunc()
        off += (-contrast).clamp_min(0).trunc()
    most_on, most_off = on.amax((1, 2), keepdim=True), off.amax((1, 2), keepdim=True)
    on = torch.where(most_on > 0, 255 * on / most_on, 0).trunc()
    off = torch.where(most_off > 0, 255 * off / most_off, 0).trunc()
    both, most = on + off, torch.maximum(on.amax((1, 2), keepdim=True), off.amax((1, 2), keepdim=True))
    return torch.where(most > 0, 255 * both / most, 0).trunc().to(torch.int32).remainder(256).to(torch.uint8)


def blurred(maps: Float[Tensor, "b h w"], taps: int = 7, sigma: float = 3.0) -> Float[Tensor, "b h w"]:
    """Gaussian blur with `taps` weights per axis; the border is mirrored, or repeated where a map is too small."""
    reach = taps // 2
    places = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = weights / weights.sum()
    mode = "reflect" if min(maps.shape[1:]) > reach else "replicate"
    padded = F.pad(maps[:, None], (reach,) * 4, mode=mode)
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[:, 0]


def spectral_residual(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Spectral-residual saliency, blurred; ≥ 0, fp32.

    The log spectrum of the grey image less its 3×3 mean, with the image's own phases, transformed back.

    Args:
        images: (B, C, H, W); three channels are weighted as RGB, others averaged. Taller than 128 pixels, they are
            taken at 128×128.
    """
    wide = images.float()
    weights = wide.new_tensor(
        [0.2989, 0.587, 0.114] if images.shape[1] == 3 else [1 / images.shape[1]] * images.shape[1]
    )
    grey = torch.einsum("bchw,c->bhw", wide, weights)
    size = grey.shape[1:]
    shrink = size[0] > _LARGEST
    if shrink:
        grey = _resampled(grey, (_LARGEST, _LARGEST))
    spectrum = torch.fft.fft2(grey)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()
    log = magnitude.log()
    mean = F.avg_pool2d(F.pad(log[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    found = blurred(torch.fft.ifft2(spectrum * ((log - mean).exp() / magnitude)).abs())
    return _resampled(found, (size[0], size[1])) if shrink else found


def _resampled(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b y x"]:
    return F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)[:, 0]
