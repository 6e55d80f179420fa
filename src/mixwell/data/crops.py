"""Augmentations of training images, random crops and mirror images, and where in its image each crop lies.

A crop is five numbers: top, left, height and width as shares of the image, and 1 if what was cut out is then mirrored
left to right, else 0. It may reach beyond the image, where there is nothing but black.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64, UInt8, UInt64

from mixwell.core.errors import DataError

__all__ = [
    "AUGMENTATIONS",
    "LEAST_AREA",
    "augmented",
    "check_augment",
    "crop_flip",
    "crop_margin",
    "crops_of_shifts",
    "random_crops",
    "resized",
    "resized_crops",
]

AUGMENTATIONS = (None, "crop-flip", "rrc-flip")

LEAST_AREA = 0.08
"""Share of the image that the smallest random resized crop shows, as in the trainings of Inception and of DeiT."""
_STRETCH = 4 / 3
"""How much wider or narrower than the image a random resized crop may be."""


def check_augment(augment: str | None) -> str | None:
    """Return `augment`, or raise DataError if there is no such augmentation."""
    if augment not in AUGMENTATIONS:
        raise DataError(f"augment must be None, 'crop-flip' or 'rrc-flip', got {augment!r}.")
    return augment


def augmented(
    images: UInt8[np.ndarray, "b c h w"],
    augment: str,
    words: UInt64[np.ndarray, "b 4"],
    *,
    least_area: float = LEAST_AREA,
    size: int | None = None,
) -> tuple[UInt8[np.ndarray, "b c i j"], Float32[np.ndarray, "b 5"]]:
    """Images cut by "crop-flip" or "rrc-flip", and their crops.

    Args:
        images: (B, C, H, W).
        augment: which of the two.
        words: (B, 4) what was drawn for each image.
        least_area: share of the image that the smallest crop of "rrc-flip" shows.
        size: side of what is returned; that of the images if not given.
    """
    if augment == "crop-flip":
        shape = (images.shape[2], images.shape[3])
        down, right = crop_margin(*shape)
        top, left = (words[:, :2] % np.array([2 * down + 1, 2 * right + 1], np.uint64)).astype(np.int64).T
        mirrored = words[:, 2] % 2 == 1
        cut = crop_flip(images, top, left, mirrored)
        return cut if size is None else resized(cut, size), crops_of_shifts(top, left, mirrored, shape)
    # A double has the upper 53 bits of a word; the lowest one is free.
    crops = random_crops((words >> np.uint64(11)) * 2.0**-53, words[:, 0] % 2 == 1, least_area)
    return resized_crops(images, crops, size), crops


# Shifted by a few pixels


def crop_margin(height: int, width: int) -> tuple[int, int]:
    """By how many pixels crop-flip pads each side: an eighth of the image (4 of 32), at least one."""
    return max(1, height // 8), max(1, width // 8)


def crop_flip(
    images: UInt8[np.ndarray, "b c h w"],
    top: Int64[np.ndarray, " b"],
    left: Int64[np.ndarray, " b"],
    flip: Bool[np.ndarray, " b"],
) -> UInt8[np.ndarray, "b c h w"]:
    """Pad with zeros, crop each image back to its size at its own corner, mirror it where `flip` says so.

    Args:
        images: (B, C, H, W), any dtype.
        top: (B,) upper edge of the crop in the padded image, 0 … 2 · margin.
        left: (B,) left edge.
        flip: (B,) which images are mirrored left to right.
    """
    height, width = images.shape[-2:]
    down, right = crop_margin(height, width)
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    cropped = windows[np.arange(len(images)), :, top, left]
    return np.where(flip[:, None, None, None], cropped[..., ::-1], cropped)


def crops_of_shifts(
    top: Int64[np.ndarray, " b"], left: Int64[np.ndarray, " b"], flip: Bool[np.ndarray, " b"], size: tuple[int, int]
) -> Float32[np.ndarray, "b 5"]:
    """The crops that `crop_flip` takes of images of a height and width."""
    down, right = crop_margin(*size)
    crops = np.ones((len(top), 5), np.float32)
    crops[:, 0] = (top - down) / size[0]
    crops[:, 1] = (left - right) / size[1]
    crops[:, 4] = flip
    return crops


# Resized


def random_crops(
    uniforms: Float[np.ndarray, "b 4"], flip: Bool[np.ndarray, " b"], least_area: float = LEAST_AREA
) -> Float32[np.ndarray, "b 5"]:
    """Crops inside the image, to be resized to its size.

    The area is uniform between `least_area` and 1 of the image; the crop is up to 4/3 wider or narrower than the image,
    log-uniformly among what fits into it; the place is uniform.

    Args:
        uniforms: (B, 4) in [0, 1), of area, stretch, row and column.
        flip: (B,) which crops are mirrored left to right.
        least_area: of the smallest crop.
    """
    area = least_area + (1 - least_area) * uniforms[:, 0]
    stretch = np.exp((2 * uniforms[:, 1] - 1) * np.minimum(math.log(_STRETCH), -np.log(area)))
    sides = np.stack((np.sqrt(area / stretch), np.sqrt(area * stretch)), 1).clip(max=1)
    return np.concatenate((uniforms[:, 2:] * (1 - sides), sides, flip[:, None]), 1).astype(np.float32)


def resized(images: UInt8[np.ndarray, "b c h w"], size: int) -> UInt8[np.ndarray, "b c i j"]:
    """Images at another size, bilinear."""
    return resized_crops(images, np.tile(np.array([0, 0, 1, 1, 0], np.float32), (len(images), 1)), size)


def resized_crops(
    images: UInt8[np.ndarray, "b c h w"], crops: Float32[np.ndarray, "b 5"], size: int | None = None
) -> UInt8[np.ndarray, "b c i j"]:
    """Each image's crop at the size of the image or at `size`, bilinear, mirrored where the crop says so.

    Args:
        images: (B, C, H, W).
        crops: (B, 5), inside the images.
        size: height and width of what is returned.
    """
    shape = (images.shape[2], images.shape[3]) if size is None else (size, size)
    axes = []
    for axis, side in enumerate(shape):
        place = np.broadcast_to((np.arange(side) + 0.5) / side, (len(crops), side))
        if axis == 1:
            place = np.where(crops[:, 4:] == 1, 1 - place, place)
        axes.append(2 * (crops[:, axis, None] + crops[:, axis + 2, None] * place) - 1)
    down, across = (torch.from_numpy(places.astype(np.float32)) for places in axes)
    grid = torch.stack((across[:, None, :].expand(-1, *shape), down[:, :, None].expand(-1, *shape)), 3)
    pixels = torch.from_numpy(images).float()
    cut = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    found: np.ndarray = cut.round_().to(torch.uint8).numpy()
    return found
