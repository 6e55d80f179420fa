"""SAMix: AutoMix with a mixer that sees both images and λ at once, and may be taught locally and globally.

Li, Liu, Wang, Wu, Liu, Li, "Boosting Discriminative Visual Representation Learning with Scenario-Agnostic Mixup", 2021,
arXiv:2111.15454.

AutoMix's training (see `automix`) with another mixer: λ, pulled towards ½, multiplies the features; queries and keys
see both images; values come from two layers with BatchNorm. Its loss also rewards masks that vary. It learns from
AutoMix's mixup cross-entropy ("mce"), or from a softmax over the two mixed classes alone plus η times that over all
classes ("balanced"). Equations: λ' → `encoded`; mask → `SAMixer`; -2·Var(m) → `mask_variance`; l₊ → `local_loss`;
l₊ + η·l₋ → `SAMixLoss`.

Trainings of fewer than some 6,000 steps need a smaller momentum (see `automix`).

Paper and code: η acts in no released supervised configuration, as it would multiply classes whose label share is 0; so
"mce" is the default, with which those results were made. The other defaults are those of the longest runs on CIFAR-100.
Tiny-ImageNet and ImageNet take λ as it is (`lam_mul_k=-1, mask_adjust=0`), CUB and Aircraft `lam_mul_k=1`; all larger
images and ViTs drop 0.1 of the values. The code draws both λ once per batch (`per="batch"`; area and variance are then
the whole batch's, else each image's), and its `mask_adjust` takes the mixer's λ (`rule="code"`), as for `automix`. The
mixer's BatchNorm takes the statistics of the batch that is mixed, and its running ones follow both batches of a step.

Not here: self-supervised SAMix (contrastive learning against a queue of keys), and SAMix-P, whose mixer was trained
before and is frozen.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixwell.core.axes import Criterion, Per
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.nets.mixblock import Chance, PairMixer, Upsample
from mixwell.nets.taught import DrawnShares
from mixwell.ops.noise import uniform_noise
from mixwell.sample.saliency.automix import (
    CleanLoss,
    MixBlockBlend,
    MixerLoss,
    PairLesson,
    Rule,
    Schedule,
    area_loss,
)

__all__ = ["SAMixLoss", "SAMixer", "encoded", "local_loss", "mask_variance"]

Objective = Literal["mce", "balanced"]


def encoded(lam: Float[Tensor, "..."], k: float) -> Float[Tensor, "..."]:
    """λ' = (4/3·λ³ - 2·λ² + K·λ) / (K - 2/3) with K = min(k, 10) + 1, or λ itself for k < 0.

    0, ½ and 1 stay; in between, the smaller k ≥ 0, the nearer is λ' to ½.
    """
    if k < 0:
        return lam
    slope = min(k, 10.0) + 1
    return ((4 / 3 * lam - 2) * lam + slope) * lam / (slope - 2 / 3)


def local_loss(
    logits: Float[Tensor, "r c"], classes: Int[Tensor, "r 2"], shares: Float[Tensor, "r 2"]
) -> Float[Tensor, " r"]:
    """l₊: mixup cross-entropy of each row, with a softmax over its two classes only; log 2 where they are one."""
    return -(shares * F.log_softmax(logits.gather(1, classes), 1)).sum(1)


def mask_variance(mask: Float[Tensor, "b 1 h w"], lam: Float[Tensor, " #b"]) -> Float[Tensor, ""]:
    """Var(m) over an image's pixels, the mean over rows; if λ is one for the batch, over all pixels of the batch."""
    return mask.var(correction=0) if lam.numel() == 1 else mask.var((1, 2, 3), correction=0).mean()


