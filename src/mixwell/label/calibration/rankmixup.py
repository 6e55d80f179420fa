"""RankMixup: mixes teach only which of several predictions should be the more confident.

Noh, Park, Lee, Ham, "RankMixup: Ranking-Based Mixup Training for Network Calibration", ICCV 2023, arXiv:2308.11990.

Mixed labels are poor targets for confidence, so that the criterion is that of the clean images, and mixes get none. The
network should be surer of an image than of its mixes, and surer of a mix the more one image dominates it.
`variant="mrl"` asks the former of the largest logits; "mndcg" makes several mixes of each image and asks for both, by
the normalised discounted cumulative gain of the ranking. Other blends of pairs give one mix of each image.
Equations: 1(mixed)·max(0, max_k z^m_k - max_k z_k + margin) → `margin_violation`; DCG, IDCG and NDCG → `ndcg`;
x_m = λ_m·x + (1-λ_m)·x[π_m] → `many_linear`.

Class ids, soft labels and several labels per image serve alike: λ' is the largest share of a mixed label (and of the
clean one), a mix of two equal labels is no mix, and confidences are the criterion's own probabilities.

Paper and code: in the authors' code the margin's mask and its excess are broadcast against each other, so that its loss
is the product of their means; ours is the masked mean that is meant. Its configurations ask for three mixes with "mrl",
which cannot run; there is one. It draws λ once per batch (`per="batch"`), and finds self-mixtures by a label share of
exactly 1, which rounding may miss; ours compares labels. Its `margin` and `alpha` on Tiny-ImageNet are 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Criterion, LossWrapper, Need, Per, Scene, Step, Term, per_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Beta, Permutation
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.sample.linear.mixup import Linear, linear
from mixwell.sample.saliency.automix import CleanLoss

__all__ = [
    "CleanAlone",
    "ManyLinear",
    "MarginRanking",
    "NDCGRanking",
    "by_image",
    "many_linear",
    "margin_violation",
    "ndcg",
    "truly_mixed",
]


def many_linear(
    images: Float[Tensor, "b ..."], partners: Partners, lam: Float[Tensor, "m #b"]
) -> Float[Tensor, "r ..."]:
    """(M·B, ...) λ_m·x_i + (1-λ_m)·x_j for each image and each of its M partners; row m·B + i is image i with its m-th.

    Args:
        images: (B, ...) floating.
        partners: M of each row.
        lam: (M, B) or (M, 1), on the images' device.
    """
    count, rows = len(lam), len(images)
    if images.requires_grad and torch.is_grad_enabled():
        return torch.cat([linear(images, partners.of(images, m), lam[m]) for m in range(count)])
    mixed = torch.empty(
        (count * rows, *images.shape[1:]), dtype=images.dtype, device=images.device, memory_format=layout_of(images)
    )
    weights = lam.to(images.dtype).view(count, -1, *(1,) * (images.ndim - 1))
    for m, part in enumerate(mixed.chunk(count)):
        torch.index_select(images, 0, partners.column(m), out=part)
        part.lerp_(images, weights[m])
    return mixed


class ManyLinear(Blend):
    """Several weighted means of each image, each with a partner and a λ of its own.

    Args:
        mixes: M, mixes of each image, with one partner each.
        alpha: λ_m ~ Beta(α, α).
        per: M λ per "sample", or per "batch".
    """

    gives = OF_A_PAIR
    takes_lam = False
    hidden = False
    grid = False

    def __init__(self, mixes: int = 3, alpha: float = 2.0, per: Per = "sample") -> None:
        super().__init__()
        if mixes < 1:
            raise ParameterError(f"mixes must be a whole number ≥ 1, got {mixes!r}. It counts the mixes of each image.")
        self.partners = mixes
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(M, B) or (M, 1) λ."""
        return rng.beta(self.alpha, self.alpha, (self.partners, 1 if self.per == "batch" else rows))

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        shares = onto(draws.astype(np.float32), images)
        own = shares.expand(self.partners, len(images)).flatten()
        sources = torch.stack((partners.sources[:, 0].repeat(self.partners), partners.index.T.flatten()), 1)

        def apply(x: Tensor) -> Tensor:
            return many_linear(x, partners, shares)

        weights = torch.stack((own, 1 - own), 1)
        return Mix(apply(images), sources, weights, partners.pool, apply, lam=own, area=own)


def by_image(mix: Mix, images: int) -> Int[Tensor, "b m"]:
    """The rows that are mixes of each of the batch's images; all have equally many."""
    return mix.sources[:, 0].argsort(stable=True).view(images, -1)


def truly_mixed(targets: Targets) -> Bool[Tensor, " r"]:
    """Whether a pair's two labels differ, and both have a share."""
    first, second = (targets.pool[rows] for rows in targets.sources.unbind(1))
    differ = (first != second).flatten(1).any(1) if first.ndim > 1 else first != second
    return differ & (targets.weights > 0).all(1)


