"""Images on disk, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixwell.core.errors import DataError
from mixwell.data.optional import require
from mixwell.data.pictures import Pictures

__all__ = ["SUFFIXES", "ImageFolder", "class_folders"]

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


class ImageFolder(Pictures):
    """`Pictures` in files.

    Args:
        paths: the files.
        targets: their class ids.
        size, augment, shown: see `Pictures`.

    Raises:
        DataError: see `Pictures`; a file that cannot be decoded, when it is read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Sequence[int],
        *,
        size: int = 224,
        augment: str | None = None,
        shown: float = 1.0,
    ) -> None:
        super().__init__(list(targets), size=size, augment=augment, shown=shown)
        self.paths = list(paths)

    def read(self, index: int, side: int) -> Any:
        """A file as a PIL image."""
        path = self.paths[index]
        try:
            with require("PIL.Image", "An image folder").open(path) as file:
                file.draft("RGB", (side, side))  # JPEG decodes straight to a smaller scale
                return file.convert("RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be decoded as an image ({error}). Repair or remove the file.") from error

    def select(self, rows: list[int]) -> None:
        """Keep only these rows."""
        self.paths = [self.paths[row] for row in rows]
