"""Grey images of low-frequency noise, and masks of their brightest pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mixwell.core.errors import BatchError
from mixwell.core.mix import onto

__all__ = ["Spectrum", "brightest", "grey_images", "ramped", "spectrum_shape", "stretched"]

Spectrum = Literal["paper", "code"]


def spectrum_shape(size: tuple[int, int], spectrum: Spectrum = "paper") -> tuple[int, int]:
    """Rows and columns of complex noise that a grey image of `size` is made of.

    Raises:
        BatchError: a single row of pixels has no second frequency, which the code's spectrum needs.
    """
    height, width = size
    if spectrum == "paper":
        return height, width // 2 + 1
    if height < 2:
        raise BatchError(f"spectrum='code' needs at least 2 rows of pixels, got {height}. Take spectrum='paper'.")
    return 2, min(width // 2 + 1 + width % 2, width)


@lru_cache(maxsize=32)
def _amplitudes(
    size: tuple[int, int], decay: float, spectrum: Spectrum, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "n f 2"]:
    """1 / max(frequency, 1/max(H, W))^decay, for both parts of the noise."""
    rows, columns = spectrum_shape(size, spectrum)
    vertical, horizontal = np.fft.fftfreq(size[0])[:rows], np.fft.fftfreq(size[1])[:columns]
    frequency = np.hypot(vertical[:, None], horizontal)
    amplitude = np.maximum(frequency, 1 / max(size)) ** -decay
    return torch.from_numpy(np.repeat(amplitude[..., None], 2, -1)).to(device, dtype)


def grey_images(
    noise: Float[Tensor, "r n f 2"], size: tuple[int, int], decay: float = 3.0, spectrum: Spectrum = "paper"
) -> Float[Tensor, "r h w"]:
    """Images whose spectrum is complex noise that falls with the frequency to the power `decay`.

    Args:
        noise: (R, N, F, 2) normal real and imaginary parts, at least as many rows and columns as `spectrum_shape` says;
            what exceeds them has no effect. fp32 or fp64.
        size: height and width.
        decay: δ ≥ 0; 0 is white noise.
        spectrum: "paper" transforms both axes of the noise. "code" does as the official code of FMix, which takes the
            noise's first two rows for the real and the imaginary part, the columns for vertical frequencies and the
            last axis for the two horizontal ones.
    """
    amplitudes = _amplitudes(size, decay, spectrum, noise.device, noise.dtype)
    if noise.shape[1:] != amplitudes.shape:
        noise = noise[:, : amplitudes.shape[0], : amplitudes.shape[1]]
    waves = noise * amplitudes
    half = torch.view_as_complex(waves) if spectrum == "paper" else torch.complex(waves[:, 0], waves[:, 1])
    if half.is_cpu:
        grey: Tensor = torch.fft.irfft2(half, s=size)
    else:  # axis by axis, since irfft2 on CUDA treats half spectra of no real image otherwise than on the CPU
        grey = torch.fft.irfft(torch.fft.ifft(half, n=size[0], dim=1), n=size[1])
    return grey


def stretched(grey: Float[Tensor, "r h w"]) -> Float[Tensor, "r h w"]:
    """The images with their darkest pixel at 0 and their brightest at 1."""
    low, high = grey.flatten(1).aminmax(dim=1, keepdim=True)
    depth = (high - low).clamp_min_(torch.finfo(grey.dtype).tiny)
    return (grey - low[..., None]) / depth[..., None]


def brightest(grey: Float[Tensor, "#r h w"], count: Int64[np.ndarray, " r"]) -> Float[Tensor, "r h w"]:
    """1 at each image's `count` brightest pixels, 0 elsewhere.

    Pixels that tie with the darkest of them are 1 too.

    Args:
        grey: (R, H, W) or (1, H, W), finite.
        count: (R,) in [0, H·W].
    """
    shown = count.tolist()
    pixels, fewest, most = grey.shape[1] * grey.shape[2], min(shown), max(shown)
    # One rank for all rows, so that one selection serves them: rows that show more get as many darker values beside.
    flat = grey.flatten(1)
    padded = flat if len(flat) == len(shown) else flat.expand(len(shown), -1)
    if most > fewest or fewest == 0:
        padded = F.pad(padded, (0, most - fewest + 1), value=torch.inf)
    if most > fewest:
        beside = torch.arange(most - fewest + 1, device=grey.device)
        padded[:, pixels:].masked_fill_(beside < onto(count - fewest, grey)[:, None], -torch.inf)
    darkest = padded.kthvalue(pixels - fewest + 1, 1, keepdim=True).values
    masks = grey.new_empty(len(shown), *grey.shape[1:])
    torch.ge(flat, darkest, out=masks.view(len(shown), pixels))
    return masks


def ramped(
    grey: Float[Tensor, "#r h w"], low: Int64[np.ndarray, " r"], high: Int64[np.ndarray, " r"]
) -> Float[Tensor, "r h w"]:
    """1 at each image's `low` brightest pixels, falling evenly from 1 to 0 up to the `high` brightest, 0 beyond.

    Args:
        grey: (R, H, W) or (1, H, W), finite.
        low, high: (R,) in [0, H·W], low ≤ high.
    """
    order = grey.flatten(1).argsort(1, descending=True).expand(len(low), -1)
    ranks = torch.arange(order.shape[1], device=grey.device, dtype=grey.dtype)
    ends = onto(np.stack((np.maximum(high - 1, low), np.maximum(high - low - 1, 1)), 1), grey).to(grey.dtype)
    by_rank = ((ends[:, :1] - ranks) / ends[:, 1:]).clamp_(0, 1)
    return torch.empty_like(by_rank).scatter_(1, order, by_rank).view(-1, *grey.shape[1:])
