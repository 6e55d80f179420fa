"""Linear maps along one side of an image, as small matrices, and images read beyond their edges.

A matrix is (out, in) fp64 on the host. It is applied by its entries that are not zero, in a fixed order, so that a
pixel comes out the same in whatever batch it is.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["along", "box_matrix", "clamped", "gaussian_matrix", "mirrored", "reflected", "zoom_matrix"]

Matrix = Float[np.ndarray, "out in"]


def clamped(place: Int[np.ndarray, "..."], size: int) -> Int[np.ndarray, "..."]:
    """a a | a b c | c c: what lies outside is the nearest pixel."""
    nearest: np.ndarray = np.clip(place, 0, size - 1)
    return nearest


def reflected(place: Int[np.ndarray, "..."], size: int) -> Int[np.ndarray, "..."]:
    """b a | a b c | c b: the edge is a mirror."""
    place = place % (2 * size)
    folded: np.ndarray = np.minimum(place, 2 * size - 1 - place)
    return folded


def mirrored(place: Int[np.ndarray, "..."], size: int) -> Int[np.ndarray, "..."]:
    """c b | a b c | b a: the middle of the outermost pixel is a mirror."""
    place = place % max(2 * size - 2, 1)
    folded: np.ndarray = np.minimum(place, 2 * size - 2 - place)
    return folded


def along(images: Float[Tensor, "... h w"], matrix: Matrix, dim: int) -> Float[Tensor, "... h2 w2"]:
    """Apply a matrix along one dimension."""
    used = matrix != 0
    count = max(1, int(used.sum(1).max()))
    order = np.argsort(~used, 1, kind="stable")[:, :count]
    weights = np.take_along_axis(matrix, order, 1)
    shape = (-1,) + (1,) * (images.ndim - 1 - dim % images.ndim)
    total = None
    for k in range(count):
        place = torch.from_numpy(np.ascontiguousarray(order[:, k])).to(images.device)
        weight = torch.from_numpy(weights[:, k]).to(images).view(shape)
        read = images.index_select(dim, place)
        total = read.mul_(weight) if total is None else total.addcmul_(read, weight)
    assert total is not None
    return total


def gaussian_matrix(size: int, sigma: float, *, truncate: float, reflect: bool = False) -> Matrix:
    """A Gaussian filter that ends at `truncate` deviations and reads beyond edges `reflected`, else `clamped`."""
    radius = int(truncate * sigma + 0.5)
    away = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (away / max(sigma, 1e-12)) ** 2)
    rows = np.arange(size)[:, None]
    matrix = np.zeros((size, size))
    place = (reflected if reflect else clamped)(rows + away, size)
    np.add.at(matrix, (np.broadcast_to(rows, place.shape), place), weights / weights.sum())
    return matrix


def zoom_matrix(size: int, factor: float) -> Matrix:
    """Enlarge the middle ⌈size/factor⌉ pixels linearly, ends onto ends, and cut the middle `size` out of that."""
    part = math.ceil(size / factor)
    grown = round(part * factor)
    first = (size - part) // 2
    place = (np.arange(size) + (grown - size) // 2) * ((part - 1) / max(grown - 1, 1))
    left = np.minimum(place.astype(int), max(part - 2, 0))
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), first + left), 1 - (place - left))
    np.add.at(matrix, (np.arange(size), first + np.minimum(left + 1, part - 1)), place - left)
    return matrix


def box_matrix(size: int, out: int) -> Matrix:
    """Pillow's BOX filter: each output is the mean of the pixels whose middles lie under it, or the nearest pixel."""
    scale = size / out
    middle = (np.arange(out)[:, None] + 0.5) * scale
    away = (np.arange(size) + 0.5 - middle) / max(scale, 1)
    under = (away > -0.5) & (away <= 0.5)
    matrix: np.ndarray = under / under.sum(1, keepdims=True)
    return matrix
