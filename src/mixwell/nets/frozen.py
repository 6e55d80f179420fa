"""Functions of images that are used in training, but not trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """A function of images that is never trained: always in evaluation mode, without gradient and autocast.

    Args:
        function: of (B, ...) images or maps; a module's parameters are frozen.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b ..."]) -> Any:
        """Of images in the precision of the function's parameters, or in fp32 where it has none."""
        like = next(self.parameters(), None)
        with torch.autocast(images.device.type, enabled=False):
            return self.function(images.to(torch.float32 if like is None else like.dtype))
