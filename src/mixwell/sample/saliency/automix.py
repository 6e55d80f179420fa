"""AutoMix: a small network learns where to show which of two images, while the classifier learns from its mixes.

Liu, Li, Wu, Liu, Chen, Wu, Li, "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
arXiv:2103.13027.

A MixBlock (one cross-attention between two feature maps) predicts a mask per pair. It is trained on one mixed batch, by
the mixup loss of a frozen moving average k of the classifier q; q is trained on another, whose masks carry no gradient,
and on the clean batch. Labels follow the drawn λ, not the area. The two kinds of batches have a classifier each.
Equations: mask → `mixwell.nets.mixblock.MixBlock`; (1-m)·x_i + m·x_j → `blend_by`; L_λ → `area_loss`; mixup loss of k →
`MixerLoss`; θ_k and m(t) → `mixwell.nets.teacher`; what it shares with other learned mixers → `mixwell.nets.taught`.
Evaluation and export use k with its clean classifier (`Recipe.predictor`).

k follows so slowly that it needs some 6,000 steps to leave its first weights behind: after 900 steps it still holds
64 % of them, and predicts worse than q. Shorter trainings need a smaller momentum, and are told which.

Paper and code: the authors' code draws both λ once per batch (`per="batch"`; L_λ then takes the area of the whole
batch, else that of each image). Its `mask_adjust` scales the classifier's masks to the mixer's λ (`rule="code"`); what
is meant is their own (`rule="paper"`). γ stays 0.1 on CIFAR and Tiny-ImageNet and falls to 0 elsewhere
(`gamma_schedule`); masks see λ only on larger images (`lam_concat`). For ViTs the teacher judges the mixer in 0.8 of
the steps (`mixer_prob`, the code's `switch_off`). Schedules need the clock's total; without it γ and m keep their first
values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Criterion, Need, Per, Scene, Step, Term, per_of
from mixwell.core.clock import Clock
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.nets.mixblock import MixBlock, PairMixer, Upsample, match_area, outside_margin
from mixwell.nets.taught import DrawnShares, Lesson, TaughtBlend, TaughtMix, masks_for

__all__ = [
    "CleanLoss",
    "LessonDraws",
    "MixBlockBlend",
    "MixerLoss",
    "PairLesson",
    "area_loss",
    "blend_by",
    "gamma_at",
]

Rule = Literal["paper", "code"]
Schedule = Literal["constant", "cosine"]


def blend_by(
    mask: Float[Tensor, "b 1 h w"], own: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """(1-m)·own + m·other; the mask takes the images' dtype."""
    return torch.lerp(own, other, mask.to(own.dtype))


def area_loss(mask: Float[Tensor, "b 1 h w"], lam: Float[Tensor, " #b"], epsilon: float) -> Float[Tensor, ""]:
    """L_λ = max(|area - λ| - ε, 0), where area = 1 - mean(m) is what the images keep.

    The mean over rows; if λ is one for the batch, of the whole batch's area.
    """
    area = 1 - mask.mean((1, 2, 3))
    if lam.numel() == 1:
        area = area.mean()
    return ((area - lam).abs() - epsilon).clamp_min(0).mean()


def gamma_at(clock: Clock, gamma: float, schedule: Schedule) -> float:
    """The weight of L_λ: constant, or a cosine from `gamma` to 0 over the training if its length is known."""
    if schedule == "constant" or clock.total is None:
        return gamma
    return gamma * (math.cos(math.pi * min(1.0, clock.step / clock.total)) + 1) / 2


class LessonDraws(NamedTuple):
    """What the mixer's own batch needs, and the coins of a step.

    Attributes:
        partner: (B,) permutation.
        lam: (B,) or (1,), Beta(α, α).
        adjust: (B,) or (1,) uniform; a mask is adjusted if it is below `mask_adjust`.
        judged: uniform; the teacher judges the mixer if it is at most `mixer_prob`.
        chance: (2, 2) uniforms, for what the mixer leaves to chance in its own batch and in the classifier's.
    """

    partner: np.ndarray
    lam: np.ndarray
    adjust: np.ndarray
    judged: float
    chance: np.ndarray = np.zeros((2, 2))


