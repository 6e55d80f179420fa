"""The HTML page of a gallery: style and script are in it, pictures beside it, and nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mixwell.gallery.recipes import AXES, Exhibit
from mixwell.gallery.sheet import COLOURS
from mixwell.templates import templates_of

__all__ = ["MARK", "Card", "gallery_page"]

MARK = '<meta name="generator" content="mixwell gallery">'
"""What tells a gallery's page from others."""
_COMBINED = "Recipes of several methods"
_TWO_COLUMNS = 1000
"""Pixels up to which two sheets stand side by side."""


@dataclass(frozen=True)
class Card:
    """A recipe that was drawn.

    Attributes:
        exhibit: the recipe.
        file: its sheet, as the page links to it.
        size: the sheet's width and height in pixels.
    """

    exhibit: Exhibit
    file: str
    size: tuple[int, int]

    @property
    def alone(self) -> bool:
        """Whether it shows one method."""
        return len(self.exhibit.about) == 1

    @property
    def title(self) -> str:
        """The method's name in print, or the recipe's text."""
        about = self.exhibit.about
        return about[0].title.partition(": ")[0] if self.alone else self.exhibit.text

    @property
    def summary(self) -> str:
        """What the method does; of several methods, the name of each."""
        about = self.exhibit.about
        if self.alone:
            return about[0].title.partition(": ")[2]
        return ", ".join(entry.title.partition(": ")[0] for entry in about)

    @property
    def section(self) -> str:
        """The heading that it stands under."""
        return self.exhibit.sections[0] if self.alone else _COMBINED

    @property
    def words(self) -> str:
        """What a search looks through."""
        about = " ".join(f"{entry.slug} {entry.title}" for entry in self.exhibit.about)
        return f"{self.exhibit.text} {about}".lower()


def gallery_page(
    cards: Sequence[Card],
    names: Mapping[str, str],
    *,
    images: int,
    planned: int,
    refused: Mapping[str, str],
    notes: Iterable[str] = (),
) -> str:
    """The page's text.

    Args:
        cards: what was drawn.
        names: every class as bars call it, and its whole name.
        images: how many are shown.
        planned: how many recipes are drawn in the end.
        refused: why a recipe could not act, by its text.
        notes: paragraphs at the top.
    """
    environment = templates_of("mixwell.gallery")
    order = sorted(cards, key=lambda card: (card.section == _COMBINED, card.section))
    found = {axis for card in cards for axis in card.exhibit.axes}
    return environment.get_template("gallery.html.j2").render(
        mark=MARK,
        groups=[(section, list(members)) for section, members in groupby(order, key=lambda card: card.section)],
        sections=sorted({section for card in cards for section in card.exhibit.sections}),
        axes=[axis for axis in AXES if axis in found],
        classes=[(COLOURS[place % len(COLOURS)], *each) for place, each in enumerate(names.items())],
        images=images,
        drawn=len(cards),
        planned=planned,
        refused=refused,
        notes=list(notes),
        two_columns=max((card.size[0] for card in cards), default=0) <= _TWO_COLUMNS,
    )
