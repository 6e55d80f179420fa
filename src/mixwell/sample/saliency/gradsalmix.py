"""GradSalMix: paste a box around a salient place of the partner, at the input or in a hidden map.

Hong, Wang, Sun, Lian, Kang, Ma, "GradSalMix: Gradient Saliency-Based Mix for Image Data Augmentation", ICME 2023,
openreview:oaXEWV-bfy.

The saliency of both images is the size of the clean loss's gradient at the step's site, from the network that is being
trained. A box of area 1-λ around one of the partner's most salient places is shown in the same place of the image; the
label follows the saliency that each image brings into the mix. Equations: |∂L/∂h| → `gradient_saliency`; choice of the
centre → `salient_centres`; box → `mixwell.ops.boxes.boxes_at`; accumulated gradients → `saliency_share`.

Paper and code: the paper has no public code, and its full text was not at hand. The abstract says where saliency comes
from, that the region lies around a place of large gradient, that it moves directly, and that labels are weighted by
accumulated gradients. What it leaves open is ours: the distribution of the centre, the box of CutMix, `prob`, and that
each image's saliency is taken relative to its own total (`weights="normalised"`), since gradients are as large as the
image's own loss, and a well-classified image would lose its label (`weights="raw"`).

Right before global average pooling the gradient is the same at every place, and at the patches of a transformer's last
block it is 0 if a class token is classified. There is no salient place there; such sites are left out, or refused.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene
from mixwell.core.batch import Batch
from mixwell.core.errors import ModelError, number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.places import Hidden, Sites
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import boxes_at, kept, scaled
from mixwell.probe import Anatomy, Probe, Views, Want

__all__ = ["BeforePooling", "SalientBox", "gradient_saliency", "saliency_share", "salient_centres"]

Weights = Literal["normalised", "raw", "area"]


def gradient_saliency(gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Size of the loss's gradient, summed over channels, in fp32."""
    return gradient.float().abs().sum(1)


