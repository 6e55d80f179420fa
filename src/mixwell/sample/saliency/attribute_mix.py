"""Attribute Mix: paste one attribute of the partner, a region that a miner of parts found in it.

Li, Zhang, Xiong, Tian, "Attribute Mix: Semantic Data Augmentation for Fine-grained Recognition", VCIP 2020,
arXiv:2004.02684.

Classes of birds or cars share parts. A head with K maps for each class finds K such regions in an image, one after the
other: each round erases what the last one found. A mix shows one of them, from the same place of the partner. Head and
its maps A → `mixwell.nets.attribute_head`; min-max, upsampling and threshold → `salient`; rounds → `mined`; x̃ →
`AttributeMasks`; loss of the head → `AttributeLoss`.

No official code is known, and the paper's full text was not at hand. Its abstract and descriptions of it say that
regions are mined by repeated erasing, that the head has C·K channels with multi-hot labels, and that one attribute is
mixed. The rest is our reading: K = 3, a threshold of ½ on the map between its least and greatest value, erasing to 0
(the mean colour of normalised images), regions in their own place, `prob`, labels by area, and the same shares for the
head's labels. The miner is the network that is being trained, in evaluation mode, with a head of its own that trains on
the mixed batches; the class is still what the network's classifier says. "Attribute Mix+", which adds unlabelled
images, is another method.

Only the partner's region is shown, so only partners are mined, each up to the round of the attribute that was drawn for
it: of K rounds, (K+1)/2 passes over the batch on average. A round may find nothing new; then the image stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Criterion, Need, Per, Scene, Step, Term, per_of
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.nets.attribute_head import AttributeHead, multi_hot
from mixwell.probe import Anatomy, Probe, Views, Want
from mixwell.probe.trace import untouched

__all__ = ["AttributeLoss", "AttributeMasks", "AttributedMix", "Round", "mined", "salient"]

_LAST = Want("features", -1)


class Round(NamedTuple):
    """What one round of mining found in n images.

    Attributes:
        rows: (n,) which of the images were mined.
        maps: (n, h, w) A, the attribute's map.
        saliency: (n, H, W) S, the map in [0, 1] at the images' size.
        masks: (n, H, W) M, the region, without those of earlier rounds.
    """

    rows: Int64[np.ndarray, " n"]
    maps: Float[Tensor, "n h w"]
    saliency: Float[Tensor, "n y x"]
    masks: Bool[Tensor, "n y x"]


def salient(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n y x"]:
    """Each map from 0 at its least place to 1 at its greatest, enlarged bilinearly; 0 where it is the same everywhere.

    In fp32 at least.
    """
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    low, high = wide.amin((1, 2), keepdim=True), wide.amax((1, 2), keepdim=True)
    unit = (wide - low) / torch.where(high > low, high - low, 1)
    return F.interpolate(unit[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def mined(
    look: Callable[[Float[Tensor, "n c h w"], Int64[np.ndarray, " n"], int], Float[Tensor, "n d e"]],
    images: Float[Tensor, "b c h w"],
    last: Int64[np.ndarray, " b"],
    threshold: float,
) -> Iterator[Round]:
    """Rounds of finding an attribute and erasing it; every image is mined up to its last round.

    Args:
        look: (images with what was found erased, their rows, the round's number from 0) → maps (n, h, w).
        images: (B, C, H, W), not modified.
        last: (B,) number of each image's last round.
        threshold: τ; a region is where saliency is at least this.
    """
    size = (images.shape[2], images.shape[3])
    used = torch.zeros((len(images), *size), dtype=torch.bool, device=images.device)
    for number in range(int(last.max()) + 1):
        rows = np.flatnonzero(last >= number)
        index = onto(rows, images)
        before = used[index]
        erased = images[index].masked_fill(before[:, None], 0) if number else images
        maps = look(erased, rows, number)
        saliency = salient(maps, size)
        masks = (saliency >= threshold) & ~before
        used[index] = before | masks
        yield Round(rows, maps, saliency, masks)


@dataclass(eq=False)
class AttributedMix(Mix):
    """A mix by attributes.

    Attributes:
        head: what found them.
    """

    head: AttributeHead | None = None


class AttributeMasks(Blend):
    """Show one attribute of the partner in the image.

    Owns the head that finds attributes, which exists once it is built.

    Args:
        attributes: K.
        threshold: τ in (0, ∞), on saliency in [0, 1].
        per: one attribute drawn per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}
    network = True
    takes_lam = False
    hidden = False

    def __init__(self, attributes: int = 3, threshold: float = 0.5, per: Per = "sample") -> None:
        super().__init__()
        self.attributes = int(number_in("attributes", attributes, 1))
        self.threshold = number_in("threshold", threshold, 0, open_low=True)
        self.per = per_of(per)
        self.head: AttributeHead

    def views(self) -> tuple[Want, ...]:
        return (_LAST,)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Make the head for the network's last map.

        Raises:
            ModelError: there are no example images.
        """
        example = anatomy.example_for("The attributes' head")
        with untouched(anatomy.net), torch.no_grad():
            seen = Probe(anatomy.net, example).run(example, wants=[_LAST])
        shown = seen[_LAST]
        self.head = AttributeHead(shown.shape[1], num_classes or seen.logits.shape[-1], self.attributes)
        self.head.to(shown.device, shown.dtype)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) or (1,) attributes, each uniformly one of 0 … K-1."""
        return rng.integers(self.attributes, size=1 if self.per == "batch" else rows)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: Int64[np.ndarray, " #b"],
        scene: Scene,
    ) -> Mix:
        drawn = np.broadcast_to(draws, len(images))
        keep = torch.ones((len(images), 1, *images.shape[2:]), device=images.device)
        for number, found in enumerate(self.mine(partners.column(), drawn, scene)):
            here = drawn[found.rows] == number
            keep[onto(found.rows[here], images), 0] = (~found.masks[onto(np.flatnonzero(here), images)]).float()
        area = keep.mean((1, 2, 3))

        def apply(x: Tensor) -> Tensor:
            same = x.shape[2:] == keep.shape[2:]
            return partners.under(x, keep if same else F.interpolate(keep, x.shape[2:], mode="nearest-exact"))

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        return AttributedMix.of_pair(apply(images), partners, area, apply, area=area, make_masks=masks, head=self.head)

    def looked_at(self, scene: Scene) -> Float[Tensor, "b h w"]:
        """Where each image's first attribute is."""
        rows = len(scene.batch)
        first = next(self.mine(torch.arange(rows, device=scene.batch.images.device), np.zeros(rows, np.int64), scene))
        return first.saliency

    def mine(self, which: Int64[Tensor, " n"], last: Int64[np.ndarray, " n"], scene: Scene) -> Iterator[Round]:
        """Find attributes in images of the clean batch, with passes that leave no trace.

        Args:
            which: (n,) rows of the batch; a row may come several times.
            last: (n,) number of the last round of each.
        """
        views, batch = scene.views, scene.batch
        assert views is not None, "a piece that needs a network mixes only where there is one"
        images, labels = batch.images.detach()[which], batch.labels[which]

        @torch.no_grad()
        def look(erased: Tensor, rows: np.ndarray, number: int) -> Tensor:
            asked = labels[onto(rows, labels)]
            if number == 0:  # nothing is erased, and the pass over the clean batch may serve others too
                features = views.features(-1)[which]
            else:
                features = Views(views.probe, replace(batch, images=erased, labels=asked), [_LAST]).features(-1)
            return self.head.map_of(features, asked, number)

        return mined(look, images, last, self.threshold)


