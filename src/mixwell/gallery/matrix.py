"""Which methods go together, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from mixwell.core.errors import ParameterError
from mixwell.core.pairs import Verdict
from mixwell.core.registry import method_of

__all__ = ["matrix"]

_PAPER, _INK = "#FFFFFF", "#24292F"
_ACCEPTED, _BOTH_DECIDE, _CANNOT_ACT = "#009E73", "#E3E7EB", "#E69F00"
"""Colours that the colour-blind tell apart, and of different lightness."""
_CELL, _GAP, _PAD, _FONT = 15, 3, 8, 14
"""Pixels: a cell with its border, what is free between sections, around the picture, and the size of letters."""


def matrix(slugs: Sequence[str], found: Mapping[tuple[str, str], Verdict]) -> Image.Image:
    """Draw the verdict on every pair: rows are first methods, columns second ones.

    Sections of the survey stand apart. The number behind a row says with how many methods it goes together; below is
    what the colours mean.

    Args:
        slugs: at least two methods, in the order of rows and columns.
        found: the verdict on each of their pairs, see `mixwell.core.pairs.pairs`.
    """
    if len(slugs) < 2:
        raise ParameterError(f"A matrix of pairs needs at least two methods, got {len(slugs)}.")
    font = ImageFont.load_default(_FONT)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    legend = _legend(slugs, found)
    names = round(max(measure.textlength(slug, font) for slug in slugs)) + 6
    counts = round(measure.textlength(str(len(slugs)), font)) + 8
    at = _offsets(slugs)
    side = at[slugs[-1]] + _CELL
    wide = names + max(side + counts, round(max(measure.textlength(words, font) for _, words in legend)) + 2 * _CELL)
    origin = _PAD + names
    page = Image.new("RGB", (2 * _PAD + wide, origin + side + _PAD + len(legend) * (_FONT + 8) + _PAD), _PAPER)
    pen = ImageDraw.Draw(page)
    for row in slugs:
        y = origin + at[row]
        pen.text((origin - 6, y + _CELL / 2), row, fill=_INK, font=font, anchor="rm")
        _write_upwards(page, row, font, (y, origin - 6))
        for column in slugs:
            if column != row:
                x = origin + at[column]
                pen.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), fill=_colour(found[row, column]))
        partners = sum(found[row, column].accepted for column in slugs if column != row)
        pen.text((origin + side + counts - 2, y + _CELL / 2), str(partners), fill=_INK, font=font, anchor="rm")
    _write_upwards(page, "goes with", font, (origin + side + counts - _CELL, origin - 6))
    y = origin + side + _PAD
    for colour, words in legend:
        pen.rectangle((origin, y + 2, origin + _CELL - 2, y + _CELL), fill=colour)
        pen.text((origin + _CELL + 6, y + 1 + _CELL / 2), words, fill=_INK, font=font, anchor="lm")
        y += _FONT + 8
    return page


def _offsets(slugs: Sequence[str]) -> dict[str, int]:
    """Where each row and column begins."""
    new = [method_of(one).section != method_of(other).section for one, other in pairwise(slugs)]
    return {slug: place * _CELL + sum(new[:place]) * _GAP for place, slug in enumerate(slugs)}


def _write_upwards(
    page: Image.Image, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, foot: tuple[int, int]
) -> None:
    """Write a column's name above its cell, from the bottom to the top."""
    line = Image.new("RGB", (foot[1], _CELL), _PAPER)
    ImageDraw.Draw(line).text((0, _CELL / 2), text, fill=_INK, font=font, anchor="lm")
    page.paste(line.transpose(Image.Transpose.ROTATE_90), (foot[0], 0))


def _colour(verdict: Verdict) -> str:
    return _ACCEPTED if verdict.accepted else _BOTH_DECIDE if verdict.slot else _CANNOT_ACT


def _legend(slugs: Sequence[str], found: Mapping[tuple[str, str], Verdict]) -> list[tuple[str, str]]:
    colours = [_colour(found[row, column]) for row in slugs for column in slugs if row != column]
    return [
        (colour, f"{words}: {colours.count(colour):,} of {len(colours):,}")
        for colour, words in (
            (_ACCEPTED, "row + column go together"),
            (_BOTH_DECIDE, "both decide the same"),
            (_CANNOT_ACT, "one could not act beside the other"),
        )
    ]