@dataclass(frozen=True, eq=False)
class PairLesson(Lesson):
    """A lesson of pairs.

    Attributes:
        mask: (B, 1, H, W) how much of the partner each pixel shows, with a graph to the mixer.
        lam: (B,) or (1,) drawn λ, on the images' device.
    """

    mask: Float[Tensor, "b 1 h w"]
    lam: Float[Tensor, " #b"]


class MixBlockBlend(TaughtBlend):
    """Show what a learned mixer chooses of each pair.

    Args:
        alpha: λ ~ Beta(α, α) of the mixer's own batch.
        mixer: channels of the features → mixer.
        lam_margin: classifier's pairs with λ or 1-λ up to this are mixed linearly.
        mask_adjust: probability of scaling a classifier's mask to the area 1-λ.
        rule: adjust to the classifier's λ ("paper") or the mixer's ("code").
        mixer_prob: share of the steps in which the teacher judges the mixer.
        per: one λ and coin per "sample", or one per "batch".
        stage, momentum, final_momentum, hold: see `TaughtBlend`.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    mixer: PairMixer

    def __init__(
        self,
        alpha: float = 2.0,
        mixer: Callable[[int], PairMixer] = MixBlock,
        *,
        stage: int | str | None = None,
        lam_margin: float = 0.08,
        mask_adjust: float = 0.0,
        rule: Rule = "paper",
        mixer_prob: float = 1.0,
        momentum: float = 0.999,
        final_momentum: float = 0.999999,
        hold: float = 0.1,
        per: Per = "sample",
    ) -> None:
        super().__init__(mixer, stage, momentum, final_momentum, hold)
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.lam_margin = number_in("lam_margin", lam_margin, 0, 0.5)
        self.mask_adjust = number_in("mask_adjust", mask_adjust, 0, 1)
        self.rule = rule
        self.mixer_prob = number_in("mixer_prob", mixer_prob, 0, 1)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> LessonDraws:
        count = 1 if self.per == "batch" else rows
        return LessonDraws(
            partner=rng.permutation(rows),
            lam=rng.beta(self.alpha, self.alpha, count),
            adjust=rng.random(count),
            judged=float(rng.random()),
            chance=rng.random((2, 2)),
        )

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: LessonDraws,
        scene: Scene,
    ) -> Mix:
        teacher = self.teacher_in(scene)
        read, size = self.mixer.read(teacher.features(images)), (images.shape[2], images.shape[3])
        judge = teacher.logits if draws.judged <= self.mixer_prob else None
        lesson = self._lesson(images, read, draws, partners.pool, judge)
        with torch.no_grad():
            share = lam.to(images.device, torch.float32, non_blocking=True)
            mask = self.mixer.mask(read, partners.index[:, 0], share, size, draws.chance[1])
            if self.mask_adjust:
                chosen = torch.from_numpy(draws.adjust < self.mask_adjust).to(images.device, non_blocking=True)
                adjusted = match_area(mask, share if self.rule == "paper" else lesson.lam)
                mask = torch.where(chosen.view(-1, 1, 1, 1), adjusted, mask)
            mask = outside_margin(mask, share, self.lam_margin)
            area = 1 - mask.mean((1, 2, 3))

        def apply(x: Tensor) -> Tensor:
            return blend_by(masks_for(mask, x), x, partners.of(x))

        def masks(mix: Mix) -> Tensor:
            return torch.cat((1 - mask, mask), 1)

        shares = partners.shares(lam)
        return TaughtMix.of_pair(
            apply(images), partners, area, apply, lam=lam, area=area, make_masks=masks, shares=shares, lesson=lesson
        )

    def _lesson(
        self,
        images: Tensor,
        read: tuple[Tensor, ...],
        draws: LessonDraws,
        pool: Tensor,
        judge: Callable[[Tensor], Tensor] | None,
    ) -> PairLesson:
        """Mix the batch a second time, by other draws and with a graph to the mixer."""
        index = torch.from_numpy(draws.partner).to(images.device, non_blocking=True)
        partners = Partners.at(index[:, None], pool)
        lam = torch.from_numpy(draws.lam).to(images.device, torch.float32, non_blocking=True)
        mask = self.mixer.mask(read, index, lam, (images.shape[2], images.shape[3]), draws.chance[0])
        shares = torch.stack((lam, 1 - lam), 1).expand(len(images), 2)
        targets = Targets(pool, partners.sources, shares)
        return PairLesson(blend_by(mask, images, partners.of(images)), targets, judge, mask, lam)


class CleanLoss(Term):
    """The criterion on the clean batch, by the network's own classifier."""

    needs = frozenset({Need.PAIR})
    clean = True

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.clean is not None, "a piece that asks for a clean pass got none"
        loss: Tensor = criterion(step.clean.logits, Targets.of(step.batch.labels, targets.num_classes))
        return loss


