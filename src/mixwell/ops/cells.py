"""Grids of cells over an image, as choices of cells that are drawn on the host."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mixwell.core.mix import onto

__all__ = ["Lines", "cells_shown", "share_in_cells"]

Lines = tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]
"""The cell of each pixel along the height, and along the width."""


def cells_shown(
    cells: Bool[np.ndarray, "#b n m"], lines: Lines, like: Float[Tensor, "..."]
) -> Float[Tensor, "#b 1 h w"]:
    """The cells at the size of an image, on the device and in the dtype of `like`; 1 where a cell is True."""
    columns = onto(cells.take(lines[1], 2).astype(np.float32), like).to(like.dtype)
    return columns.index_select(1, onto(lines[0], like))[:, None]


def share_in_cells(cells: Bool[np.ndarray, "#b n m"], lines: Lines) -> Float[np.ndarray, " #b"]:
    """Exact share of the pixels in the cells that are True, in fp64."""
    rows, columns = (np.bincount(line, minlength=cells.shape[axis]) for axis, line in enumerate(lines, 1))
    share: np.ndarray = (cells @ columns) @ rows / (len(lines[0]) * len(lines[1]))
    return share
