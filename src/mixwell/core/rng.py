"""Where every random number comes from: Philox streams keyed by (seed, rank, step, piece).

A stream has no memory. The numbers of a step depend only on the key, so they are the same in a worker, after a resume
and on another device, and no global random state is read or changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import nn
from torch.utils.data import get_worker_info

from mixwell.core.errors import ParameterError

__all__ = ["Streams", "distributed", "key_of", "rank", "seeded"]

distributed: Callable[[], bool] = (
    torch.distributed.is_initialized if torch.distributed.is_available() else lambda: False
)
"""Whether several processes train together."""

_SHARED = 2**64 - 1
_WORD = 2**64 - 1


def key_of(*parts: object) -> int:
    """A 64-bit key that depends on the text of all parts and is the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rank(otherwise: int) -> int:
    """This process's rank where torch.distributed runs."""
    return int(torch.distributed.get_rank()) if distributed() else otherwise


@contextmanager
def seeded(key: int, net: nn.Module) -> Iterator[None]:
    """Run a block with the generators of the CPU and of the network's devices seeded by `key`; then restore them."""
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(key >> 1)
        yield


_Stream = tuple[Generator, Any, dict[str, Any], list[int]]
"""A generator, its bit generator, the state it starts from, and that state's counter."""


def _fresh(seed: int, piece: str) -> _Stream:
    bits = Philox(key=np.array([seed, key_of(piece)], dtype=np.uint64))
    state: dict[str, Any] = dict(bits.state)
    counter = [0, 0, 0, 0]  # lists are read faster than arrays
    state["state"] = {"counter": counter, "key": state["state"]["key"].tolist()}
    state["buffer"] = state["buffer"].tolist()
    return Generator(bits), bits, state, counter


class Streams:
    """All streams of one seed.

    The Philox objects are built once per piece; a step only sets their counters.
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _WORD:
            raise ParameterError(f"seed must be an integer in [0, 2**64), got {seed!r}.")
        self.seed = seed
        self._launched = int(os.environ.get("RANK", "0"))
        self._generators: dict[str, _Stream] = {}

    def at(self, piece: str, step: int, *, shared: bool = False, lane: int | None = None) -> Generator:
        """The stream of `piece` at `step`, from its start.

        `shared` streams are the same on all ranks, the others are each rank's own. `lane` is `self.lane()`, for callers
        that ask for many streams of a step.
        """
        found = self._generators.get(piece)
        if found is None:
            found = self._generators[piece] = _fresh(self.seed, piece)
        generator, bits, state, counter = found
        counter[2] = self.lane(shared=True) if shared else self.lane() if lane is None else lane
        counter[3] = step
        bits.state = state
        return generator

    def lane(self, *, shared: bool = False) -> int:
        """What sets this process apart: its rank, and in a loading worker also the worker's seed.

        The DataLoader draws the workers' seeds anew every epoch, from its own generator.
        """
        lane = _SHARED if shared else rank(self._launched)
        worker = get_worker_info()
        return lane if worker is None else key_of(lane, worker.seed)

    def __getstate__(self) -> tuple[int, int]:
        return self.seed, rank(self._launched)

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.__init__(state[0])  # type: ignore[misc]
        # A worker that is spawned knows its process's rank from the launcher, or else from what was sent to it.
        self._launched = int(os.environ.get("RANK", state[1]))
