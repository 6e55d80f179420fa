"""Pictures to mix images with: coloured fractals of our own, or a folder of pictures.

A fractal is the attractor of a random iterated function system, two to four contractions that are applied in random
order (Barnsley's chaos game). Thousands of walkers per picture move at once; where they go is counted, and so is the
mean hue of the maps that brought them there, as in fractal flames. The contractions together fill about the plane's
area, half of the systems are bent, the sparsest third is thrown away, and what leaves the frame is mirrored
back into it, so that pictures are full of detail at every scale.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from numpy.random import Generator, Philox
from torch import Tensor

from mixwell.core.artefacts import Progress, cached
from mixwell.core.errors import DataError, ParameterError
from mixwell.core.rng import key_of
from mixwell.data.folder import SUFFIXES, ImageFolder

__all__ = ["fractals", "pictures_in"]

_MAPS = 4
_SETTLING = 24
"""Steps until walkers are on the attractor."""
_WALKERS = 2**15
"""That move at once, for all pictures together. torch would split more over threads, which steps this short lose by."""
_POINTS = 16
"""Counted per pixel of a picture."""
_RULE = 1
"""To be raised when the pictures of given settings change, so that cached ones are not taken for them."""


def fractals(
    count: int = 1000, size: int = 64, seed: int = 0, *, folder: Path | None = None, progress: Progress | None = None
) -> UInt8[Tensor, "n 3 s s"]:
    """Distinct coloured fractals, read from the cache or made and kept there.

    A thousand of 64 × 64 take a few seconds to make, those of 256 × 256 sixteen times as long.

    Args:
        count: N ≥ 1.
        size: S ≥ 1, height and width in pixels.
        seed: of all random numbers, ≥ 0.
        folder: the cache; `mixwell.core.artefacts.cache_folder()` if not given.
        progress: told ("fractals", pictures made, N) while they are made.

    Raises:
        ParameterError: a number that is out of range.
    """
    for name, value, least in (("count", count, 1), ("size", size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(f"fractals: {name} must be a whole number ≥ {least}, got {value!r}.")

    def make() -> dict[str, Tensor]:
        rng = Generator(Philox(key_of("fractals", seed)))
        at_once = min(64, max(1, 64 * 64**2 // size**2))
        parts = []
        for start in range(0, count, at_once):
            parts.append(_made(min(at_once, count - start), size, rng))
            if progress is not None:
                progress("fractals", min(start + at_once, count), count)
        return {"pictures": torch.cat(parts)}

    return cached("fractals", {"rule": _RULE, "count": count, "size": size, "seed": seed}, make, folder)["pictures"]


def pictures_in(folder: Path, size: int) -> UInt8[Tensor, "n 3 s s"]:
    """Every picture below a folder, as RGB in the order of their names; the shorter side resized to S, centre cropped.

    Raises:
        DataError: the folder is missing, holds no picture, or one that cannot be decoded.
    """
    if not folder.is_dir():
        raise DataError(f"No folder {folder}. Give a folder of pictures, or 'fractals' for pictures that are made.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"No pictures below {folder}. Expected files ending in {', '.join(SUFFIXES)}; add some.")
    files = ImageFolder(paths, [0] * len(paths), size=size)
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(lambda row: files[row][0], range(len(paths)))))


# The chaos game


class _Systems(NamedTuple):
    """N iterated function systems of K maps.

    Attributes:
        maps: (N, K, 7) the matrix row by row, the shift, and the hue of each map.
        shares: (N, K) how often each map is applied, sum 1; 0 for maps that a system does not have.
        bends: (N, 1) weight of 1.5·x/(1 + x²) against x after every map.
        turns: (N, 2, 2) rotations of the whole.
    """

    maps: Float[np.ndarray, "n k 7"]
    shares: Float[np.ndarray, "n k"]
    bends: Float[np.ndarray, "n 1"]
    turns: Float[np.ndarray, "n 2 2"]


def _made(count: int, size: int, rng: Generator) -> UInt8[Tensor, "n 3 s s"]:
    """The fuller ones of half as many more systems."""
    systems = _drawn(count + (count + 1) // 2, rng)
    full = (_walked(systems, 256, 8, 24, rng)[:, 0] > 0).flatten(1).sum(1)
    kept = np.sort(full.argsort(descending=True, stable=True)[:count].numpy())
    walkers = _WALKERS // count
    steps = -(-_POINTS * size**2 // walkers)
    return _painted(_walked(_Systems(*(part[kept] for part in systems)), walkers, steps, size, rng), rng)


def _drawn(count: int, rng: Generator) -> _Systems:
    """Maps are drawn by their singular values, since these say how much of the plane the attractor fills."""
    each = (count, _MAPS)
    used = np.arange(_MAPS) < rng.integers(2, _MAPS, size=(count, 1), endpoint=True)
    large = rng.uniform(0.35, 1, each)
    small = large * rng.uniform(0.35, 1, each)
    filled = (large * small * used).sum(1, keepdims=True)
    scale = np.sqrt(rng.uniform(0.8, 1.25, (count, 1)) / filled)
    stretch = np.minimum(np.stack((large, small), -1) * scale[..., None], 0.92)
    shares = np.where(used, np.maximum(stretch.prod(-1), 0.06), 0)
    stretch[..., 1] *= rng.choice((-1, 1), each)
    matrices = _rotations(rng.random(each)) @ (stretch[..., None] * _rotations(rng.random(each)))
    shifts = rng.uniform(-1, 1, (*each, 2))
    hues = rng.permuted(np.tile(np.linspace(0, 1, _MAPS), (count, 1)), axis=1)
    return _Systems(
        np.concatenate((matrices.reshape(*each, 4), shifts, hues[..., None]), -1),
        shares / shares.sum(1, keepdims=True),
        rng.random((count, 1)) * (rng.random((count, 1)) < 0.5),
        _rotations(rng.random(count)),
    )


def _rotations(turns: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 2 2"]:
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), -2)


def _fp32(values: np.ndarray) -> Float32[Tensor, "..."]:
    """Small arrays go to torch this way because a default dtype or device of the user's must not change a picture."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _walked(
    systems: _Systems, walkers: int, steps: int, cells: int, rng: Generator
) -> Float32[Tensor, "n 2 cells cells"]:
    """How often walkers were in each cell of the frame, and the sum of their hues there.

    A walker's place in the row says which map moves it, and walkers change places at random: maps are then applied in
    random order and in their exact shares, with nothing to look up per walker.
    """
    count = len(systems.maps)
    place = (np.arange(walkers) + 0.5) / walkers
    which = (place[:, None] > systems.shares.cumsum(1)[:, None, :-1]).sum(-1)
    a, b, c, d, e, f, hue = _fp32(np.take_along_axis(systems.maps, which[..., None], 1).transpose(2, 0, 1))
    bends = _fp32(systems.bends)
    state = _fp32(np.zeros((3, count, walkers)))

    def move() -> None:
        order = torch.from_numpy(rng.permutation(walkers))
        x, y, colour = (part.index_select(1, order) for part in state)
        for axis, moved in enumerate((torch.addcmul(e, a, x).addcmul_(b, y), torch.addcmul(f, c, x).addcmul_(d, y))):
            torch.lerp(moved, 1.5 * moved / moved.square().add_(1), bends, out=state[axis])
        torch.lerp(colour, hue, 0.5, out=state[2])

    for _ in range(_SETTLING):
        move()
    rows, shift = _framing(state[:2].permute(1, 2, 0).double().numpy(), systems.turns)
    histogram = _fp32(np.zeros((2, count * cells**2)))
    one = _fp32(np.ones(count * walkers))
    first = torch.from_numpy(np.arange(count)[:, None] * cells**2)
    for _ in range(steps):
        move()
        column, row = (
            torch.addcmul(shift[axis], rows[axis, 0], state[0])
            .addcmul_(rows[axis, 1], state[1])
            .remainder_(4)  # a mirror at either edge of [0, 2] repeats the frame with period 4
            .sub_(2)
            .abs_()
            .mul_(cells / 2)
            .long()
            .clamp_(max=cells - 1)
            for axis in (0, 1)
        )
        index = row.mul_(cells).add_(column).add_(first).view(-1)
        histogram[0].scatter_add_(0, index, one)
        histogram[1].scatter_add_(0, index, state[2].view(-1))
    return histogram.view(2, count, cells, cells).transpose(0, 1)


