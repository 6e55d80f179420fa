"""Choices of cells at the size of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixwell.ops.cells import cells_shown, share_in_cells

LINES = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 1])
CELLS = np.array([[[True, False], [False, False], [False, True]], [[True, True], [False, True], [False, False]]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_every_pixel_is_of_its_cell(dtype):
    shown = cells_shown(CELLS, LINES, torch.zeros(1, dtype=dtype))
    assert shown.dtype == dtype
    expected = [[[[cells[y, x] for x in LINES[1]] for y in LINES[0]]] for cells in CELLS]
    assert torch.equal(shown, torch.tensor(expected, dtype=dtype))


def test_the_share_is_that_of_the_pixels():
    share = share_in_cells(CELLS, LINES)
    assert share.dtype == np.float64
    assert share.tolist() == [8 / 20, 11 / 20]
    np.testing.assert_allclose(share, cells_shown(CELLS, LINES, torch.zeros(1)).mean((1, 2, 3)))


def test_a_cell_without_pixels_has_no_share():
    assert share_in_cells(np.array([[[False], [True]]]), (np.zeros(3, int), np.zeros(3, int))).tolist() == [0]
