"""Patches: non-overlapping tiles of an image, row by row from the top left, and which of them are alike."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["nearest", "patches_of"]


def patches_of(x: Float[Tensor, "b c h w"], patch: tuple[int, int]) -> Float[Tensor, "b _rows _columns c _h _w"]:
    """A view of the image's whole patches; what remains at the right and bottom is left out."""
    height, width = patch
    rows, columns = x.shape[2] // height, x.shape[3] // width
    tiled = torch.unflatten(x[:, :, : rows * height, : columns * width], 3, (columns, width))
    return torch.unflatten(tiled, 2, (rows, height)).permute(0, 2, 4, 1, 3, 5)


def nearest(
    own: Float[Tensor, "b n d"], other: Float[Tensor, "b m d"], count: int = 1
) -> tuple[Float[Tensor, "b n k"], Int64[Tensor, "b n k"]]:
    """For each vector of `own` the nearest of `other`: squared Euclidean distances, ascending, and their positions.

    Computed in fp32 (fp64 for fp64 input), autocast off, and not differentiated.

    Args:
        own: (B, N, D).
        other: (B, M, D).
        count: how many of the M, at most all.
    """
    with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
        own, other = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (own, other))
        # ‖a‖² is the same for all of `other`, and is added where its neighbours are known.
        squared = [torch.linalg.vector_norm(x, dim=2).square_() for x in (own, other)]  # without a temporary x²
        partial = torch.baddbmm(squared[1][:, None], own, other.transpose(1, 2), alpha=-2)
        found, index = partial.min(2, keepdim=True) if count == 1 else partial.topk(count, largest=False)
        return (found + squared[0][:, :, None]).clamp_min_(0), index