def _framing(
    points: Float[np.ndarray, "n p 2"], turns: Float[np.ndarray, "n 2 2"]
) -> tuple[Float32[Tensor, "2 2 n 1"], Float32[Tensor, "2 n 1"]]:
    """The affine map after which points have mean 1 and standard deviation 2/3 along both axes, of a frame [0, 2]²."""
    mean = points.mean(1, keepdims=True)
    covariance = (points - mean).transpose(0, 2, 1) @ (points - mean) / points.shape[1] + 1e-6 * np.eye(2)
    rows = turns @ np.linalg.inv(np.linalg.cholesky(covariance)) / 1.5
    shift = 1 - rows @ mean.transpose(0, 2, 1)
    return _fp32(rows.transpose(1, 2, 0)[..., None]), _fp32(shift.transpose(1, 0, 2))


def _painted(histogram: Float32[Tensor, "n 2 cells cells"], rng: Generator) -> UInt8[Tensor, "n 3 s s"]:
    """Hues by a cosine palette of each picture's own, light by the logarithm of counts, over a dim blur of the same."""
    count = len(histogram)

    def drawn(low: float, high: float, channels: int) -> Tensor:
        return _fp32(rng.uniform(low, high, (count, channels, 1, 1)))

    frequency, phase, shift, apart = drawn(0.5, 1.8, 3), drawn(0, 1, 3), drawn(0, 0.6, 1), drawn(0.3, 0.7, 1)

    def colours(histogram: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        points, hues = histogram[:, :1], histogram[:, 1:]
        light = points.log1p()
        light /= light.flatten(1).quantile(0.98, dim=1).clamp_min_(1e-3)[:, None, None, None]
        light.clamp_(max=1)
        hue = hues / points.clamp_min(1e-6)
        return 0.5 + 0.5 * (2 * torch.pi * (frequency * hue + phase + shift * light)).cos_(), light

    blurred = F.interpolate(F.adaptive_avg_pool2d(histogram, 6), histogram.shape[2:], mode="bicubic").clamp_(0)
    front, light = colours(histogram, shift)
    back, glow = colours(blurred, shift + apart)
    picture = torch.lerp(back * (0.15 + 0.5 * glow), front, light.sqrt_())
    return (255 * picture).round_().to(torch.uint8)
