"""How long the rest of a bench will take, by what its epochs have taken so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from mixwell.bench.cells import Cell, State

__all__ = ["Pace"]


class Pace:
    """Seconds per epoch, by recipe, data and network; the mean over all where these are new."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str, str], float] = defaultdict(float)
        self._epochs: dict[tuple[str, str, str], int] = defaultdict(int)

    def add(self, cell: Cell, seconds: float, epochs: int) -> None:
        """So many epochs of a cell took so long, its evaluation included if it is finished."""
        if epochs:
            self._seconds[_kind(cell)] += seconds
            self._epochs[_kind(cell)] += epochs

    def left(self, cells: Iterable[tuple[Cell, State]], slots: int) -> float | None:
        """Seconds until all of these are done, if so many are worked on at once; None while nothing is known."""
        if not self._epochs:
            return None
        rates = {kind: self._seconds[kind] / self._epochs[kind] for kind in self._epochs}
        mean = sum(rates.values()) / len(rates)
        alone = [rates.get(_kind(cell), mean) * max(0, cell.config.epochs - state.epochs) for cell, state in cells]
        return max([sum(alone) / slots, *alone])


def _kind(cell: Cell) -> tuple[str, str, str]:
    return cell.config.recipe, cell.config.data, cell.config.model
