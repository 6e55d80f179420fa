"""Leaderboards: who is best, by how much, and what of it may be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mixwell.report.metrics import METRICS, Estimate, Metric
from mixwell.report.runs import Row

__all__ = ["REFERENCE", "Board", "boards_of", "measured", "paired"]

REFERENCE = "none"
"""The recipe that others are compared with."""


def paired(row: Row, other: Row, metric: str) -> Estimate | None:
    """The mean of a figure's differences, row minus other, over the seeds that both have; None where there are none."""
    ours, theirs = row.values.get(metric, {}), other.values.get(metric, {})
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return Estimate.of(differences) if differences else None


def measured(rows: Sequence[Row]) -> list[Metric]:
    """The metrics that at least one of the rows has."""
    return [metric for metric in METRICS if any(metric.key in row.values for row in rows)]


@dataclass(frozen=True)
class Board:
    """The rows of one setting.

    Attributes:
        setting: in which all of them are; empty if the report has no other.
        rows: by accuracy, the best first.
    """

    setting: Mapping[str, Any]
    rows: tuple[Row, ...]

    @cached_property
    def reference(self) -> Row | None:
        """The row of `none`, if it is there."""
        return next((row for row in self.rows if row.recipe == REFERENCE), None)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Rank by mean accuracy, by recipe; equal ones share the better rank."""
        return {row.recipe: int(rank) for row, rank in zip(self.rows, self._ranked("accuracy"), strict=True)}

    @cached_property
    def mean_ranks(self) -> dict[str, float]:
        """The mean of the ranks by the main metrics, by recipe, of the recipes that have them all.

        Empty where fewer than four such metrics or three such recipes are there.
        """
        metrics = self.main
        whole = [row for row in self.rows if all(row.estimate(metric.key) for metric in metrics)]
        if len(metrics) < 4 or len(whole) < 3:
            return {}
        board = Board(self.setting, tuple(whole))
        means = np.mean([board._ranked(metric.key) for metric in metrics], 0)
        return {row.recipe: float(mean) for row, mean in zip(whole, means, strict=True)}

    @cached_property
    def main(self) -> list[Metric]:
        """The main metrics that the rows have."""
        return [metric for metric in measured(self.rows) if metric.main]

    def best(self, metric: Metric) -> Row | None:
        """The row with the best mean; None where a metric has no better side or no row has it."""
        able = [row for row in self.rows if math.isfinite(self._mean(row, metric.key))]
        if not able or not metric.better:
            return None
        return (max if metric.better == "higher" else min)(able, key=lambda row: self._mean(row, metric.key))

    def is_best(self, row: Row, metric: Metric) -> bool:
        """Whether no other row's mean is better and another's is worse."""
        return self._mean(row, metric.key) == self._outstanding.get(metric.key)

    @cached_property
    def _outstanding(self) -> dict[str, float]:
        """The best mean of each metric by which the rows differ."""
        found = {}
        for metric in measured(self.rows):
            best = self.best(metric)
            if best is not None and len({self._mean(row, metric.key) for row in self.rows}) > 1:
                found[metric.key] = self._mean(best, metric.key)
        return found

    def level(self, best: Row, metric: Metric) -> list[Row]:
        """The other rows whose paired difference from the best one may be chance, as far as the seeds tell."""
        others = [(row, paired(row, best, metric.key)) for row in self.rows if row is not best]
        return [row for row, difference in others if difference is not None and not difference.certain]

    def against(self, row: Row, metric: Metric) -> Estimate | None:
        """The paired difference from `none`; None for itself, or where there is nothing to compare."""
        if self.reference is None or row is self.reference:
            return None
        return paired(row, self.reference, metric.key)

    @staticmethod
    def _mean(row: Row, metric: str) -> float:
        estimate = row.estimate(metric)
        return math.nan if estimate is None else estimate.mean

    def _ranked(self, metric: str) -> list[float]:
        better = next(each.better for each in METRICS if each.key == metric)
        means = np.array([self._mean(row, metric) for row in self.rows])
        worst = np.where(np.isfinite(means), -means if better == "higher" else means, np.inf)
        ranks: list[float] = rankdata(worst, method="min").tolist()
        return ranks


def boards_of(rows: Sequence[Row]) -> list[Board]:
    """One leaderboard per setting, that with the most rows first."""
    ordered = sorted(rows, key=lambda row: row.key)
    boards = [
        Board(members[0].setting, tuple(sorted(members, key=lambda row: -row.accuracy.mean)))
        for _, group in groupby(ordered, key=lambda row: row.key)
        for members in [list(group)]
    ]
    return sorted(boards, key=lambda board: -len(board.rows))
