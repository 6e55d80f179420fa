"""Pictures of frost, made once from a fixed seed: ice crystals over clouds of ice, in the colours of real frost.

CIFAR-C and ImageNet-C add parts of five photographs, which are not part of mixwell. These five pictures take over the
photographs' mean colour and contrast (one of water-blue ice, two that are white and full of needles, a grey one of fine
crystals, a dark one of bright ferns), but what they show is drawn: crystals grow branches at 60°, as ice does, and
everything repeats beyond the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from numpy.random import Generator, Philox
from torch import Tensor

from mixwell.core.rng import key_of

__all__ = ["pictures"]

_HEIGHT, _WIDTH = 384, 640
_SPACING = 0.7
"""Pixels between the points that draw a line."""


@dataclass(frozen=True)
class _Kind:
    """How a picture looks. Colours and deviation are those of a photograph, in grey levels.

    Attributes:
        colour: its mean.
        deviation: of its grey pixels.
        crystals: their number.
        length: of the longest crystal in pixels.
        branches: per side of a crystal; none are needles.
        relief: share of slanting light that shows needles by their bright and dark sides.
        clouds: deviation of the clouds of ice beside that of the crystals.
        tint: what clouds add to the colour, in grey levels per deviation.
    """

    colour: tuple[float, float, float]
    deviation: float
    crystals: int
    length: float
    branches: int
    relief: float
    clouds: float
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


_KINDS = (
    _Kind((78, 149, 165), 16, 500, 60, 0, 1.0, 1.2, (30.0, 2.0, -8.0)),
    _Kind((198, 202, 211), 22, 900, 90, 0, 0.8, 1.1),
    _Kind((198, 202, 211), 22, 600, 130, 3, 0.8, 1.1),
    _Kind((145, 159, 172), 26, 2500, 22, 4, 0.5, 0.8),
    _Kind((101, 112, 124), 36, 900, 46, 9, 0.1, 0.7),
)


@lru_cache(maxsize=4)
def pictures(scale: float) -> Float32[Tensor, "5 3 h w"]:
    """All pictures, values in [0, 1], periodic, their sides 384 and 640 pixels times `scale`."""
    size = round(_HEIGHT * scale), round(_WIDTH * scale)
    return F.adaptive_avg_pool2d(torch.stack([_picture(number) for number in range(len(_KINDS))]), size)


@lru_cache(maxsize=len(_KINDS))
def _picture(number: int) -> Float32[Tensor, "3 h w"]:
    kind = _KINDS[number]
    rng = Generator(Philox(key=np.array([0, key_of("frost", number)], dtype=np.uint64)))
    ice = _filtered(_crystals(kind, rng), lambda f: np.exp(-0.5 * (2 * np.pi * f * 0.6) ** 2))
    slant = ice - np.roll(ice, (2, 1), (0, 1))
    clouds = _filtered(rng.standard_normal((_HEIGHT, _WIDTH)), lambda f: np.maximum(f, 1 / _WIDTH) ** -1.3)
    hue = _filtered(rng.standard_normal((_HEIGHT, _WIDTH)), lambda f: np.maximum(f, 3 / _WIDTH) ** -2.0)
    look = _standard(
        (1 - kind.relief) * _standard(ice) + kind.relief * _standard(slant) + kind.clouds * _standard(clouds)
    )
    colours = np.array([kind.colour, kind.tint])[..., None, None]
    picture = (colours[0] + kind.deviation * look + colours[1] * _standard(hue)) / 255
    return torch.from_numpy(picture.clip(0, 1).astype(np.float32))


def _standard(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    result: np.ndarray = (values - values.mean()) / values.std()
    return result


def _filtered(
    values: Float[np.ndarray, "h w"], gain: Callable[[Float[np.ndarray, "h f"]], Float[np.ndarray, "h f"]]
) -> Float[np.ndarray, "h w"]:
    """Multiply the spectrum by gain(frequency in cycles per pixel)."""
    frequency = np.hypot(np.fft.fftfreq(_HEIGHT)[:, None], np.fft.rfftfreq(_WIDTH))
    result: np.ndarray = np.fft.irfft2(np.fft.rfft2(values) * gain(frequency), values.shape)
    return result


def _crystals(kind: _Kind, rng: Generator) -> Float[np.ndarray, "h w"]:
    """How thick the ice is: spines at random, and shorter branches towards their tips, at 60° on both sides."""
    count = kind.crystals
    start = rng.uniform(0, 1, (count, 2)) * (_HEIGHT, _WIDTH)
    angle = rng.uniform(0, 2 * np.pi, count)
    length = kind.length * rng.beta(2, 3, count)
    bright = rng.uniform(0.3, 1, count)
    ice = _lines(start, angle, length, bright)
    if kind.branches:
        at = (np.arange(kind.branches) + rng.uniform(0, 1, (count, 1))) / kind.branches
        side = np.array([-1, 1])[:, None, None] * np.pi / 3
        foot = start[:, None] + (at * length[:, None])[..., None] * _direction(angle)[:, None]
        shape = (2, count, kind.branches)
        twig = np.broadcast_to((1 - at) * 0.5 * length[:, None], shape)
        ice += _lines(
            np.broadcast_to(foot, (*shape, 2)).reshape(-1, 2),
            np.broadcast_to(side + angle[:, None], shape).ravel(),
            twig.ravel(),
            np.broadcast_to(0.7 * bright[:, None], shape).ravel(),
        )
    thickness: np.ndarray = 1 - np.exp(-ice)
    return thickness


def _direction(angle: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    return np.stack((np.sin(angle), np.cos(angle)), -1)


def _lines(
    start: Float[np.ndarray, "n 2"],
    angle: Float[np.ndarray, " n"],
    length: Float[np.ndarray, " n"],
    bright: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "h w"]:
    """Lines that fade towards their tips, added up."""
    points = np.arange(0, length.max(), _SPACING)
    line, point = np.nonzero(points < length[:, None])
    away = points[point]
    place = start[line] + away[:, None] * _direction(angle[line])
    row, column = (place.astype(int) % (_HEIGHT, _WIDTH)).T
    weight = bright[line] * (1 - 0.7 * away / length[line])
    ice: np.ndarray = np.bincount(row * _WIDTH + column, weight, _HEIGHT * _WIDTH).reshape(_HEIGHT, _WIDTH)
    return ice
