"""SaliencyMix: show the partner inside a box around its most salient pixel, the image outside it.

Uddin, Monira, Shin, Chung, Bae, "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization",
ICLR 2021, arXiv:2006.01791.

CutMix's box of area 1-λ lies around the most salient pixel of the partner, by a saliency that needs no training, and is
pasted in the same place; the label follows the area that is really covered. Equations: peak of the saliency map →
`peaks`; box → `mixwell.ops.boxes.boxes_at`; M⊙I_s + M'⊙I_t → `PeakBox`.

Paper and code:
- The paper looks at every source image; the code draws one λ per batch, and one box for all pairs, around the peak of
  the first row's partner alone (`per="batch"`).
- The training code gives normalised floats to a detector of 8-bit images, which takes bytes of their memory for grey
  levels, so that its peaks are nearly random (`pixels="float_bytes"`). By default the detector sees 8-bit pixels.
- The code mixes half of the batches on CIFAR (`prob=0.5`), all on ImageNet.

The saliency is always that of the input image. A recipe that mixes hidden maps has the box around the same place there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.batch import Batch
from mixwell.core.errors import ParameterError
from mixwell.core.mix import Mix, Partners, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Saliency, Source, saliency_of
from mixwell.ops.boxes import boxes_at, kept, scaled
from mixwell.ops.saliency import fine_grained_bytes
from mixwell.probe import Anatomy, Want

__all__ = ["FineGrainedBytes", "PeakBox", "peaks"]


def peaks(maps: Float[Tensor, "b h w"]) -> Int[Tensor, "b 2"]:
    """Row and column of each map's largest value, the first of equal ones."""
    place = maps.flatten(1).argmax(1)
    return torch.stack((place // maps.shape[2], place % maps.shape[2]), 1)


class FineGrainedBytes(Saliency):
    """What the authors' detector makes of normalised images, by the bytes of their floats."""

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        return fine_grained_bytes(scene.batch.images.detach()).float()


class PeakBox(Blend):
    """Keep the image outside a box, show the partner inside it; the box lies around the partner's saliency peak.

    Args:
        saliency: where the saliency comes from.
        per: boxes around each partner's own peak ("sample"), or all around that of the first row's partner ("batch").
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, saliency: Saliency, per: Per = "sample") -> None:
        super().__init__()
        self.saliency = saliency
        self.network = saliency.network
        self.per = per_of(per)

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.saliency.build(anatomy, num_classes)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: None,
        scene: Scene,
    ) -> Mix:
        maps = self._maps(partners, scene)
        places, seen = peaks(maps), (maps.shape[1], maps.shape[2])
        cuts = np.sqrt(np.maximum(1 - lam.detach().cpu().numpy(), 0))

        def boxes(size: tuple[int, int]) -> Int[Tensor, "#b 4"]:
            return boxes_at(scaled(places, seen, size), cuts, size)

        def apply(x: Tensor) -> Tensor:
            size = (x.shape[2], x.shape[3])
            return partners.under(x, kept(boxes(size), size))

        size = (images.shape[2], images.shape[3])
        found = boxes(size)
        keep = kept(found, size)
        sides = found[:, 1::2] - found[:, ::2]
        own = 1 - sides[:, 0] * sides[:, 1] / (size[0] * size[1])

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        return Mix.of_pair(partners.under(images, keep), partners, own, apply, lam=lam, area=own, make_masks=masks)

    def _maps(self, partners: Partners, scene: Scene) -> Float[Tensor, "#b h w"]:
        """Saliency of the partners, or of the first row's alone."""
        rows = partners.column()[: 1 if self.per == "batch" else None]
        if self.network:
            return self.saliency.maps(scene).index_select(0, rows)
        # Pixels are rounded in fp32: rounded in fp16, they would have other levels, and other peaks.
        images = scene.batch.images.detach().index_select(0, rows).float()
        sources = Batch(images, scene.batch.labels.index_select(0, rows), scene.batch.pixels)
        return self.saliency.maps(replace(scene, batch=sources))


@method("saliencymix", section="1.7", paper="2006.01791", venue="ICLR 2021")
def saliencymix(
    alpha: float = 1.0,
    saliency: Source = "fine_grained",
    pixels: Literal["uint8", "float_bytes"] = "uint8",
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the area outside the box before clipping.
    saliency: the paper's "fine_grained", which looks at pixels alone, or another source.
    pixels: what "fine_grained" looks at: the pixels in 256 levels ("uint8"), or as in the authors' training code the
        bytes of normalised floats ("float_bytes").
    prob: share of the batches that are mixed; the paper takes 0.5 on CIFAR, 1 on ImageNet.
    per: one λ and box per "sample", or per "batch" as in the authors' code.
    """
    if pixels == "float_bytes" and saliency != "fine_grained":
        raise ParameterError(
            f"pixels='float_bytes' says how 'fine_grained' reads the images, got saliency={saliency!r}. Leave it out."
        )
    source = FineGrainedBytes() if pixels == "float_bytes" else saliency_of(saliency)
    return Pieces(essential=PeakBox(source, per), suggested=Beta(alpha, per=per), prob=prob)
