"""AdAutoMix: a learned mixer of two or three images that makes hard samples in every second step.

Qin, Jin, Jiang, El-Yacoubi, Gao, "Adversarial AutoMixup", ICLR 2024, arXiv:2312.11954.

AutoMix's training (see `automix`) with N images: a mixer attends from each image to the others and shares the pixels
among them. In even steps it is taught to increase the mixup loss of the teacher, which is held against how similar the
teacher finds the mix and its sources; in odd steps to decrease that loss. The network also learns from clean images,
and for N ≥ 3 from plain averages with the same shares. Equations: λ of N images → `normalised`; masks → `AdaptiveMask`;
Σ m_i ⊙ x_i → `composed`; Σ λ_i·cos(z, z_i) → `similarity`; the mixer's objective → `AdversarialLoss`; the network's →
`CleanAndLinear`. Evaluation and export use the teacher with its clean classifier (`Recipe.predictor`).

Pairs (`mix_samples=2`) are an image and its partner, with λ ~ Beta(α, α). From three images on, all slots are
independent permutations of the batch, so a mix need not contain the row whose place it takes; shares are independent
Betas over their sum, which is no Dirichlet distribution, and both batches of a step take the same ones.

Trainings of fewer than some 6,000 steps need a smaller momentum (see `automix`).

Paper and code: the code pushes the mixed logits away from the sources' (`cosine="apart"`), where the paper's motive,
that images should keep their meaning, asks for the contrary (`cosine="together"`). It draws shares once per batch
(`per="batch"`). Both look at the first share alone to tell what is mixed linearly. The code's masks fit square maps
only, ours any. It shows the sources to the teacher once more for their similarity; ours takes what the teacher said
when it read their features. CIFAR-100 takes three images, ImageNet two with β = 0.1 and `lam_concat`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Criterion, Need, Per, Scene, Step, Term, per_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.plain import OF_A_PAIR, Beta, Permutation
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets, summed
from mixwell.nets.mixblock import Mixer, Upsample, extreme
from mixwell.nets.taught import DrawnShares, Lesson, TaughtBlend, TaughtMix, masks_for

__all__ = [
    "AdaptiveMask",
    "AdversarialBlend",
    "AdversarialDraws",
    "AdversarialLesson",
    "AdversarialLoss",
    "AdversarialMix",
    "CleanAndLinear",
    "composed",
    "normalised",
    "similarity",
]

Cosine = Literal["apart", "together"]


def normalised(raw: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n"]:
    """λ_i = raw_i / Σ raw; equal shares where all are 0."""
    total = raw.sum(1, keepdims=True)
    return np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / raw.shape[1])


def composed(images: Sequence[Float[Tensor, "b c h w"]], masks: Float[Tensor, "b n h w"]) -> Float[Tensor, "b c h w"]:
    """Σ m_i ⊙ x_i for masks that sum to 1; they take the images' dtype, and equal images stay exactly as they are."""
    first, *others = images
    shown = masks.to(first.dtype)[:, :, None].unbind(1)
    mixed = torch.lerp(first, others[0], shown[1])
    for image, mask in zip(others[1:], shown[2:], strict=True):
        mixed = torch.addcmul(mixed, mask, image - first)
    return mixed


