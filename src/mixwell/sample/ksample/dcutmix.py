"""DCutMix: nest boxes of several partners in an image, with areas from a broken stick.

Jeong, Cha, Choi, Yun, Moon, Yoo, "Observations on K-image Expansion of Image-Mixing Augmentation for Classification",
IEEE Access 2023, arXiv:2110.04248.

The shares of K images follow a Dirichlet distribution. Each break of the stick takes its share of what is left for one
image, and what then is left is a box inside the one before it, which shows the next image; the label follows the areas
after rounding. `variant="dmixup"` averages the K images with the drawn shares instead.
Equations: φ ~ Dirichlet(α·1) → `draw`; v_k = φ_k / Π_{i<k} (1 - v_i) → `stick_breaks`; boxes of √(1 - v_k) →
`nested_boxes`; x̃ → `nest`; ỹ = Σ area_k·y_k → `segment_areas`, the mix's label shares; DMixup: x̃ = Σ φ_k·x_k →
`convex`.

Unlike CutMix's, the boxes never cross the border of what they lie in. The image itself has the first share: what is
outside all boxes.

Paper and code: the defaults are those for CIFAR-100 with PyramidNet-110, K = 5 and α = 1/K. For CIFAR-10 it is K = 3
and α = 1/K, for CIFAR-100 with PyramidNet-200 α = 1 on half of the batches (`alpha=1, prob=0.5`). In the authors' code
α = 1 unless it is told otherwise, and `beta` is the share of the batches. Shares and boxes are one per sample in both.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.plain import Permutation
from mixwell.core.registry import Pieces, method
from mixwell.ops.nested import nest, nested_boxes, nested_masks, segment_areas, stick_breaks

__all__ = ["Convex", "NestDraws", "NestedBoxes", "convex"]

Variant = Literal["dcutmix", "dmixup"]


def convex(images: Float[Tensor, "b ..."], partners: Partners, shares: Float[Tensor, "#b k"]) -> Float[Tensor, "b ..."]:
    """Σ φ_k·x_k over each image and its partners, row by row.

    Args:
        images: (B, ...) floating.
        partners: K - 1 of each row.
        shares: (B, K) or (1, K) φ, the image's own first, on the images' device.
    """
    columns = shares.to(images.dtype).view(*shares.shape, *(1,) * (images.ndim - 1)).unbind(1)
    mixed = images * columns[0]
    for which, share in enumerate(columns[1:]):
        mixed.addcmul_(partners.of(images, which), share)
    return mixed


class _Sticks(Blend):
    """What both blends of K images draw: shares from Dirichlet(α, …, α).

    Args:
        k: images in a mix, the own one included.
        alpha: concentration α of each share.
        per: one draw per "sample", or one per "batch".
    """

    takes_lam = False

    def __init__(self, k: int = 5, alpha: float = 0.2, per: Per = "sample") -> None:
        super().__init__()
        if k < 2:
            raise ParameterError(f"k must be a whole number ≥ 2, got {k}. It counts the image itself; 2 mixes pairs.")
        self.partners = k - 1
        self.alpha = number_in("alpha", alpha, 0, open_low=True, hint="1/k is the paper's.")
        self.per = per_of(per)

    def _shares(self, rows: int, rng: Generator) -> Float32[np.ndarray, "#b k"]:
        alphas = np.full(self.partners + 1, self.alpha)
        return rng.dirichlet(alphas, 1 if self.per == "batch" else rows).astype(np.float32)


class NestDraws(NamedTuple):
    """The stick, and where its boxes lie.

    Attributes:
        shares: (B, K) or (1, K) fp32, rows that sum to 1; the image's own first.
        places: (B, K - 1, 2) or (1, K - 1, 2) uniform in [0, 1): row, column.
    """

    shares: np.ndarray
    places: np.ndarray


class NestedBoxes(_Sticks):
    """Keep the image outside a box, show its partners inside: each in a box that lies in the one before."""

    gives = frozenset({Need.MASKS, Need.SIMPLEX, Need.OWN_ROW})

    def draw(self, rows: int, rng: Generator) -> NestDraws:
        shares = self._shares(rows, rng)
        return NestDraws(shares, rng.random((len(shares), self.partners, 2)))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: NestDraws,
        scene: Scene,
    ) -> Mix:
        size = (images.shape[2], images.shape[3])
        breaks = stick_breaks(draws.shares)
        boxes = nested_boxes(breaks, draws.places, size)

        def apply(x: Tensor) -> Tensor:
            return nest(x, partners, nested_boxes(breaks, draws.places, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return nested_masks(boxes, size, images.device)

        areas = segment_areas(boxes, size)
        weights = onto(areas.astype(np.float32), images).expand(partners.sources.shape)
        return Mix(
            nest(images, partners, boxes),
            partners.sources,
            weights,
            partners.pool,
            apply,
            area=torch.from_numpy(areas[:, 0]),
            make_masks=masks,
        )


class Convex(_Sticks):
    """The mean of an image and its partners, weighted by the shares."""

    gives = frozenset({Need.SIMPLEX, Need.OWN_ROW})
    grid = False

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, K) or (1, K) fp32, rows that sum to 1; the image's own first."""
        return self._shares(rows, rng)

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        shares = onto(draws, images)
        own = torch.from_numpy(draws[:, 0])

        def apply(x: Tensor) -> Tensor:
            return convex(x, partners, shares)

        def masks(mix: Mix) -> Tensor:
            return mix.weights[:, :, None, None]

        weights = shares.expand(partners.sources.shape)
        return Mix(apply(images), partners.sources, weights, partners.pool, apply, lam=own, area=own, make_masks=masks)


@method("dcutmix", section="1.4", paper="2110.04248", venue="IEEE Access 2023")
def dcutmix(
    k: int = 5, alpha: float = 0.2, variant: Variant = "dcutmix", prob: float = 1.0, per: Per = "sample"
) -> Pieces:
    """Args:
    k: images in a mix, the own one included.
    alpha: shares ~ Dirichlet(α, …, α); the paper takes 1/k, and 1 for PyramidNet-200 on CIFAR-100.
    variant: "dcutmix" nests boxes, "dmixup" averages.
    prob: share of the batches that are mixed.
    per: one draw of shares and boxes per "sample" or per "batch".
    """
    if variant not in get_args(Variant):
        raise ParameterError(f"variant must be 'dcutmix' or 'dmixup', got {variant!r}.")
    blend = NestedBoxes(k, alpha, per) if variant == "dcutmix" else Convex(k, alpha, per)
    return Pieces(essential=blend, suggested=Permutation(k - 1), prob=prob)
