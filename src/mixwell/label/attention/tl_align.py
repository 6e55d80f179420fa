"""TL-Align: label a mix with what of each source has reached the class token through the network's attention.

Xiao, Zheng, Zhu, Zhou, Lu, "Token-Label Alignment for Vision Transformers", ICCV 2023, arXiv:2210.06455.

Images are those of CutMix, with boxes that consist of whole patches, so that every input token has the label of one
source. Each block then mixes token labels as it mixes tokens: by the mean of its heads' attention, and half of each
label stays where it is, as tokens do by the residual path. The class token's label after the last block is the target.
It costs no further pass and has no parameters. Equations: Y ← ½(ĀY + Y) → `mixwell.ops.tokens.fold`, in every block of
the pass that is trained; M on the token grid → `PatchBox`, `token_boxes`.

Labels are carried as each source's share of a token, one column per source in place of one per class, which gives the
same target. Prefix tokens begin with the shares of the whole image. Networks without a class token give the mean of the
last tokens' labels. In windows (Swin) labels are mixed within theirs, and averaged where patches are merged.

Paper and code: the authors' code draws one λ and box per batch (`per="batch"`), on patches of 16 pixels (`patch=16`),
pairs a batch with its reverse, and has a mixup branch that its labels cannot use.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Label, Need, Per, Scene, Step, per_of
from mixwell.core.errors import ParameterError
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.boxes import area_of, boxes_of, pair_masks
from mixwell.probe import Anatomy, Want, seen_on_example
from mixwell.sample.cutting.cutmix import paste

__all__ = ["AlignedTokens", "PatchBox", "token_boxes"]


def token_boxes(
    lam: Float[np.ndarray, " #b"],
    centres: Float[np.ndarray, "#b 2"],
    grid: tuple[int, int],
    size: tuple[int, int],
) -> Int64[np.ndarray, "b 4"]:
    """CutMix's boxes on a grid of tokens, at the size of an image: token t of h begins at pixel ⌊t·H/h⌋ of H.

    Args:
        lam: (B,) or (1,) share of the tokens that stays outside, before clipping.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
        grid: rows and columns of tokens.
        size: height and width of the image.
    """
    boxes: np.ndarray = boxes_of(lam, centres, grid) * np.repeat(size, 2) // np.repeat(grid, 2)
    return boxes


class PatchBox(Blend):
    """Keep the image outside a random box of whole patches, show the partner inside it.

    Args:
        patch: side of a patch in pixels; None for the patches of the network that the recipe is bound to, and for
            single pixels, which give the boxes of CutMix, as long as there is none.
        per: one box per "sample", or one per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, patch: int | None = None, per: Per = "sample") -> None:
        super().__init__()
        if patch is not None and patch < 1:
            raise ParameterError(f"patch must be a whole number of pixels ≥ 1, or left out, got {patch!r}.")
        self.patch = patch
        self.per = per_of(per)
        self.density = (1.0, 1.0)
        """Tokens per pixel along the height and the width."""

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Find the network's patches, if they are not given.

        Raises:
            ModelError: the network has no transformer blocks, or there are no example images.
        """
        if self.patch is None:
            want = Want("features", "block:0")
            seen = seen_on_example(anatomy, "The box of whole patches", [want])[want]
            height, width = anatomy.example_for("The box of whole patches").shape[2:]
            self.density = seen.shape[2] / height, seen.shape[3] / width

    def grid_in(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens that an image of the given size has."""
        if self.patch is not None:
            return max(size[0] // self.patch, 1), max(size[1] // self.patch, 1)
        return max(round(size[0] * self.density[0]), 1), max(round(size[1] * self.density[1]), 1)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, 2) or (1, 2) centres, uniform in [0, 1): row, column."""
        return rng.random((1 if self.per == "batch" else rows, 2))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        size, outer = (images.shape[2], images.shape[3]), lam.detach().cpu().numpy()
        pixels = scene.batch.images
        grid = self.grid_in((pixels.shape[2], pixels.shape[3]))
        boxes = token_boxes(outer, draws, grid, size)
        own = torch.from_numpy(1 - area_of(boxes, size))

        def apply(x: Tensor) -> Tensor:
            return paste(x, partners, token_boxes(outer, draws, grid, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return pair_masks(boxes, size, images.device)

        mixed = paste(images, partners, boxes)
        return Mix.of_pair(mixed, partners, own, apply, lam=lam, area=own, make_masks=masks)


class AlignedTokens(Label):
    """Label shares that have reached the class token, in the forward pass that is being trained."""

    needs = frozenset({Need.MASKS, Need.SIMPLEX})
    network = True

    def __init__(self) -> None:
        super().__init__()
        self.alignment = Want("alignment")

    def wants(self) -> tuple[Want, ...]:
        return (self.alignment,)

    def targets(self, step: Step) -> Targets:
        return step.mix.targets(step.outputs[self.alignment])


@method("tl_align", section="2.5", paper="2210.06455", venue="ICCV 2023")
def tl_align(alpha: float = 1.0, patch: int | None = None, prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the share of the patches outside the box before clipping.
    patch: side in pixels of the patches that boxes consist of; None for the network's own.
    prob: share of the batches that are mixed.
    per: one λ and box per "sample" or per "batch".
    """
    return Pieces(essential=AlignedTokens(), suggested=(PatchBox(patch, per), Beta(alpha, per=per)), prob=prob)
