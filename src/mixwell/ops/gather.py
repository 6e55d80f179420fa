"""Rows and columns of images, taken from other places and from other images of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mixwell.core.mix import layout_of

__all__ = ["gathered"]


def gathered(
    images: Float[Tensor, "b c h w"],
    index: Int64[Tensor, " r"],
    rows: Int64[Tensor, "#r p"],
    columns: Int64[Tensor, "#r q"],
) -> Float[Tensor, "r c p q"]:
    """Pixels (rows, columns) of the image `index`, for each of R canvases; a copy in the same memory layout.

    Args:
        images: (B, C, H, W).
        index: (R,) an image of the batch for each canvas.
        rows, columns: (R, P) and (R, Q), or (1, P) and (1, Q) for all canvases, within the images.
    """
    channels, height, width = images.shape[1:]
    if layout_of(images) is torch.channels_last:
        pixels = ((index[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
        shown = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixels.view(-1))
        return shown.view(*pixels.shape, channels).permute(0, 3, 1, 2)
    planes = index[:, None] * channels + torch.arange(channels, device=images.device)
    lines = planes[:, :, None] * height + rows[:, None, :]  # whole rows are copied several times as fast as pixels
    taken = images.reshape(-1, width).index_select(0, lines.view(-1)).view(*lines.shape, width)
    return taken.gather(3, columns[:, None, None, :].expand(*lines.shape, -1))
