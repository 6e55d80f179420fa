"""Named data sets, and data sets of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError, closest
from mixwell.data.crops import check_augment
from mixwell.data.dataset import DataSet, differing_classes, from_datasets, statistics
from mixwell.data.downloads import CIFAR10, CIFAR100, STL10, SVHN, cache_folder, downloaded
from mixwell.data.folder import ImageFolder, class_folders
from mixwell.data.hub import hub
from mixwell.data.idx import SPLITS, missing_files, read_split
from mixwell.data.listed import IMAGENET_PIXELS, aircraft, cub200, tiny_imagenet
from mixwell.data.memory import InMemory
from mixwell.data.optional import require
from mixwell.data.split import stratified
from mixwell.data.varied import varied

__all__ = ["DataSet", "from_datasets", "load", "named"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it

FASHION_PIXELS = (0.2860,), (0.3530,)  # before the border of zeros, as commonly used


def _choice(name: str, value: int, allowed: tuple[int, ...]) -> int:
    if isinstance(value, bool) or value not in allowed:
        raise DataError(f"{name} must be {' or '.join(map(str, allowed))}, got {value!r}.")
    return value


def _repeat(pixels: tuple[tuple[float, ...], tuple[float, ...]], channels: int) -> Pixels:
    return Pixels(pixels[0] * channels, pixels[1] * channels)


def _fashion(
    name: str, splits: Mapping[str, tuple[np.ndarray, np.ndarray]], augment: str | None, size: int, channels: int
) -> DataSet:
    border = (_choice("size", size, (28, 32)) - 28) // 2
    _choice("channels", channels, (1, 3))

    def serve(split: str, augment: str | None) -> InMemory:
        images, labels = (torch.tensor(array) for array in splits[split])
        images = F.pad(images[:, None], (border,) * 4).expand(-1, channels, -1, -1)
        return InMemory(images, labels, augment=augment)

    pixels = _repeat(FASHION_PIXELS, channels)
    return from_datasets(
        serve("train", augment), serve("test", None), pixels=pixels, name=name, classes=FASHION_CLASSES
    )


def _fashion_mini(root: Path | None, augment: str | None, *, size: int = 32, channels: int = 3) -> DataSet:
    with np.load(Path(__file__).parent / "fashion_mini" / "fashion_mini.npz", allow_pickle=False) as stored:
        splits = {split: (stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test")}
    return _fashion("fashion-mini", splits, augment, size, channels)


def _fashion_mnist(root: Path | None, augment: str | None, *, size: int = 32, channels: int = 3) -> DataSet:
    folder = _fashion_folder(root)
    return _fashion("fashion-mnist", {split: read_split(folder, split) for split in SPLITS}, augment, size, channels)


def _fashion_folder(root: Path | None) -> Path:
    fetched = cache_folder(root) / "FashionMNIST" / "raw"
    candidates = [FASHION_FOLDER, fetched] if root is None else [root, fetched]
    for folder in candidates:
        if not missing_files(folder):
            return folder
    looked = " and ".join(map(str, candidates))
    if root is not None:
        raise DataError(
            f"fashion-mnist: expected its four idx files (.gz or not) in {looked}; missing from {candidates[0]}: "
            f"{', '.join(missing_files(candidates[0]))}. Correct root=, or leave it out to have the set downloaded."
        )
    vision = require("torchvision", f"fashion-mnist is not in {looked}; downloading it")
    downloaded("fashion-mnist", vision.datasets.FashionMNIST, cache_folder(None), looked=looked)
    return fetched


def _digits(root: Path | None, augment: str | None, *, size: int = 32, channels: int = 3) -> DataSet:
    if isinstance(size, bool) or not isinstance(size, int) or size < 8:
        raise DataError(f"size must be an integer of at least 8 pixels, got {size!r}.")
    _choice("channels", channels, (1, 3))
    stored = require("sklearn.datasets", "digits").load_digits()
    small = torch.from_numpy(stored.images).float()[:, None] / 16
    resized = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    images: UInt8[Tensor, "n 1 h w"] = (resized * 255).round().to(torch.uint8)
    labels = torch.from_numpy(stored.target).long()
    train_rows, test_rows = stratified(labels.numpy(), 397, seed=0)
    everything = InMemory(images, labels)
    pixels = statistics(everything.subset(train_rows, augment=None))
    everything = InMemory(images.expand(-1, channels, -1, -1), labels)
    return from_datasets(
        everything.subset(train_rows, augment=augment),
        everything.subset(test_rows, augment=None),
        pixels=_repeat((pixels.mean, pixels.std), channels),
        name="digits",
    )


def _image_folder(
    path: str,
    root: Path | None,
    augment: str | None,
    *,
    size: int = 224,
    test_size: int | None = None,
    shown: float = 1.0,
) -> DataSet:
    folder = (root or Path()) / Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"imagefolder: expected a folder at {folder.absolute()}, found none. "
            "It must hold train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), or CLASS/IMAGE to be split."
        )
    held = next((folder / split for split in ("test", "val") if (folder / split).is_dir()), None)
    if (folder / "train").is_dir() != (held is not None):
        has, lacks = ("train", "test nor val") if held is None else (held.name, "train")
        raise DataError(
            f"imagefolder: {folder} has {has}/ but no {lacks}/. Add the other part, or put the class folders directly "
            f"into {folder} to have them split 80/20."
        )
    if held is not None:
        train, test = class_folders(folder / "train"), class_folders(held)
        if train.keys() != test.keys():
            raise DataError(f"imagefolder: {folder}: {differing_classes(list(train), list(test))}")
        parts = _files(train, size, augment), _files(test, test_size or size, None, shown)
    else:
        train = class_folders(folder)
        everything = _files(train, size, None)
        shown_whole = _files(train, test_size or size, None, shown)
        rows, test_rows = stratified(np.array(everything.targets), round(0.2 * len(everything)), seed=0)
        if len(test_rows) == 0:
            raise DataError(f"imagefolder: {folder} has too few images ({len(everything)}) to split 80/20. Add images.")
        parts = everything.subset(rows, augment=augment), shown_whole.subset(test_rows, augment=None)
    return from_datasets(*parts, pixels=IMAGENET_PIXELS, name=f"imagefolder:{path}", classes=tuple(train))


def _files(classes: Mapping[str, Sequence[Path]], size: int, augment: str | None, shown: float = 1.0) -> ImageFolder:
    paths = [path for files in classes.values() for path in files]
    targets = [label for label, files in enumerate(classes.values()) for _ in files]
    return ImageFolder(paths, targets, size=size, augment=augment, shown=shown)


_SETS: dict[str, tuple[Callable[..., DataSet], tuple[str, ...]]] = {
    "aircraft": (aircraft, ("size", "shown")),
    "cifar10": (CIFAR10, ("size",)),
    "cifar100": (CIFAR100, ("size",)),
    "cub200": (cub200, ("size", "shown")),
    "digits": (_digits, ("size", "channels")),
    "fashion-mini": (_fashion_mini, ("size", "channels")),
    "fashion-mnist": (_fashion_mnist, ("size", "channels")),
    "hf": (hub, ("size", "shown", "config", "train", "test", "image", "label")),
    "imagefolder": (_image_folder, ("size", "test_size", "shown")),
    "stl10": (STL10, ("size",)),
    "svhn": (SVHN, ("size",)),
    "tiny-imagenet": (tiny_imagenet, ("size", "shown")),
}

_PLACES = {"hf": "NAME", "imagefolder": "PATH"}
"""Sets that are named with what follows the colon."""


def named() -> list[str]:
    """What `load` knows; `imagefolder:PATH` stands for any folder of images, `hf:NAME` for any set of the Hub."""
    return [f"{name}:{_PLACES[name]}" if name in _PLACES else name for name in _SETS]


def load(
    name: str,
    *,
    root: str | Path | None = None,
    augment: str | None = None,
    augment_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> DataSet:
    """Load a named data set.

    Args:
        name: one of `named()`.
            `fashion-mini`: 6,000 + 2,000 images of Fashion-MNIST that come with mixwell.
            `fashion-mnist`: all of it, from Debian's package, from `root`, or downloaded.
            `digits`: scikit-learn's handwritten digits, 1,400 + 397.
            `cifar10`, `cifar100`, `svhn`, `stl10`: downloaded unless there.
            `tiny-imagenet`, `cub200`, `aircraft`: from their unpacked archives; an error says where to get them.
            `imagefolder:PATH`: PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE (or val), or PATH/CLASS/IMAGE, which
            is split 80/20, every class in proportion. Normalised with ImageNet's mean and deviation.
            `hf:NAME`: a set of the Hugging Face Hub, or the folder of a saved one.
        root: the folder to look in, and to download to; None is $MIXWELL_DATA or ~/.cache/mixwell. A relative PATH of
            an image folder is taken from `root`. Sets that come with a package need none.
        augment: None, or for the training set "crop-flip": a random crop after zero-padding an eighth of the size (4
            of 32 pixels) and a random mirror image; or "rrc-flip": a random crop of 0.08 to 1 of the area, up to 4/3
            wider or narrower, resized to the image's size, and a random mirror image. Batches say where the crops are.
        augment_options: more of it, for the training set: `least_area`, share of the area that the smallest crop of
            "rrc-flip" shows; `randaugment`, a policy in timm's words such as "rand-m9-mstd0.5-inc1"; `erase`, the
            probability of random erasing.
        options: `size` and `channels`. Fashion sets: size 32 (a border of zeros, default) or 28; channels 3 (repeated,
            default) or 1. `digits`: size 32 by default, at least 8, resized bilinearly; channels 3 or 1. Sets that are
            downloaded: any size, resized bilinearly. Sets of files: size 224 by default (`tiny-imagenet`: 64), shorter
            side resized and centre cropped; `shown`, share of the shorter side that test images show (0.875 for 224
            of 256). `imagefolder`: `test_size` as well. `hf`: names of its parts and columns, see `mixwell.data.hub`.

    Raises:
        DataError: an unknown name or option, files that are missing or damaged, a download that fails, a package that
            is not installed, classes that differ between train and test.
        ParameterError: an option is out of range.
    """
    key, _, place = name.partition(":")
    if key not in _SETS or bool(place) != (key in _PLACES):
        raise DataError(
            f"Unknown data set {name!r}: {closest(name, named())} From Python, any pair: from_datasets(...)."
        )
    build, known = _SETS[key]
    if unknown := sorted(options.keys() - set(known)):
        raise DataError(f"{key} has no option {unknown[0]!r}; it takes {', '.join(known) or 'none'}.")
    folder = None if root is None else Path(root).expanduser()
    arguments = (place, folder) if place else (folder,)
    data = build(*arguments, check_augment(augment), **options)
    return replace(data, train=varied(data.train, augment_options or {}, data.pixels, name))
