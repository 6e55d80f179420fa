"""k-Mixup: mixup of two random k-batches after matching them by optimal transport.

Greenewald, Gu, Yurochkin, Solomon, Chien, "k-Mixup Regularization for Deep Learning via Optimal Transport", TMLR 2023,
arXiv:2106.02933.

The batch and a random permutation of it are cut into groups of k; within each pair of groups, rows are matched one to
one at the least total squared distance, and matched rows are mixed. k = 1 is mixup. Equations: σ* of the Wasserstein-2
matching → `matched`; the mix → `mixwell.sample.linear.mixup.linear`.

Paper and code: the paper's cost is the squared Euclidean distance, the authors' code takes the distance itself
(`cost="euclidean"`), and the matchings can differ. The code runs the network once more per step to get its input; we do
not. A row that is drawn into both groups meets itself and stays unmixed, so k should be far below the batch size; a
batch of at most k rows is cut into two groups.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Pairing, Per, Scene
from mixwell.core.errors import ParameterError
from mixwell.core.mix import Partners
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.assignment import assigned
from mixwell.sample.linear.mixup import Linear

__all__ = ["Cost", "TransportGroups", "group_costs", "matched"]

Cost = Literal["squared", "euclidean"]


def group_costs(
    x: Float[Tensor, "n k ..."], y: Float[Tensor, "n k ..."], cost: Cost = "squared"
) -> Float[Tensor, "n k k"]:
    """Distances between the rows of n pairs of groups, in fp32 (fp64 for fp64 input), autocast off."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = (part.detach().flatten(2).to(torch.promote_types(part.dtype, torch.float32)) for part in (x, y))
        squared = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :] - 2 * x @ y.transpose(1, 2)
        return squared if cost == "squared" else squared.clamp_min(0).sqrt()


def matched(x: Float[Tensor, "b ..."], index: Int[Tensor, " b"], k: int, cost: Cost = "squared") -> Int[Tensor, " b"]:
    """The partner of each row: `index` reordered within each group of k rows, so that the total cost is least.

    Args:
        x: (B, ...) rows.
        index: (B,) permutation that says which rows the groups meet.
        k: rows per group; the last group may be smaller.
    """
    rows = x.shape[0]
    whole = rows - rows % k
    partner = index.clone()
    for start, end, size in ((0, whole, k), (whole, rows, rows - whole)):
        if end > start:
            own = torch.unflatten(x[start:end], 0, (-1, size))
            other = torch.unflatten(x[index[start:end]], 0, (-1, size))
            columns = assigned(group_costs(own, other, cost))
            partner[start:end] = index[start:end].view(-1, size).gather(1, columns).flatten()
    return partner


class TransportGroups(Pairing):
    """Partners matched within random groups by least transport cost in the input.

    Args:
        k: rows per group.
        cost: "squared" or "euclidean".
    """

    def __init__(self, k: int, cost: Cost = "squared") -> None:
        super().__init__()
        if k < 1:
            raise ParameterError(f"k must be a whole number ≥ 1, got {k}.")
        self.k = k
        self.cost = cost

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) permutation that makes the second batch of groups."""
        return rng.permutation(rows)

    def partners(self, draws: np.ndarray, scene: Scene) -> Partners:
        images = scene.batch.images
        index = torch.from_numpy(draws).to(images.device, non_blocking=True)
        k = self.k if self.k < len(images) else max(1, len(images) // 2)
        return Partners.at(matched(images, index, k, self.cost)[:, None], scene.batch.labels)


@method("k_mixup", section="1.4", paper="2106.02933", venue="TMLR 2023")
def k_mixup(k: int = 16, alpha: float = 1.0, cost: Cost = "squared", prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    k: rows per group; the paper takes 2 to 32, 16 for CIFAR-10.
    alpha: λ ~ Beta(α, α); larger k goes with larger α.
    cost: the paper's "squared" distance or the authors' code's "euclidean".
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch".
    """
    return Pieces(essential=TransportGroups(k, cost), suggested=(Linear(), Beta(alpha, per=per)), prob=prob)
