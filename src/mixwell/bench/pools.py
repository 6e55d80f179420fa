"""Where cells are worked on: in this process, or in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from mixwell.bench.cells import Cell
from mixwell.bench.worker import Outcome, work

__all__ = ["Here", "Pool", "Processes"]


class Pool(Protocol):
    """Workers, each of which has one cell at a time."""

    @property
    def slots(self) -> int:
        """How many cells may be worked on at once."""

    def start(self, cell: Cell) -> None:
        """Give a cell to a worker that is free."""

    def finished(self, seconds: float) -> list[Outcome]:
        """What came of cells that are finished; waits so many seconds at most, if it can."""

    def close(self) -> None:
        """Stop all work."""


class Here:
    """This process."""

    slots = 1

    def __init__(self) -> None:
        self._cells: list[Cell] = []

    def start(self, cell: Cell) -> None:
        """Keep the cell for `finished`."""
        self._cells.append(cell)

    def finished(self, seconds: float) -> list[Outcome]:
        """Work on the cell that was started, however long it takes."""
        cells, self._cells = self._cells, []
        return [work(cell) for cell in cells]

    def close(self) -> None:
        """Nothing goes on."""


class Processes:
    """Processes of this machine, made when there is work for them, and anew where one dies.

    Args:
        count: how many at once.
    """

    def __init__(self, count: int) -> None:
        self.slots = count
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[tuple[Connection, Any]] = []
        self._busy: dict[Connection, tuple[Any, Cell]] = {}

    def start(self, cell: Cell) -> None:
        """Give a cell to a process."""
        pipe, process = self._idle.pop() if self._idle else self._made()
        self._busy[pipe] = process, cell
        with suppress(BrokenPipeError):  # it died while it was idle; `finished` finds out
            pipe.send(cell)

    def finished(self, seconds: float) -> list[Outcome]:
        """Outcomes, and the names of cells whose process died."""
        outcomes = []
        for pipe in wait(list(self._busy), seconds):
            assert isinstance(pipe, Connection)
            process, cell = self._busy.pop(pipe)
            try:
                outcomes.append(pipe.recv())
                self._idle.append((pipe, process))
            except (EOFError, ConnectionResetError):
                process.join()
                outcomes.append(Outcome(cell.name, "died", f"Its process died with exit code {process.exitcode}."))
        return outcomes

    def close(self) -> None:
        """Stop the processes; what their cells have saved stays."""
        processes = [process for _, process in self._idle] + [process for process, _ in self._busy.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        self._idle, self._busy = [], {}

    def _made(self) -> tuple[Connection, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), name="mixwell bench")
        process.start()
        theirs.close()  # so that only the process holds it, whose death then shows
        return ours, process


def _serve(pipe: Connection) -> None:
    """Work on what comes until nothing does. Ctrl-C is for the parent, without which a process ends at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            pipe.send(work(pipe.recv()))
    except (EOFError, BrokenPipeError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