class SAMixer(PairMixer):
    """SAMix's mixer: λ scales the features, queries and keys see both images, values are non-linear.

    A 1×1 convolution commutes with a factor per image and with the choice of partners, and one of two stacked images is
    the sum of one of each; so the features are convolved once, whatever λ and whoever the partners are.

    Args:
        channels: C of the features.
        reduction: queries, keys and the values' inner layer have C // reduction channels.
        lam_mul: s in [0, 1], how strongly λ' scales the features; 0 leaves λ out.
        lam_mul_k: k of `encoded`, or several, of which each batch takes one at random.
        lam_residual: scale the image by 1 + λ'·s and its partner by 1 + (1-λ')·s, rather than by λ' and 1-λ'.
        dropout: share of the values that are dropped.
        upsample: how the attended map is enlarged to the images' size.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 2,
        lam_mul: float = 1.0,
        lam_mul_k: tuple[float, ...] = (0.25,),
        lam_residual: bool = True,
        dropout: float = 0.0,
        upsample: Upsample = "bilinear",
    ) -> None:
        super().__init__(upsample)
        inner = max(1, channels // reduction)
        self.lam_mul, self.lam_mul_k, self.lam_residual = lam_mul, lam_mul_k, lam_residual
        self.dropout = dropout
        self.query = nn.Conv2d(2 * channels, inner, 1)
        self.key = nn.Conv2d(2 * channels, inner, 1)
        self.inner = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.value = nn.Conv2d(inner, 1, 1, bias=False)
        self.reset()

    def projected(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ h w"], ...]:
        """Queries as the first and as the second image, likewise keys, and the values' inner layer."""
        halves = (half for conv in (self.query, self.key) for half in conv.weight.chunk(2, 1))
        return F.conv2d(features, torch.cat((*halves, self.inner.weight)).float()).chunk(5, 1)

    def paired(
        self,
        read: tuple[Tensor, ...],
        partner: Int[Tensor, " r"],
        lam: Float[Tensor, "#r 1 1 1"],
        chance: Chance = None,
    ) -> tuple[Float[Tensor, "r d h w"], Float[Tensor, "r d h w"], Float[Tensor, "r 1 h w"]]:
        query, others_query, key, others_key, inner = read
        own, other = self.scales(lam, chance)
        query = torch.addcmul(own * query, other, others_query[partner]) + _offset(self.query)
        key = torch.addcmul(own * key, other, others_key[partner]) + _offset(self.key)
        value = F.conv2d(F.elu(self.norm(other * inner[partner])), self.value.weight.float())
        if self.dropout and chance is not None:
            kept = uniform_noise(int(chance[1] * 2**53), tuple(value.shape), value.device) >= self.dropout
            value = value * kept / (1 - self.dropout)
        return query, key, value

    def scales(
        self, lam: Float[Tensor, "#r 1 1 1"], chance: Chance = None
    ) -> tuple[Float[Tensor, "#r 1 1 1"], Float[Tensor, "#r 1 1 1"]]:
        """What the features of the image and of its partner are multiplied with."""
        if not self.lam_mul:
            return torch.ones_like(lam), torch.ones_like(lam)
        lam = encoded(lam, self.lam_mul_k[0 if chance is None else int(chance[0] * len(self.lam_mul_k))])
        return (1 + lam * self.lam_mul, 1 + (1 - lam) * self.lam_mul) if self.lam_residual else (lam, 1 - lam)


def _offset(conv: nn.Conv2d) -> Float[Tensor, "d 1 1"]:
    assert conv.bias is not None, "queries and keys have offsets"
    return conv.bias.float()[:, None, None]


