"""The figures that the page's script draws from, as one compact JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.evaluate import Reliability
from mixwell.report.board import REFERENCE, Board, measured
from mixwell.report.metrics import GROUPS, quantile
from mixwell.report.recipes import About
from mixwell.report.runs import Row

__all__ = ["CURVES", "data"]

CURVES = {
    "accuracy": ("Test accuracy", True),
    "nll": ("Test loss (NLL)", False),
    "loss": ("Training loss", False),
    "mixed_accuracy": ("Accuracy on the mixed training images", True),
}
"""Fields of the history that are drawn: title, and whether it is a share."""
_DIGITS = 5
"""Significant digits of curves and other means; figures by seed keep all."""


def data(
    boards: Sequence[Board],
    abouts: Sequence[About],
    facets: Sequence[Sequence[str]],
    reliabilities: Mapping[str, Reliability],
) -> str:
    """JSON that is safe inside a script element; what is not finite is null.

    Args:
        boards: whose rows are told in order.
        abouts: of each row.
        facets: each row's words for the choices of settings.
        reliabilities: by name of a row, in place of what its evaluations say.
    """
    rows = [row for board in boards for row in board.rows]
    titles = {group.key: group.title for group in GROUPS}
    corruptions = list(dict.fromkeys(name for row in rows for name in row.mean("corruptions", "errors") or ()))
    content = {
        "metrics": [
            {
                "key": metric.key,
                "name": metric.name,
                "group": titles[metric.group],
                "better": metric.better,
                "unit": metric.unit,
                "scale": metric.scale,
                "digits": metric.digits,
                "hint": metric.hint,
            }
            for metric in measured(rows)
        ],
        "quantiles": [quantile(count) for count in range(2, 1 + max(2, *(len(row.runs) for row in rows)))],
        "curves": [{"key": key, "title": title, "share": share} for key, (title, share) in CURVES.items()],
        "corruptions": corruptions,
        "rows": [
            {
                **_row(row, board, corruptions, reliabilities.get(row.name, row.reliability)),
                "sections": about.sections,
                "axes": about.axes,
                "facets": words,
            }
            for (board, row), about, words in zip(
                ((board, row) for board in boards for row in board.rows), abouts, facets, strict=True
            )
        ],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _row(row: Row, board: Board, corruptions: Sequence[str], reliability: Reliability | None) -> dict[str, Any]:
    seeds = sorted(run.seed for run in row.runs)
    errors = row.mean("corruptions", "errors") or {}
    by_lam = row.mean("intrusion", "by_lam") or []
    return {
        "name": row.name,
        "recipe": row.recipe,
        "setting": row.key,
        "reference": row.recipe == REFERENCE,
        "rank": board.ranks[row.recipe],
        "seeds": seeds,
        "values": {key: [_finite(values.get(seed)) for seed in seeds] for key, values in row.values.items() if values},
        "curves": {key: _short(curve) for key in CURVES if any(_known(curve := row.curve(key)))},
        "corruptions": [_short(errors.get(name)) for name in corruptions] if errors else None,
        "occlusion": _short([row.mean("occlusion", "ratios"), row.mean("occlusion", "accuracies")])
        if row.mean("occlusion", "ratios")
        else None,
        "intrusion": _short([[(each["low"] + each["high"]) / 2, each["rate"]] for each in by_lam]) or None,
        "reliability": None
        if reliability is None
        else _short([reliability.counts, reliability.confidences, reliability.accuracies]),
    }


def _known(curve: Sequence[float | None]) -> list[bool]:
    return [value is not None for value in curve]


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
