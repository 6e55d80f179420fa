"""`mixwell conformance`: every method beside the outputs of its authors' code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.padding import Padding
from rich.text import Text
from tyro.conf import arg

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen, table
from mixwell.conformance import Report, conformance

__all__ = ["Conformance", "main"]


@dataclass(frozen=True)
class Conformance:
    """What to compare."""

    golden: Path | None = None
    """Folder of <slug>.npz files; the checkout's tests/golden if not given."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Also list every array, and why arrays were skipped."""


def main(argv: Sequence[str]) -> int:
    """Print a row per golden file; returns 1 if any of them is missed."""
    config = read_options(
        Conformance,
        argv,
        prog="mixwell conformance",
        description="Compare mixwell's answers with the golden files; exits 1 on a miss.",
    )
    reports = conformance(config.golden)
    screen = Screen()
    narrow = screen.width < 110
    rows = table("method", "compared", "skipped", "worst error", *(() if narrow else ("in",)), "source", "verdict")
    for report in reports:
        rows.add_row(
            report.name,
            str(len(report.compared)),
            str(len(report.skipped)),
            *_worst(report)[: 1 if narrow else 2],
            _kind(report.source),
            Text("ok", style="green") if report.ok else Text("MISS", style="bold red"),
        )
    screen.print(rows)
    if config.verbose:
        for report in reports:
            _details(screen, report)
    missed = [report for report in reports if not report.ok]
    for report in missed:
        screen.title(f"{report.name} missed")
        for miss in report.missed:
            screen.print(Padding(miss, (0, 0, 0, 2)))
    screen.print()
    screen.print(f"{len(reports) - len(missed)} of {len(reports)} agree.")
    return 1 if missed else 0


def _details(screen: Screen, report: Report) -> None:
    screen.title(report.name)
    screen.print(Padding(report.source, (0, 0, 0, 2)))
    arrays = table("", "", "", header=False)
    for one in report.compared:
        arrays.add_row(one.name, _error(one.error), one.comparator)
    for name, reason in report.skipped.items():
        arrays.add_row(name, "skipped", reason)
    screen.print(Padding(arrays, (0, 0, 0, 2)))


def _worst(report: Report) -> tuple[str, str]:
    """The largest error and its array."""
    return (_error(report.worst.error), report.worst.name if report.worst.error else "") if report.worst else ("", "")


def _error(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _kind(source: str) -> str:
    """Whose outputs they are, without what departs from them."""
    return re.split(r"[,:;(.]", source, maxsplit=1)[0].strip()
