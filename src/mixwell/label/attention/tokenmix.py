"""TokenMix: show the partner in several blocks of tokens, and label each image by what a teacher sees in its rest.

Liu, Liu, Zhou, Li, Liu, "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers", ECCV 2022,
arXiv:2207.08409.

Blocks of random size and shape are taken from the partner until they cover half of the tokens. The label of either
image counts as much as the teacher's activation map of its own class, whose sum is 1, says of what is shown of it; the
two need not sum to 1, so the loss is binary cross-entropy of the label row. Half of the batches are plain mixup.
Equations: the mask M → `block_masks`; x̃ = M⊙x_a + (1-M)⊙x_b → `TokenMask`; Σ A_a⊙M, Σ A_b⊙(1-M) →
`activation_shares`. As a label of another sample policy, each image's share is the sum of its map over what is shown of
it, wherever that lies in the mix.

The teacher's maps (`mixwell.nets.label_maps`) are made before training: `recipe.prepare(batches, data)`, which `mixwell
train` and `mixwell prepare` call. By default the teacher is a small CNN, trained on the same images; `teacher` takes a
finished run's network, or one of timm. Rows without an `index` in the prepared data are shown to it in every step, and
maps of one's own come with the batch: `extras={"label_map": ...}`. `saliency` takes the attention or activation of the
network that is trained in place of a teacher.

Paper and code: the code's 14 "minimum tokens" are added to the number that is shown of the partner, so that it covers
57% in place of the half (`rule="code"`). The code also takes the crop's rows for the map's columns, gives an image
weight 0 whose class is nowhere in its map, where we take its area, and smooths labels by ε/2 per image whatever its
share; all that is `rule="code"` too. It pairs a batch with its reverse and draws one mask for all (`per="batch"`). Its
grid of 14 × 14 is that of the patches of 224 pixels; `grid` is by default that of the network's own patches, and 14 for
networks without. The published maps hold logits; ours hold how far they lie above those of all other classes, which
makes them ≥ 0. `variant="random"` takes single random tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Blend, Label, Need, Per, Scene, Step, per_of
from mixwell.core.batch import Batch
from mixwell.core.criteria import BinaryCrossEntropy
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR, Uniform
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Source, resized, saliency_of
from mixwell.core.targets import Targets
from mixwell.nets.label_maps import Annotator
from mixwell.nets.pretrained import Pretrained
from mixwell.ops.label_maps import class_maps, cropped
from mixwell.probe import Anatomy, Probe, Views, Want, seen_on_example
from mixwell.sample.saliency.attentive_cutmix import enlarged

__all__ = [
    "Cells",
    "RowCrossEntropy",
    "TeacherShares",
    "TokenMask",
    "activation_shares",
    "block_masks",
    "partner_tokens",
    "random_masks",
    "smoothed_by_halves",
]

Rule = Literal["paper", "code"]
Variant = Literal["blocks", "random"]

_ATTEMPTS = 64
"""Blocks that are tried for a mask. On grids from 2 × 2 to 56 × 56, none of 20,000 masks of half of it took 50."""
_MISSES = 10
"""After so many blocks in a row that do not fit, a mask stays as it is."""
_LONGEST = 1 / 0.3
"""The ratio of a block's sides is at most this."""
_MORE = 14
"""Tokens that the code takes beyond the share of the partner."""


def partner_tokens(lam: Float[np.ndarray, " #b"], tokens: int, rule: Rule = "paper") -> Int64[np.ndarray, " #b"]:
    """How many tokens show the partner: ⌊(1-λ)·N⌋, and 14 more in the code, but at most all."""
    more = _MORE if rule == "code" else 0
    return np.minimum(((1 - lam) * tokens).astype(np.int64) + more, tokens)


