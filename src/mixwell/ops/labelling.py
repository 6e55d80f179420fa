"""Labellings of grids of blocks of least energy, where any two labels may differ by any amount; many grids at once.

A minimum cut finds the least energy only where labels are ordered and costs are convex (`mixwell.ops.graphcut`). For
any other table it is hard in general. Bounds from the grid's rows and columns, which are solved alone, leave so few
labels of each block that dynamic programming over what is left finds it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int64, Shaped
from numpy import ndarray

from mixwell.core.errors import ParameterError

__all__ = ["least_labels", "table_energy"]

_FEW_STATES, _MOST_STATES = 2**15, 2**20
"""Joint labels of neighbouring blocks, over all grids: when bounding ends early, and how many can be held."""
_PASSES = 4
"""Over rows and columns between two looks at what is left; and how often to look at most:"""
_LOOKS = 12
_FAR = 9.0
"""Cost of a label that is out, where an edge costs 1 at most."""
_ROUNDING = 1e-4
"""How far fp32 sums of such costs may be off."""


def table_energy(
    unary: Shaped[ndarray, "p h w l"],
    table: Shaped[ndarray, "p l l"],
    weight: float,
    labels: Shaped[ndarray, "p h w"],
) -> Shaped[ndarray, " p"]:
    """Σ_i unary[i, l_i] + weight · Σ_edges table[l_i, l_j] of each grid.

    Args:
        unary: (P, h, w, L) cost of each label at each block.
        table: (P, L, L) cost of neighbours with these labels.
        weight: of the table.
        labels: (P, h, w) integers in [0, L).
    """
    grids = np.arange(len(labels))[:, None, None]
    energy: Shaped[ndarray, " p"] = np.take_along_axis(unary, labels[..., None], 3).sum((1, 2, 3))
    for near, far in ((labels[:, :-1], labels[:, 1:]), (labels[:, :, :-1], labels[:, :, 1:])):
        energy = energy + weight * table[grids, near, far].sum((1, 2))
    return energy


def least_labels(
    unary: Float[ndarray, "p h w l"], table: Float[ndarray, "p l l"], weight: float
) -> Int64[ndarray, "p h w"]:
    """Labels of least `table_energy`.

    They are exact unless too many labels are left, as in grids without any contrast: then only each block's most
    promising are looked at together, and no single block could have a better label.

    Args:
        unary: (P, h, w, L) finite.
        table: (P, L, L) symmetric, in [0, 1], 0 on the diagonal.
        weight: ≥ 0.

    Raises:
        ParameterError: the weight is negative.
    """
    if not weight >= 0:
        raise ParameterError(f"least_labels: weight must be ≥ 0, got {weight}. Neighbours must not gain by differing.")
    if unary.shape[2] > unary.shape[1]:  # the joint labels of one block per column are held
        return least_labels(unary.swapaxes(1, 2), table, weight).swapaxes(1, 2)
    if weight == 0:
        cheapest: Int64[ndarray, "p h w"] = unary.argmin(3)
        return cheapest
    costs = (unary - unary.min(3, keepdims=True)) / weight
    # A label that costs more than a block's cheapest by all that its edges can cost is out; most are, at every block.
    out = costs > _degrees(*unary.shape[1:3])
    possible = ~out.all((1, 2))
    kept = np.argsort(~possible, axis=1, kind="stable")[:, : possible.sum(1).max()]
    rows = np.arange(len(unary))[:, None]
    costs = np.where(out, _FAR, costs)[rows, :, :, kept].astype(np.float32)
    table = table[rows[:, :, None], kept[:, :, None], kept[:, None]].astype(np.float32)
    surplus = _surplus(costs, table)
    labels = _eliminate(costs, surplus, table)
    while len(costs) * _states(_left(surplus)) > _MOST_STATES:  # not all of them were looked at
        before, labels = labels, _descended(costs, table, labels)
        if (before == labels).all():
            break
    found: Int64[ndarray, "p h w"] = kept[rows[..., None], labels]
    return found


@lru_cache(maxsize=16)
def _degrees(h: int, w: int) -> Float[ndarray, "h w 1"]:
    """How many neighbours each block has."""
    inner = [np.minimum(np.arange(size), 1) + np.minimum(np.arange(size)[::-1], 1) for size in (h, w)]
    degrees: Float[ndarray, "h w 1"] = np.add.outer(*inner)[..., None].astype(np.float64)
    return degrees


def _surplus(costs: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"]) -> Float[ndarray, "p l h w"]:
    """At least how much more than a known labelling any costs that gives a block this label; if above 0, it is out.

    Rows and columns, with half of their blocks' costs each, are solved alone: together they bound the energy from
    below. A pass moves costs between them so that they come to agree on what each label is worth (min-marginal
    averaging; Werner, "A Linear Programming Approach to Max-Sum Problem: A Review", TPAMI 2007).
    """
    p, count, h, w = costs.shape
    lines = np.zeros((max(h, w), count, p, h + w), np.float32)  # of the grid, along the first axis; rows before columns
    lines[:w, :, :, :h] = costs.transpose(3, 1, 0, 2) / 2
    lines[:h, :, :, h:] = costs.transpose(2, 1, 0, 3) / 2
    step = np.float32(0.75 / max(h, w))  # a move counts at all blocks of a line; 1 / length could swing for ever
    table_of_lines = np.repeat(table.transpose(1, 2, 0), 2 * (h + w), 2)
    for _ in range(_LOOKS):
        for _ in range(_PASSES):
            worth = _worth(lines, table_of_lines)
            rows, columns = worth[:w, :, :, :h], worth[:h, :, :, h:].transpose(3, 1, 2, 0)
            moved = step * (columns - rows)
            lines[:w, :, :, :h] += moved
            lines[:h, :, :, h:] -= moved.transpose(3, 1, 2, 0)
        bound = worth[0].min(0).sum(1)
        surplus = (rows - rows.min(1, keepdims=True) + columns - columns.min(1, keepdims=True)).transpose(2, 1, 3, 0)
        labels = _descended(costs, table, surplus.argmin(1))
        energy = table_energy(np.moveaxis(costs, 1, 3), table, 1.0, labels)
        surplus += (bound - energy)[:, None, None, None]
        np.put_along_axis(surplus, labels[:, None], -np.inf, 1)  # stays in, whatever else must be left out
        if _states(_left(surplus)) * p <= _FEW_STATES:
            break
    found: Float[ndarray, "p l h w"] = surplus
    return found


def _worth(lines: Float[ndarray, "k l p n"], table: Float[ndarray, "l l q"]) -> Float[ndarray, "k l p n"]:
    """The least energy of each line if a block has a label; blocks of cost 0 behind a line's end change nothing."""
    k, count, p, n = lines.shape
    both = np.concatenate((lines, lines[::-1]), 3).reshape(k, count, -1)
    before = np.zeros_like(both)
    for block in range(k - 1):
        before[block + 1] = ((both[block] + before[block])[:, None] + table).min(0)
    before = before.reshape(k, count, p, 2 * n)
    worth: Float[ndarray, "k l p n"] = lines + before[..., :n] + before[::-1, ..., n:]
    return worth


