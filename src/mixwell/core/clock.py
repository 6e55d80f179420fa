"""Where in the training a step stands."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass
class Clock:
    """Attributes:
    step: batches mixed before this one, over all epochs.
    total: batches of the whole training, or None if unknown.
    epoch: full passes over the data before this one.
    lr: learning rate of the first parameter group, or None if unknown.
    """

    step: int = 0
    total: int | None = None
    epoch: int = 0
    lr: float | None = None
