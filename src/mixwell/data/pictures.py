"""Pictures of any size that are decoded when they are read, resized and cut to one size."""

from __future__ import annotations

import math
from abc import abstractmethod
from copy import copy
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.errors import DataError, number_in
from mixwell.data.crops import LEAST_AREA, check_augment, crop_flip, crop_margin, crops_of_shifts, random_crops
from mixwell.data.optional import require

__all__ = ["Pictures"]

_P = TypeVar("_P", bound="Pictures")


class Pictures(Dataset[Any]):
    """Images and class ids; decoded to RGB, shorter side resized to `size / shown`, centre cropped to `size`.

    Items are (uint8 (3, size, size), class id). With `augment` they are also cropped and mirrored at random, drawn from
    torch's global generator (which `Loader` keys by seed, epoch and index), and have a third part, {"crop": (5,)},
    which says where in the image without augmentation they lie, see `mixwell.data.crops`. Resized crops are cut out of
    the picture's own pixels.

    Args:
        targets: class ids.
        size: height and width of the images, in pixels.
        augment: None, "crop-flip" or "rrc-flip".
        shown: share of the shorter side that images without augmentation show: 0.875 for 224 of 256 pixels.

    Raises:
        DataError: `size` is not a positive integer, or `augment` is unknown.
        ParameterError: `shown` is not in (0, 1].
    """

    def __init__(self, targets: list[int], *, size: int = 224, augment: str | None = None, shown: float = 1.0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"size must be a positive number of pixels, got {size!r}.")
        self.targets = targets
        self.size = size
        self.augment = check_augment(augment)
        self.shown = number_in("shown", shown, 0, 1, open_low=True)
        self.least_area = LEAST_AREA

    @abstractmethod
    def read(self, index: int, side: int) -> Any:
        """Picture `index` as a PIL image in RGB, with sides of at least so many pixels if it has as many.

        Raises:
            DataError: it cannot be decoded.
        """

    @abstractmethod
    def select(self, rows: list[int]) -> None:
        """Keep only these rows, in their order."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | tuple[Tensor, int, dict[str, Tensor]]:
        target = self.targets[index]
        if self.augment is None:
            return torch.from_numpy(self._middle(index)), target
        if self.augment == "crop-flip":
            down, right = crop_margin(self.size, self.size)
            top, left = torch.randint(2 * down + 1, (1,)).numpy(), torch.randint(2 * right + 1, (1,)).numpy()
            flip = (torch.rand(1) < 0.5).numpy()
            pixels = crop_flip(self._middle(index)[None], top, left, flip)[0]
            crops = crops_of_shifts(top, left, flip, (self.size, self.size))
        else:
            uniforms = torch.rand(1, 5, dtype=torch.float64).numpy()
            crops = random_crops(uniforms[:, :4], uniforms[:, 4] < 0.5, self.least_area)
            pixels = self._crop(index, crops[0])
        return torch.from_numpy(pixels), target, {"crop": torch.from_numpy(crops[0])}

    def _middle(self, index: int) -> UInt8[np.ndarray, "3 h w"]:
        """The middle of a picture."""
        wanted = round(self.size / self.shown)
        image = self.read(index, wanted)
        scale = wanted / min(image.size)
        width, height = (max(wanted, round(side * scale)) for side in image.size)
        image = image.resize((width, height), _bilinear())
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.array(image).transpose(2, 0, 1).copy()

    def _crop(self, index: int, crop: Float32[np.ndarray, " 5"]) -> UInt8[np.ndarray, "3 h w"]:
        """A crop of the middle square of a picture."""
        top, left, height, width, mirrored = crop.tolist()
        image = self.read(index, math.ceil(self.size / min(height, width)))
        side = min(image.size)
        left, top = (image.width - side) / 2 + left * side, (image.height - side) / 2 + top * side
        box = (left, top, min(left + width * side, image.width), min(top + height * side, image.height))
        pixels = np.array(image.resize((self.size, self.size), _bilinear(), box=box)).transpose(2, 0, 1)
        return (pixels[..., ::-1] if mirrored else pixels).copy()

    def subset(self: _P, rows: Int64[np.ndarray, " r"], *, augment: str | None) -> _P:
        """The rows `rows` as a set of their own."""
        part = copy(self)
        part.targets = [self.targets[row] for row in rows.tolist()]
        part.augment = check_augment(augment)
        part.select(rows.tolist())
        return part

    def unaugmented(self: _P) -> _P:
        """The same images without augmentation."""
        return self.subset(np.arange(len(self)), augment=None)

    def relabelled(self: _P, labels: Int64[Tensor, " n"]) -> _P:
        """The same images with other class ids."""
        other = copy(self)
        other.targets = labels.tolist()
        return other

    def with_least_area(self: _P, share: float) -> _P:
        """The same images, of which "rrc-flip" shows at least a share."""
        other = copy(self)
        other.least_area = share
        return other


def _bilinear() -> Any:
    return require("PIL.Image", "A set of pictures").Resampling.BILINEAR