def margin_violation(mixed: Float[Tensor, "r c"], clean: Float[Tensor, "r c"], margin: float) -> Float[Tensor, " r"]:
    """max(0, max_k z^m_k - max_k z_k + margin), of the logits of a mix and of its clean image."""
    return (mixed.amax(1) - clean.amax(1) + margin).clamp_min(0)


def ndcg(
    clean: Float[Tensor, " b"],
    mixed: Float[Tensor, "b m"],
    shares: Float[Tensor, "b m"],
    best: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, " b"]:
    """NDCG of the confidences in the order of the label shares, in (0, 1], however far it misses on either side.

    DCG = Σ_r c_(r)/log2(r + 1) and IDCG = Σ_r λ'_(r)/log2(r + 1), with the clean image first and then its mixes by
    falling λ'; the smaller divided by the larger.

    Args:
        clean: c_0, confidence in the image.
        mixed: c_m, confidence in each of its mixes.
        shares: λ'_m, largest label share of each mix.
        best: λ'_0 of the image; 1 if not given.
    """
    order = shares.argsort(dim=1, descending=True, stable=True)
    first = torch.ones_like(clean) if best is None else best
    gains = torch.cat((clean[:, None], mixed.gather(1, order)), 1)
    ideal = torch.cat((first[:, None], shares.gather(1, order)), 1)
    discounts = 1 / torch.arange(2, gains.shape[1] + 2, device=gains.device, dtype=gains.dtype).log2()
    dcg, idcg = gains @ discounts, ideal @ discounts
    tiny = torch.finfo(dcg.dtype).tiny
    return torch.where(idcg > dcg, dcg / idcg.clamp_min(tiny), idcg / dcg.clamp_min(tiny))


class CleanAlone(LossWrapper):
    """Mixes do not count in the criterion."""

    needs = frozenset({Need.PAIR, Need.OWN_ROW})
    breaks = frozenset({Need.PAIR})

    def counts(self, step: Step) -> Float[Tensor, " r"] | None:
        return torch.zeros_like(step.mix.weights[:, 0])


class MarginRanking(Term):
    """The largest logit of a mix is to lie below that of its image by a margin.

    Args:
        weight: w ≥ 0 of the term.
        margin: in logits.
    """

    needs = frozenset({Need.PAIR, Need.OWN_ROW})
    clean = True

    def __init__(self, weight: float = 0.1, margin: float = 2.0) -> None:
        super().__init__()
        self.weight = number_in("weight", weight, 0)
        self.margin = number_in("margin", margin)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.clean is not None, "a piece that asks for a clean pass got none"
        clean = step.clean.logits.float()[step.mix.sources[:, 0]]
        rows = margin_violation(step.outputs.logits.float(), clean, self.margin)
        return self.weight * step.mix.mean(torch.where(truly_mixed(targets), rows, 0))


class NDCGRanking(Term):
    """Confidences in an image and its mixes are to be ranked, and as large, as the shares of what dominates them.

    Args:
        weight: w ≥ 0 of the term.
    """

    needs = frozenset({Need.PAIR, Need.OWN_ROW})
    clean = True

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = number_in("weight", weight, 0)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.clean is not None, "a piece that asks for a clean pass got none"
        confidences = [criterion.probabilities(o.logits).amax(1) for o in (step.clean, step.outputs)]
        labels = Targets.of(step.batch.labels)
        classes = step.outputs.logits.shape[1]
        best, shares = (t.dense(classes).amax(1).to(confidences[0].dtype) for t in (labels, targets))
        clean, mixed = confidences
        if step.mix.valid is not None:  # rows that do not count are at the ranking's end, and add nothing
            mixed, shares = (torch.where(step.mix.valid, values, 0) for values in (mixed, shares))
        rows = by_image(step.mix, len(step.batch))
        return self.weight * (1 - ndcg(clean, mixed[rows], shares[rows], best).mean())


@method("rankmixup", section="2.2", paper="2308.11990", venue="ICCV 2023")
def rankmixup(
    variant: Literal["mndcg", "mrl"] = "mndcg",
    weight: float = 0.1,
    margin: float | None = None,
    mixes: int | None = None,
    alpha: float = 2.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: "mndcg" ranks an image and several mixes of it, "mrl" an image above one mix.
    weight: w of the ranking.
    margin: of "mrl", in logits; 2 if not given.
    mixes: of each image for "mndcg"; 3 if not given.
    alpha: λ ~ Beta(α, α) of each mix.
    per: λ per "sample" or per "batch".
    """
    if (margin is not None and variant == "mndcg") or (mixes is not None and variant == "mrl"):
        raise ParameterError(
            "rankmixup: margin is for variant='mrl', and mixes for 'mndcg'. Leave out the one of the other variant."
        )
    if variant == "mrl":
        ranking = MarginRanking(weight, 2.0 if margin is None else margin)
        return Pieces((CleanAlone(), CleanLoss(), ranking), (Linear(), Beta(alpha, per=per)))
    many = ManyLinear(3 if mixes is None else mixes, alpha, per)
    return Pieces((CleanAlone(), CleanLoss(), NDCGRanking(weight)), (many, Permutation(many.partners)))