def similarity(
    mixed: Float[Tensor, "b c"],
    clean: Float[Tensor, "p c"],
    sources: Int[Tensor, "b n"],
    shares: Float[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """Σ λ_i·cos(z, z_i) between the logits of mixes and of their sources, the mean over rows, in fp32."""
    return (shares * F.cosine_similarity(mixed.float()[:, None], clean.float()[sources], dim=2)).sum(1).mean()


class AdaptiveMask(Mixer):
    """The mixer: each image's queries meet the keys of all others, and find values of its own.

    A 1×1 convolution can be taken before images are gathered, and a channel that holds λ everywhere only adds a
    multiple of its weights; so the features are convolved once, whoever is mixed.

    Args:
        channels: C of the features.
        reduction: queries and keys have C // reduction channels.
        lam_concat: whether one more channel tells an image's share.
        upsample: how the attended maps are enlarged to the images' size.
    """

    def __init__(
        self, channels: int, reduction: int = 2, lam_concat: bool = False, upsample: Upsample = "bilinear"
    ) -> None:
        super().__init__(upsample)
        self.channels = channels
        self.lam_concat = lam_concat
        inner = max(1, channels // reduction)
        self.query = nn.Conv2d(channels + lam_concat, inner, 1)
        self.key = nn.Conv2d(channels + lam_concat, inner, 1)
        self.value = nn.Conv2d(channels + lam_concat, 1, 1)
        self.reset()

    def projected(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ h w"], ...]:
        """Queries, keys and values in one map, without the channel that holds λ."""
        offsets = torch.cat([conv.bias.float() for conv in self._layers if conv.bias is not None])
        return (F.conv2d(features, self._weights()[:, : self.channels], offsets),)

    def masks(
        self,
        read: tuple[Tensor, ...],
        sources: Int[Tensor, "r n"],
        shares: Float[Tensor, "r n"],
        size: tuple[int, int],
    ) -> Float[Tensor, "r n height width"]:
        """How much of each source each pixel shows, in (0, 1), fp32; sums to 1.

        Args:
            read: what `read` gave.
            sources: rows of the features.
            shares: of each source.
            size: height and width of the images.
        """
        (maps,) = read
        with torch.autocast(maps.device.type, enabled=False):
            each = maps[sources]
            if self.lam_concat:
                each = each + shares.float()[:, :, None, None, None] * self._weights()[:, self.channels :, 0]
            inner = self.query.out_channels
            query, key = each[:, :, :inner].relu(), each[:, :, inner:-1].relu()
            others = key.sum(1, keepdim=True) - key
            logits = self.attended(query.flatten(0, 1), others.flatten(0, 1), each[:, :, -1:].flatten(0, 1), size)
            return logits.view(*sources.shape, *size).softmax(1)

    def forward(
        self,
        features: Float[Tensor, "b c h w"],
        sources: Int[Tensor, "r n"],
        shares: Float[Tensor, "r n"],
        size: tuple[int, int],
    ) -> Float[Tensor, "r n height width"]:
        """`masks`, straight from the features."""
        return self.masks(self.read(features), sources, shares, size)

    @property
    def _layers(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        return self.query, self.key, self.value

    def _weights(self) -> Float[Tensor, "d c 1 1"]:
        return torch.cat([conv.weight.float() for conv in self._layers])


class AdversarialDraws(NamedTuple):
    """What the mixer's own batch needs, and shares of three and more images.

    Attributes:
        partners: (N, B) independent permutations; pairs take the first.
        raw: (B, N) or (1, N), Beta(α, α); of pairs the first is the mixer's λ, and the second the classifier's if it
            is not a ratio's.
    """

    partners: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True, eq=False)
class AdversarialLesson(Lesson):
    """A lesson of an adversary.

    Attributes:
        clean: (B, classes) what the teacher's mixed classifier says about the clean batch.
    """

    clean: Float[Tensor, "b classes"]


@dataclass(eq=False)
class AdversarialMix(TaughtMix):
    """A mix of N images.

    Attributes:
        classify: images → logits of the network's mixed classifier, in a training pass; None where there is no network.
    """

    classify: Callable[[Tensor], Tensor] | None = None


class CleanAndLinear(Term):
    """The criterion on the clean batch, by the network's own classifier, and on plain averages, by the mixed one.

    Pairs have no averages, and all weight is on the clean batch. It also draws how many images are mixed, as what runs
    in a step must be the same on all ranks.

    Args:
        fewest, most: images in a mix; their number is uniform in between.
        linear_share: weight r of the averages; the clean batch has 1-r.
    """

    needs = frozenset({Need.MASKS})
    clean = True
    network = True
    shared = True

    def __init__(self, fewest: int = 3, most: int = 3, linear_share: float = 0.5) -> None:
        super().__init__()
        self.fewest, self.most = fewest, most
        self.linear_share = number_in("linear_share", linear_share, 0, 1)

    def draw(self, rows: int, rng: Generator) -> int:
        """How many images are mixed."""
        return int(rng.integers(self.fewest, self.most + 1))

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.clean is not None, "a piece that asks for a clean pass got none"
        mix, images = step.mix, step.batch.images
        loss: Tensor = criterion(step.clean.logits, Targets.of(step.batch.labels, targets.num_classes))
        if mix.sources.shape[1] == 2:
            return loss
        assert isinstance(mix, AdversarialMix), "only a learned mix has averages"
        assert mix.classify is not None, "a loss needs a network"
        assert mix.shares is not None, "a learned mix was made without shares"
        shares = mix.shares.expand_as(mix.weights)
        averages = replace(mix.targets(shares), num_classes=targets.num_classes)
        linear: Tensor = criterion(mix.classify(summed(images, mix.sources, shares)), averages)
        return torch.lerp(loss, linear, self.linear_share)


class AdversarialBlend(TaughtBlend):
    """Show what a learned mixer chooses of two or more images.

    Args:
        counts: what draws how many images are mixed.
        alpha: raw shares ~ Beta(α, α).
        mixer: channels of the features → mixer.
        lam_margin: classifier's mixes whose first share λ, or 1-λ, is at most this are averages.
        per: shares per "sample", or one set per "batch".
        stage, momentum, final_momentum, hold: see `TaughtBlend`.
    """

    mixer: AdaptiveMask

    def __init__(
        self,
        counts: CleanAndLinear,
        alpha: float = 1.0,
        mixer: Callable[[int], AdaptiveMask] = AdaptiveMask,
        *,
        stage: int | str | None = None,
        lam_margin: float = 0.03,
        momentum: float = 0.999,
        final_momentum: float = 0.999999,
        hold: float = 0.1,
        per: Per = "sample",
    ) -> None:
        super().__init__(mixer, stage, momentum, final_momentum, hold)
        self.counts = counts
        self.takes_lam = counts.most == 2
        self.partners = 1 if self.takes_lam else counts.most
        self.gives = OF_A_PAIR | {Need.MASKS} if self.takes_lam else frozenset({Need.MASKS, Need.SIMPLEX})
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.lam_margin = number_in("lam_margin", lam_margin, 0, 0.5)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> AdversarialDraws:
        most = self.counts.most
        partners = rng.permuted(np.tile(np.arange(rows), (most, 1)), axis=1)
        return AdversarialDraws(partners, rng.beta(self.alpha, self.alpha, (1 if self.per == "batch" else rows, most)))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: AdversarialDraws,
        scene: Scene,
    ) -> Mix:
        teacher, views = self.teacher_in(scene), scene.views
        features, clean = teacher.look(images)
        read, size = self.mixer.read(features), (images.shape[2], images.shape[3])
        count, rows = scene.draws[self.counts], len(images)
        if count == 2:
            mixers = _shares_of_pairs(torch.from_numpy(draws.raw[:, 0]), images)
            lam = lam if self.takes_lam else torch.from_numpy(draws.raw[:, 1])
            shares = _shares_of_pairs(lam, images)
        else:
            mixers = shares = onto(normalised(draws.raw[:, :count]).astype(np.float32), images).expand(rows, count)

        others = Partners.at(onto(draws.partners.T.copy(), images), partners.pool)
        sources = _sources(others, count)
        masks = self.mixer.masks(read, sources, mixers, size)
        lesson = AdversarialLesson(
            composed(_gathered(images, others, count), masks),
            Targets(partners.pool, sources, mixers),
            teacher.logits,
            clean,
        )
        sources = _sources(partners, count)
        with torch.no_grad():
            shown = self.mixer.masks(read, sources, shares, size)
            linear = extreme(shares[:, 0], self.lam_margin)[:, None, None, None]
            shown = torch.where(linear, shares[:, :, None, None], shown)
            areas = shown.mean((2, 3))

        def apply(x: Tensor) -> Tensor:
            return composed(_gathered(x, partners, count), masks_for(shown, x))

        def classify(x: Tensor) -> Tensor:
            assert views is not None, "a loss needs a network"
            return views.probe.run(x, head=self.mixed_head).logits

        return AdversarialMix(
            apply(images),
            sources,
            areas,
            partners.pool,
            apply,
            lam=lam if count == 2 else None,
            area=areas[:, 0] if count == 2 else None,
            make_masks=lambda mix: shown,
            shares=shares,
            lesson=lesson,
            classify=None if views is None else classify,
        )


def _sources(partners: Partners, count: int) -> Int[Tensor, "r n"]:
    """The rows that are mixed: of a pair each row and its partner, of more the partners alone."""
    return partners.sources[:, :2] if count == 2 else partners.sources[:, 1 : 1 + count]


def _gathered(x: Float[Tensor, "b c h w"], partners: Partners, count: int) -> list[Float[Tensor, "r c h w"]]:
    """The images that are mixed."""
    return [x, partners.of(x)] if count == 2 else [partners.of(x, which) for which in range(count)]


def _shares_of_pairs(lam: Float[Tensor, " #b"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2"]:
    own = lam.to(images.device, torch.float32, non_blocking=True)
    return torch.stack((own, 1 - own), 1).expand(len(images), 2)


class AdversarialLoss(Term):
    """What the mixer minimises: in odd steps the teacher's mixup loss, in even ones -β times it ± (1-β)·`similarity`.

    Args:
        beta: weight β of the teacher's loss in even steps.
        cosine: whether even steps drive the mixes' logits "apart" from those of their sources (+) or "together" (-).
    """

    needs = frozenset({Need.MASKS})
    network = True

    def __init__(self, beta: float = 0.3, cosine: Cosine = "apart") -> None:
        super().__init__()
        self.beta = number_in("beta", beta, 0, 1)
        self.sign = 1 if cosine == "apart" else -1

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert isinstance(step.mix, AdversarialMix), "only a learned mix has something to learn from"
        lesson = step.mix.lesson
        assert isinstance(lesson, AdversarialLesson), "a learned mix was made without a lesson"
        assert lesson.judge is not None, "the teacher judges in every step"
        logits = lesson.judge(lesson.images)
        loss: Tensor = criterion(logits, replace(lesson.targets, num_classes=targets.num_classes))
        if step.scene.clock.step % 2:
            return loss
        near = similarity(logits, lesson.clean, lesson.targets.sources, lesson.targets.weights)
        return -self.beta * loss + self.sign * (1 - self.beta) * near


@method("adautomix", section="1.7", paper="2312.11954", venue="ICLR 2024")
def adautomix(
    mix_samples: int = 3,
    is_random: bool = False,
    alpha: float = 1.0,
    beta: float = 0.3,
    cosine: Cosine = "apart",
    linear_share: float = 0.5,
    stage: int | str | None = None,
    lam_concat: bool = False,
    reduction: int = 2,
    upsample: Upsample = "bilinear",
    lam_margin: float = 0.03,
    momentum: float = 0.999,
    final_momentum: float = 0.999999,
    hold: float = 0.1,
    per: Per = "sample",
) -> Pieces:
    """Args:
    mix_samples: N, images in a mix; 2 on ImageNet.
    is_random: draw the number of images of each step from 2 to N.
    alpha: raw shares ~ Beta(α, α); the λ of pairs, and the shares of more images before their sum becomes 1.
    beta: weight β of the teacher's loss in the steps against it, beside 1-β of the similarity; 0.1 on ImageNet.
    cosine: whether those steps drive the logits of mixes and sources "apart", as in the authors' code, or "together".
    linear_share: weight r of averages of the images beside 1-r of clean ones; pairs have no averages.
    stage: number or module name of the stage whose features the mixer sees; by default the last but one, of a ViT the
        block at half depth.
    lam_concat: whether the mixer sees an image's share as one more channel; the authors' choice for larger images.
    reduction: the mixer's queries and keys have C // reduction channels.
    upsample: how masks are enlarged, "bilinear", or "nearest" for ViTs.
    lam_margin: mixes whose first share λ, or 1-λ, is at most this are averages for the classifier.
    momentum, final_momentum: of the moving average, at the beginning and at the end of the training.
    hold: share of the training in which the momentum stays at the beginning.
    per: one set of shares per "sample" or per "batch".
    """
    if mix_samples < 2:
        raise ParameterError(f"mix_samples must be a whole number ≥ 2, got {mix_samples}. 3 is the authors' on CIFAR.")
    if is_random and mix_samples == 2:
        raise ParameterError("is_random draws a number from 2 to mix_samples, got 2. Leave it out, or mix up to 3.")
    if reduction < 1:
        raise ParameterError(f"reduction must be a whole number ≥ 1, got {reduction}. 2 halves the channels.")
    counts = CleanAndLinear(2 if is_random else mix_samples, mix_samples, linear_share)
    blend = AdversarialBlend(
        counts,
        alpha,
        partial(AdaptiveMask, reduction=reduction, lam_concat=lam_concat, upsample=upsample),
        stage=stage,
        lam_margin=lam_margin,
        momentum=momentum,
        final_momentum=final_momentum,
        hold=hold,
        per=per,
    )
    suggested = (Beta(alpha, per=per),) if mix_samples == 2 else (Permutation(mix_samples),)
    return Pieces(essential=(blend, DrawnShares(), counts, AdversarialLoss(beta, cosine)), suggested=suggested)
