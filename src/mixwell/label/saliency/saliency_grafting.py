"""Saliency Grafting: graft random salient regions onto a partner, and label by the saliency that is left of each.

Park, Yang, Shin, Hwang, Yang, "Saliency Grafting: Innocuous Attribution-Guided Mixup with Calibrated Label Mixing",
AAAI 2022, arXiv:2112.08796.

Of all regions of an image that are more salient than the mean, a random part is grafted onto a partner, so that the
same region is not pasted every time; the label follows the share of each image's saliency that can still be seen, which
makes up for the chance. Equations: softmax(S/T) → `tempered`; S' > mean(S') → `salient_regions`; M = P⊙B,
P ~ Bernoulli(p), p ~ Beta(α, α) → `Grafted`; I(S, M) = ‖S⊙M‖₂/‖S‖₂ → `importance`;
λ_i = I(S_i, M_i) / (I(S_i, M_i) + I(S_j, 1-M_i)) → `CalibratedShares`. The image's own row is the donor of the graft.

Paper and code: no official code was found. The paper draws one p per batch (`per="batch"`). Saliency is the size of the
activations of the last stage that still has 4 × 4 places (`site`); it is divided by its largest value before the
softmax, which would otherwise depend on the scale of the network's features. Where there is no saliency at all the
label follows the area, as with `label="area"` everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Label, Need, Per, Scene, Step
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Activation, Saliency, Source, resized, saliency_of
from mixwell.core.targets import Targets
from mixwell.ops.noise import uniform_noise
from mixwell.probe import Anatomy, Want, seen_on_example

__all__ = [
    "CalibratedShares",
    "Grafted",
    "GraftedMix",
    "GridActivation",
    "Pooled",
    "importance",
    "relative",
    "salient_regions",
    "tempered",
]

_CELLS = 4
"""Places along either side that a stage must have."""
_POOLED = 8
"""Cells along the shorter side of maps that have one value per pixel."""


def relative(saliency: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Saliency ≥ 0 as a share of the map's largest value; a map of zeros stays one."""
    return saliency / saliency.amax((1, 2), keepdim=True).clamp_min(torch.finfo(saliency.dtype).tiny)


def tempered(saliency: Float[Tensor, "b h w"], temperature: float) -> Float[Tensor, "b h w"]:
    """S' = softmax(S/T) over the places of each map."""
    return (saliency / temperature).flatten(1).softmax(1).view_as(saliency)


