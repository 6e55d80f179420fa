"""Between-class learning, BC and BC+: mix images of different classes, and teach the network the ratio.

Tokozume, Ushiku, Harada, "Between-class Learning for Image Classification", CVPR 2018, arXiv:1711.10284.

Every image meets one of another class at a uniform ratio r, and the Kullback–Leibler divergence from the ratio to the
prediction is minimised. BC mixes plainly. BC+ takes images for waveforms: without their mean, at a ratio p under which
they sound as loud as r says, and normalised so that the mix keeps their energy; the label stays r.
Equations: t = r·t_1 + (1-r)·t_2 → the mix's label shares; p = 1 / (1 + σ_1/σ_2·(1-r)/r) → `loudness_ratio`;
x̃ = (p·x_1 + (1-p)·x_2) / √(p² + (1-p)²) → `EnergyLinear`; the per-image mean → `zero_mean`; L → `KullbackLeibler`.

Paper and code: the authors draw both images from the whole data set; ours pairs each row of the batch with a uniformly
drawn row of another class, and a row without one keeps its own image. Label rows count by their largest entry. In place
of a division by r = 0 or by an image without contrast, p takes its limit. The authors' BC+ subtracts the mean from
pixels and normalises channels by constants for it; ours subtracts the mean of the normalised image, which with equal
channel stds differs by that scale only. `zero_mean=False` leaves it to the loader, `Pixels.normalise(zero_mean(raw))`.
It belongs to every image that the network sees, also at evaluation, so BC+ cannot leave batches unmixed (`prob`) or be
switched with another method unless the loader does it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Integer, Shaped
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Pairing, Per, Scene, SelfBlend
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.errors import BatchError, ParameterError
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.sample.linear.mixup import Linear

__all__ = [
    "EnergyLinear",
    "KullbackLeibler",
    "OtherClass",
    "ZeroMean",
    "deviation",
    "loudness_ratio",
    "other_class",
    "zero_mean",
]


def other_class(classes: Integer[Tensor, " b"], keys: Int[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """For each row one of another class, or the row itself if all are of one class.

    Args:
        classes: (B,) class ids.
        keys: (B,) whole numbers ≥ 0, on the same device; of n rows of other classes, in the order of their classes, a
            row takes number `key mod n`.
    """
    rows = len(classes)
    ordered, order = classes.sort(stable=True)
    start = torch.searchsorted(ordered, classes)
    own = torch.searchsorted(ordered, classes, right=True) - start
    place = keys % (rows - own).clamp_min(1)
    place += own * (place >= start)  # the row's own class stands in between
    return torch.where(own < rows, order[place.clamp_max(rows - 1)], torch.arange(rows, device=classes.device))


def zero_mean(images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Each image minus the mean of all its values; the mean in fp32 at least."""
    wide = torch.promote_types(images.dtype, torch.float32)
    mean: Tensor = images.mean(_within(images), keepdim=True, dtype=wide)
    return images - mean.to(images.dtype)