def _descended(
    costs: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"], labels: Int64[ndarray, "p h w"]
) -> Int64[ndarray, "p h w"]:
    """Labels improved block by block, the blocks of either colour of a chessboard at once."""
    p, _, h, w = costs.shape
    rows, black = np.arange(p)[:, None, None], np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
    for turn in (black, ~black):
        beside = np.moveaxis(table[rows, labels], 3, 1)
        total = costs.copy()
        total[:, :, 1:] += beside[:, :, :-1]
        total[:, :, :-1] += beside[:, :, 1:]
        total[..., 1:] += beside[..., :-1]
        total[..., :-1] += beside[..., 1:]
        labels = np.where(turn, total.argmin(1), labels)
    return labels


def _left(surplus: Float[ndarray, "p l h w"]) -> Int64[ndarray, "h w"]:
    """How many labels a block can still have, in the grid where it has most."""
    counts: Int64[ndarray, "h w"] = (surplus <= _ROUNDING).sum(1).max(0)
    return counts


def _states(counts: Int64[ndarray, "h w"]) -> float:
    """The most joint labels of as many blocks in a row as dynamic programming holds."""
    return float(np.exp2(np.convolve(np.log2(counts).ravel(), np.ones(counts.shape[1] + 1)).max()))


def _eliminate(
    costs: Float[ndarray, "p l h w"], surplus: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"]
) -> Int64[ndarray, "p h w"]:
    """Labels of least energy among those without surplus, by dynamic programming from block to block.

    `best` is the least energy of the blocks so far, for each label of the block w before the next and all joint labels
    of those between. Each step adds a block and takes the one above it away. The steps depend on each other; each
    serves all grids.
    """
    p, _, h, w = costs.shape
    n, rows = h * w, np.arange(p)
    counts = _left(surplus)
    while p * _states(counts) > _MOST_STATES:
        counts = np.minimum(counts, counts.max() - 1)
    order = surplus.reshape(p, -1, n).argsort(1)[:, : counts.max()]
    costs = np.take_along_axis(costs.reshape(p, -1, n), order, 1)
    above, left = (
        table[rows[:, None, None, None], order[:, :, None, :-back], order[:, None, :, back:]] for back in (w, 1)
    )
    sizes = [1] * w + counts.ravel().tolist()  # above the grid stand blocks without a choice
    best = np.zeros((p, 1, 1), np.float32)
    steps = []
    for block in range(n):
        over, before, size = sizes[block], sizes[block + w - 1], sizes[block + w]
        if block >= w:
            steps.append(best[:, :, None] + above[:, :over, :size, block - w, None])
            best = steps[-1].min(1)
        cost = costs[:, None, :size, block]
        if block % w:
            cost = cost + left[:, :before, :size, block - 1]
        best = best.swapaxes(1, 2).reshape(p, -1, cost.shape[1], best.shape[1]) + cost[:, None]
        best = best.reshape(p, sizes[block + 1], -1)
    chosen = list(np.unravel_index(best.reshape(p, -1).argmin(1), sizes[-w:]))
    for block in reversed(range(n - w)):
        between = np.zeros(p, np.int64)
        for label, size in zip(chosen[: w - 1], sizes[block + w + 1 :], strict=False):
            between = between * size + label
        chosen.insert(0, steps[block][rows, :, chosen[w - 1], between].argmin(1))
    found: Int64[ndarray, "p h w"] = np.take_along_axis(order, np.stack(chosen, 1)[:, None], 1).reshape(p, h, w)
    return found
