"""A classification task: training and test set, classes, normalisation, and what its batches look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError
from mixwell.data.items import exposed_labels, labels_of, read_item, size_of, unit_range
from mixwell.data.streams import Purpose, forked_rng, permutation

__all__ = ["DataSet", "differing_classes", "from_datasets", "statistics"]

_ROWS = 2048
"""Images whose mean and deviation stand for those of a set."""


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


def statistics(dataset: Dataset[Any]) -> Pixels:
    """Mean and deviation per channel over at most 2048 samples of `dataset`, the same ones every time."""
    rows = permutation(size_of(dataset, "train"), 0, 0, Purpose.SAMPLE)[:_ROWS]
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
        raise DataError(differing_classes(names, test_names))
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
    pixels = pixels or statistics(train)
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


def differing_classes(train: Sequence[str], test: Sequence[str]) -> str:
    """What to say of two parts whose classes are not the same."""
    extra = {"train": sorted(set(train) - set(test)), "test": sorted(set(test) - set(train))}
    only = [f"only in {part}: {', '.join(names)}" for part, names in extra.items() if names]
    return (
        f"Expected the same classes in train and test, got {len(train)} and {len(test)} "
        f"({'; '.join(only) or 'in another order'}). Ids would mean different classes; make the two agree."
    )
