"""Batches in an order that depends on (seed, epoch) only, from any row of any epoch on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader, Dataset

from mixwell.core.batch import Batch, Pixels
from mixwell.core.errors import DataError, ParameterError
from mixwell.data.items import collate, size_of, unit_range
from mixwell.data.memory import InMemory
from mixwell.data.streams import Purpose, forked_rng, permutation

__all__ = ["Loader"]


class _Keyed(Dataset[tuple[int, Any]]):
    """Reads row `index` with the global generators keyed by (seed, epoch, index), whichever process reads it."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Any]:
        epoch, index = key
        with forked_rng(self.seed, epoch, index):
            return index, self.dataset[index]


class Loader:
    """Batches of a data set for one process.

    The order of an epoch depends on (seed, epoch) only, and a row's augmentation on (seed, epoch, index) only: neither
    on the number of workers nor on where the epoch was entered. The global generators of torch, numpy and random are
    left as they were; a data set that keeps a generator of its own is not covered.

    With `world` processes, batch k of all ranks together is batch k of one process with `world` times the batch size.
    When shuffling (training), the order wraps around so that all ranks have the same number of rows; without
    (evaluation), every row comes once, and ranks may differ by one row, hence by one batch.

    Args:
        dataset: a map-style set of `(image, label)` or `(image, label, extras)`. Images are uint8 tensors (C, H, W),
            float tensors (C, H, W) in [0, 1] or PIL images, not yet normalised; labels are integer ids or floating
            (C,) rows. An `InMemory` set is read without workers, a batch at a time.
        batch_size: rows per batch and process; the last batch of an epoch may be smaller.
        pixels: the normalisation to apply.
        seed: any integer.
        shuffle: a new random order every epoch, else the set's own.
        rank, world: which process of how many.
        workers: processes that read samples, 0 to read in this one.
        drop_last: leave out a last batch that is not full.

    Raises:
        ParameterError: a number is out of range.
        DataError: the set is empty, has no length, or yields no batch at all; when reading, items that are not these.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        pixels: Pixels,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        for name, value, low in (("batch_size", batch_size, 1), ("world", world, 1), ("workers", workers, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ParameterError(f"Loader: {name} must be an integer >= {low}, got {value!r}.")
        if not 0 <= rank < world:
            raise ParameterError(f"Loader: rank must be one of 0 … {world - 1} (world={world}), got {rank!r}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.pixels = pixels
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.workers = workers
        self.drop_last = drop_last
        self._size = size_of(dataset, "Loader")
        if drop_last and len(self) == 0:
            raise DataError(
                f"Loader: drop_last=True leaves no batch of {batch_size} from the {self._rows} rows of rank {rank} of "
                f"{world}. Choose a smaller batch_size or drop_last=False."
            )

    @property
    def _rows(self) -> int:
        extra = self.world - 1 if self.shuffle else self.world - 1 - self.rank
        return (self._size + extra) // self.world

    def __len__(self) -> int:
        """Batches per epoch for this rank."""
        return (self._rows + (0 if self.drop_last else self.batch_size - 1)) // self.batch_size

    def _order(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        if not self.shuffle:
            return np.arange(self.rank, self._size, self.world)
        order = permutation(self._size, self.seed, epoch, Purpose.ORDER)
        return np.resize(order, self._rows * self.world)[self.rank :: self.world]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches `start, start + 1, …` of an epoch, exactly as an uninterrupted epoch has them.

        Args:
            epoch: number of the epoch, from 0.
            start: how many batches to leave out, at most `len(self)`.

        Returns:
            an iterator of `Batch`, on the CPU: images (B, C, H, W) float32, normalised; labels (B,) int64 (or (B, C)
            float32); index (B,) int64; extras: what the set's items bring, and of augmented images "crop" (B, 5)
            float32, see `mixwell.data.crops`.

        Raises:
            ParameterError: `epoch` or `start` is out of range.
            DataError: while iterating, if the set yields items that are not what the class describes.
        """
        if epoch < 0:
            raise ParameterError(f"Loader.epoch: epoch must be >= 0, got {epoch}.")
        if not 0 <= start <= len(self):
            raise ParameterError(f"Loader.epoch: start must be one of 0 … {len(self)} batches, got {start}.")
        order = self._order(epoch)
        rows = [order[batch * self.batch_size :][: self.batch_size] for batch in range(start, len(self))]
        if isinstance(self.dataset, InMemory):
            return self._from_memory(self.dataset, rows, epoch)
        loader: DataLoader[Any] = DataLoader(
            _Keyed(self.dataset, self.seed),
            batch_sampler=[[(epoch, row) for row in batch.tolist()] for batch in rows],
            num_workers=self.workers,
            collate_fn=partial(collate, pixels=self.pixels),
            generator=torch.Generator(),  # without one, DataLoader draws from the global generator
        )
        return iter(loader)

    def _from_memory(self, dataset: InMemory, rows: Sequence[Int64[np.ndarray, " _"]], epoch: int) -> Iterator[Batch]:
        draws = dataset.augmentation(self.seed, epoch)
        for index in rows:
            images, labels, extras = dataset.rows(index, None if draws is None else draws[index])
            yield Batch(
                images=self.pixels.normalise(unit_range(images)),
                labels=labels,
                pixels=self.pixels,
                index=torch.from_numpy(index),
                extras=extras,
            )
