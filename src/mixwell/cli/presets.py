"""How published trainings are shown: a list of many, and the page of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.padding import Padding
from rich.text import Text

from mixwell.cli.screen import Screen, table
from mixwell.presets import Preset

__all__ = ["print_preset", "print_presets"]


def print_presets(screen: Screen, found: Sequence[Preset]) -> None:
    """A row per preset, under the title of its family."""
    rows = table("preset", "published", "recipe")
    rows.columns[1].justify = "right"
    narrow = screen.width < 110
    if narrow:
        del rows.columns[2:]
    for title, members in groupby(found, key=lambda each: each.title):
        rows.add_row(Text(title, style="bold"))
        for each in members:
            name, wide = Text(f"  {each.name}", style="not bold"), () if narrow else (each.recipe,)
            rows.add_row(name, f"{each.accuracy:.2f}%", *wide)
        rows.add_section()
    screen.print(rows)
    screen.print()
    screen.print(f"{len(found)} presets. `mixwell show --preset NAME` shows the settings and the source of one.")


def print_preset(screen: Screen, found: Preset) -> None:
    """Figure, source, cost, what the published training does otherwise, and every setting."""
    screen.print(Text(found.name, style="bold"))
    screen.print(found.title)
    screen.title("Published")
    rows = table("", "", header=False)
    rows.add_row("figure", f"{found.accuracy:.2f}, {found.reported}")
    rows.add_row("source", f"{found.source.table}; {found.source.citation}")
    if found.source.url:
        rows.add_row("", found.source.url)
    rows.add_row("cost", found.cost)
    _indented(screen, rows)
    if found.differs:
        screen.title("What the published training does otherwise")
        for difference in found.differs:
            screen.print(Padding(f"- {difference}", (0, 0, 0, 2)), width=screen.prose_width)
    screen.title("Settings")
    rows = table("", "", header=False)
    for name, value in found.fields.items():
        rows.add_row(name, str(value))
    _indented(screen, rows)
    screen.title("How to use it")
    screen.print(f"  $ mixwell train --preset {found.name}", soft_wrap=True)


def _indented(screen: Screen, rows: object) -> None:
    screen.print(Padding(rows, (0, 0, 0, 2)), width=screen.prose_width)  # type: ignore[arg-type]
