"""Windows of maps, against slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixwell.core.mix import Partners
from mixwell.ops.windows import moved, sides_in_pixels, window_sums, windows_at

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("sides", [[[2, 3], [1, 1], [4, 5]], [[3, 2]], [[0, 0], [4, 1], [1, 5]]], ids=str)
def test_sums_are_those_of_slices(sides):
    maps = torch.rand(3, 4, 5)
    sums = window_sums(maps, torch.tensor(sides))
    assert sums.dtype == torch.float64
    for row in range(3):
        h, w = sides[row % len(sides)]
        for top in range(4):
            for left in range(5):
                if top + h > 4 or left + w > 5:
                    assert sums[row, top, left].isnan()
                else:
                    expected = maps[row, top : top + h, left : left + w].double().sum()
                    torch.testing.assert_close(sums[row, top, left], expected)


@pytest.mark.parametrize("value", [1 / 49, 0.1, 3e-8])
def test_equal_values_have_equal_sums(value):
    sums = window_sums(torch.full((1, 14, 14), value), torch.tensor([[3, 5]]))[0, :12, :10]
    assert (sums == sums[0, 0]).all()


def test_a_half_precision_map_is_summed_in_double():
    maps = torch.full((1, 60, 60), 60.0).half()
    assert window_sums(maps, torch.tensor([[60, 60]]))[0, 0, 0] == 216_000


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 5), (24, 40)), ((7, 7), (32, 24)), ((14, 14), (9, 5)), ((3, 1), (7, 7))]
)
def test_windows_lie_in_the_image_and_are_equally_large(grid, size):
    for height in range(grid[0] + 1):
        for width in range(grid[1] + 1):
            tops, lefts = torch.arange(grid[0] - max(height, 1) + 1), torch.arange(grid[1] - max(width, 1) + 1)
            corners = torch.cartesian_prod(tops, lefts)
            sides = np.array([[height, width]])
            boxes = windows_at(corners, sides, grid, size)
            assert (boxes >= 0).all()
            assert (boxes[:, 1] <= size[0]).all()
            assert (boxes[:, 3] <= size[1]).all()
            pixels = boxes[:, 1::2] - boxes[:, ::2]
            assert (pixels.numpy() == sides_in_pixels(sides, grid, size)).all()
            assert ((pixels == 0) == torch.tensor([[height == 0, width == 0]])).all()


def test_of_grids_that_divide_the_image_windows_are_their_places():
    boxes = windows_at(torch.tensor([[1, 2], [0, 3]]), np.array([[2, 3], [4, 2]]), (4, 5), (24, 40))
    assert boxes.tolist() == [[6, 18, 16, 40], [0, 24, 24, 40]]


def test_a_window_of_the_whole_grid_is_the_whole_image():
    assert windows_at(torch.zeros(1, 2).long(), np.array([[7, 3]]), (7, 3), (32, 25)).tolist() == [[0, 32, 0, 25]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_windows_are_moved_bit_by_bit(layout):
    x = torch.randn(3, 2, 8, 9).contiguous(memory_format=layout)
    partner = torch.tensor([2, 1, 0])
    into = torch.tensor([[0, 3, 5, 9], [2, 8, 0, 1], [4, 4, 2, 2]])
    out_of = torch.tensor([[5, 8, 1, 5], [0, 6, 8, 9], [1, 1, 1, 1]])
    before = x.clone()
    found = moved(x, Partners.at(partner[:, None], torch.arange(3)), into, out_of)
    expected = x.clone()
    for row, (to, source) in enumerate(zip(into.tolist(), out_of.tolist(), strict=True)):
        piece = x[partner[row], :, source[0] : source[1], source[2] : source[3]]
        expected[row, :, to[0] : to[1], to[2] : to[3]] = piece
    assert torch.equal(found, expected)
    assert torch.equal(x, before)
    assert found.is_contiguous(memory_format=layout)
