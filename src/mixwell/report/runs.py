"""What finished runs came to: one row per recipe and setting, with intervals over seeds."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core.errors import RunError
from mixwell.evaluate import Reliability
from mixwell.report.metrics import METRICS, RELATIVE_EPOCH, Estimate, Metric
from mixwell.train import Run, RunFolder
from mixwell.train.config import differing

__all__ = ["Found", "Row", "evaluated_under", "find_runs", "in_words", "rows_of"]

_FIRST = ("data", "model")
"""Parts of a setting that are told before the others."""


@dataclass(frozen=True)
class Found:
    """The runs below some folders.

    Attributes:
        runs: those that are finished, by path.
        unfinished: folders of those that are not.
    """

    runs: tuple[Run, ...]
    unfinished: tuple[Path, ...]


def find_runs(folders: Sequence[Path]) -> Found:
    """Every run in or below the folders; links to folders are not followed.

    Raises:
        RunError: a folder is not there, a run is damaged, or no run is finished.
    """
    places: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"There is no folder {folder}. Give folders of runs, such as `runs`.")
        for path, _, files in os.walk(folder):
            if "run.json" in files:
                places.setdefault(Path(path).resolve(), Path(path))
    unfinished = {path for path in places.values() if RunFolder(path).run()["status"] != "finished"}
    runs = tuple(Run.read(path) for path in sorted(places.values()) if path not in unfinished)
    if not runs:
        where = ", ".join(map(str, folders)) or "no folder"
        held = f"only unfinished runs ({len(unfinished)})" if unfinished else "no run"
        raise RunError(
            f"A report needs finished runs, and there is {held} in {where}. Train with `mixwell train` or `mixwell "
            "bench`, whose --out is the folder to give here."
        )
    return Found(runs, tuple(sorted(unfinished)))


@dataclass(frozen=True)
class Row:
    """One recipe in one setting.

    Attributes:
        recipe: what was mixed and how.
        setting: those parts of the setting in which the report's runs differ.
        runs: one per seed.
        values: each figure by the key of its metric and by seed; seeds that lack it are left out.
    """

    recipe: str
    setting: Mapping[str, Any]
    runs: tuple[Run, ...]
    values: Mapping[str, Mapping[int, float]]

    @property
    def circumstances(self) -> str:
        """The setting in words: "model cnn-s, no label noise"; empty if the report has one only."""
        return ", ".join(in_words(name, value) for name, value in self.setting.items())

    @property
    def name(self) -> str:
        """The recipe, with what sets its runs apart from the report's others."""
        return ", ".join([self.recipe, *(f"{name}={value}" for name, value in self.setting.items())])

    @property
    def key(self) -> str:
        """The setting as a text that other rows of the setting share."""
        return str(list(self.setting.items()))

    @cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Each figure over the seeds that have it, by the key of its metric."""
        return {key: Estimate.of(list(values.values())) for key, values in self.values.items()}

    def estimate(self, metric: str) -> Estimate | None:
        """A figure over the seeds that have it; None where none has."""
        return self.estimates.get(metric)

    @property
    def accuracy(self) -> Estimate:
        """On the test set after the last epoch."""
        return self.estimates["accuracy"]

    @property
    def ece(self) -> Estimate:
        """Expected calibration error on the test set after the last epoch."""
        return self.estimates["ece"]

    @property
    def nll(self) -> Estimate:
        """Cross-entropy on the test set after the last epoch, in nats."""
        return self.estimates["nll"]

    @property
    def seconds(self) -> Estimate:
        """Training time of an epoch."""
        return self.estimates["seconds"]

    @property
    def relative(self) -> float | None:
        """The time of an epoch over that of `none` in the same setting; None without such a run."""
        estimate = self.estimate(RELATIVE_EPOCH)
        return None if estimate is None else estimate.mean

    def curve(self, field: str) -> list[float | None]:
        """The mean over seeds of a field of the history, by epoch; None where an epoch lacks it."""
        epochs = zip(*(run.history for run in self.runs), strict=True)
        return [
            float(np.mean([record[field] for record in records]))
            if all(field in record for record in records)
            else None
            for records in epochs
        ]

    def mean(self, *path: str) -> Any:
        """The mean over seeds of the numbers (or lists or mappings of them) at a place of evaluation.json, or None."""
        return _mean(self._evaluated(*path))

    @property
    def reliability(self) -> Reliability | None:
        """Accuracy by confidence of all seeds' predictions together; None where they were not evaluated."""
        found = self._evaluated("reliability")
        if not found:
            return None
        counts, confidences, accuracies = (
            np.array([each[name] for each in found], float) for name in ("counts", "confidences", "accuracies")
        )
        total = counts.sum(0)
        pooled = ((counts * values).sum(0) / np.maximum(total, 1) for values in (confidences, accuracies))
        confidence, accuracy = (tuple(values.tolist()) for values in pooled)
        return Reliability(tuple(int(count) for count in total), confidence, accuracy)

    def _evaluated(self, *path: str) -> list[Any]:
        found: list[Any] = [run.evaluation for run in self.runs]
        for name in path:
            found = [each.get(name) if isinstance(each, Mapping) else None for each in found]
        return [each for each in found if each is not None]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """One row per recipe and setting, in the order in which they first come.

    Raises:
        RunError: there are none, two runs of one seed, or two of a row that were evaluated differently.
    """
    if not runs:
        raise RunError("A report needs at least one finished run, got none. Train one with `mixwell train`.")
    names = sorted({name for run in runs for name in run.setting}, key=lambda name: (name not in _FIRST, name))
    varying = [name for name in names if len({str(run.setting.get(name)) for run in runs}) > 1]
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        group = groups[run.recipe, str(sorted(run.setting.items()))]
        if twin := next((other for other in group if other.seed == run.seed), None):
            raise RunError(f"{twin.folder} and {run.folder} hold the same run twice. Leave one of them out.")
        group.append(run)
    for group in groups.values():
        _same_evaluation(group)
    rows = {
        key: Row(
            recipe=key[0],
            setting={name: group[0].setting.get(name) for name in varying},
            runs=tuple(group),
            values={metric.key: found for metric in METRICS if (found := _values(metric, group))},
        )
        for key, group in groups.items()
    }
    plain = {setting: row.seconds.mean for (recipe, setting), row in rows.items() if recipe == "none"}
    return [
        _timed(row, plain[setting]) if plain.get(setting) else row for (_, setting), row in rows.items()
    ]  # a run so short that its time is 0 is no measure


