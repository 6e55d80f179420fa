"""LGCOAMix: paste superpixels of the partner, label by attention among superpixels, and learn from each of these.

Dornaika, Sun, "LGCOAMix: Local and Global Context-and-Object-Part-Aware Superpixel-Based Data Augmentation for Deep
Visual Recognition", IEEE TIP 2024, arXiv:2512.00130.

A random half of the partner's superpixels is shown in the image. In the same forward pass a decoder makes features of
the image's own resolution; their means over superpixels attend to each other, and the attention says what each image's
share of the label is, and which superpixels are classified on their own. Equations: superpixels → `cut`; I_mix →
`SuperpixelPaste`; mean features, attention and local logits → `SuperpixelShares.attend`; λ_att → `attended_share`;
local cross-entropy → `LocalLoss`; supervised contrast → `contrast`. Decoder and attention are
`mixwell.nets.superpixel_decoder`; they train with the network and are no part of it.

Paper and code:
- The authors' scripts label by attention alone, but on CIFAR-100 by the mean of it and the area (`rule="average"`).
  Either share is a plain number: no gradient passes through it.
- The code reads images and features of shape (C, H, W) as if they were (H, W, C), which scrambles both places and
  channels (`layout="reshape"`). We cut and pool what is meant.
- The code cuts an image into superpixels twice, as image and as partner, with two drawn numbers of them; we cut it
  once. Ours are `mixwell.ops.superpixels`, which leaves stray pixels where they are, unless
  `Batch.extras["superpixels"]` has maps of one's own.
- The contrast is among the superpixels' logits, as in the code; the paper's text speaks of features.
- At least one superpixel of an image is classified. Where 0.7 of one is none, all scripts agree on that.

Label rows instead of class ids count as one class where they are equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, Shaped
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Blend, Criterion, Label, Need, Scene, Step, Term
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.nets.superpixel_decoder import SuperpixelAttention, SuperpixelDecoder
from mixwell.ops.superpixels import seed_grid, superpixel_means, superpixels
from mixwell.probe import Anatomy, Want, seen_on_example

__all__ = [
    "Attended",
    "AttendedTargets",
    "ContrastiveLoss",
    "LocalLoss",
    "PasteDraws",
    "PastedSuperpixels",
    "SuperpixelPaste",
    "SuperpixelShares",
    "attended_share",
    "contrast",
    "cut",
]

Layout = Literal["permute", "reshape"]
Rule = Literal["average", "attention"]

_BASE_TEMPERATURE = 0.07
"""Supervised contrast is scaled by τ over this."""


def cut(
    raw: Float[Tensor, "b c h w"], counts: Int[np.ndarray, " b"], compactness: float
) -> tuple[Int64[Tensor, "b h w"], int]:
    """Superpixels of each image, about as many as it is to have, without blur.

    Images whose seeds lie alike are cut together.

    Args:
        raw: (B, C, H, W) pixels in [0, 1].
        counts: (B,) superpixels wanted.
        compactness: how much place counts against colour.

    Returns:
        (B, H, W) labels, and a number that all of them are below.
    """
    grids = {int(count): seed_grid(int(count), (raw.shape[2], raw.shape[3])) for count in np.unique(counts)}
    most = max(grid[2] for grid in grids.values())
    alike: dict[tuple[int, int, int], list[int]] = {}
    for count, grid in grids.items():
        alike.setdefault(grid, []).append(count)
    if len(alike) == 1:
        return superpixels(raw, int(counts[0]), 0.0, compactness), most
    segments = torch.empty((len(raw), *raw.shape[2:]), dtype=torch.int64, device=raw.device)
    for same in alike.values():
        rows = onto(np.flatnonzero(np.isin(counts, same)), raw)
        segments[rows] = superpixels(raw[rows], same[0], 0.0, compactness)
    return segments, most


def channels_first(tensor: Float[Tensor, "b c h w"], layout: Layout) -> Float[Tensor, "b c h w"]:
    """The tensor as it is, or ("reshape") what comes of reading its memory as (H, W, C)."""
    if layout == "permute":
        return tensor
    rows, channels, height, width = tensor.shape
    return tensor.reshape(rows, height, width, channels).permute(0, 3, 1, 2)


def attended_share(
    weights: Float[Tensor, "r s"], pixels: Float[Tensor, "r s"], own: Float[Tensor, " r"], first: int
) -> Float[Tensor, " r"]:
    """1-λ_att: what the image's own superpixels have of all weights, each times its pixels.

    Args:
        weights: (R, S) w_s.
        pixels: (R, S) n_s; 0 for those that are not there.
        own: (R,) the share where all weights are 0.
        first: how many of the S are the image's own; they come first.
    """
    amounts = weights * pixels
    total = amounts.sum(1)
    return torch.where(total > 0, amounts[:, :first].sum(1) / total.clamp_min(torch.finfo(total.dtype).tiny), own)


def contrast(
    logits: Float[Tensor, "m c"], alike: Float[Tensor, "m m"], valid: Float[Tensor, " m"], temperature: float
) -> Float[Tensor, ""]:
    """Supervised contrast: τ/0.07 · mean_i mean_{j of i's class} log(1 + Σ_{k of another} exp(u_i·u_k - u_i·u_j)/τ).

    u are the rows of length 1, j = i is included. 0 if all are of one class, or none is valid. Runs in fp32 at least,
    with autocast off; takes several times M² memory.

    Args:
        logits: (M, C).
        alike: (M, M) 1 where two rows are of one class, else 0.
        valid: (M,) 1 for rows that count, else 0.
        temperature: τ ≥ 0.03; exp(-2/τ) must not vanish.
    """
    with torch.autocast(logits.device.type, enabled=False):
        unit = F.normalize(logits.to(alike.dtype), dim=1)
        friends = alike * valid
        odds = torch.exp((unit @ unit.T - 1) / temperature)
        others = torch.linalg.vecdot(odds, valid - friends)[:, None]
        # What friends' own similarities add up to needs no M² numbers.
        count = friends.sum(1)
        pulls = ((unit * (friends @ unit)).sum(1) - count) / temperature
        rows = (torch.linalg.vecdot((odds + others).log(), friends) - pulls) / count.clamp_min(1)
        loss: Tensor = (rows * valid).sum() / valid.sum().clamp_min(1) * (temperature / _BASE_TEMPERATURE)
        return loss


class PasteDraws(NamedTuple):
    """What is drawn for each image.

    Attributes:
        counts: (B,) superpixels wanted of it.
        coins: (B, K) uniforms in [0, 1), one for each superpixel of its partner; taken from the start again by labels
            from K on.
    """

    counts: Int[np.ndarray, " b"]
    coins: Float[np.ndarray, "b k"]


@dataclass(eq=False)
class PastedSuperpixels(Mix):
    """A mix by superpixels.

    Attributes:
        regions: (R, H, W) whose pixel is whose: labels below `count` are the image's own superpixels, those from it on
            the partner's.
        count: a number that the labels of a single image are below.
        most: a number that no mixed image has more superpixels than.
    """

    regions: Int64[Tensor, "r h w"] | None = None
    count: int = 0
    most: int = 0


class SuperpixelPaste(Blend):
    """Show random superpixels of the partner in the image.

    Args:
        n_segments: least and greatest number of superpixels wanted of an image, uniformly drawn for each.
        compactness: how much place counts against colour.
        p: a superpixel of the partner is shown with probability 1-p.
        layout: whether images are cut as they are, or as the authors' code reads them.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    takes_lam = False
    hidden = False

    def __init__(
        self,
        n_segments: tuple[int, ...] = (30, 35),
        compactness: float = 8.0,
        p: float = 0.5,
        layout: Layout = "permute",
    ) -> None:
        super().__init__()
        if len(n_segments) != 2 or not 1 <= n_segments[0] <= n_segments[1]:
            raise ParameterError(f"n_segments must be (least, greatest), whole numbers ≥ 1 in order, got {n_segments}.")
        self.n_segments = n_segments[0], n_segments[1]
        self.compactness = number_in("compactness", compactness, 0, open_low=True)
        self.p = number_in("p", p, 0, 1)
        self.layout: Layout = layout

    def draw(self, rows: int, rng: Generator) -> PasteDraws:
        counts = rng.integers(*self.n_segments, rows, endpoint=True)
        return PasteDraws(counts, rng.random((rows, 2 * self.n_segments[1])))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: PasteDraws,
        scene: Scene,
    ) -> Mix:
        segments, count = self.segments(scene, draws.counts)
        return self.paste(images, partners, (segments, segments[partners.column()]), count, draws.coins)

    def segments(self, scene: Scene, counts: Int[np.ndarray, " b"]) -> tuple[Int64[Tensor, "b h w"], int]:
        """The superpixels of each image, those in `extras["superpixels"]` if there are; and what labels are below.

        Raises:
            BatchError: the normalisation is not known, or given maps do not fit the images.
        """
        images, given = scene.batch.images, scene.batch.extras.get("superpixels")
        if given is None:
            # Pixels of half precision would have other superpixels.
            raw = replace(scene.batch, images=images.detach().float()).raw
            return cut(channels_first(raw, self.layout), counts, self.compactness)
        if given.shape != (len(images), *images.shape[2:]) or given.is_floating_point():
            raise BatchError(
                "extras['superpixels'] must be integer labels of shape "
                f"{(len(images), *images.shape[2:])}, got {given.dtype} of shape {tuple(given.shape)}. Crop and flip "
                "the maps as the images."
            )
        return given.long(), int(given.max()) + 1

    def paste(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        segments: tuple[Int64[Tensor, "b h w"], Int64[Tensor, "b h w"]],
        count: int,
        coins: Float[np.ndarray, "b k"],
    ) -> Mix:
        """A `PastedSuperpixels` by given superpixels.

        Args:
            segments: (B, H, W) labels of the images, and of their partners.
            count: what labels are below.
            coins: as drawn.
        """
        pasted = np.take(coins >= self.p, np.arange(count), 1, mode="wrap")
        own, other = segments
        shown = onto(pasted, other).gather(1, other.flatten(1)).view_as(other)
        keep = (~shown)[:, None].float()
        area = keep.mean((1, 2, 3))

        def apply(x: Tensor) -> Tensor:
            same = x.shape[2:] == keep.shape[2:]
            return partners.under(x, keep if same else F.interpolate(keep, x.shape[2:], mode="nearest-exact"))

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        return PastedSuperpixels.of_pair(
            apply(images),
            partners,
            area,
            apply,
            area=area,
            make_masks=masks,
            regions=torch.where(shown, other + count, own),
            count=count,
            most=count + int(pasted.sum(1).max()),
        )


