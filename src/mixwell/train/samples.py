"""What a recipe's networks make of a few images, drawn after each epoch."""

from __future__ import annotations

import io

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mixwell.core.batch import Batch
from mixwell.core.clock import Clock
from mixwell.core.recipe import Recipe
from mixwell.probe.trace import untouched

__all__ = ["COUNT", "renders", "samples"]

COUNT = 8
"""Images that are drawn."""

_SMALLEST = 64
"""Side in pixels to which smaller images are enlarged by a whole factor."""
_GAP = 4


def renders(recipe: Recipe) -> bool:
    """Whether networks that learn or render make its mixes, so that one wants to look at them.

    Not where hidden maps are mixed, which are no pictures; sites are known once the recipe is bound.
    """
    blends = [option.blend for option in recipe.policies if option.blend is not None]
    return not recipe.sites and any(
        not blend.exact or any(p.requires_grad for p in blend.parameters()) for blend in blends
    )


@torch.no_grad()
def samples(recipe: Recipe, net: nn.Module, batch: Batch, clock: Clock) -> bytes:
    """A PNG file: the images in the first row, what is mixed of them in the second.

    Nothing is left behind in the recipe's modules or the network.
    """
    with untouched(recipe, training=True), untouched(net):
        mixed = recipe.preview(net, batch, clock)
    rows = [batch.images, mixed[: len(batch)].to(batch.images)]
    if batch.pixels is not None:
        rows = [batch.pixels.raw(row) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(_grid(rows).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _grid(rows: list[Float[Tensor, "b c h w"]]) -> Tensor:
    """(Y, X, 3) bytes: rows of images, side by side."""
    columns, channels, height, width = rows[0].shape
    zoom = -(-_SMALLEST // min(height, width))
    tall, wide = height * zoom + _GAP, width * zoom + _GAP
    page = torch.full((len(rows) * tall + _GAP, columns * wide + _GAP, 3), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        shown = row.float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
        shown = (shown if channels == 3 else shown[:, :1].expand(-1, 3, -1, -1)).permute(0, 2, 3, 1)
        shown = shown.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        for x, image in enumerate(shown):
            top, left = _GAP + y * tall, _GAP + x * wide
            page[top : top + height * zoom, left : left + width * zoom] = image
    return page
