"""From what a data set yields to batches: images of any accepted kind, labels of any accepted kind, extras."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from mixwell.core.batch import Batch, Pixels
from mixwell.core.errors import DataError
from mixwell.data.memory import InMemory
from mixwell.data.streams import forked_rng

__all__ = ["as_image", "as_label", "collate", "exposed_labels", "labels_of", "read_item", "size_of", "unit_range"]


def size_of(dataset: Dataset[Any], what: str) -> int:
    """Number of samples.

    Raises:
        DataError: the set has no length, or is empty.
    """
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{what}: expected a map-style data set with __len__ and __getitem__, got {type(dataset).__name__}. "
            "An order that can be resumed needs random access; read a stream into such a set first."
        )
    if len(dataset) == 0:
        raise DataError(f"{what}: expected at least one sample, got an empty data set.")
    return len(dataset)


def _from_pil(image: Any) -> Tensor:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise DataError(f"PIL images of mode {image.mode!r} have no fixed range. Convert them to 'L' or 'RGB' first.")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


def as_image(image: Any) -> Shaped[Tensor, "c h w"]:
    """A PIL image or tensor as a (C, H, W) tensor, uint8 or float32 (not yet normalised).

    Raises:
        DataError: another type, dtype or number of axes.
    """
    if (pil := sys.modules.get("PIL.Image")) is not None and isinstance(image, pil.Image):
        return _from_pil(image)
    if (
        not isinstance(image, Tensor)
        or image.ndim != 3
        or (image.dtype != torch.uint8 and not image.is_floating_point())
    ):
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(
            f"Expected an image as uint8 tensor (C, H, W) in 0 … 255, float tensor (C, H, W) in [0, 1] or PIL image, "
            f"got {got}. Convert it in the data set."
        )
    return image if image.dtype == torch.uint8 else image.float()


def as_label(label: Any) -> Tensor:
    """A class id as int64 scalar, or a soft or multi-hot row as float32 (C,).

    Raises:
        DataError: anything else, a floating class id in particular.
    """
    value = torch.as_tensor(label) if isinstance(label, Tensor | np.ndarray | np.generic | int | float) else None
    if value is not None and value.dtype != torch.bool:
        if value.is_floating_point() and value.ndim == 1:
            return value.float()
        if not value.is_floating_point() and not value.is_complex() and value.numel() == 1 and value.ndim <= 1:
            return value.long().reshape(())
    got = f"{value.dtype} {tuple(value.shape)}" if value is not None else f"{type(label).__name__} {label!r}"
    raise DataError(
        f"Expected a label as integer class id, or as floating (C,) row of class weights, got {got}. "
        "Return int(label) from the data set."
    )


def read_item(item: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Image, label and extras of one item `(image, label)` or `(image, label, {name: value})`."""
    if (
        not isinstance(item, Sequence)
        or len(item) not in (2, 3)
        or (len(item) == 3 and not isinstance(item[2], Mapping))
    ):
        got = f"{type(item).__name__} of {len(item)}" if isinstance(item, Sequence) else type(item).__name__
        raise DataError(f"Expected items (image, label) or (image, label, extras as a mapping), got {got}.")
    extras = {name: torch.as_tensor(value) for name, value in item[2].items()} if len(item) == 3 else {}
    return as_image(item[0]), as_label(item[1]), extras


def _stack(values: Sequence[Tensor], index: Sequence[int], what: str) -> Tensor:
    first = values[0]
    for value, row in zip(values, index, strict=True):
        if value.shape != first.shape or value.dtype != first.dtype:
            raise DataError(
                f"Expected {what} of one shape and dtype in a batch, got {first.dtype} {tuple(first.shape)} for sample "
                f"{index[0]} and {value.dtype} {tuple(value.shape)} for sample {row}. Convert them in the data set."
            )
    return torch.stack(list(values))


def unit_range(images: Shaped[Tensor, "b c h w"]) -> Float32[Tensor, "b c h w"]:
    """uint8 images divided by 255; float images as they are, if they are in [0, 1].

    Raises:
        DataError: float images that look normalised already, or are on the scale of 255, or not finite.
    """
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= -0.1 and high <= 1.1):  # bicubic resizing overshoots a little; NaN fails too
        raise DataError(
            f"Expected float images with pixels in [0, 1], got values in [{low:g}, {high:g}]. "
            "The loader normalises: drop Normalize from the data set's transform and give pixels=Pixels(mean, std)."
        )
    return images


def collate(items: Sequence[tuple[int, Any]], pixels: Pixels) -> Batch:
    """A batch of (index, item) pairs, normalised.

    Raises:
        DataError: items that are not what `read_item` expects, or do not fit together.
    """
    index = [row for row, _ in items]
    images, labels, extras = zip(*(read_item(item) for _, item in items), strict=True)
    if any(extra.keys() != extras[0].keys() for extra in extras):
        raise DataError(
            f"Expected the same extras for every sample, got {sorted(set().union(*extras))} for some, but not for all."
        )
    return Batch(
        images=pixels.normalise(unit_range(_stack(images, index, "images"))),
        labels=_stack(labels, index, "labels"),
        pixels=pixels,
        index=torch.tensor(index),
        extras={name: _stack([extra[name] for extra in extras], index, f"extra {name!r}") for name in extras[0]},
    )


def exposed_labels(dataset: Dataset[Any]) -> Tensor | None:
    """All labels, (N,) int64 ids or (N, C) float32 rows, if they can be had without reading the images."""
    if isinstance(dataset, InMemory):
        return dataset.labels
    if isinstance(dataset, Subset):
        labels = exposed_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        targets: Any = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is None:  # with one, `targets` is not what the items hold
        targets = getattr(dataset, "targets", None)
    else:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # None, or something else than one number or row per sample
        return None
    if len(labels.shape) == 0 or len(labels) != size_of(dataset, "labels"):
        return None
    if labels.is_floating_point():
        return labels.float() if labels.ndim == 2 else None
    return labels.long() if labels.ndim == 1 and labels.dtype != torch.bool else None


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """All labels; a set that does not expose them as `targets` is read through once."""
    labels = exposed_labels(dataset)
    if labels is not None:
        return labels
    read = []
    for row in range(size_of(dataset, "labels")):
        with forked_rng(0, 0, row):
            read.append(read_item(dataset[row])[1])
    return _stack(read, range(len(read)), "labels")
