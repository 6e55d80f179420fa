"""`mixwell demo`: a few minutes of training, and a page about it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen, table
from mixwell.demo import Demo, Outcome, demo

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Train the demo's recipes, print a table and write the page; returns the exit code."""
    config = read_options(
        Demo,
        argv,
        prog="mixwell demo",
        description="Compare recipes on mixwell's own data. The same command again continues.",
    )
    progress = Console(stderr=True, highlight=False)
    outcome = demo(config, begin=lambda heading: progress.print(Text(heading, style="bold")))
    _print(Screen(), outcome)
    return 0


def _print(screen: Screen, outcome: Outcome) -> None:
    rows = table("recipe", "accuracy", "ECE", "NLL", "s/epoch", "× none")
    for column in rows.columns[1:]:
        column.justify = "right"
    for row in outcome.rows:
        rows.add_row(
            row.recipe,
            f"{row.accuracy.mean:.2%}",
            f"{row.ece.mean:.4f}",
            f"{row.nll.mean:.4f}",
            f"{row.seconds.mean:.1f}",
            "" if row.relative is None else f"{row.relative:.2f}",
        )
    screen.print()
    screen.print(rows)
    screen.print()
    screen.print(outcome.verdict, width=screen.prose_width)
    screen.print(Text(f"\nThe page is in {outcome.page}"), soft_wrap=True)