class Attended(NamedTuple):
    """What attention among the superpixels of R mixed images found.

    Attributes:
        weights: (R, S) w_s in (0, 1), detached; those of superpixels that are not there mean nothing.
        pixels: (R, S) n_s.
        top: (R, T) the superpixels of the largest weights, these first.
        valid: (R, T) whether there are so many.
        logits: (R, T, C) what these superpixels are taken for.
    """

    weights: Float[Tensor, "r s"]
    pixels: Float[Tensor, "r s"]
    top: Int64[Tensor, "r t"]
    valid: Bool[Tensor, "r t"]
    logits: Float[Tensor, "r t c"]


@dataclass(eq=False)
class AttendedTargets(Targets):
    """The labels of a mix, and what the pass over it said about its superpixels.

    Attributes:
        attended: see there.
    """

    attended: Attended | None = None


class SuperpixelShares(Label):
    """Label shares by attention among the superpixels, in the forward pass that is being trained.

    Owns the decoder, the attention and the classifier of superpixels, which exist once it is built.

    Args:
        rule: "attention", or the "average" of it and of the area.
        top: share of a mixed image's superpixels, the most salient, that are classified on their own.
        width: channels of the decoded features.
        layout: whether features are averaged as they are, or as the authors' code reads them.
    """

    needs = frozenset({Need.PAIR, Need.OWN_ROW})
    network = True

    def __init__(self, rule: Rule = "average", top: float = 0.7, width: int = 64, layout: Layout = "permute") -> None:
        super().__init__()
        self.rule: Rule = rule
        self.top = number_in("top", top, 0, 1)
        self.width = int(number_in("width", width, 1))
        self.layout: Layout = layout
        self.decoder: nn.Module
        self.attention: SuperpixelAttention
        self.local: nn.Linear
        self._maps: tuple[Want, ...] = ()

    def wants(self) -> tuple[Want, ...]:
        return self._maps

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Make the decoder for the network's maps; of a network whose maps all have one size, for the last.

        Raises:
            ModelError: there are no example images.
            SiteError: the network's stages are not known.
        """
        example = anatomy.example_for("The decoder")
        wants = [Want("features", site) for site in (*reversed(anatomy.stages), anatomy.site("stem").name)]
        seen = seen_on_example(anatomy, "The decoder", wants)
        if len({seen[want].shape[2:] for want in wants}) == 1:
            wants = wants[:1]
        self._maps = tuple(wants)
        shapes = [(seen[want].shape[1], seen[want].shape[2], seen[want].shape[3]) for want in wants]
        self.decoder = SuperpixelDecoder(shapes, (example.shape[2], example.shape[3]), self.width)
        self.attention = SuperpixelAttention(self.width)
        self.local = nn.Linear(self.width, num_classes or seen.logits.shape[-1])
        self.to(example.device, seen[wants[0]].dtype)

    def targets(self, step: Step) -> AttendedTargets:
        mix = step.mix
        assert isinstance(mix, PastedSuperpixels), "only a mix by superpixels has such shares"
        assert mix.regions is not None, "a mix by superpixels was made without them"
        size = (mix.regions.shape[1], mix.regions.shape[2])
        features = self.decoder([step.outputs[want] for want in self._maps], size)
        found = self.attend(features, mix.regions, 2 * mix.count, mix.most)
        own = attended_share(found.weights, found.pixels, mix.weights[:, 0], mix.count)
        if self.rule == "average":
            own = (own + mix.weights[:, 0]) / 2
        weights = torch.stack((own, 1 - own), 1).to(mix.weights.dtype)
        return AttendedTargets(mix.pool, mix.sources, weights, attended=found)

    def looked_at(self, step: Step, targets: Targets) -> Float[Tensor, "r h w"]:
        """The weight of each pixel's superpixel, from 0 at the least of an image."""
        found, regions = _attended(step, targets)[0], cast(PastedSuperpixels, step.mix).regions
        assert regions is not None, "a mix by superpixels was made without them"
        weights = found.weights.gather(1, regions.flatten(1))
        return (weights - weights.amin(1, keepdim=True)).view(regions.shape)

    def attend(
        self, features: Float[Tensor, "r d h w"], regions: Int64[Tensor, "r h w"], count: int, most: int
    ) -> Attended:
        """The weights of superpixels, and the logits of the most salient.

        Args:
            features: of the mixed images, at the resolution of the regions.
            regions: (R, H, W) labels.
            count: S, what labels are below.
            most: a number that no image has more superpixels than.
        """
        means = superpixel_means(channels_first(features, self.layout), regions, count)
        pixels = _pixels(regions, count, means.dtype)
        exists = pixels > 0
        parts = self.attention(means.transpose(1, 2).to(self.local.weight.dtype), exists)
        saliency = parts.detach().to(means.dtype).sum(2)
        wanted = np.maximum(np.floor(self.top * np.arange(most + 1)), 1).astype(np.int64)
        top = torch.where(exists, saliency, -torch.inf).topk(int(wanted[-1]), 1).indices
        valid = torch.arange(top.shape[1], device=top.device) < onto(wanted, top)[exists.sum(1)][:, None]
        logits = self.local(parts.gather(1, top[:, :, None].expand(-1, -1, parts.shape[2])))
        return Attended(saliency.sigmoid(), pixels, top, valid, logits)


