"""One self-contained HTML page about runs: no script, style, image or font comes from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mixwell.core.errors import RunError
from mixwell.report import charts
from mixwell.report.pictures import Album
from mixwell.report.reliability import Reliability
from mixwell.report.runs import Estimate, Row, Run, rows_of

__all__ = ["page"]

STYLES = 8
"""Colours of the page; lines beyond them repeat the colours with other dashes."""

_CURVES = {
    "accuracy": ("Test accuracy", True),
    "nll": ("Test loss (NLL)", False),
    "loss": ("Training loss", False),
    "mixed_accuracy": ("Accuracy on the mixed training images", True),
}


def page(
    runs: Sequence[Run],
    path: Path,
    *,
    title: str = "mixwell report",
    pictures: Sequence[Album] = (),
    reliabilities: Mapping[str, Reliability] | None = None,
    notes: Iterable[str] = (),
) -> Path:
    """Write the page.

    Args:
        runs: finished runs; those that differ in nothing but the seed become one row.
        path: of the page; a page that is there is replaced.
        title: of the page.
        pictures: what recipes make of images.
        reliabilities: by the name of what was evaluated.
        notes: paragraphs above the table.

    Returns:
        the path.

    Raises:
        RunError: there are no runs, a run is there twice, or the page cannot be written.
    """
    rows = rows_of(runs)
    names = [name_of(row) for row in rows]
    lines = {field: {name: row.curve(field) for name, row in zip(names, rows, strict=True)} for field in _CURVES}
    environment = Environment(
        loader=PackageLoader("mixwell.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, number=_number)
    text = environment.get_template("page.html.j2").render(
        title=title,
        rows=list(zip(names, rows, strict=True)),
        best=_best(rows),
        charts=[
            charts.line_chart(_CURVES[field][0], series, percent=_CURVES[field][1])
            for field, series in lines.items()
            if any(value is not None for values in series.values() for value in values)
        ],
        size=charts,
        styles=STYLES,
        reliabilities=reliabilities or {},
        pictures=pictures,
        notes=list(notes),
        settings=_shared([run.facts["config"] for run in runs]),
        versions=_shared([run.facts["versions"] for run in runs]),
        devices=sorted({f"{run.facts['device']}, {run.facts['threads']} threads" for run in runs}),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.tmp")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise RunError(f"The page {path} cannot be written: {error}. Choose another place.") from error
    return path


def name_of(row: Row) -> str:
    """The recipe, with what sets its runs apart from the report's others."""
    return ", ".join([row.recipe, *(f"{name}={value}" for name, value in row.setting.items())])


def _best(rows: Sequence[Row]) -> dict[str, float]:
    """The best mean of each column."""
    return {
        "accuracy": max(row.accuracy.mean for row in rows),
        "ece": min(row.ece.mean for row in rows),
        "nll": min(row.nll.mean for row in rows),
    }


def _shared(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have in common and is set."""
    first, *rest = each
    return {
        name: value
        for name, value in first.items()
        if name != "out" and value not in (None, {}, [], False) and all(other.get(name) == value for other in rest)
    }


def _percent(estimate: Estimate) -> str:
    margin = "" if estimate.margin is None else f" ± {estimate.margin:.2%}"
    return f"{estimate.mean:.2%}{margin}"


def _number(estimate: Estimate, digits: int) -> str:
    margin = "" if estimate.margin is None else f" ± {estimate.margin:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{margin}"