def salient_regions(spread: Float[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """B: where S' exceeds its mean 1/(h·w); everywhere if it does nowhere, since the map is constant."""
    above = spread > 1 / (spread.shape[1] * spread.shape[2])
    return above | ~above.any(2, keepdim=True).any(1, keepdim=True)


def importance(saliency: Float[Tensor, "r k h w"], regions: Float[Tensor, "r k h w"]) -> Float[Tensor, "r k"]:
    """I(S, M) = ‖S⊙M‖₂ / ‖S‖₂; 0 where S is."""
    whole = torch.linalg.vector_norm(saliency, dim=(2, 3))
    left = torch.linalg.vector_norm(saliency * regions, dim=(2, 3))
    shares: Tensor = left / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    return shares


class GridActivation(Activation):
    """Size of the activations of the last stage whose maps have at least 4 × 4 places; of the finest if none has."""

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Choose the stage by a pass over the example images.

        Raises:
            ModelError: there are none.
        """
        wants = [Want("features", number) for number in range(1, len(anatomy.stages) + 1)]
        seen = seen_on_example(anatomy, "The grid of the saliency", wants)
        sides = [min(seen[want].shape[2:]) for want in wants]
        large = [number for number, side in enumerate(sides, 1) if side >= _CELLS]
        self.site = large[-1] if large else sides.index(max(sides)) + 1


class Pooled(Saliency):
    """A source that has one value per pixel, averaged over a grid with 8 cells along the shorter side."""

    def __init__(self, fine: Saliency) -> None:
        super().__init__()
        self.fine = fine
        self.network = fine.network

    def views(self) -> tuple[Want, ...]:
        return self.fine.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.fine.build(anatomy, num_classes)

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        maps = self.fine.maps(scene)
        height, width = maps.shape[1:]
        cell = max(min(height, width) / _POOLED, 1)
        return resized(maps, (round(height / cell), round(width / cell)))


def _grid_saliency(name: Source, site: int | str | None) -> Saliency:
    """A source whose maps are the grid."""
    if site is not None and name != "activation":
        raise ParameterError(f"site is where activations are read, and saliency is {name!r}. Leave site out.")
    if name == "activation":
        return GridActivation() if site is None else Activation(site)
    source = saliency_of(name)
    return Pooled(source) if name in ("fine_grained", "spectral", "gradient") else source


@dataclass(eq=False)
class GraftedMix(Mix):
    """A mix of grafts.

    Attributes:
        saliency: (B, h, w) of the clean batch, relative to each map's largest value.
        grafts: (B, h, w) M, on the same grid.
    """

    saliency: Float[Tensor, "b h w"] | None = None
    grafts: Float[Tensor, "b h w"] | None = None


class Grafted(Blend):
    """Show a random part of an image's salient regions, and the partner elsewhere.

    The recipe's λ is p, the probability that a salient region is grafted; label shares of its mixes are areas.

    Args:
        saliency: what tells where images are salient; its maps are the grid.
        temperature: T > 0.

    Attributes:
        noise: what expands the drawn key; a replay of given numbers puts its own in its place.
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, saliency: Saliency, temperature: float = 0.2) -> None:
        super().__init__()
        self.saliency = saliency
        self.network = saliency.network
        self.temperature = number_in("temperature", temperature, 0, open_low=True)
        self.noise = uniform_noise

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.saliency.build(anatomy, num_classes)

    def draw(self, rows: int, rng: Generator) -> int:
        """A key in [0, 2**63), from which a uniform number per image and cell is made."""
        return int(rng.integers(2**63))

    def mix(
        self, images: Float[Tensor, "b c h w"], partners: Partners, lam: Float[Tensor, " #b"], draws: int, scene: Scene
    ) -> GraftedMix:
        saliency = relative(self.saliency.maps(scene))
        taken = self.noise(draws, tuple(saliency.shape), images.device) < lam.to(saliency)[:, None, None]
        grafts = (taken & salient_regions(tempered(saliency, self.temperature))).to(saliency.dtype)

        def apply(x: Tensor) -> Tensor:
            return partners.under(x, _spread(grafts, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        keep = _spread(grafts, (images.shape[2], images.shape[3]))
        area = keep.mean((1, 2, 3))
        return GraftedMix(
            partners.under(images, keep),
            partners.sources,
            partners.shares(area),
            partners.pool,
            apply,
            lam=lam,
            area=area,
            make_masks=masks,
            saliency=saliency,
            grafts=grafts,
        )


def _spread(cells: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b 1 y x"]:
    """Cells as patches of pixels; means of the cells where there are fewer pixels."""
    if size[0] >= cells.shape[1] and size[1] >= cells.shape[2]:
        return F.interpolate(cells[:, None], size, mode="nearest")
    return F.adaptive_avg_pool2d(cells[:, None], size)


class CalibratedShares(Label):
    """Label shares by the saliency of what is left of each source.

    On a mix of grafts it takes that mix's saliency and cells, on others the mean mask of each cell.

    Args:
        saliency: what tells where images are salient.
    """

    needs = frozenset({Need.MASKS})

    def __init__(self, saliency: Saliency) -> None:
        super().__init__()
        self.saliency = saliency
        self.network = saliency.network

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.saliency.build(anatomy, num_classes)

    def targets(self, step: Step) -> Targets:
        mix = step.mix
        if isinstance(mix, GraftedMix) and mix.saliency is not None and mix.grafts is not None:
            saliency, regions = mix.saliency, with_rest(mix.grafts[:, None])
        else:
            assert mix.origins is not None, "a blend that gives masks made none"
            saliency = relative(self.saliency.maps(step.scene))
            cells = resized(mix.origins.float().flatten(0, 1), (saliency.shape[1], saliency.shape[2]))
            regions = cells.view(*mix.origins.shape[:2], *cells.shape[1:])
        ours = mix.sources < len(saliency)  # others are no rows of the batch, whose saliency is not known
        left = importance(saliency[mix.sources.clamp_max(len(saliency) - 1)], regions)
        total = left.sum(1, keepdim=True)
        known = ours.all(1, keepdim=True) & (total > 0)
        return mix.targets(torch.where(known, left / total.clamp_min(torch.finfo(total.dtype).tiny), mix.weights))


@method("saliency_grafting", section="2.6", paper="2112.08796", venue="AAAI 2022")
def saliency_grafting(
    alpha: float = 2.0,
    temperature: float = 0.2,
    saliency: Source = "activation",
    site: int | str | None = None,
    label: Literal["saliency", "area"] = "saliency",
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: p ~ Beta(α, α), the probability that a salient region is grafted.
    temperature: T of the softmax over a map's places; the smaller, the fewer are salient.
    saliency: where images are salient: the size of "activation"s, or another source.
    site: stage number or module whose activations are read; None takes the last stage with at least 4 × 4 places.
    label: "saliency" that is left of each image, or the "area" of each.
    prob: share of the batches that are mixed.
    per: one p per "sample" or per "batch".
    """
    source = _grid_saliency(saliency, site)
    grafts, ratio = Grafted(source, temperature), Beta(alpha, per=per)
    if label == "area":
        return Pieces(essential=grafts, suggested=ratio, prob=prob)
    return Pieces(essential=CalibratedShares(source), suggested=(grafts, ratio), prob=prob)
