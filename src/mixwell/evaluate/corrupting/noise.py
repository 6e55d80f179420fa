"""Noise in every pixel and channel: Gaussian, shot and impulse noise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.evaluate.corrupting.draws import Draws

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]

Images = Float[Tensor, "b c h w"]


def gaussian_noise(images: Images, draws: Draws, sigma: float) -> Images:
    """Add noise of deviation σ."""
    return images + sigma * draws.normal("noise", *images.shape[1:])


def shot_noise(images: Images, draws: Draws, photons: float) -> Images:
    """Count photons: a pixel of value x is Poisson(x · photons) / photons, x being the nearest of 256 grey levels.

    Inverts the distribution at a uniform number, by one search in the distributions of all grey levels end to end. It
    runs on the host, where there is fp64 for it.
    """
    levels = (images * 255).round().cpu().double()
    uniform = draws.uniform("photons", *images.shape[1:]).cpu().double() + 2.0**-25
    cumulative, width = _distributions(photons)
    place = torch.searchsorted(cumulative, levels.add(uniform).flatten()).view(levels.shape)
    counts = place - levels.long() * width
    return counts.to(images) / photons


@lru_cache(maxsize=16)
def _distributions(photons: float) -> tuple[Float[Tensor, " n"], int]:
    """Level + P(count ≤ k) for each grey level and each count k, ascending; and the number of counts."""
    from scipy.special import pdtr

    rates = np.arange(256) * photons / 255
    counts = np.arange(int(photons + 8 * photons**0.5 + 20))
    cumulative: np.ndarray = pdtr(counts, rates[:, None])
    return torch.from_numpy((cumulative + np.arange(256)[:, None]).ravel()), len(counts)


def impulse_noise(images: Images, draws: Draws, amount: float) -> Images:
    """Replace this share of all values by 0 or 1, half by each."""
    uniform = draws.uniform("impulses", *images.shape[1:])
    return torch.where(uniform < amount, (uniform < amount / 2).to(images), images)
