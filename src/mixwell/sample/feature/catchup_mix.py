"""Catch-up Mix: per filter of a hidden layer, take the map of an image or of its partner, where it is the weaker one.

Kang, Kang, Kim, "Catch-Up Mix: Catch-Up Class for Struggling Filters in CNN", AAAI 2024, arXiv:2401.13193.

Each step draws one of a few sites. At the input it is CutMix; at a hidden one, an image keeps the ⌊λC⌋ filters' maps
in which it is weakest compared with its partner, and takes the others from it, so that filters that dominate lose
their strong maps and struggling ones get to learn. The label has the drawn λ. Equations: filter influence ‖h_c‖₂ →
`filter_norms`; relative filter influence → `relative_influence`; ⌊λC⌋ → `own_filters`; the mask over filters →
`weakest`.

Paper and code: no official code is known. Influences are divided by their sum over an image's filters, and sites lie
behind the stem and the stages, as in the only public implementation. It draws one λ per batch (`per="batch"`). Tokens
are mixed by their features, with norms over the positions, which the paper does not treat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mixwell.core.axes import Blend, Per, Scene
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.places import ByPlace, Hidden, LamByPlace, Sites
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.sample.cutting.cutmix import Box

__all__ = ["CatchUp", "filter_norms", "own_filters", "relative_influence", "weakest"]


def filter_norms(hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """The ℓ2 norm of each filter's map, in fp32 or fp64 and without a gradient, which is NaN at maps of zeros."""
    precision = torch.promote_types(hidden.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(hidden.detach(), dim=(2, 3), dtype=precision)
    return norms


def relative_influence(norms: Float[Tensor, "b c"], partner: Int[Tensor, " b"]) -> Float[Tensor, "b c"]:
    """What share of its image's norms each filter has, minus the same of the partner: in [-1, 1], with sum 0.

    Args:
        norms: (B, C) from `filter_norms`.
        partner: (B,) row of each row's partner.
    """
    influence = norms / (norms.sum(1, keepdim=True) + 1e-12)
    return influence - influence.index_select(0, partner)


def own_filters(lam: Float[np.ndarray, " #b"], filters: int) -> Int64[np.ndarray, " #b"]:
    """How many filters a row keeps: ⌊λC⌋ in fp64, as λ was drawn."""
    count: np.ndarray = np.floor(lam.astype(np.float64) * filters).astype(np.int64)
    return count


def weakest(relative: Float[Tensor, "b c"], count: Int64[np.ndarray, " #b"]) -> Float[Tensor, "b c"]:
    """1 at each row's `count` filters of the lowest relative influence, 0 elsewhere; of equal ones the first count.

    Args:
        relative: (B, C) from `relative_influence`.
        count: (B,) or (1,) from `own_filters`.
    """
    first = onto((np.arange(relative.shape[1]) < count[:, None]).astype(np.float32), relative)
    order = relative.argsort(dim=1, stable=True)
    return relative.new_zeros(relative.shape, dtype=torch.float32).scatter_(1, order, first.expand_as(order))


class CatchUp(Blend):
    """Keep the filters in which the image is weak compared with its partner, take the others from the partner."""

    gives = OF_A_PAIR
    by_channel = True

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: Any,
        scene: Scene,
    ) -> Mix:
        filters, lam = images.shape[1], lam.detach()
        count = own_filters(lam.cpu().numpy(), filters)
        relative = relative_influence(filter_norms(images), partners.column())
        keep = weakest(relative, count)[:, :, None, None]

        def apply(x: Tensor) -> Tensor:
            # A tensor of other channels is kept as much as the map's are on average.
            seen = keep if x.shape[1] == filters else keep.mean(1, keepdim=True)
            return partners.of(x).lerp_(x, seen.to(x.dtype))

        return Mix.of_pair(apply(images), partners, lam, apply, lam=lam)


@method("catchup_mix", section="1.2", paper="2401.13193", venue="AAAI 2024")
def catchup_mix(
    alpha: float = 1.0,
    cutmix_alpha: float = 1.0,
    sites: Sites | None = None,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the share of the filters that an image keeps.
    cutmix_alpha: λ ~ Beta(α, α) of CutMix at the input.
    sites: "stem" (what the first stage is given), stage numbers (0 is the input) or module names, one of which is
        drawn per batch; None for the paper's (0, "stem", 1, 2, 3, 4), without stages that a network lacks.
    prob: share of the batches that are mixed.
    per: one λ, and at the input one box, per "sample" or per "batch"; which filters it is differs per sample.
    """
    ratio = LamByPlace(Beta(cutmix_alpha, per=per), Beta(alpha, per=per))
    place = Hidden(sites, paper=(0, "stem", 1, 2, 3, 4))
    return Pieces(essential=(place, ByPlace(Box(per), CatchUp())), suggested=ratio, prob=prob)
