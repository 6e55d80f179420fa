"""Named data sets, and data sets of the user's own."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError, closest
from mixwell.data.crops import check_augment
from mixwell.data.folder import ImageFolder, class_folders
from mixwell.data.idx import SPLITS, missing_files, read_split
from mixwell.data.items import exposed_labels, labels_of, read_item, size_of, unit_range
from mixwell.data.memory import InMemory
from mixwell.data.optional import require
from mixwell.data.split import stratified
from mixwell.data.streams import Purpose, forked_rng, permutation

__all__ = ["DataSet", "from_datasets", "load", "named"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it

# Means and deviations of the training pixels, as commonly used with these sets (Fashion-MNIST before its border of
# zeros).
FASHION_PIXELS = (0.2860,), (0.3530,)
CIFAR10_PIXELS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_PIXELS = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
IMAGENET_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STATISTICS_ROWS = 2048


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and test set of a classification task.

    Attributes:
        name: what it was loaded as.
        train: map-style set of (image, label), augmented if that was asked for.
        test: the same, never augmented.
        num_classes: C.
        classes: the C names, in the order of the ids.
        pixels: the normalisation that a `Loader` applies.
        shape: (channels, height, width) of a batch's images.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    classes: tuple[str, ...]
    pixels: Pixels
    shape: tuple[int, int, int]


def _statistics(dataset: Dataset[Any]) -> Pixels:
    """Mean and deviation per channel over at most 2048 samples of `dataset`, the same ones every time."""
    rows = permutation(size_of(dataset, "train"), 0, 0, Purpose.SAMPLE)[:STATISTICS_ROWS]
    sums = []
    for row in rows.tolist():
        with forked_rng(0, 0, row):
            image = unit_range(read_item(dataset[row])[0][None])[0].double().flatten(1)
        sums.append(torch.stack([image.sum(1), image.square().sum(1), torch.full((len(image),), image.shape[1])]))
        if sums[-1].shape != sums[0].shape:
            raise DataError(
                f"Expected images of one number of channels, got {sums[0].shape[1]} and {sums[-1].shape[1]}. "
                "Convert them in the data set."
            )
    total, squares, count = torch.stack(sums).sum(0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    if not bool((std > 1e-6).all()):
        raise DataError(f"A channel is constant (deviations {std.tolist()}). Give pixels=Pixels(mean, std) yourself.")
    return Pixels(tuple(mean.tolist()), tuple(std.tolist()))


def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    num_classes: int | None = None,
    pixels: Pixels | None = None,
    name: str = "custom",
    classes: Sequence[str] | None = None,
) -> DataSet:
    """Make a `DataSet` of two map-style data sets.

    Args:
        train, test: items are `(image, label)` or `(image, label, extras)`; images uint8 tensors (C, H, W), float
            tensors (C, H, W) in [0, 1] or PIL images, not normalised; labels integer ids or floating (C,) rows.
        num_classes: inferred from the class names if there are any, else from the labels. Sets that do not expose their
            labels as `targets` are then read through once.
        pixels: the normalisation; None computes it from up to 2048 training samples.
        name: shown in logs.
        classes: names of the classes; None takes `train.classes` if there is one, else the ids.

    Raises:
        DataError: the sets have no length, are empty, name different classes, hold labels outside the classes, or yield
            items that are not these.
    """
    size_of(train, "train")
    size_of(test, "test")
    names, test_names = (tuple(str(label) for label in getattr(part, "classes", None) or ()) for part in (train, test))
    if names and test_names and names != test_names:
        raise DataError(_differing_classes(names, test_names))
    if classes is not None:
        names = tuple(classes)
    if num_classes is None:
        num_classes = len(names) or max(_classes_in(labels_of(part)) for part in (train, test))
    if names and len(names) != num_classes:
        raise DataError(f"Expected {num_classes} class names for num_classes={num_classes}, got {len(names)}.")
    for part, dataset in (("train", train), ("test", test)):
        labels = exposed_labels(dataset)
        if labels is None:
            continue
        if labels.ndim == 1 and int(labels.min()) < 0:
            raise DataError(
                f"{part}: expected class ids >= 0, got {int(labels.min())}. Drop or renumber these samples."
            )
        if _classes_in(labels) > num_classes or (labels.ndim == 2 and labels.shape[1] != num_classes):
            raise DataError(
                f"{part}: expected labels of {num_classes} classes, got {_classes_in(labels)} (largest id + 1, or row "
                "length). Set num_classes or classes, or renumber the labels."
            )
    pixels = pixels or _statistics(train)
    with forked_rng(0, 0, 0):
        first = read_item(train[0])[0]
    channels, height, width = pixels.normalise(unit_range(first[None]))[0].shape
    return DataSet(
        name=name,
        train=train,
        test=test,
        num_classes=num_classes,
        classes=names or tuple(str(label) for label in range(num_classes)),
        pixels=pixels,
        shape=(channels, height, width),
    )


def _classes_in(labels: Tensor) -> int:
    return int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]


def _differing_classes(train: Sequence[str], test: Sequence[str]) -> str:
    extra = {"train": sorted(set(train) - set(test)), "test": sorted(set(test) - set(train))}
    only = [f"only in {part}: {', '.join(names)}" for part, names in extra.items() if names]
    return (
        f"Expected the same classes in train and test, got {len(train)} and {len(test)} "
        f"({'; '.join(only) or 'in another order'}). Ids would mean different classes; make the two agree."
    )


def _cache(root: Path | None) -> Path:
    return root or Path(os.environ.get("MIXWELL_DATA") or "~/.cache/mixwell").expanduser()


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
    downloaded = _cache(root) / "FashionMNIST" / "raw"
    candidates = [FASHION_FOLDER, downloaded] if root is None else [root, downloaded]
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
    _downloaded("fashion-mnist", vision.datasets.FashionMNIST, _cache(None), looked=looked)
    return downloaded


def _downloaded(name: str, factory: Callable[..., Any], root: Path, *, looked: str | Path) -> tuple[Any, Any]:
    try:
        return factory(str(root), train=True, download=True), factory(str(root), train=False, download=True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        raise DataError(
            f"{name}: not found in {looked}, and it could not be downloaded ({type(error).__name__}: {error}). "
            "Connect to the network, or put the files there, or name their folder with root= or MIXWELL_DATA."
        ) from error


def _cifar(name: str, factory: str, pixels: tuple[tuple[float, ...], tuple[float, ...]]) -> Callable[..., DataSet]:
    def build(root: Path | None, augment: str | None) -> DataSet:
        vision = require("torchvision", name)
        folder = _cache(root)
        parts = _downloaded(name, getattr(vision.datasets, factory), folder, looked=folder)

        def serve(part: Any, augment: str | None) -> InMemory:
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            return InMemory(images, torch.tensor(part.targets), augment=augment)

        return from_datasets(
            serve(parts[0], augment), serve(parts[1], None), pixels=Pixels(*pixels), name=name, classes=parts[0].classes
        )

    return build


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
    pixels = _statistics(everything.subset(train_rows, augment=None))
    everything = InMemory(images.expand(-1, channels, -1, -1), labels)
    return from_datasets(
        everything.subset(train_rows, augment=augment),
        everything.subset(test_rows, augment=None),
        pixels=_repeat((pixels.mean, pixels.std), channels),
        name="digits",
    )


def _image_folder(path: str, root: Path | None, augment: str | None, *, size: int = 224) -> DataSet:
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
            raise DataError(f"imagefolder: {folder}: {_differing_classes(list(train), list(test))}")
        parts = _files(train, size, augment), _files(test, size, None)
    else:
        train = class_folders(folder)
        everything = _files(train, size, None)
        rows, test_rows = stratified(np.array(everything.targets), round(0.2 * len(everything)), seed=0)
        if len(test_rows) == 0:
            raise DataError(f"imagefolder: {folder} has too few images ({len(everything)}) to split 80/20. Add images.")
        parts = everything.subset(rows, augment=augment), everything.subset(test_rows, augment=None)
    return from_datasets(*parts, pixels=Pixels(*IMAGENET_PIXELS), name=f"imagefolder:{path}", classes=tuple(train))


def _files(classes: Mapping[str, Sequence[Path]], size: int, augment: str | None) -> ImageFolder:
    paths = [path for files in classes.values() for path in files]
    targets = [label for label, files in enumerate(classes.values()) for _ in files]
    return ImageFolder(paths, targets, size=size, augment=augment)


_SETS: dict[str, tuple[Callable[..., DataSet], tuple[str, ...]]] = {
    "cifar10": (_cifar("cifar10", "CIFAR10", CIFAR10_PIXELS), ()),
    "cifar100": (_cifar("cifar100", "CIFAR100", CIFAR100_PIXELS), ()),
    "digits": (_digits, ("size", "channels")),
    "fashion-mini": (_fashion_mini, ("size", "channels")),
    "fashion-mnist": (_fashion_mnist, ("size", "channels")),
    "imagefolder": (_image_folder, ("size",)),
}


def named() -> list[str]:
    """What `load` knows; `imagefolder:PATH` stands for any folder of images."""
    return [name if name != "imagefolder" else "imagefolder:PATH" for name in _SETS]


def load(name: str, *, root: str | Path | None = None, augment: str | None = None, **options: Any) -> DataSet:
    """Load a named data set.

    Args:
        name: one of `named()`.
            `fashion-mini`: 6,000 + 2,000 images of Fashion-MNIST that come with mixwell.
            `fashion-mnist`: all of it, from Debian's package, from `root`, or downloaded.
            `digits`: scikit-learn's handwritten digits, 1,400 + 397.
            `cifar10`, `cifar100`: downloaded unless there.
            `imagefolder:PATH`: PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE (or val), or PATH/CLASS/IMAGE, which
            is split 80/20, every class in proportion. Normalised with ImageNet's mean and deviation.
        root: the folder to look in, and to download to; None is $MIXWELL_DATA or ~/.cache/mixwell. A relative PATH of
            an image folder is taken from `root`. Sets that come with a package need none.
        augment: None, or for the training set "crop-flip": a random crop after zero-padding an eighth of the size (4
            of 32 pixels) and a random mirror image; or "rrc-flip": a random crop of 0.08 to 1 of the area, up to 4/3
            wider or narrower, resized to the image's size, and a random mirror image. Batches say where the crops are.
        options: `size` and `channels`. Fashion sets: size 32 (a border of zeros, default) or 28; channels 3 (repeated,
            default) or 1. `digits`: size 32 by default, at least 8, resized bilinearly; channels 3 or 1.
            `imagefolder`: size 224 by default, shorter side resized and centre cropped.

    Raises:
        DataError: an unknown name or option, files that are missing or damaged, a download that fails, a package that
            is not installed, classes that differ between train and test.
    """
    key, _, path = name.partition(":")
    if key not in _SETS or bool(path) != (key == "imagefolder"):
        raise DataError(
            f"Unknown data set {name!r}: {closest(name, named())} From Python, any pair: from_datasets(...)."
        )
    build, known = _SETS[key]
    if unknown := sorted(options.keys() - set(known)):
        raise DataError(f"{key} has no option {unknown[0]!r}; it takes {', '.join(known) or 'none'}.")
    folder = None if root is None else Path(root).expanduser()
    arguments = (path, folder) if path else (folder,)
    return build(*arguments, check_augment(augment), **options)
