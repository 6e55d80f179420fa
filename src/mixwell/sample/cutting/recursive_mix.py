"""RecursiveMix: paste the previous, already mixed batch into a box, and ask the box's features what it was taken for.

Yang, Li, Luo, Zhao, Lu, "RecursiveMix: Mixed Learning with History", NeurIPS 2022, arXiv:2203.06844.

The whole previous batch is shrunk into a box of each new image, its soft label takes the box's share, and the box's
features must predict what the network had said about the old image. Equations: share of the box a ~ U(0, α), sides √a →
`boxes_around`; x̃ → `pasted`; ỹ = λ·y + (1-λ)·ỹ_old → the mix's label shares; ω·(1-λ)·KL → `RoIConsistency`.

Paper and code: the authors' code draws one box per batch (`per="batch"`). Rows pair by position. The first batch of an
epoch has no history and stays as it is, as do rows of a batch that is longer than the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Blend, Criterion, Need, Per, Scene, Step, Term, per_of
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.boxes import area_of, boxes_around, outside, pair_masks
from mixwell.probe import Anatomy, Want, seen_on_example

__all__ = ["PasteHistory", "RoIConsistency", "pasted"]

Interpolation = Literal["nearest", "bilinear"]


def pasted(
    images: Float[Tensor, "b c h w"],
    old: Float[Tensor, "p c h2 w2"],
    boxes: Int64[np.ndarray, "#p 4"],
    interpolation: Interpolation = "nearest",
) -> Float[Tensor, "b c h w"]:
    """The first P ≤ B images with the whole of an old image each inside their boxes: one box each, or one for all.

    Args:
        old: (P, C, H₂, W₂), on the images' device.
        boxes: (P, 4) or (1, 4); an empty box pastes nothing.
        interpolation: "nearest", or "bilinear" between the corners.
    """
    mixed, rows = images.clone(), len(old)
    if len(boxes) == 1:
        top, bottom, left, right = boxes[0].tolist()
        if top < bottom and left < right:
            corners = None if interpolation == "nearest" else True
            size = (bottom - top, right - left)
            small = F.interpolate(old.to(images.dtype), size, mode=interpolation, align_corners=corners)
            mixed[:rows, :, top:bottom, left:right] = small
        return mixed
    size = (images.shape[2], images.shape[3])
    keep = outside(boxes, size, images.device, images.dtype)
    mixed[:rows] = _spread(old, boxes, size, interpolation).to(images.dtype).lerp_(images[:rows], keep)
    return mixed


def _spread(
    old: Float[Tensor, "p c h2 w2"],
    boxes: Int64[np.ndarray, "p 4"],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> Float[Tensor, "p c h w"]:
    """Canvases with each old image in its box, and its border repeated around it."""
    places, ends = [], []
    for axis, side in enumerate(size):
        low, high = boxes[:, 2 * axis, None], boxes[:, 2 * axis + 1, None]
        extent = np.maximum(high - low, 1)
        place = np.arange(side) - low
        if interpolation == "nearest":
            scale = np.float32(old.shape[2 + axis]) / extent.astype(np.float32)
            index = np.floor(place.astype(np.float32) * scale)
        else:
            index = place * ((old.shape[2 + axis] - 1) / np.maximum(extent - 1, 1))
        places.append(np.clip(index, 0, old.shape[2 + axis] - 1))
        ends.append(max(old.shape[2 + axis] - 1, 1))
    if interpolation == "nearest":
        rows, columns = (onto(place.astype(np.int64), old) for place in places)
        lines = old.gather(2, rows[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3]))
        return lines.gather(3, columns[:, None, None, :].expand(*lines.shape[:3], -1))
    down, across = (
        onto((2 * place / end - 1).astype(np.float32), old) for place, end in zip(places, ends, strict=True)
    )
    grid = torch.stack((across[:, None, :].expand(-1, *size), down[:, :, None].expand(-1, *size)), 3)
    with torch.autocast(old.device.type, enabled=False):
        return F.grid_sample(old.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


@dataclass(eq=False)
class History:
    """What is kept of the previous batch, detached.

    Attributes:
        images: (P, C, H, W) mixed.
        labels: (P, N) soft.
        logits: (P, N) of the network's own classifier.
        epoch: in which it was seen.
    """

    images: Float[Tensor, "p c h w"]
    labels: Float[Tensor, "p n"]
    logits: Float[Tensor, "p n"]
    epoch: int


@dataclass(eq=False)
class PastedMix(Mix):
    """A mix with the previous batch.

    Attributes:
        boxes: (P, 4) or (1, 4), where the first P rows show the old images.
        said: (P, N) logits of the old images.
    """

    boxes: Int64[np.ndarray, "#p 4"] | None = None
    said: Float[Tensor, "p n"] | None = None


@dataclass(eq=False)
class BoxDraws:
    """(B,) or (1,) shares a ~ U(0, α), and (B, 2) or (1, 2) centres, uniform in [0, 1)."""

    area: Float[np.ndarray, " #b"]
    centres: Float[np.ndarray, "#b 2"]


class PasteHistory(Blend):
    """Paste the previous batch of this process into a box of each image.

    Args:
        alpha: α in (0, 1], upper bound of the box's share.
        interpolation: how the old images are shrunk.
        per: one box per "sample" or per "batch".

    Attributes:
        history: the previous batch, or None.
    """

    gives = frozenset({Need.SIMPLEX, Need.OWN_ROW, Need.MASKS})
    partners = 0
    takes_lam = False
    hidden = False
    aligned = False
    repeats = False
    network = True

    def __init__(self, alpha: float = 0.5, interpolation: Interpolation = "nearest", per: Per = "sample") -> None:
        super().__init__()
        self.alpha = number_in("alpha", alpha, 0, 1, open_low=True)
        self.interpolation = interpolation
        self.per = per_of(per)
        self.history: History | None = None

    def draw(self, rows: int, rng: Generator) -> BoxDraws:
        count = 1 if self.per == "batch" else rows
        return BoxDraws(self.alpha * rng.random(count), rng.random((count, 2)))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: BoxDraws,
        scene: Scene,
    ) -> Mix:
        past, pool = self.history, partners.pool
        if past is None or past.epoch != scene.clock.epoch or past.images.shape[1] != images.shape[1]:
            return _unmixed(images, partners)
        rows, size = min(len(images), len(past.images)), (images.shape[2], images.shape[3])
        old, wide = past.images[:rows], past.labels.shape[1]
        boxes = boxes_around(np.sqrt(draws.area), draws.centres, size)[:rows]
        area = np.zeros(len(images))
        area[:rows] = area_of(boxes, size)

        def apply(x: Tensor) -> Tensor:
            """Paste the same old images into other views of the batch."""
            return pasted(x, old, boxes, self.interpolation)

        def masks(mix: Mix) -> Tensor:
            shown = pair_masks(boxes, size, images.device).expand(rows, -1, -1, -1)
            return torch.cat((shown, _alone(len(images) - rows, images)))

        def origins(mix: Mix) -> Tensor:
            """Of an old image, which was mixed itself, all is seen."""
            keep = outside(boxes, size, images.device).expand(rows, -1, -1, -1)
            keep = torch.cat((keep, torch.ones_like(images[rows:, :1], dtype=keep.dtype)))
            seen = onto(area > 0, images)[:, None, None, None]
            return torch.cat((keep, seen.to(keep.dtype).expand_as(keep)), 1)

        labels = pool if pool.is_floating_point() else F.one_hot(pool.long(), wide).to(past.labels.dtype)
        own = torch.arange(len(images), device=images.device)
        return PastedMix(
            apply(images),
            torch.stack((own, torch.where(own < rows, own + len(images), own)), 1),
            partners.shares(torch.from_numpy(1 - area)),
            torch.cat((labels, past.labels.to(labels.dtype))),
            apply,
            area=torch.from_numpy(1 - area),
            make_masks=masks,
            make_origins=origins,
            boxes=boxes,
            said=past.logits[:rows],
        )

    def observe(self, step: Step) -> None:
        logits, targets = step.outputs.logits.detach(), step.mix.targets()
        soft = targets.dense(logits.shape[1]).to(torch.float32)
        self.history = History(step.mix.images.detach(), soft, logits, step.scene.clock.epoch)


def _unmixed(images: Tensor, partners: Partners) -> Mix:
    """A batch without history: every row is itself, in the form of a pair."""
    sources = partners.sources.expand(-1, 2)
    own = torch.ones(1, dtype=torch.float64)

    def masks(mix: Mix) -> Tensor:
        return _alone(len(images), images)

    return PastedMix(
        images.clone(), sources, partners.shares(own), partners.pool, torch.clone, area=own, make_masks=masks
    )


def _alone(rows: int, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "r 2 h w"]:
    """Masks of rows that show themselves alone."""
    return with_rest(torch.ones(rows, 1, *images.shape[2:], device=images.device))


class RoIConsistency(Term):
    """ω·(1-λ)·cross-entropy between what a box's features say and what the network had said about the old image.

    Owns the classifier of the boxes, which exists once it is built; it is no part of the network.

    Args:
        weight: ω ≥ 0.
    """

    network = True

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = number_in("omega", weight, 0)
        self.head: nn.Linear | None = None
        self._map = Want("features", -1)

    def wants(self) -> tuple[Want, ...]:
        return (self._map,)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Make the classifier of the boxes for the network's last map.

        Raises:
            ModelError: there are no example images.
        """
        seen = seen_on_example(anatomy, "The boxes' classifier", [self._map])
        shown = seen[self._map]
        self.head = nn.Linear(shown.shape[1], seen.logits.shape[-1], device=shown.device, dtype=shown.dtype)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert self.head is not None, "a recipe binds before it is trained"
        mix = step.mix
        if not isinstance(mix, PastedMix) or mix.boxes is None or mix.said is None:
            return step.outputs.logits.new_zeros(())
        logits = self.head(box_features(step.outputs[self._map], mix.boxes, mix.images.shape[3], len(mix.said)))
        rows = F.cross_entropy(logits.float(), mix.said.float().softmax(1), reduction="none")
        shares = mix.weights[: len(rows), 1]
        return self.weight * (shares * rows).sum() / len(mix.images)


