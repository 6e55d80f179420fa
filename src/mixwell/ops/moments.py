"""Mean and standard deviation of maps, and maps with other ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.core.errors import BatchError

__all__ = ["adain", "moments", "positive_moments", "with_moments"]


def moments(
    x: Float[Tensor, "*shape"], over: tuple[int, ...], eps: float = 1e-5
) -> tuple[Float[Tensor, "*moments"], Float[Tensor, "*moments"]]:
    """Mean and standard deviation √(unbiased variance + ε) over some axes, which stay with length 1; in fp32 or fp64.

    Args:
        x: any floating tensor.
        over: the axes.
        eps: ε ≥ 0.

    Raises:
        BatchError: fewer than two values to take the variance of.
    """
    count = math.prod(x.shape[axis] for axis in over)
    if count < 2:
        raise BatchError(
            f"A standard deviation needs at least 2 values, got {count} per moment of maps {tuple(x.shape)}. Choose a "
            "site with larger maps, or groups of more channels."
        )
    mean, variance = _MeanAndVariance.apply(_wide(x), over, count)
    return mean, (variance + eps).sqrt()


class _MeanAndVariance(torch.autograd.Function):
    """Mean and unbiased variance; many times as fast as `torch.var_mean` over strided axes, and keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, over: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
        mean = x.mean(over, keepdim=True)
        variance = (x - mean).square_().sum(over, keepdim=True) / (count - 1)
        ctx.save_for_backward(x, mean)
        ctx.count = count
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, mean = ctx.saved_tensors
        of_mean, of_variance = gradients
        scale = of_variance * (2 / (ctx.count - 1))
        return (x * scale).add_(of_mean / ctx.count - mean * scale), None, None


def positive_moments(
    x: Float[Tensor, "*shape"], over: tuple[int, ...], eps: float = 1e-5
) -> tuple[Float[Tensor, "*moments"], Float[Tensor, "*moments"]]:
    """Mean and standard deviation √(biased variance + ε) of the positive values alone; 0 and √ε where there are none.

    The variance is E[x²] - E[x]², as in the official code of MoEx.

    Args:
        x: any floating tensor.
        over: the axes, which stay with length 1.
        eps: ε ≥ 0.
    """
    x = _wide(x)
    count = (x > 0).sum(over, keepdim=True).clamp_min(1)
    x = x.clamp_min(0)
    mean = x.sum(over, keepdim=True) / count
    variance = x.square().sum(over, keepdim=True) / count - mean.square()
    return mean, (variance.clamp_min(0) + eps).sqrt()  # rounded, it may lie below 0


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def with_moments(
    x: Float[Tensor, "*shape"],
    mean: Float[Tensor, "*moments"],
    std: Float[Tensor, "*moments"],
    new_mean: Float[Tensor, "*moments"],
    new_std: Float[Tensor, "*moments"],
) -> Float[Tensor, "*shape"]:
    """(x - mean) / std · new_std + new_mean, in the moments' dtype; returned in that of x.

    Args:
        x: floating.
        mean, std: the moments that x has; they broadcast to it.
        new_mean, new_std: those that it gets.
    """
    scale = new_std / std
    # Its backward pass takes fewer steps than addcmul's.
    changed = (x.to(scale.dtype) * scale).add_(new_mean - mean * scale)
    return changed.to(x.dtype)


def adain(
    content: Float[Tensor, "b c h w"], style: Float[Tensor, "b c hs ws"], eps: float = 1e-5
) -> Float[Tensor, "b c h w"]:
    """Content maps with the channel moments of style maps (adaptive instance normalisation).

    Args:
        content, style: maps of equal channels; their sizes may differ.
        eps: added to the variances.
    """
    return with_moments(content, *moments(content, (2, 3), eps), *moments(style, (2, 3), eps))