class AttributeLoss(Term):
    """Binary cross-entropy of the head's logits, the mean over attributes; each has its class's share of the label.

    Args:
        weight: ≥ 0.
    """

    needs = frozenset({Need.PAIR})
    network = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = number_in("attribute_weight", weight, 0)

    def wants(self) -> tuple[Want, ...]:
        return (_LAST,)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert isinstance(step.mix, AttributedMix), "only a mix by attributes has them"
        head = step.mix.head
        assert head is not None, "a mix by attributes was made without a head"
        logits = head(step.outputs[_LAST]).float()
        wanted = multi_hot(targets.dense(head.classes).to(logits.dtype), head.attributes)
        return self.weight * F.binary_cross_entropy_with_logits(logits, wanted)


@method("attribute_mix", section="1.7", paper="2004.02684", venue="VCIP 2020")
def attribute_mix(
    attributes: int = 3,
    threshold: float = 0.5,
    attribute_weight: float = 1.0,
    prob: float = 0.5,
    per: Per = "sample",
) -> Pieces:
    """Args:
    attributes: K, regions that are mined in an image, one of which is mixed.
    threshold: a region is where the attribute's map, from 0 to 1, is at least this; above 1 nothing is mixed.
    attribute_weight: weight of the loss of the attributes' head.
    prob: share of the batches that are mixed.
    per: one attribute drawn per "sample" or per "batch".
    """
    return Pieces((AttributeMasks(attributes, threshold, per), AttributeLoss(attribute_weight)), prob=prob)
