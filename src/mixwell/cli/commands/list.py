"""`mixwell list`: all methods, and which questions they answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from mixwell.cli.options import read_options
from mixwell.cli.page import Page
from mixwell.cli.screen import Screen, table
from mixwell.core.registry import method_of, methods

__all__ = ["List", "main"]


@dataclass(frozen=True)
class List:
    """What to list."""

    json: bool = False
    """Print a JSON list of objects, with parameters and pieces."""


def main(argv: Sequence[str]) -> int:
    """Print the methods; returns the exit code."""
    config = read_options(
        List, argv, prog="mixwell list", description="List all methods, and which questions they answer."
    )
    pages = [Page.of(method_of(slug)) for slug in methods()]
    if config.json:
        json.dump([asdict(page) for page in pages], sys.stdout, indent=2)
        print()
        return 0
    screen = Screen()
    rows = table("method", "what it does", "decides", "needs", "venue", "arXiv")
    for column in rows.columns[4:]:
        column.no_wrap = True
    narrow = screen.width < 110
    if narrow:
        del rows.columns[3:5]
    for section, members in groupby(pages, key=lambda page: (page.section, page.family)):
        rows.add_row(" ".join(section))
        for page in members:
            wide = () if narrow else (", ".join(page.needs), page.venue)
            rows.add_row(f"  {page.slug}", page.summary, ", ".join(page.axes), *wide, page.paper.partition(":")[0])
        rows.add_section()
    screen.print(rows)
    screen.print()
    screen.print(f"{len(pages)} methods. `mixwell show METHOD` shows the page of one.")
    return 0
