"""SMMix: paste the most attended square of the partner over the least attended square of the image.

Chen, Lin, Lin, Zhang, Chao, Ji, "SMMix: Self-Motivated Image Mixing for Vision Transformers", ICCV 2023,
arXiv:2212.12977.

The network that is being trained looks at the clean batch first. How much attention each patch receives in its last
block tells where the image loses a square of tokens, and which square of the partner, of equal size, is shown there;
the label follows the area. Two terms are added to the loss: what the network says of each of the two regions, its
output tokens averaged and classified by a linear head of their own, is trained on that region's label; and what it says
of the whole is pulled towards its own mixed predictions for the clean images. Equations: best windows →
`peak_windows`; x̃ → `mixwell.ops.windows.moved`; L_fine → `RegionalLoss`; L_con → `Consistency`.

One batch in two is plain mixup (`switch_prob`), with the label's cross-entropy alone.

Paper and code:
- λ is the share of the image that keeps its own pixels, as in the code and everywhere here; the paper's is that of the
  pasted square.
- "The distribution of the unmixed images" is the softmax of their mixed logits, not a mix of their distributions.
- The code draws one side for all squares of a batch (`per="batch"`), pairs a batch with its reverse and knows square
  images only. On other token grids ours are squares too, with sides drawn as for the shorter side of the grid.
- The attention of patches to a patch, not the class token's, tells where to cut; OpenMixup's version takes the latter
  (`saliency="attention"`), and other saliencies make the method one for convolutional networks (`saliency="cam"`).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Blend, Criterion, Need, Per, Scene, Step, Term, per_of
from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Source, saliency_of
from mixwell.core.targets import Targets, summed
from mixwell.ops.boxes import kept
from mixwell.ops.windows import moved, sides_in_pixels, window_sums, windows_at
from mixwell.probe import Anatomy, Want, seen_on_example

__all__ = [
    "AttentionRegion",
    "Consistency",
    "RegionalLoss",
    "divergence",
    "peak_windows",
    "regional_means",
    "regional_targets",
    "sides_of",
]


def sides_of(
    points: Float[np.ndarray, " #b"], scale: tuple[float, float], grid: tuple[int, int]
) -> Int64[np.ndarray, " #b"]:
    """Sides of the squares in places of the grid: uniform on ⌊s·low⌋ … ⌊s·high⌋ and at least 1, s the shorter side.

    Args:
        points: uniform in [0, 1).
        scale: (low, high).
        grid: rows and columns.
    """
    low, high = (max(1, int(min(grid) * end)) for end in scale)
    sides: np.ndarray = low + (points * (high - low + 1)).astype(np.int64)
    return sides


def peak_windows(maps: Float[Tensor, "b h w"], sides: Int64[Tensor, " #b"]) -> Int64[Tensor, "b 2"]:
    """Row and column of the top left corner of the square window of greatest sum, the first of equal ones."""
    sums = window_sums(maps, torch.stack((sides, sides), 1))
    place = sums.nan_to_num(-torch.inf).flatten(1).argmax(1)
    return torch.stack((place // maps.shape[2], place % maps.shape[2]), 1)


class AttentionRegion(Blend):
    """Show the most salient square of the partner in the least salient square of the image.

    Args:
        saliency: where the saliency comes from; squares consist of places of its map.
        scale: least and greatest side of the squares, as a share of the map's shorter side.
        per: one side per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}
    takes_lam = False
    aligned = False

    def __init__(
        self, saliency: Source = "patch_attention", scale: tuple[float, ...] = (0.25, 0.75), per: Per = "sample"
    ) -> None:
        super().__init__()
        self.saliency = saliency_of(saliency)
        self.network = self.saliency.network
        if len(scale) != 2:
            raise ParameterError(
                f"scale must be the smallest and the largest side, such as (0.25, 0.75), got {scale!r}."
            )
        low = number_in("the smallest side", scale[0], 0, 1, open_high=True)
        self.scale = low, number_in("the largest side", scale[1], low, 1, open_high=True)
        self.per = per_of(per)

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.saliency.build(anatomy, num_classes)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) or (1,) uniform in [0, 1): how large the square is."""
        return rng.random(1 if self.per == "batch" else rows)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        maps, size = self.saliency.maps(scene), (images.shape[2], images.shape[3])
        grid = (maps.shape[1], maps.shape[2])
        if grid == (1, 1):
            raise ModelError(
                "smmix moves squares of the saliency map, and this one has a single place. Take larger images, smaller "
                "patches, or another saliency."
            )
        sides = sides_of(draws, self.scale, grid)
        along, squares = onto(sides, maps), np.stack((sides, sides), 1)
        least, most = peak_windows(-maps, along), peak_windows(partners.of(maps), along)

        def boxes(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
            return windows_at(least, squares, grid, size), windows_at(most, squares, grid, size)

        def apply(x: Tensor) -> Tensor:
            return moved(x, partners, *boxes((x.shape[2], x.shape[3])))

        into, out_of = boxes(size)

        def masks(mix: Mix) -> Tensor:
            return with_rest(kept(into, size))

        def origins(mix: Mix) -> Tensor:
            return torch.cat((kept(into, size), 1 - kept(out_of, size)), 1)

        own = torch.from_numpy(1 - sides_in_pixels(squares, grid, size).prod(1) / (size[0] * size[1]))
        mixed = moved(images, partners, into, out_of)
        return Mix.of_pair(mixed, partners, own, apply, area=own, make_masks=masks, make_origins=origins)


def regional_means(features: Float[Tensor, "r c h w"], masks: Float[Tensor, "#r k y x"]) -> Float[Tensor, "r k c"]:
    """The mean features of what each source shows, at least in fp32; 0 for a source that shows nothing.

    Args:
        features: (R, C, h, w) of the mixed images.
        masks: (R, K, H, W) what each source contributes to each pixel; a place of the features counts for a source as
            much as it shows there.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    shares = F.adaptive_avg_pool2d(masks.to(wide.dtype), (features.shape[2], features.shape[3])).flatten(2)
    with torch.autocast(features.device.type, enabled=False):
        sums = shares.expand(len(wide), -1, -1) @ wide.flatten(2).transpose(1, 2)
    return sums / shares.sum(2, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)


