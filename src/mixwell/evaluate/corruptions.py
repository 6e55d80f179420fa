"""Common corruptions: the fifteen of CIFAR-C and ImageNet-C at five severities, made on the spot.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv:1903.12261. Results are to be called "CIFAR-C (generated)", since these are not the published files:

- The random numbers are our own, a fixed choice for every (seed, image index, corruption, severity).
- Frost is drawn, not photographed (`mixwell.evaluate.corrupting.frost`).
- Results are rounded to the nearest of 256 grey levels once, at the end. The code behind the files truncates, for some
  corruptions twice, which makes its images half a level darker.

Everything else follows that code, also where it is not what its comments say (`glass_blur`). Constants are those of the
benchmark whose images are about as large: CIFAR-C (32 pixels) for a shorter side below 48, Tiny-ImageNet-C (64) below
128, else ImageNet-C (224). At other sizes than these, lengths in pixels stay as they are, but for those of elastic
transforms, which grow with the shorter side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mixwell.core.artefacts import cached
from mixwell.core.errors import BatchError, ParameterError, closest
from mixwell.evaluate.corrupting import blur, digital, noise, weather
from mixwell.evaluate.corrupting.constants import CONSTANTS, Benchmark, benchmark_of
from mixwell.evaluate.corrupting.draws import Draws
from mixwell.ops.augment import quantised

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "corrupted"]

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}

CORRUPTIONS: tuple[str, ...] = tuple(_FUNCTIONS)
"""In the usual order: noise, blur, weather, digital."""

SEVERITIES = 1, 2, 3, 4, 5

_VERSION = 1
"""Of the pixels; another one makes cached images anew."""
_CHUNK = 2**20
"""Values that are corrupted at once."""


def corrupt(
    images: Float[Tensor, "b c h w"],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    index: Int[Tensor, " b"] | None = None,
    constants: Benchmark | None = None,
) -> Float[Tensor, "b c h w"]:
    """Corrupt a batch of images; none is changed in place.

    An image's result depends on the image, its index and the arguments, and on no other image of the batch.

    Args:
        images: (B, C, H, W) values in [0, 1], of any floating type, on any device. Three channels are red, green, blue.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all random numbers.
        index: (B,) each image's index in its set; 0 to B - 1 if not given.
        constants: whose; by the images' size if not given.

    Returns:
        Images of the same shape, type and range, not rounded to grey levels.

    Raises:
        BatchError: the images are not of this shape, type or range, or there is not one index for each.
        ParameterError: there is no such corruption, severity or set of constants.
    """
    function, row = _chosen(name, severity, constants, tuple(images.shape))
    _check(images)
    if index is None:
        index = torch.arange(len(images))
    elif index.shape != (len(images),) or index.is_floating_point():
        raise BatchError(
            f"corrupt: expected one integer index for each of {len(images)} images, got {index.dtype} "
            f"{tuple(index.shape)}."
        )
    if not images.numel():
        return images.clone()
    draws = Draws(seed, name, severity, index=index.long().to(images.device))
    wide = images if images.dtype in (torch.float32, torch.float64) else images.float()
    return function(wide, draws, *row).clamp(0, 1).to(images.dtype)


def corrupted(
    images: UInt8[Tensor, "n c h w"],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    cache: bool = True,
    constants: Benchmark | None = None,
) -> UInt8[Tensor, "n c h w"]:
    """Corrupt a whole set of 8-bit images, in chunks; image i has index i.

    Args:
        images: (N, C, H, W) uint8 on any device.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all random numbers.
        cache: keep the result in `mixwell.core.artefacts.cache_folder()`, a file as large as the images, and read it
            from there when the same images are corrupted in the same way again. Damaged files are made anew.
        constants: whose; by the images' size if not given.

    Returns:
        (N, C, H, W) uint8 on the images' device.

    Raises:
        BatchError: the images are not of this shape or type.
        ParameterError: there is no such corruption, severity or set of constants.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise BatchError(f"corrupted: expected uint8 images (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
    _chosen(name, severity, constants, tuple(images.shape))

    rows = max(1, _CHUNK // max(1, images[:1].numel()))

    def made(start: int) -> Tensor:
        part = images[start : start + rows].float() / 255
        index = start + torch.arange(len(part))
        return quantised(corrupt(part, name, severity, seed=seed, index=index, constants=constants))

    def make() -> dict[str, Tensor]:
        parts = [made(start) for start in range(0, max(1, len(images)), rows)]
        return _sealed(torch.cat(parts).cpu())

    if not cache:
        return make()["images"].to(images.device)
    settings = {
        "images": _digest(images),
        "shape": list(images.shape),
        "name": name,
        "severity": severity,
        "seed": seed,
        "constants": benchmark_of(constants, *images.shape[2:]),
        "version": _VERSION,
    }
    return cached("corrupted", settings, make, sound=_whole)["images"].to(images.device)


def _chosen(
    name: str, severity: int, constants: str | None, shape: tuple[int, ...]
) -> tuple[Callable[..., Tensor], tuple[float, ...]]:
    if name not in _FUNCTIONS:
        raise ParameterError(f"There is no corruption {name!r}; {closest(name, _FUNCTIONS)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ParameterError(f"severity must be a whole number from 1 to 5, got {severity!r}.")
    if len(shape) != 4:
        raise BatchError(f"corrupt: expected images (B, C, H, W), got {shape}.")
    benchmark = benchmark_of(constants, shape[2], shape[3])
    return _FUNCTIONS[name], CONSTANTS[benchmark][name][severity - 1]


def _check(images: Tensor) -> None:
    if not images.is_floating_point():
        raise BatchError(
            f"corrupt: expected images of a floating type in [0, 1], got {images.dtype}; `corrupted` takes uint8."
        )
    if not images.numel():
        return
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise BatchError(
            f"corrupt: expected values in [0, 1], got {low:g} to {high:g}. Undo the normalisation before corrupting."
        )


def _digest(images: Tensor) -> str:
    return hashlib.blake2b(images.cpu().contiguous().numpy().data, digest_size=16).hexdigest()


def _sealed(images: Tensor) -> dict[str, Tensor]:
    return {"images": images, "seal": torch.tensor(list(bytes.fromhex(_digest(images))), dtype=torch.uint8)}


def _whole(found: dict[str, Tensor]) -> bool:
    """Whether what was read is what was written; torch does not check the sums in its files."""
    return found.keys() == {"images", "seal"} and torch.equal(found["seal"], _sealed(found["images"])["seal"])
