"""One self-contained HTML page about runs: no script, style, image or font comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwell.core.errors import RunError
from mixwell.evaluate import Reliability
from mixwell.files import write_whole
from mixwell.report.board import REFERENCE, Board, boards_of, measured
from mixwell.report.data import data
from mixwell.report.metrics import GROUPS, Metric
from mixwell.report.pictures import Album
from mixwell.report.recipes import Library
from mixwell.report.runs import Row, evaluated_under, in_words, rows_of
from mixwell.report.verdict import picks, points, summary
from mixwell.templates import templates_of
from mixwell.train import Run

__all__ = ["page", "write"]

_TOLD = ("data", "model", "epochs")
"""Settings that stand below the title where all runs share them."""


def page(
    runs: Sequence[Run],
    path: Path,
    *,
    title: str = "mixwell report",
    pictures: Sequence[Album] = (),
    reliabilities: Mapping[str, Reliability] | None = None,
    notes: Iterable[str] = (),
    unfinished: Sequence[Path] = (),
    library: Library | None = None,
) -> Path:
    """Write the page.

    Args:
        runs: finished runs; those that differ in nothing but the seed become one row.
        path: of the page; a page that is there is replaced.
        title: of the page.
        pictures: what recipes make of images.
        reliabilities: by the name of what was evaluated, in place of what the runs' evaluations say.
        notes: paragraphs above the table.
        unfinished: run folders that were left out.
        library: where pages and pictures of the recipes are; none if not given.

    Returns:
        the path.

    Raises:
        RunError: there are no runs, a run is there twice, or the page cannot be written.
    """
    boards = boards_of(rows_of(runs))
    placed = [(board, row) for board in boards for row in board.rows]
    rows = [row for _, row in placed]
    abouts = [(library or Library()).about(row.recipe, path) for row in rows]
    facets = _facets(rows)
    environment = templates_of("mixwell.report")
    environment.filters["tight"] = lambda text: text.replace(" ± ", "\u00a0±\u00a0")
    environment.globals.update(picks=picks, summary=summary, points=points)
    configs = [run.facts["config"] for run in runs]
    shared = _shared(configs)
    text = environment.get_template("page.html.j2").render(
        title=title,
        boards=boards,
        rows=[(board, row, about) for (board, row), about in zip(placed, abouts, strict=True)],
        order={row.name: place for place, row in enumerate(rows)},
        abouts=abouts,
        compared=[metric for metric in measured(rows) if metric.main and _differs(placed, metric)],
        with_intervals=any(len(row.runs) > 1 for row in rows),
        facets=facets,
        groups=_groups(rows),
        ranked=any(board.mean_ranks for board in boards),
        reference=REFERENCE,
        json=data(boards, abouts, [[facet.of(row) for facet in facets] for row in rows], reliabilities or {}),
        pictures=pictures,
        notes=[*notes, *_doubts(runs)],
        unfinished=unfinished,
        told={name: shared[name] for name in _TOLD if name in shared},
        settings=shared,
        versions=_shared([run.facts["versions"] for run in runs]),
        devices=sorted({_device(run) for run in runs}),
        runs=len(runs),
        recipes={row.recipe for row in rows},
    )
    return write(path, text)


def write(path: Path, text: str) -> Path:
    """Put a text in place of a file, all of it or nothing.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}. Choose another place.") from error
    return path


def _differs(placed: Sequence[tuple[Board, Row]], metric: Metric) -> bool:
    """Whether there is a row to compare with `none` by this metric."""
    return any(board.against(row, metric) is not None for board, row in placed)


@dataclass(frozen=True)
class _Facet:
    """Parts of the setting that change together, which the page lets choose as one.

    Attributes:
        names: of the parts; the first is the title.
        words: all values of the first part, each with the others' values.
    """

    names: tuple[str, ...]
    words: Mapping[str, str]

    def of(self, row: Row) -> str:
        """The value of the first part, which says those of the others."""
        return _value(row, self.names[0])


def _facets(rows: Sequence[Row]) -> list[_Facet]:
    together: dict[tuple[int, ...], list[str]] = {}
    for name in rows[0].setting:
        values = [str(row.setting[name]) for row in rows]
        together.setdefault(tuple(map(values.index, values)), []).append(name)
    return [
        _Facet(
            tuple(names),
            {_value(row, names[0]): ", ".join(in_words(name, row.setting[name]) for name in names[1:]) for row in rows},
        )
        for names in together.values()
    ]


def _value(row: Row, name: str) -> str:
    value = row.setting[name]
    return in_words(name, value) if value is None else str(value)


@dataclass(frozen=True)
class _Columns:
    """A group of columns that the runs have figures for."""

    key: str
    title: str
    shown: bool
    metrics: tuple[Metric, ...]


def _groups(rows: Sequence[Row]) -> list[_Columns]:
    metrics = measured(rows)
    costs = any(metric.group == "cost" for metric in metrics)
    found = [
        _Columns(
            group.key,
            group.title,
            group.shown or (group.key == "time" and not costs),
            tuple(metric for metric in metrics if metric.group == group.key),
        )
        for group in GROUPS
    ]
    return [group for group in found if group.metrics]


def _doubts(runs: Sequence[Run]) -> list[str]:
    """What a reader should know before trusting the figures of evaluations."""
    evaluated = [run.evaluation for run in runs if run.evaluation is not None]
    notes = []
    if 0 < len(evaluated) < len(runs):
        notes.append(
            f"{len(runs) - len(evaluated)} of {len(runs)} runs were not evaluated (by mixwell evaluate), so that some "
            "figures are of fewer seeds, or missing."
        )
    settings = [evaluated_under(run) for run in runs if run.evaluation is not None]
    names = dict.fromkeys(name for each in settings for name in each)
    unlike = [name for name in names if len({str(each.get(name)) for each in settings}) > 1]
    if unlike:
        notes.append(
            f"The evaluations differ in {', '.join(unlike)}: compare corruptions, attacks and the like with care."
        )
    return notes


def _device(run: Run) -> str:
    threads = run.facts["threads"]
    return f"{run.facts.get('processor', run.facts['device'])}, {threads} thread{'s' if threads > 1 else ''}"


def _shared(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have in common and is set."""
    first, *rest = each
    return {
        name: value
        for name, value in first.items()
        if name != "out" and value not in (None, {}, [], False) and all(other.get(name) == value for other in rest)
    }
