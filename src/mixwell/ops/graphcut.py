"""Best labellings of grids of blocks by one minimum cut, for a whole batch at once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from mixwell.core.errors import ParameterError

__all__ = ["best_labels", "labelling_energy", "squared_steps"]


def squared_steps(labels: int) -> Float[ndarray, " l"]:
    """(d / (L-1))² for a difference of d = 0 … L-1 labels, in fp64."""
    return (np.arange(labels) / (labels - 1)) ** 2


def labelling_energy(
    unary: Shaped[ndarray, "b h w l"],
    down: Shaped[ndarray, "b h-1 w"],
    right: Shaped[ndarray, "b h w-1"],
    steps: Shaped[ndarray, " l"],
    labels: Int[ndarray, "b h w"],
) -> Shaped[ndarray, " b"]:
    """Σ_i unary[i, l_i] + Σ_edges weight · steps[|l_i - l_j|] of each grid, in the arguments' own units.

    Args:
        unary: (B, h, w, L) cost of each label at each block.
        down, right: (B, h-1, w) and (B, h, w-1) weights of the edges to the block below and on the right.
        steps: (L,) cost of neighbours that are 0 … L-1 labels apart.
        labels: (B, h, w) integers in [0, L).
    """
    labels = labels.astype(np.int64)
    chosen = np.take_along_axis(unary, labels[..., None], 3).sum((1, 2, 3))
    vertical = (down * steps[np.abs(np.diff(labels, axis=1))]).sum((1, 2))
    horizontal = (right * steps[np.abs(np.diff(labels, axis=2))]).sum((1, 2))
    energy: Shaped[ndarray, " b"] = chosen + vertical + horizontal
    return energy


def best_labels(
    unary: Shaped[ndarray, "b h w l"],
    down: Shaped[ndarray, "b h-1 w"],
    right: Shaped[ndarray, "b h w-1"],
    steps: Shaped[ndarray, " l"] | None = None,
) -> Int[ndarray, "b h w"]:
    """The labels of lowest `labelling_energy`, exactly, for all grids by one maximum flow.

    Ishikawa's construction ("Exact Optimization for Markov Random Fields with Convex Priors", TPAMI 2003): label l is
    the sum of L-1 ordered binaries, and a convex cost of |l_i - l_j| is a sum of costs of single pairs of binaries.

    Args:
        unary: (B, h, w, L) finite.
        down, right: weights ≥ 0.
        steps: (L,) convex, rising from 0; `squared_steps(L)` if not given.

    Raises:
        ParameterError: a weight is negative or steps are not convex, so that no cut can express them.
    """
    from maxflow import GraphFloat  # not needed by other methods

    b, h, w, labels = unary.shape
    steps = squared_steps(labels) if steps is None else steps
    pairs, offset = _pairs_of(np.asarray(steps, np.float64))
    if min((edges.min() for edges in (down, right) if edges.size), default=0) < 0:
        raise ParameterError("best_labels: edge weights must be ≥ 0: a minimum cut cannot push neighbours apart.")
    if (pairs < 0).any():
        raise ParameterError(f"best_labels: steps must be convex and start at 0, got {steps}.")

    around = np.zeros((b, h, w))
    around[:, 1:] += down
    around[:, :-1] += down
    around[:, :, 1:] += right
    around[:, :, :-1] += right
    gains = np.diff(unary + around[..., None] * offset, axis=3)
    levels = labels - 1
    tails, heads, chains = _edges_of(b, h, w, levels)
    weights = np.concatenate((down.ravel(), right.ravel())).astype(np.float64)
    capacity = (weights[:, None, None] * pairs).ravel()

    graph = GraphFloat(gains.size, len(capacity) + len(chains))
    nodes = graph.add_grid_nodes((b, h, w, levels))
    graph.add_grid_tedges(nodes, gains, np.zeros_like(gains))
    if len(capacity):
        graph.add_edges(tails, heads, capacity, capacity)
    if len(chains):
        graph.add_edges(chains, chains + 1, np.full(len(chains), np.inf), np.zeros(len(chains)))
    graph.maxflow()
    found: Int[ndarray, "b h w"] = graph.get_grid_segments(nodes).sum(3)
    return found


def _pairs_of(steps: Float[ndarray, " l"]) -> tuple[Float[ndarray, "k k"], Float[ndarray, " l"]]:
    """What binaries s and t of two neighbours cost if they differ, and what each label costs per edge besides."""
    level = np.arange(1, len(steps))
    apart = np.abs(level[:, None] - level)
    pairs = (steps[apart + 1] - 2 * steps[apart] + steps[np.abs(apart - 1)]) / 2
    offset = steps - np.concatenate(([0.0], pairs.sum(1).cumsum()))
    return pairs, offset


@lru_cache(maxsize=16)
def _edges_of(b: int, h: int, w: int, levels: int) -> tuple[Int[ndarray, " e"], Int[ndarray, " e"], Int[ndarray, " c"]]:
    """Nodes at both ends of the edges (down, then right, each for every pair of levels); lower nodes of the chains."""
    nodes = np.arange(b * h * w * levels).reshape(b, h, w, levels)
    ends = []
    for near, far in ((nodes[:, :-1], nodes[:, 1:]), (nodes[:, :, :-1], nodes[:, :, 1:])):
        near, far = near.reshape(-1, levels, 1), far.reshape(-1, 1, levels)
        ends.append([side.ravel() for side in np.broadcast_arrays(near, far)])
    tails, heads = (np.concatenate(side) for side in zip(*ends, strict=True))
    return tails, heads, nodes[..., :-1].ravel()
