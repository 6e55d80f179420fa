"""SnapMix: label a mix by the class activation that each image brings into it.

Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", AAAI 2021,
arXiv:2012.04846.

A box of the partner is resized into a box of the image of another size and place. Each label counts as much as the
image's own class activation map says of what is shown of it, so that the two need not sum to 1: a box may hide the
bird and show no other. Equations: SPM(x_i) → `semantic_maps`; x̃ = (1-M_λ1)⊙x_i + M_λ1⊙T(M_λ2⊙x_j) → `TwoBoxes`;
ρ_a = 1 - Σ M_λ1⊙SPM(x_i), ρ_b = Σ M_λ2⊙SPM(x_j) → `semantic_shares`; L = ρ_a·CE(y_i) + ρ_b·CE(y_j) → the recipe's
criterion. As a label of another sample policy, each source's share is the sum of its map over what is shown of it,
wherever that lies in the mix; where an image is shown evenly, as in mixup, that is the share of its pixels.

Paper and code: the authors' code draws both λ and boxes once per batch (`per="batch"`). Where both images are of one
class it gives each of them the sum of the two shares, and so counts the pair twice; the paper does not, and
`same_label="code"` does. It takes its maps in training mode, which feeds batch normalisation, we in evaluation mode.
A map that is the same everywhere says nothing, and the area counts, as there. β is the paper's 5; `prob` is 0.5 in its
training from scratch. The second classifier of its "Baseline+" is another network, which works with any recipe.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Label, Need, Per, Scene, Step, per_of
from mixwell.core.batch import Batch
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Source, resized, saliency_of
from mixwell.core.targets import Targets
from mixwell.ops.boxes import area_of, boxes_of, outside, pair_masks
from mixwell.probe import Anatomy, Probe, Views, Want

__all__ = ["SameLabel", "SemanticShares", "TwoBoxes", "counted_twice", "paste", "semantic_maps", "semantic_shares"]

SameLabel = Literal["paper", "code"]


def semantic_maps(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Semantic percent maps: from 0 at the least place, with sum 1; all 0 where a map is the same everywhere.

    Args:
        maps: (B, h, w) fp32, such as class activation maps at the images' resolution.
    """
    above = maps - maps.amin((1, 2), keepdim=True)
    return above / above.sum((1, 2), keepdim=True).clamp_min(torch.finfo(above.dtype).tiny)


def semantic_shares(
    maps: Float[Tensor, "b h w"],
    origins: Float[Tensor, "#r k #h #w"],
    sources: Int[Tensor, "r k"],
    areas: Float[Tensor, "r k"],
) -> Float[Tensor, "r k"]:
    """What each source's semantic map sums to over what is shown of it, in fp32; a row's shares need not sum to 1.

    Args:
        maps: (B, H, W) of the batch, see `semantic_maps`.
        origins: what of each place of a source's own image the mix shows; broadcastable to (R, K, H, W).
        sources: (R, K) rows.
        areas: (R, K) shares of sources whose map says nothing, or that are no rows of the batch.
    """
    rows, known = sources.clamp_max(len(maps) - 1), maps.amax((1, 2)) > 0
    seen = maps.index_select(0, rows.flatten()).view(*rows.shape, *maps.shape[1:])
    shown = (origins * seen).sum((2, 3)).clamp_max(1)  # all of a map may sum to a little more
    return torch.where(known[rows] & (sources < len(maps)), shown, areas)


def counted_twice(shares: Float[Tensor, "r k"], classes: Int[Tensor, "r k"]) -> Float[Tensor, "r k"]:
    """Every source with the sum of the shares of all sources of its class, as the authors' code has it."""
    same: Bool[Tensor, "r k k"] = classes[:, :, None] == classes[:, None, :]
    return (same * shares[:, None, :]).sum(2)


def paste(
    images: Float[Tensor, "b c h w"],
    partners: Partners,
    boxes: Int64[np.ndarray, "#b 4"],
    crops: Int64[np.ndarray, "#b 4"],
) -> Float[Tensor, "b c h w"]:
    """The images with their partners' crops resized into the boxes, bilinearly with corners on corners.

    Args:
        images: (B, C, H, W) floating.
        boxes: (B, 4), or (1, 4) for one in all images: where the crops are shown.
        crops: as many, where they are taken; empty where the box is.
    """
    wide = torch.promote_types(images.dtype, torch.float32)
    if len(boxes) == 1:
        top, bottom, left, right = boxes[0].tolist()
        first, last, start, end = crops[0].tolist()
        mixed = images.clone()
        if top < bottom and left < right:
            seen = partners.of(images[:, :, first:last, start:end]).to(wide)
            small = F.interpolate(seen, (bottom - top, right - left), mode="bilinear", align_corners=True)
            mixed[:, :, top:bottom, left:right] = small
        return mixed
    size = (images.shape[2], images.shape[3])
    keep = outside(boxes, size, images.device, images.dtype)
    down, across = (
        onto(_places(boxes[:, axis : axis + 2], crops[:, axis : axis + 2], side).astype(np.float32), images).to(wide)
        for axis, side in ((0, size[0]), (2, size[1]))
    )
    grid = torch.stack((across[:, None, :].expand(-1, *size), down[:, :, None].expand(-1, *size)), 3)
    with torch.autocast(images.device.type, enabled=False):
        shown = F.grid_sample(partners.of(images).to(wide), grid, padding_mode="border", align_corners=True)
    # With weights 0 and 1 lerp copies exactly, and is several times as fast as `where` with a mask that broadcasts.
    return shown.to(images.dtype, memory_format=layout_of(images)).lerp_(images, keep)


