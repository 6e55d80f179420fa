"""AutoMix (barycenter): a U-Net renders images between two, and learns together with the classifier of them.

Zhu, Shi, Yan, Zha, "AutoMix: Mixup Networks for Sample Interpolation via Cooperative Barycenter Learning", ECCV 2020,
doi:10.1007/978-3-030-58607-2_37.

Half of each batch is mixed, the other half stays clean. A U-Net sees an image and its partner, each with a share λ or
1-λ of the channels of its features, and renders an image. It is trained on the classifier's loss and on how near its
image is to both, so that network and U-Net work together: one loss, one optimiser.
Equations: shares of channels → `mixwell.nets.barycenter_unet.split_channels`; d → `distances`; L_rec = λ·d(x_1, x̃) +
(1-λ)·d(x_2, x̃) → `reconstruction`; L = KL(ỹ ‖ f(x̃)) + 1.5·L_rec → `KullbackLeibler` of BC and `Reconstruction`.

Images of any size and number of channels are mixed as they are normalised; the U-Net's last layer standardises its
images over the batch, which is nearly the same. A batch of one image has no half to mix. Not to be mistaken for the
AutoMix of 2022, `automix`. The paper's other method, OptTransMix (the images' Wasserstein barycenter), is not here.

Paper and code: the paper measures the Kullback–Leibler divergence of images (`distance="kl"`), the code the mean
absolute difference of images that are scaled by the least and greatest value of the whole batch, unless that are 0 or 1
("norm1"); the results are the code's, and it is the default. The code undoes a normalisation with a pair of brackets
missing, which takes mean/std from what the U-Net renders (`rule="code"`). λ and the channels' order are one per batch
in the code (`per="batch"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Criterion, Pairing, Per, Scene, Step, Term, per_of
from mixwell.core.batch import Batch
from mixwell.core.errors import ModelError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.nets.barycenter_unet import BarycenterUNet, widths_of
from mixwell.probe import Anatomy
from mixwell.sample.ksample.dcutmix import convex
from mixwell.sample.linear.bc import KullbackLeibler

__all__ = [
    "Barycenters",
    "FirstHalf",
    "Reconstruction",
    "UNetDraws",
    "UNetMix",
    "distances",
    "reconstruction",
]

Distance = Literal["norm1", "norm2", "kl", "js"]
Rule = Literal["paper", "code"]
_EPSILON = 1e-9
"""Added to every probability."""


def distances(
    images: Float[Tensor, "n ..."], made: Float[Tensor, "n ..."], distance: Distance = "norm1"
) -> Float[Tensor, " n"]:
    """How far each rendered image is from an image, in fp32; differentiable in both.

    Args:
        distance: "norm1" and "norm2": the mean absolute and squared difference, once both tensors are scaled to [0, 1]
            as a whole (as they are where their least value is 0 or their greatest is 1); "kl": the Kullback–Leibler
            divergence from the image to the rendered one, both made probabilities by a softmax over all values; "js":
            the Jensen–Shannon divergence, between which the softmax of their mean image stands.
    """
    with torch.autocast(images.device.type, enabled=False):
        images, made = images.float(), made.float()
        if distance in ("norm1", "norm2"):
            difference = _scaled(images) - _scaled(made)
            return (difference.abs() if distance == "norm1" else difference.square()).flatten(1).mean(1)
        if distance == "kl":
            return _divergence(images, made)
        between = (images + made) / 2
        return (_divergence(images, between) + _divergence(made, between)) / 2


def _scaled(images: Tensor) -> Tensor:
    """(x - min) / (max - min) over all rows, or x itself if its least value is 0 or its greatest 1."""
    low, high = images.amin(), images.amax()
    scaled = (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    return torch.where((low != 0) & (high != 1), scaled, images)


def _divergence(images: Tensor, other: Tensor) -> Tensor:
    """Σ P·(log P - log Q) of each row."""
    p, q = (x.flatten(1).softmax(1) + _EPSILON for x in (images, other))
    return (p * (p.log() - q.log())).sum(1)


def reconstruction(
    own: Float[Tensor, "n ..."],
    other: Float[Tensor, "n ..."],
    made: Float[Tensor, "n ..."],
    lam: Float[Tensor, " #n"],
    recon_type: Literal[1, 2, 3] = 1,
    distance: Distance = "norm1",
) -> Float[Tensor, ""]:
    """L_rec, the mean over rows.

    Args:
        own, other: images and their partners.
        made: what was rendered of them.
        lam: (N,) or (1,) λ, on their device.
        recon_type: 1: λ·d(own, made) + (1-λ)·d(other, made); 2: with the weights exchanged; 3: the distance to the
            linear mix.
    """
    lam = lam.to(torch.float32)
    if recon_type == 3:
        weight = lam.view(-1, *(1,) * (own.ndim - 1))
        return distances(torch.lerp(other.float(), own.float(), weight), made, distance).mean()
    weight = lam if recon_type == 1 else 1 - lam
    return (weight * distances(own, made, distance) + (1 - weight) * distances(other, made, distance)).mean()


class FirstHalf(Pairing):
    """Partners of the first ⌊B/2⌋ rows by a random permutation among themselves; the others are alone."""

    def draw(self, rows: int, rng: Generator) -> Int64[np.ndarray, " b"]:
        """(B,) each row's partner."""
        return np.concatenate((rng.permutation(rows // 2), np.arange(rows // 2, rows)))

    def partners(self, draws: Int64[np.ndarray, " b"], scene: Scene) -> Partners:
        return Partners.at(onto(draws, scene.batch.images)[:, None], scene.batch.labels)


class UNetDraws(NamedTuple):
    """For each level of the U-Net the places of its channels: (⌊B/2⌋, C) or (1, C) permutations."""

    places: tuple[Int64[np.ndarray, "_ _"], ...]


@dataclass(eq=False)
class Barycenters(Mix):
    """A batch whose first half is rendered.

    Attributes:
        own, other: (N, C, H, W) the images and their partners.
        made: (N, C, H, W) what was rendered of them, with a graph to the U-Net.
    """

    own: Float[Tensor, "n c h w"] | None = None
    other: Float[Tensor, "n c h w"] | None = None
    made: Float[Tensor, "n c h w"] | None = None


class UNetMix(Blend):
    """Show what a U-Net makes of each image of the first half and its partner; the other half as it is.

    Owns the U-Net, which exists once it is built, and learns with the network.

    Args:
        width: channels of its first level.
        rule: show what it gives ("paper"), or that without mean/std of the normalisation ("code").
        per: channels in one order per "sample", or per "batch".
    """

    gives = OF_A_PAIR
    network = True
    hidden = False
    shows_shares = False
    exact = False
    repeats = False

    def __init__(self, width: int = 16, rule: Rule = "paper", per: Per = "sample") -> None:
        super().__init__()
        self.widths = widths_of(width)
        self.rule = rule
        self.per = per_of(per)
        self.unet: BarycenterUNet | None = None

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Make the U-Net for images like the example's.

        Raises:
            ModelError: there are no example images, or they have no pixel grid.
        """
        example = anatomy.example_for("The U-Net")
        if example.ndim != 4:
            raise ModelError(
                f"The U-Net takes images (B, C, H, W), got examples {tuple(example.shape)}. Take a recipe such as "
                "mixup."
            )
        self.unet = BarycenterUNet(example.shape[1], self.widths[0]).to(example.device)

    def draw(self, rows: int, rng: Generator) -> UNetDraws:
        count = 1 if self.per == "batch" else rows // 2
        return UNetDraws(tuple(rng.random((count, width)).argsort(1) for width in self.widths))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: UNetDraws,
        scene: Scene,
    ) -> Mix:
        half, partner = len(images) // 2, partners.index[: len(images) // 2, 0]
        share = lam.detach().to(images.device, torch.float32, non_blocking=True).expand(len(images))[:half]
        own = torch.ones(len(images), device=images.device)
        own[:half] = share
        weights = partners.shares(own)

        def rendered(x: Tensor) -> Tensor:
            assert self.unet is not None, "a recipe binds before it is trained"
            places = [onto(order, x) for order in draws.places]
            made: Tensor = self.unet(x[:half].float(), partner, places, share).to(x.dtype)
            return made - _offset(scene.batch) if self.rule == "code" else made

        def apply(x: Tensor) -> Tensor:
            """Images are rendered; of other maps the mean by the label shares is taken."""
            if x.shape[1:] != images.shape[1:] or x.dtype != images.dtype:
                return convex(x, partners, weights)
            return _beside(rendered(x), x) if half else x.clone()

        if not half:
            return Barycenters(images.clone(), partners.sources, weights, partners.pool, apply, lam=lam)
        made = rendered(images)
        return Barycenters(
            _beside(made, images),
            partners.sources,
            weights,
            partners.pool,
            apply,
            lam=lam,
            own=images[:half],
            other=images.index_select(0, partner),
            made=made,
        )


def _beside(made: Tensor, images: Tensor) -> Tensor:
    """The rendered half and the clean one, laid out as the images are."""
    return torch.cat((made, images[len(made) :])).contiguous(memory_format=layout_of(images))


def _offset(batch: Batch) -> Float[Tensor, "1 c 1 1"]:
    """mean/std of the normalisation.

    Raises:
        BatchError: it is not known.
    """
    black = torch.zeros_like(batch.raw[:1, :, :1, :1])
    assert batch.pixels is not None, "raw pixels are known"
    return -batch.pixels.normalise(black)


class Reconstruction(Term):
    """`weight` times L_rec of the rendered half; 0 if there is none.

    Args:
        weight: ≥ 0.
        recon_type, distance: see `reconstruction`.
    """

    def __init__(self, weight: float = 1.5, recon_type: Literal[1, 2, 3] = 1, distance: Distance = "norm1") -> None:
        super().__init__()
        self.weight = number_in("rec_weight", weight, 0)
        self.recon_type = recon_type
        self.distance = distance

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        mix = step.mix
        assert isinstance(mix, Barycenters), "only the U-Net's mixes are reconstructed"
        if mix.made is None or mix.own is None or mix.other is None:
            return step.outputs.logits.new_zeros((), dtype=torch.float32)
        lam = mix.weights[: len(mix.made), 0]
        return self.weight * reconstruction(mix.own, mix.other, mix.made, lam, self.recon_type, self.distance)


@method("automix_barycenter", section="1.9", paper="doi:10.1007/978-3-030-58607-2_37", venue="ECCV 2020")
def automix_barycenter(
    alpha: float = 1.0,
    rec_weight: float = 1.5,
    recon_type: Literal[1, 2, 3] = 1,
    distance: Distance = "norm1",
    rule: Rule = "paper",
    width: int = 16,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the image's share of the channels and of the label.
    rec_weight: weight of the reconstruction L_rec.
    recon_type: 1 weights each image's distance by its share, 2 by the other's; 3 takes the distance of the linear mix.
    distance: of images: "norm1" (absolute) or "norm2" (squared) of images scaled by the batch's extremes, "kl", "js".
    rule: show what the U-Net renders ("paper"), or that less mean/std of the normalisation ("code").
    width: channels of the U-Net's first level.
    prob: share of the batches of which a half is mixed.
    per: one λ and order of channels per "sample" or per "batch".
    """
    blend = UNetMix(width, rule, per)
    essential = (FirstHalf(), blend, Reconstruction(rec_weight, recon_type, distance))
    return Pieces(essential=essential, suggested=(Beta(alpha, per=per), KullbackLeibler()), prob=prob)
