"""Labellings of grids of blocks of least energy, where any two labels may differ by any amount; many grids at once.

A minimum cut finds the least energy only where labels are ordered and costs are convex (`mixwell.ops.graphcut`). For
any other table it is hard in general. Bounds from the grid's rows and columns, which are solved alone, leave so few
labels of each block that dynamic programming over what is left finds it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped
from numpy import ndarray

from mixwell.core.errors import ParameterError

__all__ = ["least_labels", "table_energy"]

_FEW_STATES, _MOST_STATES = 2**14, 2**20
"""Joint labels of neighbouring blocks, over all grids: when bounding ends early, and how many can be held."""
_PASSES = 4
"""Over rows and columns between two looks at what is left; and how often to look at most:"""
_LOOKS = 12
_INERTIA = np.float32(0.3)
"""How much of its last move a pass repeats: half as many are needed, and without it they could swing for ever."""
_FAR = np.float32(9)
"""Cost of a label that is out, where an edge costs 1 at most."""
_ROUNDING = 1e-4
"""How far fp32 sums of such costs may be off."""
_TIGHT = 2e-5
"""A labelling that costs no more than this above a bound is the best."""


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
    kept, _ = _kept(np.moveaxis(costs > _degrees(*unary.shape[1:3]), 3, 1))
    rows = np.arange(len(unary))[:, None]
    costs = np.minimum(costs, _FAR)[rows, :, :, kept].astype(np.float32)
    table = table[rows[:, :, None], kept[:, :, None], kept[:, None]].astype(np.float32)
    found: Int64[ndarray, "p h w"] = kept[rows[..., None], _least(costs, table)]
    return found


@lru_cache(maxsize=16)
def _degrees(h: int, w: int) -> Float[ndarray, "h w 1"]:
    """How many neighbours each block has."""
    inner = [np.minimum(np.arange(size), 1) + np.minimum(np.arange(size)[::-1], 1) for size in (h, w)]
    degrees: Float[ndarray, "h w 1"] = np.add.outer(*inner)[..., None].astype(np.float32)
    return degrees


def _least(costs: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"]) -> Int64[ndarray, "p h w"]:
    """Labels of least energy, of an edge's cost in the table and a block's in fp32."""
    surplus = costs - _degrees(*costs.shape[2:])[..., 0]
    if len(costs) * _states(_left(surplus)) > _FEW_STATES:
        surplus = _surplus(costs, table)
    labels: Int64[ndarray, "p h w"] = surplus.argmin(1)
    undecided = np.flatnonzero((_left_of(surplus) > 1).any((1, 2)))
    if len(undecided) == 0:
        return labels
    costs, surplus, table = costs[undecided], surplus[undecided], table[undecided]
    found = _eliminate(costs, surplus, table)
    while len(costs) * _states(_left(surplus)) > _MOST_STATES:  # not all of them were looked at
        before, (found, _) = found, _descended(costs, table, found)
        if (before == found).all():
            break
    labels[undecided] = found
    return labels


def _surplus(costs: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"]) -> Float[ndarray, "p l h w"]:
    """At least how much more than a known labelling any costs that gives a block this label; if above 0, it is out.

    Rows and columns, with half of their blocks' costs each, are solved alone: together they bound the energy from
    below. A pass moves costs between them so that they come to agree on what each label is worth (min-marginal
    averaging; Werner, "A Linear Programming Approach to Max-Sum Problem: A Review", TPAMI 2007). Grids whose bound is
    reached are done with, and labels that are out are left out of what follows.
    """
    p, count, h, w = costs.shape
    found = np.full(costs.shape, np.inf, np.float32)
    grids, names = np.arange(p), np.broadcast_to(np.arange(count), (p, count))
    lines = np.zeros((max(h, w), count, p, h + w), np.float32)  # of the grid, along the first axis; rows before columns
    lines[:w, :, :, :h] = costs.transpose(3, 1, 0, 2) / 2
    lines[:h, :, :, h:] = costs.transpose(2, 1, 0, 3) / 2
    step = np.float32(1 / max(h, w))  # a move counts at all blocks of a line
    for _ in range(_LOOKS):
        plain = bool((table == 1 - np.eye(table.shape[1], dtype=np.float32)).all())
        table_of_lines = None if plain else np.repeat(table.transpose(1, 2, 0), 2 * (h + w), 2)
        moved = np.float32(0)
        for _ in range(_PASSES):
            worth = _worth(lines, table_of_lines)
            rows, columns = worth[:w, :, :, :h], worth[:h, :, :, h:].transpose(3, 1, 2, 0)
            moved = step * (columns - rows) + _INERTIA * moved
            lines[:w, :, :, :h] += moved
            lines[:h, :, :, h:] -= moved.transpose(3, 1, 2, 0)
        bound = worth[0].min(0).sum(1, dtype=np.float64)
        surplus = (rows - rows.min(1, keepdims=True) + columns - columns.min(1, keepdims=True)).transpose(2, 1, 3, 0)
        labels, energy = _descended(costs, table, surplus.argmin(1))
        surplus += (bound - energy)[:, None, None, None]
        tight = energy - bound <= _TIGHT
        surplus[tight] = np.inf
        np.put_along_axis(surplus, labels[:, None], -np.inf, 1)  # stays in, whatever else must be left out
        found[grids] = np.inf
        found[grids[:, None], names] = surplus
        wide = np.flatnonzero(~tight)
        if len(wide) * _states(_left(surplus[wide])) <= _FEW_STATES:
            break
        kept, out = _kept(surplus[wide] > _ROUNDING)
        rows, grids = wide[:, None], grids[wide]
        names, costs, lines = names[rows, kept], costs[rows, kept], lines[:, kept.T, wide]
        table = table[rows[..., None], kept[..., None], kept[:, None]]
        lines[:w, :, :, :h] += out.transpose(3, 1, 0, 2) * _FAR
        lines[:h, :, :, h:] += out.transpose(2, 1, 0, 3) * _FAR
    return found


def _kept(out: Bool[ndarray, "p l h w"]) -> tuple[Int64[ndarray, "p k"], Bool[ndarray, "p k h w"]]:
    """As many labels of each grid as are not out at every block in the grid that has most; where these are out."""
    gone = out.all((2, 3))
    kept = np.argsort(gone, axis=1, kind="stable")[:, : (~gone).sum(1).max()]
    return kept, out[np.arange(len(out))[:, None], kept]


def _worth(lines: Float[ndarray, "k l p n"], table: Float[ndarray, "l l q"] | None) -> Float[ndarray, "k l p n"]:
    """The least energy of each line if a block has a label; blocks of cost 0 behind a line's end change nothing.

    Args:
        lines: costs of the blocks of each line, along the first axis.
        table: of each line, once per direction; None if any two labels are 1 apart.
    """
    k, count, p, n = lines.shape
    both = np.concatenate((lines, lines[::-1]), 3).reshape(k, count, -1)
    before = np.zeros_like(both)
    for block in range(k - 1):
        total = both[block] + before[block]
        if table is None:
            np.minimum(total, total.min(0) + 1, out=before[block + 1])
        else:
            (total[:, None] + table).min(0, out=before[block + 1])
    before = before.reshape(k, count, p, 2 * n)
    worth: Float[ndarray, "k l p n"] = lines + before[..., :n] + before[::-1, ..., n:]
    return worth


def _descended(
    costs: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"], labels: Int64[ndarray, "p h w"]
) -> tuple[Int64[ndarray, "p h w"], Float[ndarray, " p"]]:
    """Labels improved block by block, the blocks of either colour of a chessboard at once; and their energy."""
    p, _, h, w = costs.shape
    rows, black = np.arange(p)[:, None, None], _chessboard(h, w)
    for turn in (black, ~black):
        beside = np.moveaxis(table[rows, labels], 3, 1)
        total = costs.copy()
        total[:, :, 1:] += beside[:, :, :-1]
        total[:, :, :-1] += beside[:, :, 1:]
        total[..., 1:] += beside[..., :-1]
        total[..., :-1] += beside[..., 1:]
        labels = np.where(turn, total.argmin(1), labels)
    # Every edge has a white end, and with it stands in what that costs.
    chosen = np.take_along_axis(np.where(black, costs, total), labels[:, None], 1)
    return labels, chosen.sum((1, 2, 3), dtype=np.float64)


@lru_cache(maxsize=16)
def _chessboard(h: int, w: int) -> Bool[ndarray, "h w"]:
    black: Bool[ndarray, "h w"] = np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
    return black


def _left_of(surplus: Float[ndarray, "p l h w"]) -> Int64[ndarray, "p h w"]:
    """How many labels a block can still have."""
    counts: Int64[ndarray, "p h w"] = (surplus <= _ROUNDING).sum(1)
    return counts


def _left(surplus: Float[ndarray, "p l h w"]) -> Int64[ndarray, "h w"]:
    """How many labels a block can still have, in the grid where it has most."""
    counts: Int64[ndarray, "h w"] = _left_of(surplus).max(0, initial=1)
    return counts


def _states(counts: Int64[ndarray, "h w"]) -> float:
    """The most joint labels of as many blocks in a row as dynamic programming holds."""
    logs = np.concatenate(([0.0], np.log2(counts).ravel().cumsum()))
    held = min(counts.shape[1] + 1, counts.size)
    return float(np.exp2((logs[held:] - logs[:-held]).max()))


def _eliminate(
    costs: Float[ndarray, "p l h w"], surplus: Float[ndarray, "p l h w"], table: Float[ndarray, "p l l"]
) -> Int64[ndarray, "p h w"]:
    """Labels of least energy among those without surplus, by dynamic programming from block to block.

    `best` is the least energy of the blocks so far, for each label of the block w before the next and all joint labels
    of those between. Each step adds a block and takes the one above it away. The steps depend on each other; each
    serves all grids. What blocks with one label left add is the same for all, and is left out.
    """
    p, _, h, w = costs.shape
    n, rows = h * w, np.arange(p)[:, None]
    counts = _left(surplus)
    while p * _states(counts) > _MOST_STATES:
        counts = np.minimum(counts, counts.max() - 1)
    order = surplus.reshape(p, -1, n).argsort(1)[:, : counts.max()]
    costs = costs.reshape(p, -1, n)[rows[..., None], order, np.arange(n)]
    sizes = counts.ravel().tolist()
    edges = [(near, far) for near, far in _edges(h, w) if sizes[near] * sizes[far] > 1]
    near, far = np.array(edges, np.int64).reshape(-1, 2).T
    apart = table[rows[..., None, None], order[:, :, None, near], order[:, None, :, far]]
    between = {edge: apart[:, : sizes[edge[0]], : sizes[edge[1]], at] for at, edge in enumerate(edges)}

    sizes = [1] * w + sizes  # above the grid stand blocks without a choice
    best = np.zeros((p, 1, 1), np.float32)
    steps = {}
    for block in range(n):
        over, size = sizes[block], sizes[block + w]
        above = between.get((block - w, block))
        left = between.get((block - 1, block)) if block % w else None
        if above is not None:
            best = best[:, :, None] + above[..., None]
            if over > 1:
                steps[block - w] = best
            best = best.min(1)
        best = best.swapaxes(1, 2)
        if size > 1 or left is not None:
            cost = costs[:, None, :size, block] if left is None else costs[:, None, :size, block] + left
            best = best.reshape(p, -1, cost.shape[1], best.shape[2]) + cost[:, None]
        best = best.reshape(p, sizes[block + 1], -1)
    joint = best.reshape(p, -1).argmin(1)  # label of the last w blocks; then of the w from each one on
    chosen = list(np.unravel_index(joint, sizes[-w:]))
    for block in reversed(range(n - w)):
        joint = joint // sizes[block + 2 * w]
        if block in steps:
            label = steps[block][rows[:, 0], :, chosen[w - 1], joint].argmin(1)
            joint = joint + label * steps[block].shape[3]
        else:
            label = np.zeros(p, np.int64)
        chosen.insert(0, label)
    found: Int64[ndarray, "p h w"] = order[rows, np.stack(chosen, 1), np.arange(n)].reshape(p, h, w)
    return found


@lru_cache(maxsize=16)
def _edges(h: int, w: int) -> list[tuple[int, int]]:
    """Both ends of every edge, as numbers of blocks."""
    numbers = np.arange(h * w).reshape(h, w)
    ends = ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:]))
    return [edge for near, far in ends for edge in zip(near.ravel().tolist(), far.ravel().tolist(), strict=True)]
