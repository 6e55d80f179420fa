"""search.json: what a search is, what it came to, and how long its trainings took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixwell.core.errors import RunError
from mixwell.files import write_whole
from mixwell.search.trials import METRICS, Metric, Trial, ranked
from mixwell.train.config import differing

__all__ = ["Record"]


class Record:
    """The file of one search.

    Args:
        path: of the file.
        settings: what must be the same when the search goes on.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._seconds: dict[str, dict[str, float]] = {}

    def seconds_of(self, trial: Trial) -> dict[str, float]:
        """What earlier calls took to train it to each rung, by the rung's epochs."""
        return self._seconds.get(trial.config.folder.name, {})

    def read(self) -> None:
        """Read what earlier calls left, if there were any.

        Raises:
            RunError: the file is damaged, or of another search.
        """
        if not self.path.exists():
            return
        try:
            there = json.loads(self.path.read_bytes())
            old = there["settings"]
            self._seconds = dict(there["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.path} is damaged ({error!r}). Delete it; what was trained beside it is kept."
            ) from error
        if differences := differing(self._settings, old):
            raise RunError(
                f"{self.path.parent} holds another search: {'; '.join(differences)}. Give the same to go on with it, "
                "or another out."
            )

    def write(self, trials: Sequence[Trial], metric: Metric, about: Mapping[str, Any]) -> None:
        """Write what is known now.

        Args:
            trials: those of the search so far; the reference comes first.
            metric: by which they are ranked.
            about: other entries.

        Raises:
            RunError: the file cannot be written.
        """
        for trial in trials:
            kept = self._seconds.setdefault(trial.config.folder.name, {})
            kept.update({str(epochs): seconds for epochs, seconds in trial.seconds.items()})
        reached = ranked(trials, metric)
        rest = [trial for trial in trials if not trial.rung]
        rows = [self._row(trial, trials[0]) for trial in (*reached, *rest)]
        best = reached[0].recipe if reached else None
        # Also the seconds of trials that a resumed search has not come to again yet, or that another budget had.
        content = {
            "format": 1,
            "settings": self._settings,
            **about,
            "best": best,
            "trials": rows,
            "seconds": self._seconds,
        }
        try:
            write_whole(self.path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror or error}. Free space; then the same command goes on."
            ) from error

    def _row(self, trial: Trial, reference: Trial) -> dict[str, Any]:
        row: dict[str, Any] = {
            "recipe": trial.recipe,
            "family": trial.family,
            "folder": trial.config.folder.name,
            "epochs": len(trial.history),
            "rung": trial.rung,
            "failed": trial.failed,
        }
        if trial.rung:
            row |= {metric: trial.value(metric) for metric in METRICS}
            row |= {"seconds_per_epoch": trial.seconds_per_epoch, "relative_time": trial.relative_time(reference)}
        return row
