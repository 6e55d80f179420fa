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
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import area_of, box_masks, boxes_of

__all__ = ["Box", "paste"]


def paste(images: Float[Tensor, "b c h w"], partners: Partners, boxes: Int[Tensor, "#b 4"]) -> Float[Tensor, "b c h w"]:
    """The images with their partners' pixels inside the boxes: one box each, or one for all."""
    if boxes.shape[0] == 1 and boxes.device.type == "cpu":
        top, bottom, left, right = boxes[0].tolist()
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners.of(images[:, :, top:bottom, left:right])
        return mixed
    inside = box_masks(boxes.to(images.device, non_blocking=True), (images.shape[2], images.shape[3]))
    # With weights 0 and 1 lerp copies exactly, and is several times as fast as `where` with a mask that broadcasts.
    return partners.of(images).lerp_(images, (~inside).to(images.dtype))


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
        centres = torch.from_numpy(draws)
        boxes = boxes_of(lam, centres, size)
        own = 1 - area_of(boxes, size)

        def apply(x: Tensor) -> Tensor:
            return paste(x, partners, boxes_of(lam, centres, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            inside = box_masks(boxes.to(images.device), size)
            return torch.cat((~inside, inside), 1).float()

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
