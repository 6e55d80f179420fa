"""`mixwell report`: from run folders to leaderboards and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen, table
from mixwell.core.errors import RunError
from mixwell.report import (
    METRICS,
    Board,
    Library,
    boards_of,
    csv_table,
    find_runs,
    markdown_table,
    page,
    picks,
    rows_of,
    summary,
    write,
)

__all__ = ["Report", "main"]

_SHOWN = 10
"""So many recipes of a leaderboard are printed, besides `none`."""


@dataclass(frozen=True)
class Report:
    """Of which runs, and where to."""

    folders: tuple[Path, ...]
    """Folders of runs; every finished run in or below them is told, with its evaluation where it has one."""
    out: Path = Path("report.html")
    """The page: one HTML file that needs nothing else."""
    title: str = "mixwell report"
    """Title of the page."""
    csv: Path | None = None
    """Also write all means and margins as CSV."""
    markdown: Path | None = None
    """Also write the leaderboard as Markdown."""
    gallery: Path | None = None
    """Folder that `mixwell gallery` made, to whose pictures the page links; those of the docs if not given."""
    embed: bool = False
    """Put small copies of the pictures into the page."""


def main(argv: Sequence[str]) -> int:
    """Write what was asked for, and print who is best; returns the exit code."""
    config = read_options(
        Report,
        argv,
        prog="mixwell report",
        description="Make one page that compares all finished runs below some folders.",
        positional="folders",
        short={"out": "-o"},
    )
    out, tables = (
        config.out.expanduser(),
        {
            path.expanduser(): text
            for path, text in ((config.csv, csv_table), (config.markdown, markdown_table))
            if path is not None
        },
    )
    for path in (out, *tables):
        if path.is_dir():
            raise RunError(f"{path} is a folder. Give the file to write, such as {path / 'report.html'}.")
    library = Library.of_checkout(config.gallery and config.gallery.expanduser(), embed=config.embed)
    found = find_runs([folder.expanduser() for folder in config.folders])
    boards = boards_of(rows_of(found.runs))
    page(found.runs, out, title=config.title, unfinished=found.unfinished, library=library)
    for path, text in tables.items():
        write(path, text(boards))
    screen = Screen()
    for board in boards:
        _print(screen, board)
    screen.print()
    if found.unfinished:
        names = ", ".join(map(str, found.unfinished[:3])) + (", …" if len(found.unfinished) > 3 else "")
        count = len(found.unfinished)
        screen.print(
            Text(f"Left out {count} unfinished run{'s' if count > 1 else ''}: {names}", style="yellow"), soft_wrap=True
        )
    for path in tables:
        screen.print(Text(f"The table is in {path}"), soft_wrap=True)
    screen.print(Text(f"The page of {len(found.runs)} runs is in {out}"), soft_wrap=True)
    return 0


def _print(screen: Screen, board: Board) -> None:
    if board.setting:
        screen.title(board.rows[0].circumstances)
    accuracy, nll, ece = (next(metric for metric in METRICS if metric.key == key) for key in ("accuracy", "nll", "ece"))
    rows = table("recipe", "rank", "accuracy", "NLL", "ECE")
    for column in rows.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for place, row in enumerate(board.rows):
        if place < _SHOWN or row is board.reference:
            rows.add_row(
                row.recipe,
                str(board.ranks[row.recipe]),
                f"{accuracy.interval(row.accuracy)}%",
                nll.text(row.nll.mean),
                f"{ece.text(row.ece.mean)}%",
            )
    screen.print()
    screen.print(rows)
    if len(board.rows) > _SHOWN:
        screen.print(f"The best {_SHOWN} of {len(board.rows)}, and none; the page has all.")
    screen.print()
    for pick in picks(board):
        screen.print(f"{pick.purpose}: {pick.row.recipe} – {pick.figure}", width=screen.prose_width)
    screen.print(summary(board), width=screen.prose_width)
