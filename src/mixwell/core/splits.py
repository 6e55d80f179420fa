"""The data beside a step's batch: passes over the training images, and images that are kept from training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixwell.core.batch import Batch
from mixwell.core.errors import MixwellError
from mixwell.core.rng import distributed

__all__ = ["Splits", "gathered_over_processes", "summed_over_processes"]

Batches = Callable[[], Iterable[Batch]]


@dataclass(eq=False)
class Splits:
    """Where pieces find data besides the step's batch.

    Of several processes, each sees its own share.

    Attributes:
        train_batches: a new pass over the clean training batches, or None.
        held_out_batches: a new pass over batches that are not trained on, or None.
        device: where the batches are put.
    """

    train_batches: Batches | None = None
    held_out_batches: Batches | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _pass: Iterator[Batch] | None = field(default=None, init=False, repr=False)
    _last: tuple[int, Batch] | None = field(default=None, init=False, repr=False)
    _length: int | None = field(default=None, init=False, repr=False)

    def train(self) -> Iterator[Batch]:
        """A pass over the training batches.

        Raises:
            MixwellError: there are none.
        """
        return self._placed(self.train_batches, "train")

    def held_out(self) -> Iterator[Batch]:
        """A pass over the held-out batches.

        Raises:
            MixwellError: there are none.
        """
        return self._placed(self.held_out_batches, "held_out")

    def at(self, step: int) -> Batch:
        """The held-out batch of a step: pass after pass, one batch a step.

        Raises:
            MixwellError: there are none.
        """
        if self._last is None or self._last[0] != step:
            if self._last is None or self._last[0] + 1 != step or self._pass is None:
                self._pass = self.held_out()
                for _ in range(step % self._count()):
                    next(self._pass)
            batch = next(self._pass, None)
            if batch is None:
                self._pass = self.held_out()
                batch = next(self._pass)
            self._last = step, batch
        return self._last[1]

    def _count(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self.held_out())
            if not self._length:
                raise MixwellError("The held-out split gives no batch. Hold out some images more.")
        return self._length

    def _placed(self, batches: Batches | None, which: str) -> Iterator[Batch]:
        if batches is None:
            raise MixwellError(
                f"This recipe looks at {'held-out' if which == 'held_out' else 'all training'} images, and does not "
                f"know them. Call recipe.use_data({which}=...) with a function that gives a pass over their batches; "
                "`mixwell train` does so by itself."
            )
        return (batch.to(self.device) for batch in batches())


def gathered_over_processes(tensor: Tensor) -> Tensor:
    """The rows of every process's tensor, one after the other, on all of them; their numbers may differ."""
    if not distributed():
        return tensor
    found: list[Tensor] = [tensor] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, tensor.cpu())
    return torch.cat([part.to(tensor.device) for part in found])


def summed_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, on all of them; the tensor itself where there is one process."""
    if distributed():
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor
