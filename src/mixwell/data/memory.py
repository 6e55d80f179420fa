"""Data sets that fit in memory, indexed a batch at a time."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8, UInt64
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.errors import DataError
from mixwell.data.crops import LEAST_AREA, augmented, check_augment, resized
from mixwell.data.streams import Purpose, words

__all__ = ["InMemory"]


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images and class ids as two tensors.

    `Loader` reads it a batch at a time, without Python per sample, and applies the augmentation; `dataset[i]` is the
    plain image (uint8, (C, H, W)) and its class id.

    Args:
        images: (N, C, H, W) uint8; on the CPU; an expanded view costs no memory.
        labels: (N,) integer class ids, on the CPU.
        augment: None; "crop-flip": a random crop after padding with an eighth of the size, and a random mirror image;
            or "rrc-flip": a random crop of another size and shape, resized, and a random mirror image.
        least_area: share of the image that the smallest crop of "rrc-flip" shows.
        size: side at which images are served, resized when they are read; their own if not given.

    Raises:
        DataError: shapes, dtypes or lengths are not these.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        *,
        augment: str | None = None,
        least_area: float = LEAST_AREA,
        size: int | None = None,
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
        self.least_area = least_area
        self.size = size
        # A channel that is only repeated is read and augmented once.
        self._stored = (images[:, :1] if images.stride(1) == 0 else images).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.size is not None:
            image = torch.from_numpy(resized(self._stored[index][None], self.size)[0]).expand(len(image), -1, -1)
        return image, int(self.labels[index])

    def subset(self, rows: Int64[np.ndarray, " r"], *, augment: str | None) -> InMemory:
        """The rows `rows` as a set of their own."""
        images = torch.from_numpy(self._stored[rows]).expand(-1, self.images.shape[1], -1, -1)
        labels = self.labels[torch.from_numpy(rows)]
        return InMemory(images, labels, augment=augment, least_area=self.least_area, size=self.size)

    def unaugmented(self) -> InMemory:
        """The same images without augmentation."""
        return InMemory(self.images, self.labels, size=self.size)

    def relabelled(self, labels: Int64[Tensor, " n"]) -> InMemory:
        """The same images with other class ids."""
        return InMemory(self.images, labels, augment=self.augment, least_area=self.least_area, size=self.size)

    def with_least_area(self, share: float) -> InMemory:
        """The same images, of which "rrc-flip" shows at least a share."""
        return InMemory(self.images, self.labels, augment=self.augment, least_area=share, size=self.size)

    def rows(
        self, index: Int64[np.ndarray, " b"], words: UInt64[np.ndarray, "b 4"] | None
    ) -> tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"], dict[str, Tensor]]:
        """Images, labels and extras of a batch; `words` are these rows' part of what `augmentation` gave.

        The extras of augmented images are their "crop": (B, 5) shares of the image, see `mixwell.data.crops`.
        """
        # numpy copies in this thread; torch would share a few kilobytes among threads and wait for the slowest.
        images, extras = self._stored[index], {}
        if words is not None:
            assert self.augment is not None, "numbers are drawn for augmentations"
            images, crops = augmented(images, self.augment, words, least_area=self.least_area, size=self.size)
            extras["crop"] = torch.from_numpy(crops)
        elif self.size is not None:
            images = resized(images, self.size)
        labels = self.labels[torch.from_numpy(index)]
        return torch.from_numpy(images).expand(-1, self.images.shape[1], -1, -1), labels, extras

    def augmentation(self, seed: int, epoch: int) -> UInt64[np.ndarray, "n 4"] | None:
        """The random words behind each row's crop in this epoch; None without augmentation."""
        return None if self.augment is None else words(len(self), seed, epoch, Purpose.AUGMENT)
