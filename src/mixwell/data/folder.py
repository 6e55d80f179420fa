"""Images on disk, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.errors import DataError
from mixwell.data.memory import check_augment, crop_flip, crop_margin
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


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Image files and class ids; decoded to RGB, shorter side resized to `size`, centre cropped.

    Items are (uint8 (3, size, size), class id). With `augment="crop-flip"` they are also cropped and mirrored at
    random, drawn from torch's global generator (which `Loader` keys by seed, epoch and index).

    Args:
        paths: the files.
        targets: their class ids.
        size: height and width of the images, in pixels.
        augment: None or "crop-flip".

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

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self._decode(self.paths[index])
        if self.augment is not None:
            down, right = crop_margin(self.size, self.size)
            top, left = torch.randint(2 * down + 1, (1,)), torch.randint(2 * right + 1, (1,))
            flip = torch.rand(1) < 0.5
            pixels = crop_flip(pixels[None], top.numpy(), left.numpy(), flip.numpy())[0]
        return torch.from_numpy(pixels), self.targets[index]

    def _decode(self, path: Path) -> UInt8[np.ndarray, "3 h w"]:
        pil = require("PIL.Image", "An image folder")
        try:
            with pil.open(path) as file:
                file.draft("RGB", (self.size, self.size))  # JPEG decodes straight to a smaller scale
                image = file.convert("RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be decoded as an image ({error}). Repair or remove the file.") from error
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), pil.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.array(image).transpose(2, 0, 1).copy()

    def subset(self, rows: Int64[np.ndarray, " r"], *, augment: str | None) -> ImageFolder:
        """The rows `rows` as a set of their own."""
        picked = rows.tolist()
        return ImageFolder(
            [self.paths[row] for row in picked], [self.targets[row] for row in picked], size=self.size, augment=augment
        )