def _pixels(regions: Int64[Tensor, "r h w"], count: int, dtype: torch.dtype) -> Float[Tensor, "r s"]:
    """How many pixels each superpixel has."""
    flat = regions.flatten(1)
    ones = torch.ones((), dtype=dtype, device=flat.device).expand_as(flat)
    return torch.zeros(len(flat), count, dtype=dtype, device=flat.device).scatter_add_(1, flat, ones)


def _attended(step: Step, targets: Targets) -> tuple[Attended, Bool[Tensor, "r t"]]:
    """What was found, and which of the most salient superpixels are the image's own."""
    assert isinstance(step.mix, PastedSuperpixels), "only a mix by superpixels has them"
    assert isinstance(targets, AttendedTargets), "its label is by attention"
    assert targets.attended is not None, "and keeps what was found"
    return targets.attended, targets.attended.top < step.mix.count


class LocalLoss(Term):
    """γ times the criterion of each salient superpixel for the label of the image it comes from, summed per image.

    Args:
        weight: γ ≥ 0.
    """

    needs = frozenset({Need.PAIR})
    network = True

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = number_in("local_weight", weight, 0)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        found, own = _attended(step, targets)
        shares = torch.stack((own, ~own), 2).flatten(0, 1).to(targets.weights.dtype)
        sources = targets.sources.repeat_interleave(own.shape[1], 0)
        wanted = Targets(targets.pool, sources, shares, targets.num_classes)
        valid = found.valid.flatten()
        loss: Tensor = criterion(found.logits.flatten(0, 1), wanted, valid)
        return self.weight * loss * (valid.sum() / len(own))