def block_masks(
    draws: Float[np.ndarray, "b t 4"], wanted: Int64[np.ndarray, " #b"], size: tuple[int, int]
) -> Bool[np.ndarray, "b h w"]:
    """Masks of several blocks, true where the partner shows.

    Blocks are tried in turn, for all masks at once. A block's area is uniform between 1 and the number of tokens that
    are still wanted, its ratio of height to width log-uniform in [0.3, 1/0.3]. It is taken if it is smaller than the
    grid along both axes and adds some tokens, but no more than wanted.

    Args:
        draws: (B, T, 4) uniforms in [0, 1) of T blocks: area, ratio, row, column.
        wanted: tokens of each mask; fewer where ten blocks in a row do not fit.
        size: rows and columns of the grid.
    """
    masks = np.zeros((len(draws), *size), bool)
    budget, misses = np.broadcast_to(wanted, len(draws)).copy(), np.zeros(len(draws), np.int64)
    extent, lines = np.array(size), [np.arange(side) for side in size]
    open_ = np.flatnonzero(budget > 0)
    for area, ratio, *corner in draws.transpose(1, 2, 0):
        if not len(open_):
            break
        left = budget[open_]
        root, stretch = np.sqrt(1 + area[open_] * (left - 1)), np.exp((ratio[open_] - 0.5) * math.log(_LONGEST))
        sides = np.rint(np.stack((root * stretch, root / stretch), 1)).astype(np.int64)
        low = (np.stack(corner, 1)[open_] * (extent - sides + 1)).astype(np.int64)
        rows, columns = (
            (lines[axis] >= low[:, axis, None]) & (lines[axis] < (low + sides)[:, axis, None]) for axis in (0, 1)
        )
        blocks = rows[:, :, None] & columns[:, None, :] & ~masks[open_]
        new = blocks.sum((1, 2))
        fits = (sides < extent).all(1) & (new > 0) & (new <= left)
        taken = open_[fits]
        masks[taken] |= blocks[fits]
        budget[taken] -= new[fits]
        misses[open_] += 1
        misses[taken] = 0
        open_ = open_[(budget[open_] > 0) & (misses[open_] < _MISSES)]
    return masks


def random_masks(
    order: Float[np.ndarray, "b n"], wanted: Int64[np.ndarray, " #b"], size: tuple[int, int]
) -> Bool[np.ndarray, "b h w"]:
    """Masks of single tokens, true where the partner shows: at the `wanted` tokens that come first in `order`."""
    rank = order.argsort(1).argsort(1)
    found: np.ndarray = (rank < wanted[:, None]).reshape(-1, *size)
    return found


def activation_shares(
    maps: Float[Tensor, "b h w"],
    origins: Float[Tensor, "#r k #y #x"],
    sources: Int[Tensor, "r k"],
    areas: Float[Tensor, "r k"] | None = None,
) -> Float[Tensor, "r k"]:
    """What each source's map, divided by its sum, sums to over what is shown of it; a row's need not sum to 1.

    Args:
        maps: (B, h, w) fp32 activation of each image's class.
        origins: what of each place of a source's own image the mix shows, at any resolution; broadcastable to the rows.
        sources: (R, K) rows.
        areas: (R, K) shares of sources whose map is 0, or that are no rows of the batch; None for shares of 0.
    """
    rows, total, known = sources.clamp_max(len(maps) - 1), maps.sum((1, 2)), sources < len(maps)
    shares = (_in_cells(origins, maps) * _normalised(maps)[rows]).sum((2, 3))
    if areas is None:
        return shares * known
    return torch.where(known & (total > 1e-6)[rows], shares, areas)


