"""PatchUp: show, or blend in, the partner inside random blocks of a hidden map, other blocks in every channel.

Faramarzi, Amini, Badrinaaraayanan, Verma, Chandar, "PatchUp: A Feature-Space Block-Level Regularization Technique for
Convolutional Neural Networks", AAAI 2022, arXiv:2006.07794.

Each step draws one of a few sites. At the input it is CutMix; at a hidden one, blocks around random positions, the same
for the whole batch, are swapped with a partner's ("hard") or averaged with it under λ ~ Beta(2, 2) ("soft"). The label
is W = p_u·a + (1-p_u)·(λa + (1-λ)b), where p_u is the share of the map that stayed as it was, and λ = 0 if swapped.
Equations: γ_adj → `centre_rate`; the blocks around Bernoulli(γ_adj) centres → `blocks_around`; φ_hard, φ_soft →
`Blocks`; L(f, W) → `Reweighted`.

Paper and code: the loss L(f, a)·p_u + L(f, b)·(1-p_u) + L(f, W) of paper and code is exactly 2·L(f, W), since L is
linear in the label. `loss="three_terms"` is that sum; the default takes W's part alone, on the scale of a plain batch's
loss. L is binary cross-entropy of the softmax probabilities in the code (`criterion="softmax_bce"`). The code draws one
λ and one box per batch (`per="batch"`), and keeps γ_adj of the map it first saw, which is that of every site as long
as these are of one size; here it follows each map, also where this is not square, and blocks shrink to fit in it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Criterion, Per, Scene, Step, Term
from mixwell.core.criteria import criterion_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of
from mixwell.core.places import ByPlace, Hidden, LamByPlace, Sites
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.noise import uniform_noise
from mixwell.sample.cutting.cutmix import Box

__all__ = ["Blocks", "Reweighted", "Variant", "blocks_around", "centre_rate"]

Variant = Literal["hard", "soft"]

_PROB = {"hard": 0.7, "soft": 1.0}
_GAMMA = {"hard": 0.5, "soft": 0.75}


def centre_rate(gamma: float, block: int, size: tuple[int, int]) -> float:
    """How many of a map's positions are centres, so that blocks that neither overlap nor are cut cover γ of it.

    Args:
        gamma: in [0, 1].
        block: side of a block, at most the map's sides.
        size: height and width of the map.
    """
    height, width = size
    inner = (height - block + 1) * (width - block + 1)
    return min(1.0, gamma * height * width / (block**2 * inner))


def blocks_around(centres: Bool[Tensor, "c h w"], block: int) -> Bool[Tensor, "c h w"]:
    """What is at most block // 2 rows and columns away from a centre; blocks are cut at the border.

    Args:
        block: odd.
    """
    holes = F.pad(centres, (block // 2,) * 4)
    for axis in (1, 2):
        reach = 1
        while reach < block:  # joined with itself moved by what it reaches, it reaches twice as far
            step = min(reach, block - reach)
            rest = holes.shape[axis] - step
            holes = holes.narrow(axis, 0, rest) | holes.narrow(axis, step, rest)
            reach += step
    return holes


class Blocks(Blend):
    """Keep the map outside random blocks; inside show the partner ("hard"), or its mean with the map ("soft").

    Args:
        variant: "hard" or "soft".
        gamma: share of the map in blocks if these did not overlap.
        block: side of the blocks, odd; the largest odd number that fits into smaller maps.

    Attributes:
        noise: what expands the drawn key; a replay of given centres puts its own in its place.

    Raises:
        ParameterError: γ outside [0, 1], or a block that is no odd number ≥ 1.
    """

    gives = OF_A_PAIR
    by_channel = True

    def __init__(self, variant: Variant = "hard", gamma: float = 0.5, block: int = 7) -> None:
        super().__init__()
        if block < 1 or block % 2 == 0:
            raise ParameterError(f"block must be an odd number of positions, 1 or more, got {block}. Try 7.")
        self.takes_lam = variant == "soft"
        self.gamma = number_in("gamma", gamma, 0, 1)
        self.block = block
        self.noise = uniform_noise

    def draw(self, rows: int, rng: Generator) -> int:
        """Key of the blocks of the whole batch, in [0, 2**63)."""
        return int(rng.integers(2**63))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: int,
        scene: Scene,
    ) -> Mix:
        channels, *size = images.shape[1:]
        shorter = min(size)
        block = min(self.block, shorter - 1 + shorter % 2)
        rate = centre_rate(self.gamma, block, (size[0], size[1]))
        centres = self.noise(draws, (channels, *size), images.device) < rate
        keep = (~blocks_around(centres, block)).float()[None]
        inside = lam.detach() if self.takes_lam else torch.zeros(1)

        def apply(x: Tensor) -> Tensor:
            # A tensor of other channels or positions is kept as much as the map's are on average.
            seen = keep if x.shape[1] == channels else keep.mean(1, keepdim=True)
            seen = seen if x.shape[2:] == images.shape[2:] else F.interpolate(seen, x.shape[2:], mode="area")
            other = partners.of(x)
            if self.takes_lam:
                other.lerp_(x, inside.to(x.device, x.dtype)[:, None, None, None])
            return other.lerp_(x, seen.to(x.dtype, memory_format=layout_of(x)))

        changed = 1 - keep.mean()
        own = 1 - changed * (1 - inside.to(changed.device))
        return Mix.of_pair(apply(images), partners, own, apply, lam=inside if self.takes_lam else None)


class Reweighted(Term):
    """The criterion against W once more: the first time it stands for those against both labels, which sum to it."""

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        again: Tensor = criterion(step.outputs.logits, targets, step.mix.valid)
        return again


@method("patchup", section="1.2", paper="2006.07794", venue="AAAI 2022")
def patchup(
    variant: Variant = "hard",
    gamma: float | None = None,
    block: int = 7,
    alpha: float = 2.0,
    cutmix_alpha: float = 1.0,
    sites: Sites | None = None,
    criterion: Literal["cross_entropy", "softmax_bce"] = "cross_entropy",
    loss: Literal["reweighted", "three_terms"] = "reweighted",
    prob: float | None = None,
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: "hard" swaps blocks, "soft" averages them.
    gamma: share of the map in blocks if these did not overlap; None for the paper's 0.5 (hard) or 0.75 (soft).
    block: side of the blocks, odd; the largest odd number that fits into smaller maps.
    alpha: λ ~ Beta(α, α) inside the blocks of "soft".
    cutmix_alpha: λ ~ Beta(α, α) of CutMix at the input.
    sites: "stem" (what the first stage is given), stage numbers (0 is the input) or module names, one of which is
        drawn per batch; None for the paper's (0, "stem", 1).
    criterion: "cross_entropy", or the authors' code's "softmax_bce".
    loss: "reweighted" for the criterion against the mix's label, "three_terms" for the paper's sum, twice that.
    prob: share of the batches that are mixed; None for the paper's 0.7 (hard) or 1 (soft).
    per: one λ, and at the input one box, per "sample" or per "batch"; blocks are always the batch's.
    """
    blocks = Blocks(variant, _GAMMA[variant] if gamma is None else gamma, block)
    mixing = (Hidden(sites, paper=(0, "stem", 1)), ByPlace(Box(per), blocks))
    ratio = LamByPlace(Beta(cutmix_alpha, per=per), Beta(alpha, per=per))
    return Pieces(
        essential=(*mixing, Reweighted()) if loss == "three_terms" else mixing,
        suggested=(ratio, criterion_of(criterion)),
        prob=_PROB[variant] if prob is None else prob,
    )