def regional_targets(mix: Mix) -> Targets:
    """The labels of each mixed image's regions: of the image that shows there, or none where none of it shows.

    Returns:
        Targets of R·K rows, the K regions of each image one after the other; a region's label has weight 1, the image's
        others 0.
    """
    assert mix.masks is not None, "a blend that gives masks made none"
    shown = (mix.masks.sum((2, 3)) > 0).to(mix.weights.dtype)
    weights = torch.diag_embed(shown.expand_as(mix.weights)).flatten(0, 1)
    return Targets(mix.pool, mix.sources.repeat_interleave(mix.sources.shape[1], 0), weights)


class RegionalLoss(Term):
    """L_fine: the criterion of each region's mean output token for the label of the image that it comes from.

    Owns the classifier of regions, which exists once it is built; it is no part of the network.

    Args:
        weight: of the mean over both regions, ≥ 0.
    """

    needs = frozenset({Need.MASKS, Need.PAIR})
    network = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = number_in("fine_weight", weight, 0)
        self.output = Want("features", "tokens")
        self.head: nn.Linear | None = None

    def wants(self) -> tuple[Want, ...]:
        return (self.output,)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Make the classifier for the network's tokens.

        Raises:
            ModelError: there are no example images.
            SiteError: the network has neither tokens nor stages that are known.
        """
        seen = seen_on_example(anatomy, "The classifier of regions", [self.output])
        shown, classes = seen[self.output], num_classes or seen.logits.shape[-1]
        self.head = nn.Linear(shown.shape[1], classes, device=shown.device, dtype=shown.dtype)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert self.head is not None, "a recipe binds before it is trained"
        assert step.mix.masks is not None, "a blend that gives masks made none"
        means = regional_means(step.outputs[self.output], step.mix.masks)
        wanted = regional_targets(step.mix)
        wanted.num_classes = targets.num_classes
        loss: Tensor = self.weight * criterion(self.head(means.to(self.head.weight.dtype)).flatten(0, 1), wanted)
        return loss


def divergence(logits: Float[Tensor, "r c"], given: Float[Tensor, "r c"]) -> Float[Tensor, ""]:
    """KL(softmax(given) ‖ softmax(logits)), at least in fp32, the mean over rows."""
    log_q, log_p = (F.log_softmax(x, 1, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (logits, given))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class Consistency(Term):
    """L_con: the divergence of what the network says of the mix from its own mixed logits for the clean images.

    Args:
        weight: ≥ 0.
    """

    needs = frozenset({Need.MASKS, Need.PAIR})  # masks, since the paper's mixup batches do without
    network = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = number_in("consistency_weight", weight, 0)

    def views(self) -> tuple[Want, ...]:
        return (Want("logits"),)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.scene.views is not None, "a piece that needs a network is asked only where there is one"
        mixed = summed(step.scene.views.logits, step.mix.sources, step.mix.weights)
        return self.weight * divergence(step.outputs.logits, mixed)


@method("smmix", section="1.8", paper="2212.12977", venue="ICCV 2023", gate="switch_prob")
def smmix(
    switch_prob: float = 0.5,
    scale: tuple[float, ...] = (0.25, 0.75),
    saliency: Source = "patch_attention",
    fine_weight: float = 1.0,
    consistency_weight: float = 1.0,
    mixup_alpha: float = 0.8,
    per: Per = "sample",
) -> Pieces:
    """Args:
    switch_prob: share of the batches with pasted squares; the others are plain mixup.
    scale: least and greatest side of the squares, as a share of the saliency map's shorter side.
    saliency: where to cut and what to show: the attention that patches receive, or another source.
    fine_weight: weight of the regions' own loss.
    consistency_weight: weight of the divergence from the mixed clean predictions.
    mixup_alpha: λ ~ Beta(α, α) of the mixup batches.
    per: one side of the square per "sample", or one per "batch" as in the authors' code.
    """
    number_in("mixup_alpha", mixup_alpha, 0, open_low=True)
    return Pieces(
        essential=(AttentionRegion(saliency, scale, per), RegionalLoss(fine_weight), Consistency(consistency_weight)),
        prob=switch_prob,
        otherwise=f"mixup(alpha={mixup_alpha!r}, per={per!r})",
    )
