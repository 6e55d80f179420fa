"""Images on disk, one folder per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.errors import DataError
from mixwell.data.crops import check_augment, crop_flip, crop_margin, crops_of_shifts, random_crops
from mixwell.data.optional import require

__all__ = ["ImageFolder", "class_folders"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The images under `folder` by class, classes and files in the order of their names.

    Raises:
        DataError: no class folders, or one without images.
    """
    classes = {
        entry.name: sorted(path for path in entry.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not classes:
        raise DataError(
            f"Expected one folder per class in {folder}, found none. Put images at {folder}/CLASS/IMAGE.png."
        )
    if bare := [name for name, paths in classes.items() if not paths]:
        raise DataError(
            f"No images in {', '.join(str(folder / name) for name in bare)}. "
            f"Expected files ending in {', '.join(SUFFIXES)}; add some or remove the folder."
        )
    return classes


class ImageFolder(Dataset[Any]):
    """Image files and class ids; decoded to RGB, shorter side resized to `size`, centre cropped.

    Items are (uint8 (3, size, size), class id). With `augment` they are also cropped and mirrored at random, drawn from
    torch's global generator (which `Loader` keys by seed, epoch and index), and have a third part, {"crop": (5,)},
    which says where in the image without augmentation they lie, see `mixwell.data.crops`. Resized crops are cut out of
    the file's own pixels.

    Args:
        paths: the files.
        targets: their class ids.
        size: height and width of the images, in pixels.
        augment: None, "crop-flip" or "rrc-flip".

    Raises:
        DataError: `size` is not a positive integer, or `augment` is unknown; a file that cannot be decoded, when it is
            read.
    """

    def __init__(self, paths: Sequence[Path], targets: Sequence[int], *, size: int = 224, augment: str | None = None):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"size must be a positive number of pixels, got {size!r}.")
        self.paths = list(paths)
        self.targets = list(targets)
        self.size = size
        self.augment = check_augment(augment)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | tuple[Tensor, int, dict[str, Tensor]]:
        path, target = self.paths[index], self.targets[index]
        if self.augment is None:
            return torch.from_numpy(self._decode(path)), target
        if self.augment == "crop-flip":
            down, right = crop_margin(self.size, self.size)
            top, left = torch.randint(2 * down + 1, (1,)).numpy(), torch.randint(2 * right + 1, (1,)).numpy()
            flip = (torch.rand(1) < 0.5).numpy()
            pixels = crop_flip(self._decode(path)[None], top, left, flip)[0]
            crops = crops_of_shifts(top, left, flip, (self.size, self.size))
        else:
            uniforms = torch.rand(1, 5, dtype=torch.float64).numpy()
            crops = random_crops(uniforms[:, :4], uniforms[:, 4] < 0.5)
            pixels = self._decode_crop(path, crops[0])
        return torch.from_numpy(pixels), target, {"crop": torch.from_numpy(crops[0])}

    def _decode(self, path: Path) -> UInt8[np.ndarray, "3 h w"]:
        """The middle of an image."""
        image = self._read(path, self.size)
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), _pil().Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.array(image).transpose(2, 0, 1).copy()

    def _decode_crop(self, path: Path, crop: Float32[np.ndarray, " 5"]) -> UInt8[np.ndarray, "3 h w"]:
        """A crop of the middle of an image."""
        top, left, height, width, mirrored = crop.tolist()
        image = self._read(path, math.ceil(self.size / min(height, width)))
        side = min(image.size)
        left, top = (image.width - side) / 2 + left * side, (image.height - side) / 2 + top * side
        box = (left, top, min(left + width * side, image.width), min(top + height * side, image.height))
        resized = image.resize((self.size, self.size), _pil().Resampling.BILINEAR, box=box)
        pixels = np.array(resized).transpose(2, 0, 1)
        return (pixels[..., ::-1] if mirrored else pixels).copy()

    def _read(self, path: Path, side: int) -> Any:
        """A file as a PIL image with sides of at least so many pixels, if the file has as many."""
        try:
            with _pil().open(path) as file:
                file.draft("RGB", (side, side))  # JPEG decodes straight to a smaller scale
                return file.convert("RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be decoded as an image ({error}). Repair or remove the file.") from error

    def unaugmented(self) -> ImageFolder:
        """The same images without augmentation."""
        return ImageFolder(self.paths, self.targets, size=self.size)

    def subset(self, rows: Int64[np.ndarray, " r"], *, augment: str | None) -> ImageFolder:
        """The rows `rows` as a set of their own."""
        picked = rows.tolist()
        return ImageFolder(
            [self.paths[row] for row in picked], [self.targets[row] for row in picked], size=self.size, augment=augment
        )


def _pil() -> Any:
    return require("PIL.Image", "An image folder")
