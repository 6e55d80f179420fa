"""One cell from wherever it is to its end."""

from __future__ import annotations

import importlib
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mixwell.bench.cells import Cell, evaluation_of, state_of
from mixwell.bench.lock import Busy, locked
from mixwell.core.errors import MixwellError, RunError
from mixwell.train import RunFolder, train

__all__ = ["Outcome", "evaluate_run", "work"]


@dataclass(frozen=True)
class Outcome:
    """What came of the work on a cell.

    Attributes:
        name: the cell's.
        status: "done"; "failed"; "busy": another process works on it; "died": its worker did.
        reason: why it failed, or died.
        seconds: that it took.
        epochs: that were trained in this time.
        accuracy: on the test set.
    """

    name: str
    status: Literal["done", "failed", "busy", "died"]
    reason: str = ""
    seconds: float = 0.0
    epochs: int = 0
    accuracy: float | None = None


def work(cell: Cell) -> Outcome:
    """Train a cell, or resume it, evaluate it and drop what is not kept, unless another process does.

    Only Ctrl-C is raised; everything else that goes wrong is told by the outcome.
    """
    begun = time.monotonic()
    try:
        with locked(cell.lock):
            before = state_of(cell)
            if not before.done:
                _complete(cell)
            after = state_of(cell)
    except Busy as busy:
        return Outcome(cell.name, "busy", str(busy))
    except Exception as error:  # one cell's failure, whatever it is, is no reason not to try the others
        if os.environ.get("MIXWELL_DEBUG") == "1":
            traceback.print_exc()
        reason = str(error) if isinstance(error, MixwellError) else f"{type(error).__name__}: {error}"
        return Outcome(cell.name, "failed", reason, time.monotonic() - begun)
    epochs = after.epochs - before.epochs
    return Outcome(cell.name, "done", "", time.monotonic() - begun, epochs, after.accuracy)


def _complete(cell: Cell) -> None:
    folder = RunFolder(cell.folder)
    train(cell.config, progress=False)
    if cell.evaluate is not None and evaluation_of(cell) is None:
        if folder.run().get("dropped"):
            raise RunError(
                f"{cell.folder} lacks the evaluation that is asked for, and its weights were dropped. Ask for what its "
                "evaluation.json says, or delete the folder to train anew."
            )
        evaluate_run()(cell.folder, **cell.evaluate)
    if not cell.keep_weights:
        folder.drop_weights()


def evaluate_run() -> Callable[..., Any]:
    """The function of this name in `mixwell.evaluate`, imported where an evaluation is asked for."""
    found: Callable[..., Any] = importlib.import_module("mixwell.evaluate").evaluate_run
    return found
