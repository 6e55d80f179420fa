"""What the commands print on."""

from __future__ import annotations

import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Screen", "table"]

_PIPED_WIDTH = 160
"""Columns where there is no terminal, so that one row stays one line for grep."""


class Screen(Console):
    """A console that prints strings as they are, and lets a broken pipe reach `mixwell.cli.main`."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(
            file=sys.stdout, width=None if terminal else _PIPED_WIDTH, highlight=False, markup=False, emoji=False
        )

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    @property
    def prose_width(self) -> int:
        """Columns of running text."""
        return min(self.width, 100)

    def title(self, text: str) -> None:
        """A heading, after a blank line."""
        self.print()
        self.print(Text(text, style="bold"))


def table(*columns: str, header: bool = True) -> Table:
    """A table without vertical lines whose first column is never broken."""
    made = Table(
        box=box.SIMPLE_HEAD if header else None,
        show_header=header,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1 if header else 2, 0, 0),
    )
    for place, column in enumerate(columns):
        made.add_column(column, no_wrap=place == 0, style="bold" if place == 0 else "", overflow="fold")
    return made
