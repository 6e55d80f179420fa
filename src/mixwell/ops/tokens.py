"""Between pixel maps and the patch tokens of a transformer."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixwell.core.errors import SiteError

__all__ = ["fold", "grid_of", "token_masks", "token_shares"]


def grid_of(patches: int, aspect: float, where: str) -> tuple[int, int]:
    """Rows and columns of a token grid for images of the given aspect (height / width).

    Raises:
        SiteError: no such grid has that many patches.
    """
    h = round((patches * aspect) ** 0.5)
    for rows in (h, h - 1, h + 1):
        if rows > 0 and patches % rows == 0:
            return rows, patches // rows
    raise SiteError(f"The {patches} patch tokens at {where!r} form no grid for images of height/width {aspect:g}.")


def token_masks(masks: Float[Tensor, "r k h w"], patches: int) -> Float[Tensor, "r k gh gw"]:
    """The masks on a grid of `patches` tokens, in fp32: each token takes its top-left pixel (nearest neighbour)."""
    grid = grid_of(patches, masks.shape[-2] / masks.shape[-1], "masks")
    return F.interpolate(masks.float(), size=grid, mode="nearest")


def token_shares(masks: Float[Tensor, "r k h w"], weights: Float[Tensor, "r n"]) -> Float[Tensor, "r k"]:
    """Each source's share of a weight per token, in fp32; the shares of a row sum to 1.

    A token belongs to the source that shows its top-left pixel.
    """
    owned = token_masks(masks, weights.shape[1]).flatten(2)
    parts = (owned * weights.float()[:, None]).sum(2)
    return parts / parts.sum(1, keepdim=True)


def fold(shares: Float[Tensor, "r k t"], attention: Float[Tensor, "r t t"]) -> Float[Tensor, "r k t"]:
    """½(Ā·r + r): what each token is made of after a block, if labels are mixed as its attention mixes tokens.

    Args:
        shares: of each source in each token, prefix tokens included.
        attention: softmaxed, its rows the looking tokens; the mean over heads.
    """
    return (shares @ attention.transpose(1, 2) + shares) / 2
