"""Cells as tasks of Ray, on this machine or on a cluster that shares its files."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any

from mixwell.bench.cells import Cell
from mixwell.bench.worker import Outcome, work
from mixwell.core.errors import MixwellError

__all__ = ["OnRay"]

RETRIES = 3
"""How often a cell whose worker died is given to another one, which resumes from its folder."""


class OnRay:
    """A Ray cluster, with one task per cell.

    Args:
        address: of the cluster; None starts one on this machine, unless this process is already connected to one.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        MixwellError: there is no cluster at this address.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._connected = not self._ray.is_initialized()
        if self._connected:
            given = {"include_dashboard": False} if address is None else {"address": address}
            try:
                self._ray.init(**given, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise MixwellError(
                    f"There is no Ray cluster at {address!r}: {error}. Start one with `ray start --head`, or give no "
                    "address."
                ) from error
        self._cells: dict[Any, Cell] = {}

    @property
    def slots(self) -> int:
        """The cluster's CPUs, of which cells take as many as they have threads."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def start(self, cell: Cell) -> None:
        """Hand a cell to Ray."""
        task = self._ray.remote(num_cpus=cell.config.threads or 1, max_retries=RETRIES)(_task)
        self._cells[task.remote(cell, Path.cwd())] = cell

    def finished(self, seconds: float) -> list[Outcome]:
        """What came of tasks that are finished."""
        ready, _ = self._ray.wait(list(self._cells), num_returns=1, timeout=seconds)
        outcomes = []
        for task in ready:
            cell = self._cells.pop(task)
            try:
                outcomes.append(self._ray.get(task))
            except self._ray.exceptions.RayError as error:
                outcomes.append(Outcome(cell.name, "failed", f"Ray gave it up: {error}"))
        return outcomes

    def close(self) -> None:
        """Stop all tasks, and leave the cluster."""
        for task in self._cells:
            self._ray.cancel(task, force=True)
        self._cells = {}
        if self._connected:
            self._ray.shutdown()


def _task(cell: Cell, folder: Path) -> Outcome:
    """Work on a cell as if this worker stood where the bench was started."""
    os.chdir(folder)
    return work(cell)