def deviation(images: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Standard deviation σ over all values of each image, the number of values in the denominator.

    In fp32 at least, as √(E[x²] - E[x]²): several times as fast as `torch.std`, and exact for means near 0.
    """
    wide = torch.promote_types(images.dtype, torch.float32)
    each, count = _within(images), images[0].numel()
    power: Tensor = torch.linalg.vector_norm(images, dim=each, dtype=wide).square() / count
    return (power - (images.sum(each, dtype=wide) / count).square()).clamp_min(0).sqrt()


def loudness_ratio(r: Float[Tensor, " b"], own: Float[Tensor, " b"], other: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """p, the weight at which an image makes up the share r of what is seen: p·σ_1 : (1-p)·σ_2 = r : (1-r).

    Args:
        r: (B,) in [0, 1]; 0 and 1 are kept.
        own, other: (B,) σ_1 and σ_2; where neither image has contrast, p = r.
    """
    loud, quiet = r * other, (1 - r) * own
    total = loud + quiet
    return torch.where(total > 0, loud / total, r)


def _within(images: Tensor) -> tuple[int, ...]:
    """The axes of one image."""
    return tuple(range(1, images.ndim))


class OtherClass(Pairing):
    """A partner of another class, uniformly drawn from the batch; the row itself if there is none."""

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) keys, uniform below 2⁶²: which of the other classes' rows is taken."""
        return rng.integers(1 << 62, size=rows)

    def partners(self, draws: np.ndarray, scene: Scene) -> Partners:
        """The partners.

        Raises:
            BatchError: the labels say nothing of classes.
        """
        labels = scene.batch.labels
        return Partners.at(other_class(_classes(labels), onto(draws, labels))[:, None], labels)


def _classes(labels: Shaped[Tensor, "b ..."]) -> Int[Tensor, " b"]:
    if not labels.is_floating_point():
        return labels
    if labels.ndim != 2 or labels.shape[1] < 2:
        raise BatchError(
            "bc pairs images of different classes: expected class ids (B,) or label rows (B, C) with C ≥ 2, got "
            f"{labels.dtype} {tuple(labels.shape)}. Use labels.long() if they are ids; without classes take mixup."
        )
    return labels.argmax(1)


class EnergyLinear(Blend):
    """The mean of two images at the ratio of their loudness, divided by its energy; the label shares stay λ.

    Made for images of mean 0; σ is taken for a constant. A row that is its own partner keeps its image.
    """

    gives = OF_A_PAIR
    grid = False

    def mix(
        self, images: Float[Tensor, "b ..."], partners: Partners, lam: Float[Tensor, " #b"], draws: Any, scene: Scene
    ) -> Mix:
        partner = partners.column()
        drawn = lam.detach().to(images.device, torch.float32, non_blocking=True)
        own = torch.where(partner == partners.sources[:, 0], 1, drawn)
        sigma = deviation(images.detach())
        p = loudness_ratio(own.to(sigma.dtype), sigma, sigma[partner])
        shares = torch.stack((p, 1 - p))
        shares /= torch.linalg.vector_norm(shares, dim=0)

        def apply(x: Tensor) -> Tensor:
            first, second = shares.to(x.dtype).view(2, -1, *(1,) * (x.ndim - 1))
            other = partners.of(x)  # a fresh copy
            return other.mul_(second).addcmul_(x, first)

        return Mix.of_pair(apply(images), partners, own, apply, lam=lam)


class ZeroMean(SelfBlend):
    """Every image without its mean, also at evaluation."""

    def images(self, draws: None, scene: Scene) -> tuple[Float[Tensor, "b ..."]]:
        return (zero_mean(scene.batch.images),)

    def eval_images(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return zero_mean(images)


class KullbackLeibler(SoftCrossEntropy):
    """The divergence of the prediction from the label: soft cross-entropy minus the entropy of the label.

    Its gradients are those of cross-entropy, and it is 0 where the network gives the label.
    """

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        mixed = super().rows(logits, targets)
        entropy: Tensor = torch.special.entr(targets.dense(logits.shape[1], self.smoothing).float())
        if self.class_weights is not None:
            entropy = entropy * self.class_weights.to(entropy.device)
        return mixed - entropy.sum(1)


@method("bc", section="1.1", paper="1711.10284", venue="CVPR 2018")
def bc(variant: Literal["bc", "bc+"] = "bc", zero_mean: bool = True, prob: float = 1.0, per: Per = "sample") -> Pieces:
    """Args:
    variant: "bc" mixes plainly, "bc+" images of mean 0 at the ratio of their loudness.
    zero_mean: whether "bc+" subtracts each image's mean, here and at evaluation; false if the images come without it.
    prob: share of the batches that are mixed.
    per: one ratio per "sample" or per "batch".
    """
    suggested = (Beta(1.0, per=per), KullbackLeibler())
    if variant == "bc":
        return Pieces(OtherClass(), (Linear(), *suggested), prob)
    if zero_mean and prob < 1:
        raise ParameterError(
            f"bc: variant='bc+' normalises the images that it mixes, so prob={prob} would leave some as evaluation "
            "does not see them. Take prob=1, or subtract each image's mean in the loader and set zero_mean=false."
        )
    essential = (OtherClass(), EnergyLinear())
    return Pieces((*essential, ZeroMean()) if zero_mean else essential, suggested, prob)
