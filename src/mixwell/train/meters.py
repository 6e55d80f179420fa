"""Running means that wait for the device only when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["Meters"]


class Meters:
    """Means over the images of an epoch, of whatever scalars the steps name."""

    def __init__(self) -> None:
        # By the names that a step gave together: one addition on the device for all of them.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._rows: dict[tuple[str, ...], int] = {}

    def add(self, rows: int, values: Mapping[str, Tensor]) -> None:
        """Count `values`, means over `rows` images."""
        names = tuple(values)
        sums = torch.stack([value.detach().float() for value in values.values()]) * rows
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums
        self._rows[names] = self._rows.get(names, 0) + rows

    def means(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The mean of each scalar over the images it was given for; over all processes, if an accelerator is given."""
        totals: dict[str, tuple[float, float]] = {}
        for names in sorted(self._sums):
            sums = torch.cat((self._sums[names], self._sums[names].new_tensor([self._rows[names]])))
            *values, rows = (sums if accelerator is None else accelerator.reduce(sums, "sum")).tolist()
            for name, value in zip(names, values, strict=True):
                total, count = totals.get(name, (0.0, 0.0))
                totals[name] = total + value, count + rows
        return {name: total / rows for name, (total, rows) in totals.items()}

    def state_dict(self) -> list[Any]:
        """What `load_state_dict` takes."""
        return [(list(names), self._sums[names].cpu(), self._rows[names]) for names in self._sums]

    def load_state_dict(self, state: list[Any], device: torch.device) -> None:
        """Go on from a saved state."""
        self._sums = {tuple(names): sums.to(device) for names, sums, _ in state}
        self._rows = {tuple(names): rows for names, _, rows in state}
