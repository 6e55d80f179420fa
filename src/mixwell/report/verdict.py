"""What to use: the best recipe for each purpose, and how far the figures can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixwell.report.board import REFERENCE, Board
from mixwell.report.metrics import METRICS, RELATIVE_EPOCH, Estimate, Metric
from mixwell.report.runs import Row

__all__ = ["Pick", "picks", "summary"]

_CHEAP = 1.25
"""Up to so many times the time of `none`, a recipe counts as cheap."""
_NAMED = 3
"""So many recipes are named where more cannot be told apart."""

_BY_KEY = {metric.key: metric for metric in METRICS}
_PURPOSES = (
    ("Most accurate", "accuracy"),
    ("Best probabilities", "nll"),
    ("Best calibrated", "ece"),
    ("Corrupted images", "corruption_error"),
    ("Attacked images", "pgd20_small"),
    ("Telling unknown images", "ood_msp"),
    ("Hidden patches", "occlusion"),
)


@dataclass(frozen=True)
class Pick:
    """The best recipe for a purpose.

    Attributes:
        purpose: two or three words.
        row: the recipe.
        figure: by which it is best, as text.
        difference: from `none`, as text; "" for `none` itself or without it.
        level: what cannot be told apart from it, as a sentence; "" for nothing or without intervals.
    """

    purpose: str
    row: Row
    figure: str
    difference: str
    level: str


def picks(board: Board) -> list[Pick]:
    """The best recipes of a setting: for every purpose that was measured, at little cost, and all in all."""
    if len(board.rows) < 2:
        return []
    found = [
        _pick(purpose, board, best, _BY_KEY[key])
        for purpose, key in _PURPOSES
        if (best := board.best(_BY_KEY[key])) is not None
    ]
    accuracy = _BY_KEY["accuracy"]
    cheap, time = _cheap(board)
    if cheap is not None and cheap is not found[0].row:
        estimate = cheap.estimate(time.key)
        assert estimate is not None
        figure = f"Accuracy {_figure(cheap, accuracy)} at {time.text(estimate.mean)}× the time of {REFERENCE}"
        found.insert(1, Pick("Most accurate at little cost", cheap, figure, _difference(board, cheap, "accuracy"), ""))
    if board.mean_ranks:
        best = min(board.rows, key=lambda row: board.mean_ranks.get(row.recipe, len(board.rows)))
        figure = (
            f"Mean rank {board.mean_ranks[best.recipe]:.1f} of {len(board.mean_ranks)} over {len(board.main)} "
            f"measures; accuracy {_figure(best, accuracy)}"
        )
        found.append(Pick("All in all", best, figure, _difference(board, best, "accuracy"), ""))
    return found


def summary(board: Board) -> str:
    """How the recipes compare with `none`, and what the number of seeds allows to say."""
    counts = sorted({len(row.runs) for row in board.rows})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    if len(board.rows) == 1:
        return "There is one recipe only. Train others, and none, to compare it with."
    if board.reference is None:
        return f"There is no run of {REFERENCE} in this setting. Train it too, to see what the recipes gain."
    if counts[-1] < 2:
        return (
            "Each recipe was trained with one seed, so that small differences may be chance. Train with three seeds or "
            "more before you decide."
        )
    found = [board.against(row, _BY_KEY["accuracy"]) for row in board.rows if row is not board.reference]
    differences = [each for each in found if each is not None]
    better = sum(each.certain and each.mean > 0 for each in differences)
    worse = sum(each.certain and each.mean < 0 for each in differences)
    unclear = len(differences) - better - worse
    return (
        f"Of {len(differences)} recipes, {better} are more accurate than {REFERENCE} and {worse} less; {unclear} "
        f"cannot be told apart from it with {seeds} seeds, by the 95% interval of the difference within a seed."
    )


def _pick(purpose: str, board: Board, row: Row, metric: Metric) -> Pick:
    level = "" if metric.key != "accuracy" else _level(board.level(row, metric))
    return Pick(purpose, row, f"{metric.name} {_figure(row, metric)}", _difference(board, row, metric.key), level)


def _cheap(board: Board) -> tuple[Row | None, Metric]:
    """The most accurate of the recipes that cost little, and by which time they do."""
    key = "relative_time" if any("relative_time" in row.values for row in board.rows) else RELATIVE_EPOCH
    able = [row for row in board.rows if (time := row.estimate(key)) is not None and time.mean <= _CHEAP]
    return max(able, key=lambda row: row.accuracy.mean, default=None), _BY_KEY[key]


def _figure(row: Row, metric: Metric) -> str:
    estimate = row.estimate(metric.key)
    assert estimate is not None
    return with_unit(metric.interval(estimate), metric)


def with_unit(text: str, metric: Metric) -> str:
    """A figure with its unit."""
    return f"{text}{metric.unit}" if metric.unit in ("%", "×", "") else f"{text} {metric.unit}"


def _difference(board: Board, row: Row, metric: str) -> str:
    found = board.against(row, _BY_KEY[metric])
    return "" if found is None else f"{points(found, _BY_KEY[metric])} against {REFERENCE}"


def points(difference: Estimate, metric: Metric) -> str:
    """A difference of shares in percentage points, any other in its unit."""
    text = metric.interval(difference, signed=True)
    return f"{text} points" if metric.unit == "%" else with_unit(text, metric)


def _level(rows: Sequence[Row]) -> str:
    if not rows or all(len(row.runs) < 2 for row in rows):
        return ""
    more = len(rows) - _NAMED if len(rows) > _NAMED + 1 else 0
    named = ", ".join(row.recipe for row in (rows[:_NAMED] if more else rows))
    return f"Not told apart from it: {named}{f' and {more} more' if more else ''}."
