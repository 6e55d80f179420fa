"""CutMix: show the partner inside a box, the image outside it.

Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
ICCV 2019, arXiv:1905.04899.

A random box of area 1-λ is replaced by the same region of a partner; the label follows the area that is really covered
after the box was clipped at the border. Equations: box → `boxes_of`; x̃ = M⊙x_i + (1-M)⊙x_j → `paste`.

Paper and code: the authors' code draws one λ and one box per batch (`per="batch"`), and applies CutMix to half of the
CIFAR batches (`prob=0.5`), to all on ImageNet.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import area_of, boxes_of, outside, pair_masks

__all__ = ["Box", "paste"]


def paste(
    images: Float[Tensor, "b c h w"], partners: Partners, boxes: Int64[np.ndarray, "#b 4"]
) -> Float[Tensor, "b c h w"]:
    """The images with their partners' pixels inside the boxes: one box each, or one for all."""
    if len(boxes) == 1:
        top, bottom, left, right = boxes[0].tolist()
        mixed = images.clone()
        seen, shown = (x[:, :, top:bottom, left:right] for x in (images, mixed))
        if images.requires_grad and torch.is_grad_enabled():
            shown.copy_(partners.of(seen))
        else:
            torch.index_select(seen, 0, partners.column(), out=shown)
        return mixed
    keep = outside(boxes, (images.shape[2], images.shape[3]), images.device, images.dtype)
    return partners.under(images, keep)


class Box(Blend):
    """Keep the image outside a random box, show the partner inside it.

    Args:
        per: one box per "sample", or one per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, per: Per = "sample") -> None:
        super().__init__()
        self.per = per_of(per)

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
        size = (images.shape[2], images.shape[3])
        outer = lam.detach().cpu().numpy()
        boxes = boxes_of(outer, draws, size)
        own = torch.from_numpy(1 - area_of(boxes, size))

        def apply(x: Tensor) -> Tensor:
            return paste(x, partners, boxes_of(outer, draws, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return pair_masks(boxes, size, images.device)

        mixed = paste(images, partners, boxes)
        return Mix.of_pair(mixed, partners, own, apply, lam=lam, area=own, make_masks=masks)


@method("cutmix", section="1.3", paper="1905.04899", venue="ICCV 2019")
def cutmix(alpha: float = 1.0, prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the area outside the box before clipping.
    prob: share of the batches that are mixed; the paper takes 0.5 on CIFAR, 1 on ImageNet.
    per: one λ and box per "sample" or per "batch".
    """
    return Pieces(essential=Box(per), suggested=Beta(alpha, per=per), prob=prob)
