"""MixPro: mix large cells of whole patches, and trust the network's attention as far as its prediction is right.

Zhao, Huang, Hu, Zhang, Liu, "MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision
Transformer", ICLR 2023, arXiv:2304.12043.

MaskMix shows random cells of the image and the partner in the others. Cells are multiples of the model's patch, so that
no patch holds two images. Progressive attention labelling gives each source a share between that of its cells and that
of the class token's attention, in the last block of the forward pass that is being trained: closer to the attention,
the more the prediction resembles the label by area. Equations: the mask → `kept_cells`, `cells_along`; λ_area → the
mix's label shares; λ_attn → `mixwell.ops.tokens.token_shares`; α = cos(ŷ, softmax(z)) → `resemblance`; λ = α·λ_attn +
(1-α)·λ_area → `ProgressiveAttention`.

One batch in two is mixed so (`prob`), the others are mixup and CutMix by halves. Switch and cells are suggestions: the
labels serve any sample policy with masks, as in "resizemix + mixpro". They need a class token; hierarchical networks
such as Swin, and convolutional ones, take MaskMix with labels by area alone, `pal=false`.

Paper and code:
- The paper's cells of 56 pixels are 4 along a side of its images, and that is the parameter here, whatever the image's
  size. Patches are those of the network that the recipe is bound to; the parameter `patch` says them otherwise. Where
  a side has no multiple of n patches, cells differ by one patch, and the label follows the pixels. The code's cells are
  equally large, those at the lower and right border are cut, and its label counts cells (`rule="code"`).
- In the code the gradient also passes through α (`detach=false`). By default α is a number.
- The code draws one λ per batch, and cells for each image (`per="batch", masks="sample"`).
- The code smooths the label by area, and no others: α compares the prediction with labels smoothed by `smoothing`,
  the loss takes the recipe's `label_smoothing`, which to follow the code is 0 with `pal`, 0.1 without.
- Progressive labels are the point of the paper; they are off in the code's configurations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Label, Need, Per, Scene, Step, per_of
from mixwell.core.errors import ParameterError, SiteError, number_in
from mixwell.core.mix import Mix, Partners, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.cells import Lines, cells_shown, share_in_cells
from mixwell.ops.tokens import token_shares
from mixwell.probe import Anatomy, Want, seen_on_example

__all__ = ["MaskMix", "ProgressiveAttention", "cells_along", "kept_cells", "patch_of", "resemblance"]

Rule = Literal["paper", "code"]


@lru_cache(maxsize=64)
def cells_along(side: int, count: int, patch: int = 1, rule: Rule = "paper") -> Int[np.ndarray, " side"]:
    """The cell of each pixel along a side; a patch lies in one cell.

    Args:
        side: pixels.
        count: cells.
        patch: pixels of a patch.
        rule: cells that differ by at most one patch ("paper"), or equally large ones of which the last may be cut, or
            be beyond the image ("code").
    """
    patches, pixel = -(-side // patch), np.arange(side)
    return pixel // (patch * -(-patches // count)) if rule == "code" else pixel // patch * count // patches


def kept_cells(order: Float[np.ndarray, "#b n n"], lam: Float[np.ndarray, " #b"]) -> Bool[np.ndarray, "#b n n"]:
    """The ⌈λ·n²⌉ cells that come first in each order: where the image itself is shown.

    Args:
        order: (B, n, n) or (1, n, n) numbers, the lowest first.
        lam: (B,) or (1,) λ in [0, 1].
    """
    flat = order.reshape(len(order), -1)
    ranks = flat.argsort(1).argsort(1)
    kept: np.ndarray = ranks < np.ceil(lam * flat.shape[1])[:, None]
    return kept.reshape(-1, *order.shape[1:])


def patch_of(anatomy: Anatomy) -> tuple[int, int]:
    """Height and width in pixels of a network's patches; 1 × 1 if it embeds none.

    Raises:
        ModelError: there are no example images.
    """
    try:
        anatomy.site("patches")
    except SiteError:
        return 1, 1
    patches = Want("features", "patches")
    image, tokens = anatomy.example_for("MaskMix").shape[2:], seen_on_example(anatomy, "MaskMix", [patches])[patches]
    height, width = (-(-side // count) for side, count in zip(image, tokens.shape[2:], strict=True))
    return height, width


class MaskMix(Blend):
    """Show ⌈λ·n²⌉ random cells of an n×n grid from the image, the others from its partner.

    Args:
        cells: n, cells along a side.
        patch: pixels along a side of the model's patches, which no cell cuts; None for those of the network that the
            recipe is bound to, single pixels as long as it is bound to none.
        rule: see `cells_along`; the label's shares are those of the pixels, with "code" those of the cells.
        per: one choice of cells per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, cells: int = 4, patch: int | None = None, rule: Rule = "paper", per: Per = "sample") -> None:
        super().__init__()
        self.n = int(number_in("cells", cells, 1))
        self.patch = (1, 1) if patch is None else (int(number_in("patch", patch, 1)),) * 2
        self.asks = patch is None
        self.rule: Rule = rule
        self.per = per_of(per)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Learn how large the network's patches are.

        Raises:
            ModelError: it has patches, but there are no example images.
        """
        if self.asks:
            self.patch = patch_of(anatomy)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, n, n) or (1, n, n) uniforms in [0, 1), whose order is that in which cells stay with the image."""
        return rng.random((1 if self.per == "batch" else rows, self.n, self.n))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        cells = kept_cells(draws, lam.detach().cpu().double().numpy())
        pixels = scene.batch.images.shape[2:]

        def lines(x: Tensor) -> Lines:
            """The cell of each row and column; a hidden map has its patches where the image has its own."""
            rows, columns = (
                cells_along(side, self.n, max(1, round(patch * side / full)), self.rule)
                for side, patch, full in zip(x.shape[2:], self.patch, pixels, strict=True)
            )
            return rows, columns

        def apply(x: Tensor) -> Tensor:
            return partners.under(x, cells_shown(cells, lines(x), x))

        def masks(mix: Mix) -> Tensor:
            return with_rest(cells_shown(cells, lines(images), mix.weights))

        area = torch.from_numpy(share_in_cells(cells, lines(images)))
        own = torch.from_numpy(cells.mean((1, 2))) if self.rule == "code" else area
        return Mix.of_pair(apply(images), partners, own, apply, lam=lam, area=area, make_masks=masks)