class MixerLoss(Term):
    """What the mixer minimises: the teacher's mixup loss on its mixes, and γ·L_λ on their area.

    Args:
        gamma: weight γ of L_λ.
        schedule: γ "constant", or falling to 0 by a "cosine".
        epsilon: how far the area may be from λ.
    """

    needs = frozenset({Need.PAIR})
    network = True

    def __init__(self, gamma: float = 0.1, schedule: Schedule = "constant", epsilon: float = 0.1) -> None:
        super().__init__()
        self.gamma = number_in("gamma", gamma, 0)
        self.schedule = schedule
        self.epsilon = number_in("epsilon", epsilon, 0, 1)

    def about_mask(self, lesson: PairLesson) -> Float[Tensor, ""]:
        """What γ weights."""
        return area_loss(lesson.mask, lesson.lam, self.epsilon)

    def about_logits(self, logits: Float[Tensor, "b c"], targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        """The loss of what the teacher says."""
        loss: Tensor = criterion(logits, targets)
        return loss

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert isinstance(step.mix, TaughtMix), "only a learned mix has something to learn from"
        lesson = step.mix.lesson
        assert isinstance(lesson, PairLesson), "a learned mix of pairs was made without a lesson"
        loss = gamma_at(step.scene.clock, self.gamma, self.schedule) * self.about_mask(lesson)
        if lesson.judge is not None:
            wanted = replace(lesson.targets, num_classes=targets.num_classes)
            loss = self.about_logits(lesson.judge(lesson.images), wanted, criterion) + loss
        return loss


@method("automix", section="1.7", paper="2103.13027", venue="ECCV 2022")
def automix(
    alpha: float = 2.0,
    stage: int | str | None = None,
    lam_concat: bool = False,
    reduction: int = 2,
    upsample: Upsample = "nearest",
    lam_margin: float = 0.08,
    gamma: float = 0.1,
    gamma_schedule: Schedule = "constant",
    epsilon: float = 0.1,
    momentum: float = 0.999,
    final_momentum: float = 0.999999,
    hold: float = 0.1,
    mask_adjust: float = 0.0,
    rule: Rule = "paper",
    mixer_prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), of the classifier's batch and of the mixer's.
    stage: number or module name of the stage whose features the mixer sees; by default the last but one, of a ViT the
        block at half depth.
    lam_concat: whether the mixer sees λ as one more channel; the authors' choice for larger images.
    reduction: the mixer's queries and keys have C // reduction channels.
    upsample: how masks are enlarged, "nearest" or "bilinear".
    lam_margin: pairs with λ or 1-λ up to this are mixed linearly for the classifier.
    gamma: weight γ of the loss L_λ on the masks' area.
    gamma_schedule: γ "constant" (CIFAR, Tiny-ImageNet) or falling to 0 by a "cosine" (elsewhere).
    epsilon: by how much the area may differ from λ without loss.
    momentum, final_momentum: of the moving average, at the beginning and at the end of the training.
    hold: share of the training in which the momentum stays at the beginning; 0.25 for ViTs.
    mask_adjust: probability of scaling a classifier's mask so that the image keeps the area λ.
    rule: which λ that is, the classifier's ("paper") or the mixer's ("code").
    mixer_prob: share of the steps in which the teacher judges the mixer; 0.8 for ViTs.
    per: one λ per "sample" or per "batch".
    """
    if reduction < 1:
        raise ParameterError(f"reduction must be a whole number ≥ 1, got {reduction}. 2 halves the channels.")
    blend = MixBlockBlend(
        alpha,
        partial(MixBlock, reduction=reduction, lam_concat=lam_concat, upsample=upsample),
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
    essential = (blend, DrawnShares(), CleanLoss(), MixerLoss(gamma, gamma_schedule, epsilon))
    return Pieces(essential=essential, suggested=Beta(alpha, per=per))