def _places(spans: Int64[np.ndarray, "b 2"], crops: Int64[np.ndarray, "b 2"], side: int) -> Float[np.ndarray, "b side"]:
    """Where in its source each line of the canvas looks, from -1 at the first line to 1 at the last.

    Lines beyond the span look where its ends do.
    """
    (low, high), (first, last) = spans.T[:, :, None], crops.T[:, :, None]
    step = (last - first - 1) / np.maximum(high - low - 1, 1)
    line = np.clip(np.arange(side) - low, 0, np.maximum(high - low - 1, 0))
    places: np.ndarray = (first + line * step) * (2 / max(side - 1, 1)) - 1
    return places


class TwoBoxes(Blend):
    """Show a box of the partner, resized, in another box of the image; the label shares of its mixes are areas.

    λ is the share outside the image's box, before clipping; that of the partner's box is drawn here.

    Args:
        beta: the partner's λ ~ Beta(β, β).
        per: one pair of boxes per "sample", or one per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}
    aligned = False

    def __init__(self, beta: float = 5.0, per: Per = "sample") -> None:
        super().__init__()
        self.inner = Beta(beta, per=per)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, 5) or (1, 5): the partner's λ; row and column, uniform in [0, 1), of both boxes' centres."""
        lam = self.inner.draw(rows, rng)
        return np.concatenate((lam[:, None], rng.random((len(lam), 4))), 1)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        outer = lam.detach().cpu().numpy()

        def boxes_in(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
            """The image's boxes and the partner's; both are empty where one of them is."""
            boxes, crops = np.broadcast_arrays(
                boxes_of(outer, draws[:, 1:3], size), boxes_of(draws[:, 0], draws[:, 3:5], size)
            )
            there = ((area_of(boxes, size) > 0) & (area_of(crops, size) > 0))[:, None]
            return boxes * there, crops * there

        def apply(x: Tensor) -> Tensor:
            return paste(x, partners, *boxes_in((x.shape[2], x.shape[3])))

        size = (images.shape[2], images.shape[3])
        boxes, crops = boxes_in(size)

        def masks(mix: Mix) -> Tensor:
            return pair_masks(boxes, size, images.device)

        def origins(mix: Mix) -> Tensor:
            return torch.cat((outside(boxes, size, images.device), 1 - outside(crops, size, images.device)), 1)

        own = torch.from_numpy(1 - area_of(boxes, size))
        return Mix.of_pair(
            paste(images, partners, boxes, crops),
            partners,
            own,
            apply,
            lam=lam,
            area=own,
            make_masks=masks,
            make_origins=origins,
        )


class SemanticShares(Label):
    """Label shares by the semantic content of what is shown of each source.

    Args:
        saliency: what tells where the content is; "cam" is the paper's.
        same_label: "paper", or "code" for pairs of one class that count twice.
    """

    breaks = frozenset({Need.SIMPLEX})

    def __init__(self, saliency: Source = "cam", same_label: SameLabel = "paper") -> None:
        super().__init__()
        self.saliency = saliency_of(saliency)
        self.network = self.saliency.network
        if same_label not in ("paper", "code"):
            raise ParameterError(f"same_label must be 'paper' or 'code', got {same_label!r}.")
        self.same_label = same_label

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """See that the network gives the maps, by a pass over the example images if there are any."""
        self.saliency.build(anatomy, num_classes)
        if self.network and anatomy.example is not None:
            labels = torch.zeros(len(anatomy.example), dtype=torch.int64, device=anatomy.example.device)
            batch = Batch(anatomy.example, labels)
            self.saliency.maps(Scene(batch, views=Views(Probe(anatomy.net, anatomy.example), batch, self.views())))

    def targets(self, step: Step) -> Targets:
        mix, origins = step.mix, step.mix.origins
        if origins is None:  # every source is shown evenly
            origins = mix.weights[:, :, None, None]
        maps, size = self.saliency.maps(step.scene).float(), (origins.shape[2], origins.shape[3])
        if size != (1, 1):  # otherwise all of an image counts alike, at any resolution
            maps = resized(maps, size)
        shares = semantic_shares(semantic_maps(maps), origins.float(), mix.sources, mix.weights)
        if self.same_label == "code":
            shares = counted_twice(shares, mix.targets().classes)
        return mix.targets(shares)


@method("snapmix", section="2.6", paper="2012.04846", venue="AAAI 2021")
def snapmix(
    beta: float = 5.0,
    saliency: Source = "cam",
    same_label: SameLabel = "paper",
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    beta: λ₁, λ₂ ~ Beta(β, β), independent, of the image's box and of the partner's.
    saliency: what the label follows: class activation ("cam"), or another source.
    same_label: what two images of one class count: the "paper"'s shares, or twice as much, as in the authors' "code".
    prob: share of the batches that are mixed; the paper takes 1 with pretrained networks, 0.5 from scratch.
    per: one pair of λ and boxes per "sample" or per "batch".
    """
    number_in("beta", beta, 0, open_low=True)
    return Pieces(
        essential=SemanticShares(saliency, same_label),
        suggested=(TwoBoxes(beta, per), Beta(beta, per=per)),
        prob=prob,
    )
