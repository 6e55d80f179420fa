"""Whether a network is less sure of images that are nothing of what it learnt: out-of-distribution detection.

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
ICLR 2017, arXiv:1610.02136; the energy score: Liu et al., NeurIPS 2020, arXiv:2010.03759.

Images of the test set are the positive class everywhere. The other sets need no download: noise, test images whose
patches were shuffled, handwritten digits and clothes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.random import Generator
from torch import Tensor

from mixwell.core.rng import Streams
from mixwell.data import load
from mixwell.data.optional import require
from mixwell.evaluate.subject import Progress, Subject, levels_of, silent

__all__ = ["NOISES", "SCORES", "auroc", "detected", "fpr95", "outside", "shuffled_patches"]

Shape = tuple[int, int, int]

SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "msp": lambda logits: logits.double().softmax(1).amax(1),
    "energy": lambda logits: logits.double().logsumexp(1),
}
"""Logits (N, K) → (N,) scores in fp64, higher for images of the test set: the largest softmax value, and the negative
energy at temperature 1."""

_GRID = 4
"""Shuffled patches per side."""
_CHUNK = 250
"""Noise images that are drawn from one stream; independent of the batch size."""


def auroc(known: Float[Tensor, " n"], unknown: Float[Tensor, " m"]) -> float:
    """The chance that a known image has the higher score than an unknown one (half of it where they are equal)."""
    from sklearn.metrics import roc_auc_score  # takes a second to import

    return float(roc_auc_score(*_told(known, unknown)))


def fpr95(known: Float[Tensor, " n"], unknown: Float[Tensor, " m"]) -> float:
    """The share of the unknown images that pass for known at the highest threshold which at least 95% of the known
    pass.

    Known images are positive. Packages that take the unknown for positive (pytorch-ood) give another number.
    """
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(*_told(known, unknown), drop_intermediate=False)
    return float(false[np.argmax(true >= 0.95)])


def _told(known: Tensor, unknown: Tensor) -> tuple[np.ndarray, np.ndarray]:
    positive = np.concatenate((np.ones(len(known)), np.zeros(len(unknown))))
    return positive, torch.cat((known, unknown)).double().cpu().numpy()


def _gaussian(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    return 0.5 + 0.25 * rng.standard_normal(shape, dtype=np.float32)


def _uniform(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    return rng.random(shape, dtype=np.float32)


def _rademacher(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    return rng.integers(2, size=shape).astype(np.float32)


def _blobs(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter((rng.random(shape) < 0.7).astype(np.float32), (0, 0, 1.5, 1.5))
    return np.where(smooth < 0.75, 0, smooth)


NOISES: Mapping[str, Callable[[tuple[int, ...], Generator], np.ndarray]] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "rademacher": _rademacher,
    "blobs": _blobs,
}
"""(N, C, H, W) of pixels, clipped to [0, 1] afterwards: normal of mean 0.5 and deviation 0.25; uniform; 0 or 1; and
blobs as in Hendrycks, Mazeika, Dietterich, ICLR 2019, arXiv:1812.04606: coins of 0.7, blurred by 1.5 pixels, and 0
where that is below 0.75."""


def shuffled_patches(images: UInt8[Tensor, "n c h w"], order: Float[np.ndarray, "n p"]) -> UInt8[Tensor, "n c h w"]:
    """Cut each image into 4×4 patches and lay them anew; sizes that do not come out even repeat their last pixels.

    Args:
        images: (N, C, H, W).
        order: (N, 16) uniforms; patches are laid in the order of their size.
    """
    count, channels, height, width = images.shape
    rows, columns = math.ceil(height / _GRID), math.ceil(width / _GRID)
    down = torch.arange(rows * _GRID).clamp(max=height - 1)
    across = torch.arange(columns * _GRID).clamp(max=width - 1)
    patches = images[:, :, down][..., across].view(count, channels, _GRID, rows, _GRID, columns)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(count, _GRID**2, channels, rows, columns)
    places = torch.from_numpy(order.argsort(1, kind="stable"))
    laid = patches[torch.arange(count)[:, None], places].view(count, _GRID, _GRID, channels, rows, columns)
    laid = laid.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, rows * _GRID, columns * _GRID)
    return laid[:, :, :height, :width]


def _resized(images: Float[Tensor, "n 1 h w"], shape: Shape) -> UInt8[Tensor, "n c h2 w2"]:
    found = F.interpolate(images, size=shape[1:], mode="bilinear", align_corners=False, antialias=True)
    return levels_of(found).expand(-1, shape[0], -1, -1)


def _digits(shape: Shape, count: int) -> UInt8[Tensor, "n c h w"]:
    stored = require("sklearn.datasets", "digits").load_digits().images[:count]
    return _resized(torch.from_numpy(stored).float()[:, None] / 16, shape)


def _fashion(shape: Shape, count: int) -> UInt8[Tensor, "n c h w"]:
    test: object = load("fashion-mini", size=28, channels=1).test
    return _resized(test.images[:count].float() / 255, shape)  # type: ignore[attr-defined]


def outside(
    subject: Subject, *, images: int = 2000, seed: int = 0
) -> Mapping[str, Callable[[], UInt8[Tensor, "n c h w"]]]:
    """Sets of images shaped like the test images that belong to none of its classes, by name; each is made when called.

    Digits are left out where the run learnt digits, and clothes where it learnt clothes.

    Args:
        subject: whose test images have their patches shuffled.
        images: how many of each set; there are 1,797 digits.
        seed: of noise and shuffling.
    """
    data, streams = subject.trained.data, Streams(seed)

    def noise(name: str) -> Tensor:
        chunks = []
        for number, begin in enumerate(range(0, images, _CHUNK)):
            shape = (min(_CHUNK, images - begin), *subject.shape)
            chunks.append(levels_of(torch.from_numpy(NOISES[name](shape, streams.at(f"ood/{name}", number)))))
        return torch.cat(chunks)

    def patches() -> Tensor:
        found, _ = subject.levels(images, seed)
        return shuffled_patches(found, streams.at("ood/patches", 0).random((len(found), _GRID**2)))

    natural = {
        name: make for name, make in {"digits": _digits, "fashion": _fashion}.items() if not data.name.startswith(name)
    }
    return {
        **{name: partial(make, subject.shape, images) for name, make in natural.items()},
        **{name: partial(noise, name) for name in NOISES},
        "patches": patches,
    }


def detected(
    subject: Subject, *, images: int = 2000, seed: int = 0, progress: Progress = silent
) -> dict[str, dict[str, dict[str, float]]]:
    """AUROC and FPR95 of each score for each set of `outside`, and their "mean" over the sets.

    Args:
        subject: what is evaluated; all of its test images are the positive class.
        images: how many of each other set.
        seed: of noise and shuffling.
        progress: called with the sets done and to do.
    """
    known, sets = subject.test[0], outside(subject, images=images, seed=seed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, (name, make) in enumerate(sets.items(), 1):
        unknown = subject.over_levels(make())
        found[name] = {
            score: {"auroc": auroc(of(known), of(unknown)), "fpr95": fpr95(of(known), of(unknown))}
            for score, of in SCORES.items()
        }
        progress(number, len(sets))
    mean = {
        score: {
            figure: float(np.mean([each[score][figure] for each in found.values()])) for figure in ("auroc", "fpr95")
        }
        for score in SCORES
    }
    return {**found, "mean": mean}
