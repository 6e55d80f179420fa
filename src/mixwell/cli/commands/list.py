"""`mixwell list`: all methods, which questions they answer, and which go together."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from mixwell.cli.matrix import print_matrix, print_partners
from mixwell.cli.options import read_options
from mixwell.cli.page import Page
from mixwell.cli.presets import print_presets
from mixwell.cli.screen import Screen, table
from mixwell.core.errors import ParameterError, closest
from mixwell.core.pairs import pairs
from mixwell.core.registry import method_of, methods
from mixwell.presets import families, preset, presets

__all__ = ["List", "main"]


@dataclass(frozen=True)
class List:
    """What to list."""

    json: bool = False
    """Print a JSON list of objects: of methods, with parameters, pieces, needs, cost and conformance; of pairs, with
    the reason of each that is refused; or of presets."""
    pairs: tuple[str, ...] | None = None
    """List which recipes of two methods are accepted: all of them as a matrix, or the partners of the methods that are
    given here."""
    presets: tuple[str, ...] | None = None
    """List the published trainings that mixwell train --preset takes: all of them, or those whose names hold every word
    that is given here."""


def main(argv: Sequence[str]) -> int:
    """Print the methods, or their pairs; returns the exit code."""
    config = read_options(
        List,
        argv,
        prog="mixwell list",
        description="List all methods, and which questions they answer; or which go together.",
    )
    if config.presets is not None:
        return _presets(config.presets, as_json=config.json)
    if config.pairs is not None:
        return _pairs(config.pairs, as_json=config.json)
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
            rows.add_row(
                f"  {page.slug}",
                f"{page.title}: {page.summary}",
                ", ".join(page.axes),
                *wide,
                page.paper.partition(":")[0],
            )
        rows.add_section()
    screen.print(rows)
    screen.print()
    screen.print(f"{len(pages)} methods. `mixwell show METHOD` shows the page of one.")
    return 0


def _pairs(of: Sequence[str], *, as_json: bool) -> int:
    found, slugs = pairs(of=of), methods()
    if as_json:
        entries = [
            {"recipe": " + ".join(pair), "methods": pair, "accepted": verdict.accepted, **asdict(verdict)}
            for pair, verdict in found.items()
        ]
        json.dump(entries, sys.stdout, indent=2, ensure_ascii=False)
        print()
        return 0
    screen = Screen()
    if not of:
        print_matrix(screen, slugs, found)
    for place, slug in enumerate(of):
        if place:
            screen.print()
        print_partners(screen, slug, slugs, found)
    return 0


def _presets(words: Sequence[str], *, as_json: bool) -> int:
    found = [preset(name) for name in presets() if all(word in name for word in words)]
    if not found:
        given = " ".join(words)
        raise ParameterError(f"No preset's name holds {given!r}; {closest(given, families())}")
    if as_json:
        json.dump([{**asdict(each), "cost": each.cost} for each in found], sys.stdout, indent=2, ensure_ascii=False)
        print()
        return 0
    print_presets(Screen(), found)
    return 0