class ContrastiveLoss(Term):
    """γ times the supervised contrast of all salient superpixels of the batch.

    Args:
        weight: γ ≥ 0.
        temperature: τ ≥ 0.03.
    """

    needs = frozenset({Need.PAIR})
    network = True

    def __init__(self, weight: float = 0.05, temperature: float = 0.7) -> None:
        super().__init__()
        self.weight = number_in("contrast_weight", weight, 0)
        self.temperature = number_in("temperature", temperature, 0.03)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        found, own = _attended(step, targets)
        logits = found.logits.flatten(0, 1)
        source = torch.where(own, targets.sources[:, :1], targets.sources[:, 1:]).flatten()
        same = _same(targets.pool).to(torch.promote_types(logits.dtype, torch.float32))
        alike = same.index_select(0, source).index_select(1, source)
        return self.weight * contrast(logits, alike, found.valid.flatten().to(alike.dtype), self.temperature)


def _same(pool: Shaped[Tensor, "p ..."]) -> Bool[Tensor, "p p"]:
    """Whether two labels are equal."""
    equal = pool[:, None] == pool[None]
    return equal if equal.ndim == 2 else equal.all(2)


@method("lgcoamix", section="1.7", paper="2512.00130", venue="IEEE TIP 2024")
def lgcoamix(
    n_segments: tuple[int, ...] = (30, 35),
    compactness: float = 8.0,
    p: float = 0.5,
    rule: Rule = "average",
    top: float = 0.7,
    local_weight: float = 0.1,
    contrast_weight: float = 0.05,
    temperature: float = 0.7,
    width: int = 64,
    layout: Layout = "permute",
    prob: float = 0.5,
) -> Pieces:
    """Args:
    n_segments: least and greatest number of superpixels wanted of an image; the paper takes (30, 35) on CIFAR-100,
        (30, 40) and (40, 60) on finer data.
    compactness: how much place counts against colour in SLIC; 8 on CIFAR-100, else 10.
    p: a superpixel of the partner is shown with probability 1-p.
    rule: label shares by "attention", or by the "average" of attention and area as on CIFAR-100.
    top: share of a mixed image's superpixels, the most salient, that the local losses see.
    local_weight: weight of the local cross-entropy, a sum over superpixels; 0.03 to 0.1.
    contrast_weight: weight of the supervised contrast.
    temperature: τ of the contrast.
    width: channels of the decoded features.
    layout: "permute", or "reshape" to scramble images and features as the authors' code does.
    prob: share of the batches that are mixed.
    """
    return Pieces(
        (
            SuperpixelPaste(n_segments, compactness, p, layout),
            SuperpixelShares(rule, top, width, layout),
            LocalLoss(local_weight),
            ContrastiveLoss(contrast_weight, temperature),
        ),
        prob=prob,
    )