class SAMixLoss(MixerLoss):
    """What the mixer minimises: the teacher's loss on its mixes, and γ times a loss of area and variance.

    Args:
        eta: weight η of the loss over all classes beside the local one; None for that over all classes alone.
        gamma, schedule, epsilon: as of `MixerLoss`.
    """

    def __init__(
        self, eta: float | None = None, gamma: float = 0.1, schedule: Schedule = "constant", epsilon: float = 0.1
    ) -> None:
        super().__init__(gamma, schedule, epsilon)
        self.eta = None if eta is None else number_in("eta", eta, 0)

    def about_mask(self, lesson: PairLesson) -> Float[Tensor, ""]:
        """max(|area - λ| - ε, 0) - 2·Var(m)."""
        return area_loss(lesson.mask, lesson.lam, self.epsilon) - 2 * mask_variance(lesson.mask, lesson.lam)

    def about_logits(self, logits: Float[Tensor, "b c"], targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        everywhere: Tensor = criterion(logits, targets)
        if self.eta is None:
            return everywhere
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return local_loss(wide, targets.classes, targets.weights).mean() + self.eta * everywhere


@method("samix", section="1.7", paper="2111.15454", venue="arXiv 2021")
def samix(
    alpha: float = 2.0,
    stage: int | str | None = None,
    lam_mul: float = 1.0,
    lam_mul_k: float | tuple[float, ...] = 0.25,
    lam_residual: bool = True,
    reduction: int = 2,
    dropout: float = 0.0,
    upsample: Upsample = "bilinear",
    objective: Objective = "mce",
    eta: float | None = None,
    lam_margin: float = 0.08,
    gamma: float = 0.1,
    gamma_schedule: Schedule = "constant",
    epsilon: float = 0.1,
    momentum: float = 0.999,
    final_momentum: float = 0.999999,
    hold: float = 0.1,
    mask_adjust: float = 0.25,
    rule: Rule = "paper",
    mixer_prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), of the classifier's batch and of the mixer's.
    stage: number or module name of the stage whose features the mixer sees; by default the last but one, of a ViT the
        block at half depth.
    lam_mul: s in [0, 1], how strongly λ' scales the mixer's features; 0 hides λ from the mixer.
    lam_mul_k: how far λ' is from ½: 0 is nearest, from 10 on it is almost λ, and -1 takes λ itself; of several, each
        batch takes one at random.
    lam_residual: scale an image's features by 1 + λ'·s, or else by λ'.
    reduction: the mixer's queries, keys and inner values have C // reduction channels.
    dropout: share of the mixer's values that are dropped; 0.1 on ImageNet and for ViTs.
    upsample: how masks are enlarged, "bilinear" or "nearest".
    objective: what the teacher judges the mixer by: "mce", mixup cross-entropy, or "balanced", the local loss plus η
        times that.
    eta: weight η, for objective="balanced" only; 0.5 if not given, and 1 on ImageNet.
    lam_margin: pairs with λ or 1-λ up to this are mixed linearly for the classifier.
    gamma: weight γ of the loss on the masks' area and variance.
    gamma_schedule: γ "constant" (CIFAR, Tiny-ImageNet) or falling to 0 by a "cosine" (elsewhere).
    epsilon: by how much the area may differ from λ without loss.
    momentum, final_momentum: of the moving average, at the beginning and at the end of the training.
    hold: share of the training in which the momentum stays at the beginning; 0.25 for ViTs.
    mask_adjust: probability of scaling a classifier's mask so that the image keeps the area λ; 0 off CIFAR-100.
    rule: which λ that is, the classifier's ("paper") or the mixer's ("code").
    mixer_prob: share of the steps in which the teacher judges the mixer; 0.8 for ViTs.
    per: one λ per "sample" or per "batch".
    """
    if reduction < 1:
        raise ParameterError(f"reduction must be a whole number ≥ 1, got {reduction}. 2 halves the channels.")
    if eta is not None and objective == "mce":
        raise ParameterError(
            f"eta weights a part of objective='balanced', got {eta} with 'mce'. Leave one of them out."
        )
    if not (ks := lam_mul_k if isinstance(lam_mul_k, tuple) else (lam_mul_k,)):
        raise ParameterError("lam_mul_k must be a number or several, got none. 0.25 is the authors' for CIFAR-100.")
    mixer = partial(
        SAMixer,
        reduction=reduction,
        lam_mul=number_in("lam_mul", lam_mul, 0, 1),
        lam_mul_k=tuple(number_in("lam_mul_k", k, -1) for k in ks),
        lam_residual=lam_residual,
        dropout=number_in("dropout", dropout, 0, 1, open_high=True),
        upsample=upsample,
    )
    blend = MixBlockBlend(
        alpha,
        mixer,
        stage=stage,
        lam_margin=lam_margin,
        mask_adjust=mask_adjust,
        rule=rule,
        mixer_prob=mixer_prob,
        momentum=momentum,
        final_momentum=final_momentum,
        hold=hold,
        per=per,
    )
    balance = (0.5 if eta is None else eta) if objective == "balanced" else None
    essential = (blend, DrawnShares(), CleanLoss(), SAMixLoss(balance, gamma, gamma_schedule, epsilon))
    return Pieces(essential=essential, suggested=Beta(alpha, per=per))