def _normalised(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Maps with sum 1; those that are 0 stay so."""
    return maps / (maps.sum((1, 2), keepdim=True) + 1e-8)


def _in_cells(shown: Float[Tensor, "#r k #y #x"], maps: Float[Tensor, "b h w"]) -> Float[Tensor, "#r k #h #w"]:
    """What is shown of each cell of maps."""
    if shown.shape[2:] == (1, 1):  # the same everywhere
        return shown.float()
    found = resized(shown.float().flatten(0, 1), (maps.shape[1], maps.shape[2]))
    return found.view(*shown.shape[:2], *maps.shape[1:])


def smoothed_by_halves(
    shares: Float[Tensor, "r 2"], classes: Int[Tensor, "r 2"], num_classes: int, smoothing: float
) -> Float[Tensor, "r c"]:
    """Label rows of pairs as the authors' code smooths them: either label gives away ε/2, whatever its share.

    Args:
        shares: (R, 2) label shares.
        classes: (R, 2) class ids.
        num_classes: C.
        smoothing: ε.
    """
    rows = shares.new_full((len(shares), num_classes), smoothing / num_classes)
    return rows.scatter_add_(1, classes, shares - smoothing / 2)


class Cells:
    """The grid of tokens, which several pieces share.

    Args:
        grid: cells along each side; None for the network's patches, and 14 without a network or in one without patches.
    """

    def __init__(self, grid: int | None) -> None:
        if grid is not None and grid < 1:
            raise ParameterError(f"grid must be a whole number ≥ 1, or none for the network's patches, got {grid!r}.")
        self.given = grid
        self.size = (14, 14) if grid is None else (grid, grid)

    def fit(self, anatomy: Anatomy) -> None:
        """Take the patches of a network, if none were given.

        Raises:
            ModelError: there are no example images that would tell them.
            SiteError: a transformer's patch embedding is not found.
        """
        if self.given is None and anatomy.has_tokens:
            want = Want("features", "patches")
            found = seen_on_example(anatomy, "tokenmix", [want])[want]
            self.size = (found.shape[2], found.shape[3])


class TokenMask(Blend):
    """Show the partner in some tokens, the image in the others.

    Args:
        cells: the grid of tokens.
        variant: several "blocks", or single "random" tokens.
        rule: how many tokens, see `partner_tokens`.
        per: one mask per "sample", or one per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, cells: Cells, variant: Variant = "blocks", rule: Rule = "paper", per: Per = "sample") -> None:
        super().__init__()
        self.cells, self.variant, self.rule, self.per = cells, variant, rule, per_of(per)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.cells.fit(anatomy)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, T, 4) or (1, T, 4) uniforms of T blocks; of random tokens (B, N) or (1, N), whose order counts."""
        count = 1 if self.per == "batch" else rows
        return rng.random((count, _ATTEMPTS, 4) if self.variant == "blocks" else (count, math.prod(self.cells.size)))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        size, cells = (images.shape[2], images.shape[3]), self.cells.size
        outer = lam.detach().cpu().numpy()
        if len(draws) < len(outer):  # one drawing, but a ratio for each
            draws = np.broadcast_to(draws, (len(outer), *draws.shape[1:]))
        wanted = partner_tokens(outer, math.prod(cells), self.rule)
        masks = (block_masks if self.variant == "blocks" else random_masks)(draws, wanted, cells)
        keep = onto(1 - masks.astype(np.float32), images)
        pixels = [
            np.bincount(np.arange(side) * count // side, minlength=count) / side
            for side, count in zip(size, cells, strict=True)
        ]
        own = torch.from_numpy(np.einsum("byx,y,x->b", ~masks, *pixels))

        def apply(x: Tensor) -> Tensor:
            return partners.under(x, enlarged(keep, (x.shape[2], x.shape[3])))

        def of_pair(mix: Mix) -> Tensor:
            return with_rest(enlarged(keep, size))

        return Mix.of_pair(apply(images), partners, own, apply, lam=lam, area=own, make_masks=of_pair)


class TeacherShares(Label):
    """Label shares by the activation of each image's class in what is shown of it.

    Args:
        cells: the grid on which activation and what is shown meet.
        maps: a teacher's maps.
        saliency: what the network that is trained says in their place.
        rule: "code" for the authors', see the module.
    """

    breaks = frozenset({Need.SIMPLEX})

    def __init__(
        self, cells: Cells, maps: Annotator | None, saliency: Source | None = None, rule: Rule = "paper"
    ) -> None:
        super().__init__()
        if (maps is None) == (saliency is None):
            raise ParameterError("TeacherShares takes either a teacher's maps or a saliency.")
        self.cells, self.maps, self.rule = cells, maps, rule
        self.saliency = None if saliency is None else saliency_of(saliency)
        self.network = self.saliency is not None and self.saliency.network

    def prepare(self, workshop: Workshop) -> None:
        if self.maps is not None:
            self.maps.prepare(workshop)

    def views(self) -> tuple[Want, ...]:
        return () if self.saliency is None else self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """See that the network gives the maps, by a pass over the example images if there are any."""
        self.cells.fit(anatomy)
        if self.saliency is None:
            return
        self.saliency.build(anatomy, num_classes)
        if self.network and anatomy.example is not None:
            labels = torch.zeros(len(anatomy.example), dtype=torch.int64, device=anatomy.example.device)
            batch = Batch(anatomy.example, labels)
            self.saliency.maps(Scene(batch, views=Views(Probe(anatomy.net, anatomy.example), batch, self.views())))

    def activation(self, scene: Scene) -> Float[Tensor, "b h w"]:
        """How active each image's class is in each cell of what the batch shows of it; fp32."""
        if self.saliency is not None:
            return resized(self.saliency.maps(scene).float(), self.cells.size)
        assert self.maps is not None, "there is one of the two"
        found, labels = self.maps.of(scene.batch), scene.batch.labels
        maps = class_maps(found.scores, found.classes, labels)
        shown = cropped(maps, found.crops, self.cells.size, swapped=self.rule == "code")
        return shown if self.rule == "code" else shown.clamp_min(0)

    def targets(self, step: Step) -> Targets:
        mix, origins = step.mix, step.mix.origins
        if origins is None:  # every source is shown evenly
            origins = mix.weights[:, :, None, None]
        areas = None if self.rule == "code" else mix.weights
        return mix.targets(activation_shares(self.activation(step.scene), origins, mix.sources, areas))

    def looked_at(self, step: Step, targets: Targets) -> Float[Tensor, "r h w"] | None:
        """The activation that counts, of each image where it shows; None where a saliency tells it, or images move."""
        mix = step.mix
        if self.maps is None or mix.masks is None or mix.make_origins is not None:
            return None
        maps = self.activation(step.scene)
        return (_in_cells(mix.masks, maps) * _normalised(maps)[mix.sources]).sum(1)


