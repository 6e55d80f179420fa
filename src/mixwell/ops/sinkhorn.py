"""Entropic optimal transport between sets of points, for a batch at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Transport", "sinkhorn", "squared_distances"]

_LOOK_EVERY = {"cpu": 1}
"""Iterations between two looks of the host at whether it is done, by device; elsewhere 10, as it has to wait there."""

_NOTHING = -80.0
"""A logarithm beside which 0 counts; exp takes up to ten times as long where it underflows."""


class Transport(NamedTuple):
    """What `sinkhorn` found.

    Attributes:
        plan: (B, n, m) how much goes from each source to each sink, ≥ 0; every sink gets 1/m.
        iterations: how many there were, on the device of the plan.
    """

    plan: Float[Tensor, "b n m"]
    iterations: Int[Tensor, ""]


@torch.no_grad()
def squared_distances(x: Float[Tensor, "b c n"], y: Float[Tensor, "b c m"]) -> Float[Tensor, "b n m"]:
    """Squared Euclidean distances between the columns of x and those of y, without gradient.

    In fp32 (fp64 for fp64 input), autocast off. Both are centred first, so that a common offset, such as rectified
    features have, costs no precision.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = (points.to(torch.promote_types(points.dtype, torch.float32)) for points in (x, y))
        centre = x.mean(2, keepdim=True)
        x, y = x - centre, y - centre
        norms = x.square().sum(1)[:, :, None] + y.square().sum(1)[:, None]
        return norms.baddbmm_(x.transpose(1, 2), y, alpha=-2).clamp_min_(0)


@torch.no_grad()
def sinkhorn(
    cost: Float[Tensor, "b n m"], eps: float = 0.1, iterations: int = 100, threshold: float = 0.1
) -> Transport:
    """The plan between uniform marginals that minimises ⟨plan, cost⟩ - eps · entropy, without gradient.

    Runs in the logarithmic domain with autocast off, and stops once the sources' potentials change by less than
    `threshold` in an iteration, summed over the sources, the mean over the batch. Sinks come last in an iteration, so
    their marginals are met exactly and the sources' as far as it has converged.

    On a GPU the test stays on the device: potentials no longer change once it is met, and the host looks only every
    tenth iteration whether to go on.

    Args:
        cost: (B, n, m) in fp32 or fp64.
        eps: weight of the entropy, > 0, in units of the cost.
        iterations: at most.
        threshold: in units of the cost.
    """
    look_every = _LOOK_EVERY.get(cost.device.type, 10)
    with torch.autocast(cost.device.type, enabled=False):
        # Potentials are kept relative to the cheapest sink's cost, and so small enough not to lose digits.
        cheapest = cost.amin(2)
        log_kernel = (cheapest[:, :, None] - cost).div_(eps)
        source = cheapest / -eps
        sink = cost.new_zeros(cost.shape[0], cost.shape[2])
        to_source, to_sink = -math.log(cost.shape[1]), -math.log(cost.shape[2])
        done = torch.zeros((), dtype=torch.bool, device=cost.device)
        count = torch.zeros((), dtype=torch.int64, device=cost.device)
        scratch = torch.empty_like(log_kernel)
        for step in range(1, iterations + 1):
            new_source = to_source - _logsumexp_(torch.add(log_kernel, sink[:, None], out=scratch), 2)
            new_sink = to_sink - _logsumexp_(torch.add(log_kernel, new_source[:, :, None], out=scratch), 1)
            change = eps * (new_source - source).abs_().sum(1).mean()
            source, sink = torch.where(done, source, new_source), torch.where(done, sink, new_sink)
            count += ~done
            done |= change < threshold
            if step % look_every == 0 and done:
                break
        plan = log_kernel.add_(source[:, :, None]).add_(sink[:, None]).exp_()
    return Transport(plan, count)


def _logsumexp_(x: Float[Tensor, "b n m"], dim: int) -> Float[Tensor, "b k"]:
    """As torch.logsumexp, several times as fast on a CPU; overwrites x."""
    top = x.amax(dim, keepdim=True)
    return x.sub_(top).clamp_min_(_NOTHING).exp_().sum(dim).log_().add_(top.squeeze(dim))
