"""Data sets that fit in memory, indexed a batch at a time."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8, UInt64
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.errors import DataError
from mixwell.data.streams import Purpose, words

__all__ = ["AUGMENTATIONS", "InMemory", "check_augment", "crop_flip", "crop_margin"]

AUGMENTATIONS = (None, "crop-flip")


def check_augment(augment: str | None) -> str | None:
    """Return `augment`, or raise DataError if there is no such augmentation."""
    if augment not in AUGMENTATIONS:
        raise DataError(f"augment must be None or 'crop-flip', got {augment!r}.")
    return augment


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


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images and class ids as two tensors.

    `Loader` reads it a batch at a time, without Python per sample, and applies the augmentation; `dataset[i]` is the
    plain image (uint8, (C, H, W)) and its class id.

    Args:
        images: (N, C, H, W) uint8; on the CPU; an expanded view costs no memory.
        labels: (N,) integer class ids, on the CPU.
        augment: None, or "crop-flip": a random crop after padding with an eighth of the size, and a random mirror
            image.

    Raises:
        DataError: shapes, dtypes or lengths are not these.
    """

    def __init__(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, augment: str | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.device.type != "cpu":
            raise DataError(
                f"InMemory: expected uint8 images (N, C, H, W) on the CPU, got {images.dtype} {tuple(images.shape)} on "
                f"{images.device}. "
                "Give pixels in 0 … 255; normalisation is the loader's."
            )
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != images.shape[:1]:
            raise DataError(
                f"InMemory: expected {len(images)} integer class ids, one per image, "
                f"got {labels.dtype} {tuple(labels.shape)}."
            )
        self.images = images
        self.labels = labels.long()
        self.augment = check_augment(augment)
        # A channel that is only repeated is read and augmented once.
        self._stored = (images[:, :1] if images.stride(1) == 0 else images).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, rows: Int64[np.ndarray, " r"], *, augment: str | None) -> InMemory:
        """The rows `rows` as a set of their own."""
        images = torch.from_numpy(self._stored[rows]).expand(-1, self.images.shape[1], -1, -1)
        return InMemory(images, self.labels[torch.from_numpy(rows)], augment=augment)

    def rows(
        self, index: Int64[np.ndarray, " b"], draws: UInt64[np.ndarray, "n 4"] | None
    ) -> tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """Images and labels of a batch; `draws` is what `augmentation` gave for its epoch."""
        # numpy copies in this thread; torch would share a few kilobytes among threads and wait for the slowest.
        images = self._stored[index]
        if draws is not None:
            down, right = crop_margin(*images.shape[-2:])
            top, left, flip, _ = draws[index].T
            images = crop_flip(images, top % (2 * down + 1), left % (2 * right + 1), flip % 2 == 1)
        return torch.from_numpy(images).expand(-1, self.images.shape[1], -1, -1), self.labels[torch.from_numpy(index)]

    def augmentation(self, seed: int, epoch: int) -> UInt64[np.ndarray, "n 4"] | None:
        """The random words behind each row's crop and flip in this epoch; None without augmentation."""
        return None if self.augment is None else words(len(self), seed, epoch, Purpose.AUGMENT)
