"""HMix and GMix: a box of the partner in a mixed image, or a Gaussian in place of the box.

Park, Yun, Chun, "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function Perspective", NeurIPS 2022,
arXiv:2208.09913.

HMix shows the partner alone in a box of CutMix's area times r, and mixes all other pixels so that the image keeps the
share λ. GMix has a Gaussian whose integral is the smaller of λ and 1-λ; its label follows what the borders leave of it.
Equations: HMix's mask → `hmix_masks`; GMix's mask → `gmix_masks`; x̃ = M⊙x_i + (1-M)⊙x_j → `SeparableMix`.

Paper and code: the authors' code draws one λ and place per batch (`per="batch"`), pairs the batch with its reverse, and
takes r = 1 unless told otherwise. Its Gaussian needs square images; ours is as round on all, with the share of their
area. The code is undefined where GMix draws λ = 0, and where HMix's box is the whole image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import area_of, boxes_around

__all__ = ["GMix", "HMix", "SeparableMasks", "SeparableMix", "gmix_masks", "hmix_boxes", "hmix_masks"]


class SeparableMasks(NamedTuple):
    """Masks of the image's own share, base + rows ⊗ columns, on the host.

    Attributes:
        base: (B,) or (1,).
        rows, columns: (B, H) and (B, W), or (1, H) and (1, W).
    """

    base: Float[np.ndarray, " b"]
    rows: Float[np.ndarray, "b h"]
    columns: Float[np.ndarray, "b w"]

    @property
    def means(self) -> Float[np.ndarray, " b"]:
        """The mean of each mask, in fp64."""
        means: np.ndarray = self.base + self.rows.mean(1) * self.columns.mean(1)
        return means

    def on(self, like: Tensor) -> Float[Tensor, "b 1 h w"]:
        """The masks in fp32, on the device of `like`."""
        base, rows, columns = (onto(part.astype(np.float32), like) for part in self)
        return torch.addcmul(base[:, None, None, None], rows[:, None, :, None], columns[:, None, None, :])


def hmix_boxes(
    lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], r: float, size: tuple[int, int]
) -> Int64[np.ndarray, "b 4"]:
    """Boxes of area r·(1-λ) around random centres, clipped at the border.

    Args:
        lam: (B,) or (1,) drawn λ.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
        r: share of CutMix's area, in [0, 1].
        size: height and width.
    """
    return boxes_around(np.sqrt(np.maximum(1 - lam, 0)) * np.sqrt(r), centres, size)


def hmix_masks(
    lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], r: float, size: tuple[int, int]
) -> SeparableMasks:
    """0 in the boxes of `hmix_boxes`, and λ / (1 - area of the clipped box) around them: λ in the mean."""
    boxes = hmix_boxes(lam, centres, r, size)
    around = lam / np.maximum(1 - area_of(boxes, size), 1 / (2 * size[0] * size[1]))  # 0, not 0/0, without any around
    inside = [
        (np.arange(side) >= boxes[:, 2 * axis, None]) & (np.arange(side) < boxes[:, 2 * axis + 1, None])
        for axis, side in enumerate(size)
    ]
    return SeparableMasks(around, inside[0] * -around[:, None], inside[1])


def gmix_masks(
    lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
) -> SeparableMasks:
    """A Gaussian K of integral min(λ, 1-λ)·H·W around the centre pixel: K where λ < ½, else 1 - K.

    Args: as for `hmix_boxes`.
    """
    smaller = np.minimum(lam, 1 - lam)
    precision = np.pi / np.maximum(smaller * size[0] * size[1], 1e-9)
    rows, columns = (
        np.exp(-precision[:, None] * (np.arange(side) - (centres[:, axis, None] * side).astype(np.int64)) ** 2)
        for axis, side in enumerate(size)
    )
    own = lam < 0.5
    sign = np.where(own, 1.0, -1.0) * (smaller > 0)  # a Gaussian of no width shows no pixel, not even its centre
    return SeparableMasks(np.where(own, 0.0, 1.0), rows * sign[:, None], columns)


class SeparableMix(Blend):
    """The mean of an image and its partner under a mask around a random place.

    Args:
        per: one place per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, per: Per = "sample") -> None:
        super().__init__()
        self.per = per_of(per)

    def masks(
        self, lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
    ) -> SeparableMasks:
        """What of each pixel is the image's own."""
        raise NotImplementedError

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, 2) or (1, 2) centres, uniform in [0, 1): row, column."""
        return rng.random((1 if self.per == "batch" else rows, 2))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        drawn = lam.detach().cpu().numpy()
        found = self.masks(drawn, draws, (images.shape[2], images.shape[3]))
        own = torch.from_numpy(found.means)

        def mixed(x: Tensor, keep: SeparableMasks) -> Tensor:
            return partners.under(x, keep.on(x))

        def apply(x: Tensor) -> Tensor:
            return mixed(x, self.masks(drawn, draws, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return with_rest(found.on(images))

        return Mix.of_pair(mixed(images, found), partners, own, apply, lam=lam, area=own, make_masks=masks)


class HMix(SeparableMix):
    """Show the partner in a box, and a mean of both around it.

    Args:
        r: area of the box as a share of CutMix's: 0 is mixup.
        per: one place per "sample" or per "batch".
    """

    def __init__(self, r: float = 0.5, per: Per = "sample") -> None:
        super().__init__(per)
        self.r = number_in("r", r, 0, 1)

    def masks(
        self, lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
    ) -> SeparableMasks:
        return hmix_masks(lam, centres, self.r, size)


class GMix(SeparableMix):
    """Show whoever has less than half of λ in a Gaussian, the other around it."""

    def masks(
        self, lam: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
    ) -> SeparableMasks:
        return gmix_masks(lam, centres, size)


@method("hmix_gmix", section="1.3", paper="2208.09913", venue="NeurIPS 2022")
def hmix_gmix(
    variant: Literal["hmix", "gmix"] = "hmix",
    alpha: float = 1.0,
    r: float = 0.5,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: "hmix" for a box in a mixed image, "gmix" for a Gaussian.
    alpha: λ ~ Beta(α, α).
    r: of HMix, area of the box as a share of CutMix's; 0 is mixup, 1 the authors' code's default.
    prob: share of the batches that are mixed.
    per: one λ and place per "sample" or per "batch".
    """
    blend = HMix(r, per) if variant == "hmix" else GMix(per)
    return Pieces(essential=blend, suggested=Beta(alpha, per=per), prob=prob)
