"""Gaussian bumps as outer products: a profile along the rows times one along the columns.

Profiles follow from numbers that are drawn on the host, so they are computed there, as small arrays; only masks live on
a device.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

__all__ = ["distances", "profiles"]


def distances(centres: Float[np.ndarray, " r"], side: int) -> Float[np.ndarray, "r side"]:
    """How far the middle of each of `side` pixels lies from each centre, with its sign; all in pixels."""
    away: np.ndarray = np.arange(0.5, side) - centres[:, None]
    return away


def profiles(
    centres: Float[np.ndarray, " r"], deviations: Float[np.ndarray, " r"], side: int
) -> Float[np.ndarray, "r side"]:
    """exp(-(j + ½ - μ)² / 2σ²) at pixel j, at most 1.

    Args:
        centres: (R,) μ in pixels; 0 is the image's edge.
        deviations: (R,) σ > 0 in pixels.
        side: number of pixels.
    """
    profile: np.ndarray = np.exp(-0.5 * (distances(centres, side) / deviations[:, None]) ** 2)
    return profile
