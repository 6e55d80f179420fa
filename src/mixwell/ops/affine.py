"""Affine maps of images, and their inverses.

A map θ leads from a place in the output to one in the input. Sides run from -1 to 1, edge to edge, so that one map
serves any resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["inverse_of", "warped"]


def warped(x: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c h w"]:
    """Each row moved by its affine map: bilinear, and 0 where it comes from outside; at least in fp32.

    Args:
        x: images or maps.
        theta: θ of each row.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(theta.to(dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def inverse_of(theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b 2 3"]:
    """The affine maps that undo these; of one that flattens the plane, a map that shows nothing."""
    matrix, shift = theta[:, :, :2], theta[:, :, 2:]
    (a, b), (c, d) = (row.unbind(1) for row in matrix.unbind(1))
    size = a * d - b * c
    flat = size.abs() < 1e-6
    turned = torch.stack((d, -b, -c, a), 1).view(-1, 2, 2) / torch.where(flat, 1, size)[:, None, None]
    back = torch.cat((turned, -turned @ shift), 2)
    nowhere = torch.tensor([[0.0, 0.0, 9.0]], dtype=theta.dtype, device=theta.device)
    return torch.where(flat[:, None, None], nowhere, back)
