"""Mean and standard deviation of maps, and maps with other ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.core.errors import BatchError

__all__ = ["adain", "moments", "with_moments"]


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
    count = 1
    for axis in over:
        count *= x.shape[axis]
    if count < 2:
        raise BatchError(
            f"A standard deviation needs at least 2 values, got {count} per moment of maps {tuple(x.shape)}. Choose a "
            "site with larger maps, or groups of more channels."
        )
    wide = x if x.dtype is torch.float64 else x.float()
    variance, mean = torch.var_mean(wide, over, keepdim=True)
    return mean, (variance + eps).sqrt()


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
    changed = torch.addcmul(new_mean - mean * scale, x.to(scale.dtype), scale)
    return changed.to(x.dtype)


def adain(
    content: Float[Tensor, "b c h w"], style: Float[Tensor, "b c h w"], eps: float = 1e-5
) -> Float[Tensor, "b c h w"]:
    """Content maps with the channel moments of style maps (adaptive instance normalisation).

    Args:
        content, style: maps of equal channels; their sizes may differ.
        eps: added to the variances.
    """
    return with_moments(content, *moments(content, (2, 3), eps), *moments(style, (2, 3), eps))
