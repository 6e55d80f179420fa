"""What a bench shows while it runs: bars on a terminal, one line per event elsewhere."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mixwell.bench.cells import Cell, State, state_of
from mixwell.bench.estimate import Pace
from mixwell.bench.worker import Outcome

__all__ = ["Reporter"]

_SECONDS = 0.5
"""Between two looks at the folders of the cells that are worked on."""


class Reporter:
    """Writes to the standard error stream.

    Args:
        cells: all of the bench, with their states.
        slots: how many are worked on at once.
        shown: False keeps it silent.
    """

    def __init__(self, cells: dict[str, tuple[Cell, State]], slots: int, shown: bool) -> None:
        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        self._cells, self._slots = cells, slots
        self._done = sum(state.done for _, state in cells.values())
        self._failed = 0
        self._pace = Pace()
        for cell, state in cells.values():
            self._pace.add(cell, state.seconds, state.epochs)
        self._tasks: dict[str, Any] = {}
        self._guard = threading.Lock()
        self._bars: Progress | None = None
        if self.console.is_terminal and shown:
            texts = [TextColumn(column, markup=False) for column in ("{task.description}", "{task.fields[told]}")]
            self._bars = Progress(texts[0], BarColumn(), MofNCompleteColumn(), texts[1], console=self.console)
            self._whole = self._bars.add_task("cells", total=len(cells), completed=self._done, told=self._left())
            self._closed = threading.Event()
            self._bars.start()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()

    def note(self, text: str) -> None:
        """Say something once."""
        clock = "" if self.console.is_terminal else f"{time.strftime('%H:%M:%S')} "
        self.console.print(f"{clock}{text}", markup=False, soft_wrap=True)

    def begin(self, cell: Cell) -> None:
        """Work on a cell begins."""
        if self._bars is None:
            self.note(f"{self._place} begin  {cell.title}")
            return
        with self._guard:
            self._tasks[cell.name] = self._bars.add_task(cell.title, total=cell.config.epochs, told="")

    def end(self, cell: Cell, outcome: Outcome) -> None:
        """A worker gave a cell back."""
        self._drop(cell)
        if outcome.status == "done":
            self._count(cell)
            self._pace.add(cell, outcome.seconds, outcome.epochs)
            self.note(
                f"{self._place} done   {cell.title}: accuracy {outcome.accuracy:.2%}, {outcome.seconds:.1f} s; "
                f"{self._left()}"
            )
        elif outcome.status == "failed":
            self._failed += 1
            self.note(f"{self._place} failed {cell.title}: {outcome.reason}")
        elif outcome.status == "died":
            self.note(f"{self._place} died   {cell.title}: {outcome.reason} It is tried again.")
        self._refresh()

    def elsewhere(self, cell: Cell) -> None:
        """Another process has finished a cell."""
        self._count(cell)
        self.note(f"{self._place} done   {cell.title}, by another process")
        self._refresh()

    def close(self) -> None:
        """Give the terminal back."""
        if self._bars is not None:
            self._closed.set()
            self._watcher.join()
            self._bars.stop()
            self._bars = None

    # Inside

    @property
    def _place(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"[{self._done}/{len(self._cells)}{failed}]"

    def _count(self, cell: Cell) -> None:
        self._done += 1
        self._cells[cell.name] = cell, state_of(cell)

    def _left(self) -> str:
        rest = [(cell, state) for cell, state in self._cells.values() if not state.done]
        seconds = self._pace.left(rest, self._slots)
        return "" if seconds is None else f"about {_span(seconds)} left"

    def _drop(self, cell: Cell) -> None:
        with self._guard:
            if self._bars is not None and cell.name in self._tasks:
                self._bars.remove_task(self._tasks.pop(cell.name))

    def _refresh(self) -> None:
        if self._bars is not None:
            self._bars.update(self._whole, completed=self._done, told=self._left())

    def _watch(self) -> None:
        """Follow the cells that are worked on, wherever they are, by what is in their folders."""
        while not self._closed.wait(_SECONDS):
            with self._guard:
                for name, task in self._tasks.items():
                    cell, _ = self._cells[name]
                    state = state_of(cell)
                    self._cells[name] = cell, state
                    told = "evaluates" if state.trained else "" if state.begun else "prepares"
                    assert self._bars is not None
                    self._bars.update(task, completed=state.epochs, told=told)
            self._refresh()


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
