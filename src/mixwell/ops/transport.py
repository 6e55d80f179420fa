"""Moving the blocks of an image to other places of the same image."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["block_distances", "block_plan", "move_blocks", "transport_costs"]


@lru_cache(maxsize=8)
def block_distances(grid: tuple[int, int]) -> Float[Tensor, "n n"]:
    """Squared distances between the n = h·w blocks of a grid, 1 for a step along its whole longer side; fp32.

    A shared tensor on the CPU, not to be modified.
    """
    h, w = grid
    rows, columns = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    squared = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    return squared / float(max(h - 1, w - 1, 1) ** 2)


def transport_costs(
    saliency: Float[Tensor, "b h w"], shown: Bool[Tensor, "b h w"], eps: float
) -> Float[Tensor, "b n n"]:
    """What it costs to move block i to place j: eps · distance, less the block's saliency if the place is shown.

    Args:
        saliency: (B, h, w) of each block, fp32 on the CPU.
        shown: (B, h, w) whether the place will be seen.
        eps: cost of a distance of 1.
    """
    gain = saliency.flatten(1)[:, :, None] * shown.flatten(1)[:, None]
    return eps * block_distances((saliency.shape[1], saliency.shape[2])) - gain


def block_plan(
    saliency: Float[Tensor, "b h w"], shown: Bool[Tensor, "b h w"], eps: float, rounds: int
) -> Int[Tensor, "b n"]:
    """Which block goes to each place (-1: none), by deferred acceptance under `transport_costs`.

    In each round every block asks for its cheapest place; of those that ask for the same place the cheapest gets it, if
    its cost is negative, and the others never ask for it again. So a place that is not shown goes to no block, but for
    place 0, which its own block may get at cost 0. Shown places get the blocks that they get in the authors' code of
    Puzzle Mix, where a refused block's cost rises by 1, which no share of saliency outweighs.

    Args:
        saliency: (B, h, w) each block's share of its image's saliency, > 0; fp32 on the CPU.
        shown: (B, h, w) whether the place will be seen.
        eps: cost of a distance of 1, > 0.
        rounds: how often the blocks may ask.
    """
    worth, seen = saliency.flatten(1), shown.flatten(1)
    b, n = worth.shape
    distance = eps * block_distances((saliency.shape[1], saliency.shape[2]))
    block = torch.arange(n).expand(b, n)
    # A block that is shown where it lies has no cheaper place, and one that is worth less than a step has no other.
    place, cost = block.clone(), -worth * seen
    asks = ~seen & (worth > eps / max(saliency.shape[1] - 1, saliency.shape[2] - 1, 1) ** 2)
    refused = torch.zeros(b, n, n, dtype=torch.bool)
    for _ in range(rounds):
        image, who = asks.nonzero(as_tuple=True)
        prices = distance[who] - worth[image, who, None] * seen[image]
        cost[image, who], place[image, who] = prices.masked_fill_(refused[image, who], torch.inf).min(1)
        lowest = cost.new_zeros(b, n).scatter_reduce_(1, place, cost, "amin").gather(1, place)
        may_get = (cost == lowest) & ((cost < 0) | (block == 0))
        winner = block.new_full((b, n), n).scatter_reduce_(1, place, torch.where(may_get, block, n), "amin")
        asks = (cost < 0) & (winner.gather(1, place) != block)
        if not asks.any():
            break
        image, who = asks.nonzero(as_tuple=True)
        refused[image, who, place[image, who]] = True
    return torch.where(winner < n, winner, -1)


def move_blocks(x: Float[Tensor, "b c h w"], plan: Int[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
    """The images with every place showing the block that the plan names.

    Args:
        x: (B, C, H, W) at any resolution; where its sides are no multiples of the grid's, blocks differ by a pixel in
            size and the nearest pixels are taken.
        plan: (B, gh, gw) row-major number of each place's block, on the CPU; a place without one (-1) keeps its own.

    Returns:
        A new tensor in the same memory layout; `x` itself if every block stays.
    """
    (gh, gw), (h, w) = plan.shape[1:], x.shape[2:]
    row, column = torch.arange(h) * gh // h, torch.arange(w) * gw // w
    moves = (plan >= 0) & (plan != torch.arange(gh * gw).view(gh, gw))
    image, i, j = moves[:, row][:, :, column].nonzero(as_tuple=True)
    if not len(image):
        return x
    block = plan[image, row[i], column[j]]
    from_i = _same_pixel(i, row[i], block // gw, h, gh)
    from_j = _same_pixel(j, column[j], block % gw, w, gw)
    image, i, j, from_i, from_j = (index.to(x.device) for index in (image, i, j, from_i, from_j))
    moved = x.clone()
    moved[image, :, i, j] = x[image, :, from_i, from_j]
    return moved


def _same_pixel(
    at: Int[Tensor, " k"], here: Int[Tensor, " k"], there: Int[Tensor, " k"], side: int, blocks: int
) -> Int[Tensor, " k"]:
    """Where the pixels `at` of the blocks `here` lie in the blocks `there`, along one side."""
    starts = (torch.arange(blocks + 1) * side + blocks - 1) // blocks
    return torch.minimum(starts[there] + at - starts[here], starts[there + 1] - 1)
