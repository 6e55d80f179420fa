"""Random streams of the data side, each addressed by (seed, epoch, purpose, index) instead of by what ran before it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Int64, UInt64

__all__ = ["Purpose", "forked_rng", "permutation", "words"]


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes never overlap."""

    ORDER = 0
    AUGMENT = 1
    SPLIT = 2
    SAMPLE = 3
    NOISE = 4


def words(
    rows: int, seed: int, epoch: int, purpose: Purpose, *, first: int = 0
) -> UInt64[np.ndarray, "rows 4"]:  # one Philox block each
    """Four random 64-bit words for each of the rows `first, first + 1, …`; a row's words do not depend on `rows`."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    counter = np.array([first, 0, 0, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(4 * rows).reshape(rows, 4)


def permutation(rows: int, seed: int, epoch: int, purpose: Purpose) -> Int64[np.ndarray, " rows"]:
    """A random order of `range(rows)`.

    Sorted from raw words, because numpy promises to keep bit streams across its versions, but not
    `Generator.permutation`.
    """
    return np.argsort(words(rows, seed, epoch, purpose)[:, 0], kind="stable")


@contextmanager
def forked_rng(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Run a block with the CPU generators of torch, numpy and random seeded by the key, then restore all three."""
    first, second, third, _ = words(1, seed, epoch, Purpose.AUGMENT, first=index)[0].tolist()
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    # torch.manual_seed would reach for the GPUs' generators too, which a loader must not touch.
    torch.default_generator.manual_seed(first)
    np.random.seed(second % 2**32)  # noqa: NPY002
    random.seed(third)
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        random.setstate(saved[2])