class RowCrossEntropy(BinaryCrossEntropy):
    """Binary cross-entropy of whole label rows: a class that no source has counts once, whatever the shares' sum.

    Args:
        halves: smooth labels of pairs as the authors' code does, see `smoothed_by_halves`.
    """

    def __init__(self, *, halves: bool = False) -> None:
        super().__init__()
        self.halves = halves

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        pair = targets.hard and targets.soft is None and targets.sources.shape[1] == 2
        if self.halves and self.smoothing and pair:
            wanted = smoothed_by_halves(targets.weights, targets.classes, logits.shape[1], self.smoothing)
        else:
            wanted = targets.dense(logits.shape[1], self.smoothing)
        scores = logits.float()
        loss = F.softplus(scores) - scores * wanted.float()
        return (loss if self.class_weights is None else loss * self.class_weights.to(loss.device)).mean(1)


@method("tokenmix", section="2.5", paper="2207.08409", venue="ECCV 2022", gate="switch_prob")
def tokenmix(
    lam: float = 0.5,
    variant: Variant = "blocks",
    grid: int | None = None,
    saliency: Source | None = None,
    rule: Rule = "paper",
    switch_prob: float = 0.5,
    mixup_alpha: float = 0.8,
    teacher: str | None = None,
    teacher_size: int | None = None,
    teacher_epochs: int = 5,
    per: Per = "sample",
) -> Pieces:
    """Args:
    lam: λ, the share of the tokens that keep the image.
    variant: the partner shows in several "blocks" of tokens, or in single "random" ones.
    grid: tokens along each side; by default the network's patches, and 14 for networks without.
    saliency: what the label follows in place of a teacher's maps: "attention", "cam", or another source.
    rule: the "paper"'s masks and labels, or the authors' "code"'s.
    switch_prob: share of the batches that are mixed by tokens; the others are plain mixup.
    mixup_alpha: λ ~ Beta(α, α) of the mixup batches.
    teacher: the classifier whose maps the label follows: None for a small CNN trained beforehand, the folder of a
        finished run, or a name of timm with as many classes (the paper's is "dm_nfnet_f6.dm_in1k").
    teacher_size: pixels of both sides at which the teacher sees images; None for the network's own.
    teacher_epochs: passes of the small CNN's training over the training images.
    per: one mask per "sample" or per "batch".
    """
    number_in("lam", lam, 0, 1)
    number_in("mixup_alpha", mixup_alpha, 0, open_low=True)
    cells = Cells(grid)
    maps = None
    if saliency is None:
        found = Pretrained(teacher, owner="tokenmix", size=teacher_size, epochs=teacher_epochs)
        maps = Annotator(found, "tokenmix")
    criterion = RowCrossEntropy(halves=rule == "code")
    return Pieces(
        essential=TeacherShares(cells, maps, saliency, rule),
        suggested=(TokenMask(cells, variant, rule, per), Uniform(lam, lam, per="batch"), criterion),
        prob=switch_prob,
        otherwise=f"mixup(alpha={mixup_alpha!r}, per={per!r})",
    )
