"""Wrong labels: a share of the training labels is replaced by other classes, each as likely as any other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.errors import DataError, number_in
from mixwell.data.items import labels_of, size_of
from mixwell.data.memory import InMemory
from mixwell.data.pictures import Pictures
from mixwell.data.streams import Purpose, words
from mixwell.data.varied import Varied

if TYPE_CHECKING:
    from mixwell.data.sets import DataSet

__all__ = ["Relabelled", "noisy_labels", "with_label_noise"]


def noisy_labels(labels: Int64[Tensor, " n"], num_classes: int, share: float, seed: int = 0) -> Int64[Tensor, " n"]:
    """Replace the labels of round(share·N) rows, drawn at random, each by one of the C - 1 other classes.

    Args:
        labels: (N,) class ids.
        num_classes: C.
        share: of the rows, in [0, 1].
        seed: says which rows, and by what they are replaced.

    Raises:
        ParameterError: `share` is not in [0, 1].
        DataError: there is only one class.
    """
    count = round(number_in("share", share, 0, 1) * len(labels))
    if count and num_classes < 2:
        raise DataError("Labels can be replaced by other classes only where there are any, got 1 class.")
    order, shift = words(len(labels), seed, 0, Purpose.NOISE)[:, :2].T
    rows = torch.from_numpy(np.argsort(order, kind="stable")[:count])
    away = torch.from_numpy((shift % np.uint64(max(1, num_classes - 1))).astype(np.int64)) + 1
    noisy = labels.clone()
    noisy[rows] = (labels[rows] + away[rows]) % num_classes
    return noisy


class Relabelled(Dataset[Any]):
    """A map-style data set whose items have other labels.

    Args:
        dataset: items are `(image, label)` or `(image, label, extras)`.
        targets: (N,) the class ids that take the labels' place.
    """

    def __init__(self, dataset: Dataset[Any], targets: Int64[Tensor, " n"]) -> None:
        self.dataset = dataset
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, _, *extras = self.dataset[index]
        return (image, int(self.targets[index]), *extras)


def with_label_noise(data: DataSet, share: float, seed: int = 0) -> DataSet:
    """A data set with `noisy_labels` in its training set; the test set stays as it is.

    In-memory sets and image folders stay what they are, others become `Relabelled`; rows keep their places.

    Raises:
        ParameterError: `share` is not in [0, 1].
        DataError: the labels are rows of class weights, or there is only one class.
    """
    if not share:
        return data
    labels = labels_of(data.train)
    if labels.ndim != 1:
        raise DataError(
            f"label_noise={share:g} replaces class ids, but the labels of {data.name} are rows of class weights. "
            "Set it to 0, or give a data set with one class per image."
        )
    noisy = noisy_labels(labels, data.num_classes, share, seed)
    return replace(data, train=_relabelled(data.train, noisy))


def _relabelled(dataset: Dataset[Any], labels: Int64[Tensor, " n"]) -> Dataset[Any]:
    if isinstance(dataset, Varied):
        return dataset.over(dataset.dataset.relabelled(labels))
    if isinstance(dataset, InMemory | Pictures):
        return dataset.relabelled(labels)
    size_of(dataset, "train")
    return Relabelled(dataset, labels)
