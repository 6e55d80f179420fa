"""The pictures of a gallery: one's own files, or the photographs of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from mixwell.core.errors import DataError, ParameterError
from mixwell.data.folder import SUFFIXES
from mixwell.data.optional import require

__all__ = ["COUNTS", "SIDE", "SIZES", "Pictures", "photographs", "read_pictures"]

SIDE = 160
"""Pixels of both sides of the documentation's pictures."""
SIZES = range(32, 513, 8)
"""Sides that galleries are drawn at; `vit-s` cuts all of them into whole patches."""
COUNTS = range(2, 17)
"""How many images a gallery may show."""
_CROPS = {
    "astronaut": ("astronaut", (20, 0, 420, 400)),
    "cat": ("chelsea", (90, 0, 390, 300)),
    "coffee": ("coffee", (60, 0, 460, 400)),
    "rocket": ("rocket", (130, 20, 520, 410)),
}
"""Name, scikit-image's function, and the square that is shown."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Squares of one size.

    Attributes:
        images: (B, 3, S, S) pixels in [0, 1].
        labels: B names; pictures of one name are of one class.
        skipped: why a file could not be read, by file.
    """

    images: Float[Tensor, "b 3 s s"]
    labels: tuple[str, ...]
    skipped: Mapping[Path, str]


def photographs(count: int = len(_CROPS), *, size: int = SIDE) -> Pictures:
    """The documentation's photographs, which come with scikit-image.

    Raises:
        DataError: scikit-image is not installed.
        ParameterError: `count` or `size` is out of range.
    """
    _check(count, size)
    if count > len(_CROPS):
        raise ParameterError(
            f"There are {len(_CROPS)} photographs, got count={count}. Give a folder of images of your own for more."
        )
    stored = require("skimage.data", "A gallery without images of your own", "vision")
    crops = list(_CROPS.values())[:count]
    squares = [_square(Image.fromarray(getattr(stored, name)()).crop(box), size) for name, box in crops]
    return Pictures(torch.stack(squares), tuple(_CROPS)[:count], {})


def read_pictures(folder: Path, *, count: int = 4, size: int = SIDE) -> Pictures:
    """Some images of a folder, spread over its classes: the shorter side is resized, the middle cropped.

    Images that lie in the folder itself are a class each, and then its folders are left alone; else each folder in it
    is a class, with all images below it. Files that cannot be read are passed over for others.

    Args:
        folder: DIR/IMAGE or DIR/CLASS/IMAGE.
        count: how many; fewer if there are not as many.
        size: pixels of both sides.

    Raises:
        DataError: there is no such folder, or fewer than two images in it that can be read.
        ParameterError: `count` or `size` is out of range.
    """
    _check(count, size)
    if not folder.is_dir():
        raise DataError(f"Expected a folder of images, found none at {folder.absolute()}. Check the path.")
    classes = _classes(folder)
    skipped: dict[Path, str] = {}
    found: list[tuple[str, Tensor]] = []
    for name, path in _spread(classes, count):
        try:
            found.append((name, _square(_opened(path), size)))
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            skipped[path] = str(error) or type(error).__name__
        if len(found) == count:
            break
    if len(found) < COUNTS[0]:
        unread = f"; could not be read: {', '.join(path.name for path in skipped)}" if skipped else ""
        raise DataError(
            f"A gallery needs at least two images, found {len(found)} in {folder.absolute()}{unread}. Put images there "
            f"that end in {', '.join(SUFFIXES)}, or folders of them, one per class."
        )
    order = list(classes)
    found.sort(key=lambda each: order.index(each[0]))
    return Pictures(torch.stack([image for _, image in found]), tuple(name for name, _ in found), skipped)


def _check(count: int, size: int) -> None:
    if count not in COUNTS:
        raise ParameterError(f"count must be {COUNTS[0]} … {COUNTS[-1]} images, got {count}.")
    if size not in SIZES:
        raise ParameterError(
            f"size must be a multiple of {SIZES.step} from {SIZES[0]} to {SIZES[-1]} pixels, got {size}."
        )


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The image files by class, in the order of their names."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if files := [path for path in entries if path.is_file() and path.suffix.lower() in SUFFIXES]:
        alone = {path.stem for path in files}
        return {path.stem if len(alone) == len(files) else path.name: [path] for path in files}
    folders = {
        path.name: sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
        for path in entries
        if path.is_dir()
    }
    return {name: paths for name, paths in folders.items() if paths}


def _spread(classes: Mapping[str, list[Path]], count: int) -> Iterator[tuple[str, Path]]:
    """Every image with its class, in the order in which they are taken: one of each class, then a second one of each,
    and of many classes first those that lie evenly among all.
    """
    names = list(classes)
    first = [names[place * len(names) // count] for place in range(count)] if len(names) > count else names
    order = [*first, *(name for name in names if name not in first)]
    for place in range(max(map(len, classes.values()), default=0)):
        for name in order:
            if place < len(classes[name]):
                yield name, classes[name][place]


def _opened(path: Path) -> Image.Image:
    """An image as it is meant to be seen: turned as the camera says, on white where it is transparent."""
    with Image.open(path) as file:
        if file.mode.startswith(("I", "F")):
            raise DataError(f"its mode {file.mode!r} has no fixed range; convert it to 8 bits per channel")
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Float[Tensor, "3 s s"]:
    fitted = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
