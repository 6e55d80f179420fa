"""Parts of data sets: stratified splits, fixed by their seed, and images without augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset, Subset

from mixwell.core.errors import DataError, number_in
from mixwell.data.items import labels_of
from mixwell.data.memory import InMemory
from mixwell.data.noise import Relabelled
from mixwell.data.pictures import Pictures
from mixwell.data.streams import Purpose, permutation
from mixwell.data.varied import Varied

__all__ = ["held_out", "stratified", "unaugmented"]


def stratified(
    labels: Int64[np.ndarray, " n"], count: int, seed: int
) -> tuple[Int64[np.ndarray, " rest"], Int64[np.ndarray, " picked"]]:
    """Pick `count` rows at random with every class in proportion.

    Classes get the whole part of their share; what is left goes to the largest remainders. A class always keeps a row
    that is not picked, so fewer than `count` are picked when there are not enough rows beyond that.

    Returns:
        rows not picked and rows picked, both ascending.
    """
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    # Integers, because a remainder must not depend on rounding.
    quota, remainder = np.divmod(sizes * count, len(labels))
    quota = np.minimum(quota, sizes - 1)
    remainder[quota + 1 >= sizes] = -1
    left = min(count - int(quota.sum()), int((remainder >= 0).sum()))
    quota[np.argsort(-remainder, kind="stable")[:left]] += 1

    order = permutation(len(labels), seed, 0, Purpose.SPLIT)
    by_class = order[np.argsort(group[order], kind="stable")]
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    picked = rank_in_class < np.repeat(quota, sizes)
    return np.sort(by_class[~picked]), np.sort(by_class[picked])


def held_out(dataset: Dataset[Any], share: float, seed: int = 0) -> tuple[Dataset[Any], Dataset[Any]]:
    """Split a training set into the part to train on and a held-out part, every class in proportion.

    In-memory sets and pictures in files stay what they are, and their held-out part is not augmented; other sets become
    `torch.utils.data.Subset`s that keep their own transforms. Rows of class weights are stratified by their largest
    entry.

    Args:
        dataset: a map-style data set of (image, label).
        share: the held-out part of it, between 0 and 1.
        seed: fixes the split.

    Returns:
        (train, held-out), each in the order of `dataset`.

    Raises:
        ParameterError: `share` is not in (0, 1].
        DataError: one of the parts would be empty.
    """
    share = number_in("share", share, 0, 1, open_low=True)
    labels = labels_of(dataset)
    ids = (labels if labels.ndim == 1 else labels.argmax(dim=1)).numpy()
    rest, picked = stratified(ids, round(share * len(ids)), seed)
    if len(picked) == 0 or share == 1:
        raise DataError(
            f"share={share:g} of {len(ids)} samples in {len(np.unique(ids))} classes leaves "
            f"{'nothing held out' if len(picked) == 0 else 'nothing to train on'}. Choose another share."
        )
    if isinstance(dataset, Varied):
        train, kept = (dataset.dataset.subset(rows, augment=dataset.augment) for rows in (rest, picked))
        return dataset.over(train), kept.unaugmented()
    if isinstance(dataset, InMemory | Pictures):
        return dataset.subset(rest, augment=dataset.augment), dataset.subset(picked, augment=None)
    return Subset(dataset, rest.tolist()), Subset(dataset, picked.tolist())


def unaugmented(dataset: Dataset[Any]) -> Dataset[Any]:
    """The same images in the same order without mixwell's augmentation; sets of one's own as they are."""
    if isinstance(dataset, InMemory | Pictures | Varied):
        return dataset.unaugmented()
    if isinstance(dataset, Subset):
        return Subset(unaugmented(dataset.dataset), dataset.indices)
    if isinstance(dataset, Relabelled):
        return Relabelled(unaugmented(dataset.dataset), dataset.targets)
    return dataset