def _values(metric: Metric, runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: value for run in runs if (value := metric.of(run)) is not None}


def _same_evaluation(runs: Sequence[Run]) -> None:
    first, *others = [(run, evaluated_under(run)) for run in runs if run.evaluation is not None] or [(runs[0], {})]
    for run, settings in others:
        if differences := differing(settings, first[1]):
            raise RunError(
                f"{run.folder} was evaluated otherwise than {first[0].folder}, which differs only in its seed: "
                f"{'; '.join(differences)}. Evaluate both with the same settings."
            )


def evaluated_under(run: Run) -> dict[str, Any]:
    """What its evaluation's figures depend on besides the run itself, whichever parts it has."""
    settings = (run.evaluation or {}).get("settings", {})
    return {name: value for name, value in settings.items() if name not in ("parts", "weights")}


def _timed(row: Row, plain: float) -> Row:
    relative = {seed: value / plain for seed, value in row.values["seconds"].items()}
    return replace(row, values={**row.values, RELATIVE_EPOCH: relative})


def _mean(found: Sequence[Any]) -> Any:
    found = [each for each in found if each is not None]
    if not found:
        return None
    if isinstance(found[0], Mapping):
        return {name: _mean([each[name] for each in found if name in each]) for name in found[0]}
    if isinstance(found[0], list | tuple):
        return [_mean(values) for values in zip(*found, strict=True)]
    return float(np.mean(found))


def in_words(name: str, value: Any) -> str:
    """A part of a setting: "label noise 0.4", or "no label noise" where it is None."""
    words = name.replace("_", " ")
    return f"no {words}" if value is None else f"{words} {value}"