def box_features(
    maps: Float[Tensor, "b c h w"], boxes: Int64[np.ndarray, "#p 4"], width: int, rows: int
) -> Float[Tensor, "p c"]:
    """RoIAlign of each row's box to one place.

    Args:
        maps: feature maps of the mixed images.
        boxes: in pixels.
        width: of the images in pixels, which sets the maps' scale.
        rows: P, how many of the maps have a box.
    """
    from torchvision.ops import roi_align

    corners = onto(boxes[:, [2, 0, 3, 1]].astype(np.float32), maps).expand(rows, 4)
    index = torch.arange(rows, device=maps.device, dtype=corners.dtype)[:, None]
    with torch.autocast(maps.device.type, enabled=False):
        found: Tensor = roi_align(
            maps.float(), torch.cat((index, corners), 1), 1, spatial_scale=maps.shape[3] / width, aligned=True
        )
    return found.flatten(1).to(maps.dtype)


@method("recursive_mix", section="1.3", paper="2203.06844", venue="NeurIPS 2022")
def recursive_mix(
    alpha: float = 0.5,
    omega: float = 0.5,
    interpolation: Interpolation = "nearest",
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: the box's share of the image is uniform in [0, α).
    omega: ω, weight of the boxes' consistency; the paper takes 0.1 on CIFAR-10 and 0.5 on ImageNet.
    interpolation: how old images are shrunk, "nearest" or "bilinear".
    prob: share of the batches that are mixed.
    per: one box per "sample" or per "batch".
    """
    return Pieces((PasteHistory(alpha, interpolation, per), RoIConsistency(omega)), prob=prob)
