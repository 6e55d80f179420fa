"""Candidates, and how far they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mixwell.core.errors import ParameterError
from mixwell.data import DataSet, held_out
from mixwell.train import RunFolder, TrainConfig

__all__ = ["METRICS", "Metric", "Trial", "judged_on", "ranked", "trial_of"]

Metric = Literal["accuracy", "nll", "ece"]
METRICS: tuple[Metric, ...] = ("accuracy", "nll", "ece")


@dataclass(eq=False)
class Trial:
    """One recipe of a search.

    Attributes:
        config: of its training; its `out` is the run folder.
        family: the recipe with ranges that it was drawn from, or the recipe itself.
        values: what its family's ranges became.
        history: the records of the epochs that are done.
        rung: epochs at which it was last compared, 0 before the first rung.
        seconds: what it took to train to each rung, by the rung's epochs, its making included.
        failed: why it cannot be trained further, or "".
    """

    config: TrainConfig
    family: str
    values: tuple[str, ...] = ()
    history: list[dict[str, Any]] = field(default_factory=list)
    rung: int = 0
    seconds: dict[int, float] = field(default_factory=dict)
    failed: str = ""

    @property
    def recipe(self) -> str:
        """Its recipe."""
        return self.config.recipe

    def value(self, metric: Metric, epochs: int | None = None) -> float:
        """Its metric on the held-out images after so many epochs; at its last rung if not given."""
        return float(self.history[(self.rung if epochs is None else epochs) - 1][metric])

    @property
    def seconds_per_epoch(self) -> float:
        """Median time of an epoch's training, without evaluation."""
        seconds = sorted(record["seconds"] for record in self.history)
        return float(seconds[len(seconds) // 2])

    def relative_time(self, reference: Trial) -> float:
        """Its time per epoch as a multiple of the reference's."""
        return self.seconds_per_epoch / max(reference.seconds_per_epoch, 1e-9)

    def look(self) -> None:
        """Read what its run folder holds.

        Raises:
            RunError: the folder is damaged.
        """
        folder = RunFolder(self.config.folder)
        self.history = folder.history() if (folder.path / "history.jsonl").exists() else []

    def has(self, epochs: int) -> bool:
        """Whether its folder holds so many epochs, and its network where these are all."""
        if len(self.history) < epochs:
            return False
        return epochs < self.config.epochs or RunFolder(self.config.folder).run()["status"] == "finished"


def ranked(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Trials that have reached a rung, best first: later rungs go before earlier ones, and equals stay in order."""
    sign = -1.0 if metric == "accuracy" else 1.0
    reached = [trial for trial in trials if trial.rung]
    return sorted(reached, key=lambda trial: (-trial.rung, sign * trial.value(metric)))


def judged_on(data: DataSet, share: float, seed: int) -> DataSet:
    """The data as a search sees it: held-out training images stand in the place of the test set, which is not read.

    Args:
        data: with all training images.
        share: of the training images, every class in proportion.
        seed: fixes the split.

    Raises:
        ParameterError, DataError: the share leaves nothing to train on or to judge by.
    """
    if not 0 < share < 1:
        raise ParameterError(f"held_out must be a share in (0, 1), such as 0.2, got {share!r}.")
    train, held = held_out(data.train, share, seed)
    return replace(data, name=f"{data.name}, judged on {share:g} of its training images", train=train, test=held)


def trial_of(recipe: str, config: TrainConfig, folder: Path, family: str = "", values: tuple[str, ...] = ()) -> Trial:
    """A candidate whose run lies in a folder of its own in `folder`."""
    own = replace(config, recipe=recipe, out=None)
    return Trial(replace(own, out=folder / own.folder.name), family or recipe, values)