def resemblance(logits: Float[Tensor, "r c"], labels: Float[Tensor, "r c"]) -> Float[Tensor, " r"]:
    """α: the cosine between each predicted distribution and its label, in fp32; in [0, 1] for labels ≥ 0."""
    return F.cosine_similarity(labels.float(), logits.float().softmax(1))


class ProgressiveAttention(Label):
    """Label shares between those by area and those by attention, by how much the prediction resembles the former.

    Args:
        smoothing: ε in [0, 1) of the labels that predictions are compared with.
        detach: whether no gradient passes through α.
    """

    needs = frozenset({Need.MASKS, Need.SIMPLEX})
    network = True

    def __init__(self, smoothing: float = 0.1, detach: bool = True) -> None:
        super().__init__()
        self.smoothing = number_in("smoothing", smoothing, 0, 1, open_high=True)
        self.detach = detach
        self.attention = Want("class_attention", -1)

    def wants(self) -> tuple[Want, ...]:
        return (self.attention,)

    def targets(self, step: Step) -> Targets:
        mix, logits = step.mix, step.outputs.logits.detach() if self.detach else step.outputs.logits
        assert mix.masks is not None, "a blend that gives masks made none"
        alpha = resemblance(logits, mix.targets().dense(logits.shape[1], self.smoothing))
        attended = token_shares(mix.masks, step.outputs[self.attention])
        return mix.targets(mix.weights.lerp(attended, alpha[:, None]))


@method("mixpro", section="2.5", paper="2304.12043", venue="ICLR 2023")
def mixpro(
    cells: int = 4,
    patch: int | None = None,
    pal: bool = True,
    alpha: float = 1.0,
    smoothing: float = 0.1,
    detach: bool = True,
    rule: Rule = "paper",
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    prob: float = 0.5,
    per: Per = "sample",
    masks: Per | None = None,
) -> Pieces:
    """Args:
    cells: n, cells along a side of the image.
    patch: pixels along a side of the model's patches, which no cell cuts; None for those of the network itself.
    pal: whether labels follow the attention as training proceeds; if not, they follow the area, for any network.
    alpha: λ ~ Beta(α, α), the share of the cells that keep the image.
    smoothing: ε of the labels by area that predictions are compared with; the loss's own is the recipe's
        `label_smoothing`.
    detach: whether the weight of the attention is a number; if not, gradients pass through it as in the authors' code.
    rule: "paper": cells are as equal as patches allow, labelled by their pixels; "code": equal, cut at the border,
        and labelled by their number.
    mixup_alpha: λ ~ Beta(α, α) of mixup, which mixes half of the other batches.
    cutmix_alpha: λ ~ Beta(α, α) of CutMix, which mixes the other half.
    prob: share of the batches with cells.
    per: one λ per "sample" or per "batch".
    masks: one choice of cells per "sample" or per "batch"; as `per` if not given.
    """
    number_in("mixup_alpha", mixup_alpha, 0, open_low=True)
    number_in("cutmix_alpha", cutmix_alpha, 0, open_low=True)
    if not (pal or detach):
        raise ParameterError("detach=false says how α is made, and with pal=false there is none. Leave it out.")
    blend, ratio = MaskMix(cells, patch, rule, masks or per), Beta(alpha, per=per)
    label = ProgressiveAttention(smoothing, detach)
    return Pieces(
        essential=label if pal else blend,
        suggested=(blend, ratio) if pal else ratio,
        prob=prob,
        otherwise=f"mixup(alpha={mixup_alpha!r}, per={per!r}) | cutmix(alpha={cutmix_alpha!r}, per={per!r})",
    )
