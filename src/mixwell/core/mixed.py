"""What became of a batch, for users who mix more than images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mixwell.core.errors import BatchError, IncompatibleRecipe
from mixwell.core.mix import Mix
from mixwell.core.targets import Targets

__all__ = ["Mixed"]


@dataclass(eq=False)
class Mixed:
    """A mixed batch, and how it was mixed.

    Attributes:
        images: (R, ...) mixed rows.
        targets: their labels.
        mix: who was mixed with whom, and how much of each shows where.
        rows: B, the images of the batch.
        refusal: why nothing else can be mixed in the same way; empty if it can.
    """

    images: Float[Tensor, "r ..."]
    targets: Targets
    mix: Mix
    rows: int
    refusal: str = ""

    def apply(self, x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "r ..."]:
        """Mix what is aligned with the images exactly as they were mixed: segmentation or depth maps, masks of boxes.

        Args:
            x: (B, ...) with the images' grid: for images (B, C, H, W) this is (B, H, W) or (B, D, H, W), also of
                another resolution. Whole numbers and booleans stay what they are, and are looked at on the host.

        Raises:
            IncompatibleRecipe: the recipe cannot do again what it did to the images.
            BatchError: another number of rows, no grid, or whole numbers of which the recipe makes values in between.
        """
        if self.refusal:
            raise IncompatibleRecipe(self.refusal)
        if x.shape[:1] != (self.rows,):
            raise BatchError(f"Expected one row for each of the batch's {self.rows} images, got {tuple(x.shape)}.")
        if self.images.ndim == 4 and x.ndim not in (3, 4):
            raise BatchError(
                f"Expected a tensor with the images' grid, ({self.rows}, H, W) or ({self.rows}, D, H, W), got "
                f"{tuple(x.shape)}. What has no grid is mixed by the label shares: mixed.mix.share(x)."
            )
        flat = self.images.ndim == 4 and x.ndim == 3
        found = self._mixed(x[:, None] if flat else x)
        return found[:, 0] if flat else found

    def _mixed(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return self.mix.apply(x)
        found = self.mix.apply(x.double())
        whole = found.round()
        if not torch.equal(found, whole):
            raise BatchError(
                f"The recipe makes values between those of a tensor of {x.dtype}, which are no labels. Mix one-hot "
                "maps: mixed.apply(F.one_hot(x).movedim(-1, 1).float()), and take what is largest, or the shares."
            )
        return whole.to(x.dtype)
