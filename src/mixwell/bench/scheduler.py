"""All cells of a bench, shared among the workers of this command and of others that run the same bench."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from mixwell.bench.cells import Bench, Cell, state_of
from mixwell.bench.lock import Busy, holder, locked
from mixwell.bench.pools import Here, Pool
from mixwell.bench.reporter import Reporter

__all__ = ["Summary", "run"]

_SECONDS = 1.0
"""Between two looks for cells that other processes work on, or have finished."""
_DEATHS = 3
"""Workers that may die over a cell before it is given up."""


@dataclass(frozen=True)
class Summary:
    """What came of a bench.

    Attributes:
        done: how many cells are finished, by whomever.
        failed: why each of the others is not, by the cell's title.
    """

    done: int
    failed: Mapping[str, str]


def run(bench: Bench, pool: Pool | None = None, *, progress: bool = True) -> Summary:
    """Finish all cells that are not finished.

    A cell that fails does not stop the others, and is tried again by the next call. Calls in several processes share
    the work: each cell is worked on by one at a time.

    Args:
        bench: what to do.
        pool: who works; this process if not given. It is closed in the end.
        progress: whether to show what happens on the standard error stream.

    Raises:
        KeyboardInterrupt: passed on; the same call goes on where it was.
    """
    pool = pool or Here()
    states = {cell.name: (cell, state_of(cell)) for cell in bench.cells}
    left = [cell for cell, state in states.values() if not state.done]
    reporter = Reporter(states, pool.slots, progress)
    failed: dict[str, str] = {}
    try:
        _share(left, pool, reporter, failed)
    except KeyboardInterrupt:
        reporter.close()
        rest = sum(not state_of(cell).done for cell in bench.cells)
        reporter.note(f"Interrupted. {rest} of {len(bench.cells)} cells remain; the same command goes on with them.")
        raise
    finally:
        reporter.close()
        pool.close()
        for path in bench.out.glob("*.lock"):  # of processes that were killed
            with suppress(Busy), locked(path):
                pass
    return Summary(len(bench.cells) - len(failed), failed)


def _share(left: list[Cell], pool: Pool, reporter: Reporter, failed: dict[str, str]) -> None:
    """Give cells to workers until none is left."""
    running: dict[str, Cell] = {}
    deaths: Counter[str] = Counter()
    while left or running:
        while len(running) < pool.slots and (cell := _free(left, reporter)) is not None:
            left.remove(cell)
            running[cell.name] = cell
            reporter.begin(cell)
            pool.start(cell)
        if not running:
            if left:
                time.sleep(_SECONDS)
            continue
        for outcome in pool.finished(_SECONDS):
            cell = running.pop(outcome.name)
            reporter.end(cell, outcome)
            deaths[cell.name] += outcome.status == "died"
            if outcome.status == "failed" or deaths[cell.name] >= _DEATHS:
                failed[cell.title] = outcome.reason
            elif outcome.status != "done":
                left.append(cell)


def _free(left: list[Cell], reporter: Reporter) -> Cell | None:
    """The first cell that nobody works on. Those that others have finished are taken out."""
    for cell in list(left):
        if holder(cell.lock) is not None:
            continue
        if not state_of(cell).done:
            return cell
        left.remove(cell)
        reporter.elsewhere(cell)
    return None