def salient_centres(
    saliency: Float[Tensor, "b h w"], points: Float[Tensor, " b"], top_fraction: float
) -> Int[Tensor, "b 2"]:
    """One of each map's most salient places, drawn in proportion to saliency.

    Args:
        saliency: (B, H, W) ≥ 0; where it is 0 throughout, all places count alike.
        points: (B,) uniform in [0, 1); a point takes the first candidate, from the most salient on, whose cumulative
            probability is beyond it.
        top_fraction: q in (0, 1]; the candidates are the ⌈q·H·W⌉ most salient places, the first of equal ones.

    Returns:
        (B, 2) row and column.
    """
    flat = saliency.float().flatten(1)
    places = flat.shape[1]
    # The bits of floats ≥ 0 order as they do; with the place in the lower half no two keys are equal, so that topk, far
    # faster than a stable sort, has one answer.
    keys = flat.view(torch.int32).long() * 2**32 - torch.arange(places, device=flat.device)
    candidates = keys.topk(ceil(top_fraction * places), 1).indices
    chances = flat.gather(1, candidates)
    cumulative = (chances + (chances[:, :1] == 0)).cumsum(1)
    drawn = (cumulative <= points.to(flat.dtype)[:, None] * cumulative[:, -1:]).sum(1, keepdim=True)
    place = candidates.gather(1, drawn.clamp_max(candidates.shape[1] - 1))
    width = saliency.shape[2]
    return torch.cat((place // width, place % width), 1)


def saliency_share(
    own: Float[Tensor, "b h w"],
    partner: Float[Tensor, "b h w"],
    keep: Float[Tensor, "b 1 h w"],
    weights: Weights = "normalised",
) -> Float[Tensor, " b"]:
    """The own label's share: ΣM·S_i / (ΣM·S_i + Σ(1-M)·S_j); the kept area where that is 0/0.

    Args:
        own, partner: (B, H, W) saliency ≥ 0 of the images and of their partners.
        keep: M, (B, 1, H, W).
        weights: "normalised" takes each map relative to its own sum (without any saliency: the same everywhere), "raw"
            as it is, "area" not at all.
    """
    area = keep.mean((1, 2, 3))
    if weights == "area":
        return area
    mask = keep[:, 0]
    shown, pasted = (mask * own).sum((1, 2)), ((1 - mask) * partner).sum((1, 2))
    if weights == "normalised":
        whole, other = own.sum((1, 2)), partner.sum((1, 2))
        shown = torch.where(whole == 0, area, shown / whole)
        pasted = torch.where(other == 0, 1 - area, pasted / other)
    total = shown + pasted
    return torch.where(total == 0, area, shown / total)


class SalientBox(Blend):
    """Keep the image outside a box, show the partner inside it; the box lies around a salient place of the partner.

    Args:
        top_fraction: q, the share of the partner's most salient places that may be the centre.
        weights: how label shares follow saliency, see `saliency_share`.
        blur: whether centres are chosen from means over 3×3 places.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    network = True

    def __init__(self, top_fraction: float = 0.1, weights: Weights = "normalised", blur: bool = False) -> None:
        super().__init__()
        self.top_fraction = number_in("top_fraction", top_fraction, 0, 1, open_low=True)
        self.weights: Weights = weights
        self.shows_shares = weights == "area"
        self.blur = blur

    def draw(self, rows: int, rng: Generator) -> ndarray:
        """(B,) uniform in [0, 1): which of the candidates is the centre."""
        return rng.random(rows)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: ndarray,
        scene: Scene,
    ) -> Mix:
        assert scene.views is not None, "a piece that needs a network mixes only where there is one"
        size = (images.shape[2], images.shape[3])
        own = gradient_saliency(scene.views.gradient(scene.site or "input"))
        other = partners.of(own)
        centres = salient_centres(_smooth(other) if self.blur else other, onto(draws, own), self.top_fraction)
        cuts = np.sqrt(np.maximum(1 - lam.detach().cpu().numpy(), 0))
        keep = kept(boxes_at(centres, cuts, size), size)

        def apply(x: Tensor) -> Tensor:
            new = (x.shape[2], x.shape[3])
            return partners.under(x, kept(boxes_at(scaled(centres, size, new), cuts, new), new))

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        share = saliency_share(own, other, keep, self.weights)
        area = keep.mean((1, 2, 3))
        return Mix.of_pair(partners.under(images, keep), partners, share, apply, lam=lam, area=area, make_masks=masks)


def _smooth(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Means over 3×3 places, at the border over those that exist."""
    return F.avg_pool2d(maps[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


class BeforePooling(Hidden):
    """A random one of several sites, all of them where the loss's gradient tells one place from another.

    Of the paper's sites those before the network's last stage are taken; sites that are named must do.
    """

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        super().build(anatomy, num_classes)
        if self.lenient:
            self.names = tuple(name for name in self.names if name not in anatomy.stages[-1:])
            return
        if flat := flat_sites(anatomy, self.sites_used()):
            raise ModelError(
                f"At {' and '.join(map(repr, flat))} of {type(anatomy.net).__name__} the loss's gradient is the same "
                "everywhere, as what follows pools all places or reads a class token, so none is salient. Choose "
                f"sites=(...) among the input (0) and earlier places: {', '.join(anatomy.stages[:-1]) or 'none known'}."
            )


def flat_sites(anatomy: Anatomy, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the sites where the gradient is the same at every place, tried out on the network's example images.

    Without examples, or where the network's loss does not depend on them (a classifier of zeros), the last stage and
    the embedding are taken for such sites.
    """
    usual = tuple(name for name in names if name in (*anatomy.stages[-1:], "embedding"))
    images = anatomy.example
    if images is None or not names:
        return usual
    wants = {name: Want("gradient", name) for name in names}
    first = torch.zeros(len(images), dtype=torch.long, device=images.device)
    looks = Views(Probe(anatomy.net, images), Batch(images, first), (Want("gradient", "input"), *wants.values()))
    if not looks.gradient("input").any():
        return usual
    return tuple(name for name, want in wants.items() if _is_flat(looks[want].float()))


def _is_flat(gradient: Float[Tensor, "b c h w"]) -> bool:
    """Whether it is the same at every place, up to rounding."""
    away = gradient - gradient.mean((2, 3), keepdim=True)
    return bool(away.abs().max() <= 1e-4 * gradient.abs().max())


@method("gradsalmix", section="1.7", paper="openreview:oaXEWV-bfy", venue="ICME 2023")
def gradsalmix(
    alpha: float = 1.0,
    top_fraction: float = 0.1,
    sites: Sites | None = None,
    weights: Weights = "normalised",
    blur: bool = False,
    prob: float = 0.5,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the area outside the box before clipping.
    top_fraction: share of the partner's most salient places that may be the box's centre.
    sites: stage numbers (0 is the input) or module names, one of which is drawn per batch; None for the input and
        stages 1 to 3, as far as they lie before the last stage.
    weights: label shares by "normalised" or "raw" saliency, or by "area".
    blur: whether centres are chosen from saliency averaged over 3×3 places.
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch"; centres are each pair's own.
    """
    place = BeforePooling(sites, paper=(0, 1, 2, 3))
    box = SalientBox(top_fraction, weights, blur)
    return Pieces(essential=(place, box), suggested=Beta(alpha, per=per), prob=prob)
