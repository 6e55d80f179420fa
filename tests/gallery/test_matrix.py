from __future__ import annotations

import pytest
from PIL import ImageColor

import mixwell
from mixwell.core.pairs import Verdict, pairs
from mixwell.gallery import matrix

SOME = ("mixup", "bc", "cutmix", "transmix")
GREEN, GREY, ORANGE = (ImageColor.getrgb(colour) for colour in ("#009E73", "#E3E7EB", "#E69F00"))


def areas(picture) -> dict[tuple[int, ...], int]:
    """How many cells of a colour there are, with the one of the legend."""
    counted = {colour: count for count, colour in picture.getcolors(maxcolors=1 << 20)}
    return {colour: counted.get(colour, 0) // 14**2 for colour in (GREEN, GREY, ORANGE)}


def test_a_cell_for_every_verdict():
    found = pairs(SOME)
    green = sum(verdict.accepted for verdict in found.values())
    grey = sum(bool(verdict.slot) for verdict in found.values())
    assert areas(matrix(SOME, found)) == {GREEN: green + 1, GREY: grey + 1, ORANGE: 12 - green - grey + 1}


def test_rows_are_the_first_methods():
    """One refused pair, in the first row and the last column: the upper right corner."""
    found = dict.fromkeys(pairs(SOME), Verdict())
    found["mixup", "transmix"] = Verdict("for a test")
    picture = matrix(SOME, found)
    cells = [
        (x, y)
        for x in range(picture.width)
        for y in range(picture.height)
        if picture.getpixel((x, y)) in (GREEN, GREY, ORANGE)
    ]
    matrix_of_cells = [(x, y) for x, y in cells if y < max(y for x, y in cells) - 3 * 21]
    x, y = max(x for x, _ in matrix_of_cells), min(y for _, y in matrix_of_cells)
    assert picture.getpixel((x, y)) == ORANGE
    assert picture.getpixel((min(x for x, _ in matrix_of_cells), max(y for _, y in matrix_of_cells))) == GREEN


def test_more_methods_make_it_larger_and_one_is_an_error():
    found = pairs(SOME)
    assert matrix(SOME, found).height > matrix(SOME[:3], found).height
    with pytest.raises(mixwell.ParameterError, match="at least two"):
        matrix(SOME[:1], found)
