"""Which methods go together, on a terminal: all of them as a matrix, or one with its partners and the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.text import Text

from mixwell.cli.screen import Screen, table
from mixwell.core.pairs import Verdict
from mixwell.core.registry import method_of

__all__ = ["print_matrix", "print_partners"]

Verdicts = Mapping[tuple[str, str], Verdict]

_ACCEPTED, _BOTH_DECIDE, _CANNOT_ACT = "+", ".", "x"
"""Characters that every terminal has."""
_STYLES = {_ACCEPTED: "bold green", _BOTH_DECIDE: "dim", _CANNOT_ACT: "red"}


def print_matrix(screen: Screen, slugs: Sequence[str], found: Verdicts) -> None:
    """A character per pair; columns are numbered like rows, and stand in several blocks where the screen is narrow."""
    digits, name = len(str(len(slugs))), max(map(len, slugs))
    number = {slug: str(place).rjust(digits) for place, slug in enumerate(slugs, 1)}
    partners = {slug: sum(found[slug, other].accepted for other in slugs if other != slug) for slug in slugs}
    left = digits + 1 + name + 1 + digits
    titles = [""] * (digits - 1) + [" " * (digits + 1) + "method".ljust(name + digits - 8) + "goes with"]
    for block in _blocks(slugs, screen.width - left - 2):
        for line, title in enumerate(titles):
            heads = " ".join("".join(number[slug][line] for slug in section) for section in block)
            screen.print(Text(f"{title:{left}}  {heads}", style="bold"))
        for slug in slugs:
            row = Text(f"{number[slug]} ")
            row.append(slug.ljust(name), style="bold")
            row.append(f" {partners[slug]:>{digits}}  ")
            for place, section in enumerate(block):
                row.append(" " if place else "")
                for other in section:
                    mark = " " if other == slug else _mark(found[slug, other])
                    row.append(mark, style=_STYLES.get(mark, ""))
            screen.print(row)
        screen.print()
    screen.print("Each row's method + each column's:")
    for mark, words in (
        (_ACCEPTED, "they go together"),
        (_BOTH_DECIDE, "both decide the same; switch between them instead: '0.5*A | 0.5*B'"),
        (_CANNOT_ACT, "one of them could not act beside the other"),
    ):
        screen.print(Text.assemble("  ", (mark, _STYLES[mark]), f"  {words}"))
    screen.print()
    screen.print(f"accepted {sum(verdict.accepted for verdict in found.values()):,} of {len(found):,}")
    screen.print("`mixwell list --pairs METHOD` gives the partners of one method, and the reasons.")


def print_partners(screen: Screen, slug: str, slugs: Sequence[str], found: Verdicts) -> None:
    """With which methods one goes together, with which it does not, and why."""
    others = [other for other in slugs if other != slug]
    accepted = [other for other in others if found[slug, other].accepted]
    screen.print(Text(f"{slug} goes together with {len(accepted)} of {len(others)} methods", style="bold"))
    for section, members in groupby(accepted, key=lambda other: method_of(other).section):
        _listed(screen, section, list(members))
    decided = sorted({found[slug, other].slot for other in others} - {""})
    for slot in decided:
        screen.title(f"Both decide the {slot}; switch between them instead, such as '0.5*{slug} | 0.5*METHOD'")
        _listed(screen, "", [other for other in others if found[slug, other].slot == slot])
    reasons = table("recipe", "why it is refused")
    for other in others:
        for pair in ((slug, other), (other, slug)):
            verdict = found[pair]
            # The other order is of interest only where it is another matter.
            if verdict.accepted or verdict.slot or (pair[0] == other and not found[slug, other].accepted):
                continue
            reasons.add_row(" + ".join(pair), verdict.reason)
    if reasons.row_count:
        screen.title("One could not act beside the other")
        screen.print(reasons)


def _listed(screen: Screen, head: str, slugs: Sequence[str]) -> None:
    rows = table("", "", header=False)
    rows.add_row(f"  {head}".rstrip() if head else "", ", ".join(slugs))
    screen.print(rows)


def _mark(verdict: Verdict) -> str:
    return _ACCEPTED if verdict.accepted else _BOTH_DECIDE if verdict.slot else _CANNOT_ACT


def _blocks(slugs: Sequence[str], room: int) -> Iterator[list[list[str]]]:
    """The sections of the survey, as many at a time as find room beside each other with a space between them."""
    block: list[list[str]] = []
    used = 0
    for _, members in groupby(slugs, key=lambda slug: method_of(slug).section):
        section = list(members)
        if block and used + 1 + len(section) > room:
            yield block
            block, used = [], 0
        used += len(section) + bool(block)
        block.append(section)
    if block:
        yield block
