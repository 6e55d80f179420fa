"""FMix: show the image where a random low-frequency grey image is bright, the partner elsewhere.

Harris, Marcu, Painter, Niranjan, Prügel-Bennett, Hare, "FMix: Enhancing Mixed Sample Data Augmentation", 2020,
arXiv:2002.12047.

A grey image is made from complex normal noise whose amplitude falls with the frequency, and its brightest pixels, a
share λ ~ Beta(α, α) of all, show the image itself; the label has the drawn λ. The images are not transformed.
Equations: noise / frequency^δ and its inverse transform → `mixwell.ops.fourier.grey_images`; the top λ of its pixels →
`fourier_masks`; x̃ = M⊙x_i + (1-M)⊙x_j → `FourierMask`.

Paper and code: the authors' code draws one λ, mask and permutation per batch (`per="batch"`). It also reads real and
imaginary parts along the wrong axis of its noise, so that its grey images have only the horizontal frequencies 0 and 1
and no negative vertical ones; `spectrum="code"` does so, the default is what the paper describes. λ·H·W pixels are
rounded up or down by a coin, as in the code, and masks may be softened (`max_soft`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix, Partners, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.fourier import Spectrum, brightest, grey_images, ramped, spectrum_shape
from mixwell.ops.noise import normal_noise

__all__ = ["FourierDraws", "FourierMask", "fourier_masks", "pixels_shown"]


@dataclass(frozen=True)
class FourierDraws:
    """What R masks are made from.

    Attributes:
        key: seed of the noise of all masks, in [0, 2**63).
        coins: (R,) uniform in [0, 1); λ·H·W pixels are rounded up where above 0.5, else down.
    """

    key: int
    coins: Float[np.ndarray, " r"]


def pixels_shown(
    lam: Float[np.ndarray, " #r"], coins: Float[np.ndarray, " #r"], pixels: int
) -> Int64[np.ndarray, " r"]:
    """How many of an image's pixels a mask shows: λ·H·W, rounded up where the coin is above 0.5, else down."""
    exact = lam * pixels
    count: np.ndarray = np.where(coins > 0.5, np.ceil(exact), exact).astype(np.int64)
    return count


def fourier_masks(
    grey: Float[Tensor, "#r h w"], count: Int64[np.ndarray, " r"], lam: Float[np.ndarray, " #r"], max_soft: float = 0.0
) -> Float[Tensor, "r h w"]:
    """What of each pixel shows the image itself: 1 at the `count` brightest pixels, 0 elsewhere.

    Args:
        grey: (R, H, W) or (1, H, W).
        count: (R,) of `pixels_shown`.
        lam: (R,) or (1,) λ.
        max_soft: share of the pixels on either side of the edge over which the mask falls from 1 to 0, never more than
            min(λ, 1-λ).
    """
    if not max_soft:
        return brightest(grey, count)
    soft = (grey[0].numel() * np.minimum(max_soft, np.minimum(lam, 1 - lam))).astype(np.int64)
    return ramped(grey, count - soft, count + soft)


class FourierMask(Blend):
    """Keep the image where a grey image of low-frequency noise is bright, show the partner elsewhere.

    Args:
        decay: power by which the noise's amplitude falls with the frequency.
        max_soft: see `fourier_masks`.
        spectrum: see `mixwell.ops.fourier.grey_images`.
        reformulate: whether the label is the image's own alone.
        per: one mask per "sample", or one per "batch".

    Attributes:
        noise: what expands the drawn key; a replay of given noise puts its own in its place.
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(
        self,
        decay: float = 3.0,
        max_soft: float = 0.0,
        spectrum: Spectrum = "paper",
        reformulate: bool = False,
        per: Per = "sample",
    ) -> None:
        super().__init__()
        self.decay = number_in("decay", decay, 0)
        self.max_soft = number_in("max_soft", max_soft, 0, 1)
        self.spectrum: Spectrum = spectrum
        self.reformulate = reformulate
        self.per = per_of(per)
        self.noise = normal_noise

    def draw(self, rows: int, rng: Generator) -> FourierDraws:
        return FourierDraws(int(rng.integers(2**63)), rng.random(1 if self.per == "batch" else rows))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: FourierDraws,
        scene: Scene,
    ) -> Mix:
        size = (images.shape[2], images.shape[3])
        shape = (len(draws.coins), *spectrum_shape(size, self.spectrum), 2)
        grey = grey_images(self.noise(draws.key, shape, images.device), size, self.decay, self.spectrum)
        shares = lam.detach().cpu().numpy()
        count = pixels_shown(shares, draws.coins, size[0] * size[1])
        keep = fourier_masks(grey, count, shares, self.max_soft)[:, None]

        def apply(x: Tensor) -> Tensor:
            # Where a pixel of the map stands for several of the image's, it shows their mean share.
            seen = keep if x.shape[2:] == size else F.interpolate(keep, x.shape[2:], mode="area")
            return partners.under(x, seen)

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        area = torch.from_numpy(count / (size[0] * size[1]))
        own = torch.ones(1) if self.reformulate else lam
        return Mix.of_pair(apply(images), partners, own, apply, lam=lam, area=area, make_masks=masks)


@method("fmix", section="1.3", paper="2002.12047", venue="arXiv 2020")
def fmix(
    alpha: float = 1.0,
    decay: float = 3.0,
    max_soft: float = 0.0,
    spectrum: Spectrum = "paper",
    reformulate: bool = False,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the share of the pixels that show the image itself.
    decay: power by which the amplitude of the noise falls with the frequency; the higher, the larger the blobs.
    max_soft: share of the pixels on either side of the mask's edge over which it falls from 1 to 0.
    spectrum: "paper" for noise of all frequencies, "code" for the official code's, which mixes up axes.
    reformulate: draw λ ~ Beta(α + 1, α) and train on the image's own label alone; the same loss in expectation.
    prob: share of the batches that are mixed.
    per: one λ and mask per "sample" or per "batch".
    """
    blend = FourierMask(decay, max_soft, spectrum, reformulate, per)
    ratio = Beta(alpha + 1, alpha, per) if reformulate else Beta(alpha, per=per)
    return Pieces(essential=blend, suggested=ratio, prob=prob)
