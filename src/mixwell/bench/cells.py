"""What a bench consists of, and how far its cells are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwell.core.errors import RunError
from mixwell.train import RunFolder, TrainConfig
from mixwell.train.config import differing

__all__ = ["Bench", "Cell", "State", "evaluation_of", "state_of"]


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        config: what is trained; its `out` is the cell's run folder.
        evaluate: arguments of `mixwell.evaluate.evaluate_run`; None for no evaluation besides that of the training.
        keep_weights: whether the trained network stays on the disk.
    """

    config: TrainConfig
    evaluate: Mapping[str, Any] | None = None
    keep_weights: bool = False

    @property
    def folder(self) -> Path:
        """Its run folder, whose name ends in the hash of the config."""
        return self.config.folder

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.config.recipe}, {self.config.data}, {self.config.model}, seed {self.config.seed}"

    @property
    def lock(self) -> Path:
        """The file that is locked by whoever works on it."""
        return self.folder.with_name(f"{self.name}.lock")


@dataclass(frozen=True)
class Bench:
    """Cells of one folder.

    Attributes:
        title: what the bench is about.
        out: the folder of the run folders.
        cells: in the order in which they are trained.
    """

    title: str
    out: Path
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class State:
    """What the disk says of a cell.

    Attributes:
        begun: whether there is a run folder.
        epochs: finished ones.
        seconds: what these took, their evaluation on the test set included.
        trained: whether the training is finished.
        done: whether nothing is left to do.
        accuracy: of the finished training.
        trouble: why its folder cannot be read or used; "" if it can.
    """

    begun: bool = False
    epochs: int = 0
    seconds: float = 0.0
    trained: bool = False
    done: bool = False
    accuracy: float | None = None
    trouble: str = ""

    @property
    def words(self) -> str:
        """In a word or two."""
        if self.trouble:
            return "damaged"
        if self.done:
            return "done"
        if self.trained:
            return "trained"
        return f"epoch {self.epochs + 1}" if self.begun else "to do"


def state_of(cell: Cell) -> State:
    """Look at a cell's folder."""
    folder = RunFolder(cell.folder)
    if not folder.exists:
        return State()
    try:
        run = folder.run()
        if differences := differing(cell.config.identity, run["identity"]):
            raise RunError(f"{cell.folder} holds a run of another config: {'; '.join(differences)}.")
        history = folder.history() if (cell.folder / "history.jsonl").exists() else []
    except RunError as error:
        return State(begun=True, trouble=str(error))
    trained = run["status"] == "finished"
    kept = [name for name in run.get("files", {}) if (cell.folder / name).exists()]
    return State(
        begun=True,
        epochs=len(history),
        seconds=sum(record["seconds"] + record["evaluation_seconds"] for record in history),
        trained=trained,
        done=trained and evaluation_of(cell) is not None and (cell.keep_weights or not kept),
        accuracy=run["result"]["accuracy"] if trained else None,
    )


def evaluation_of(cell: Cell) -> Mapping[str, Any] | None:
    """The evaluation that a cell asks for, if its folder holds it; an empty one where it asks for none."""
    if cell.evaluate is None:
        return {}
    try:
        found: dict[str, Any] = json.loads((cell.folder / "evaluation.json").read_bytes())
        settings = found["settings"]
    except (OSError, ValueError, KeyError):  # missing or damaged: it is made anew
        return None
    asked = json.loads(json.dumps(cell.evaluate))
    parts = set(asked.pop("parts", ()))
    same = all(settings.get(name) == value for name, value in asked.items())
    return found if same and parts <= set(settings["parts"]) else None
