"""SuperpixelGrid: random superpixels of an image become black, their own mean colour, or another image.

Hammoudi, Cabani, Slika, Benhabiles, Dornaika, Melkemi, "SuperpixelGridCut, SuperpixelGridMean and SuperpixelGridMix
Data Augmentation", 2022, arXiv:2204.08458.

An image is cut into superpixels, each of which is chosen with a probability r. SuperpixelGridCut makes the chosen ones
black, SuperpixelGridMean gives each its mean colour, and SuperpixelGridMix shows another image there; superpixels are
always those of the image itself. Steps: SLIC → `mixwell.ops.superpixels.superpixels`; choice → `kept`; cut and mean →
`SuperpixelFill`; mix → `SuperpixelMix`.

No official code is published. SLIC's settings (blur 5, compactness 10) were recovered from the authors' example images,
as was that mean and mix take the image's own superpixels. Their images are 480 pixels high; `sigma="scaled"` scales the
blur with the image. The examples mix images of one class (`same_class`); where classes differ we label by area, as
CutMix does. Means are exact, where the authors' 8-bit images truncate them. Superpixels are cut anew for each batch, so
they follow crops and flips; maps of one's own, such as scikit-image's, are taken from `Batch.extras["superpixels"]`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Pairing, Scene, SelfBlend
from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.superpixels import superpixel_means, superpixels

__all__ = ["SameClass", "Slic", "SuperpixelFill", "SuperpixelMix", "kept"]

Sigma = float | Literal["scaled"]


def kept(draws: Float[np.ndarray, "#b k"], ratio: float, segments: Int64[Tensor, "b h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 on the superpixels that stay, 0 on those that are chosen, in fp32.

    Args:
        draws: (B, K) or (1, K) uniforms in [0, 1), one per superpixel; taken from the start again by labels from K on.
        ratio: r; a superpixel is chosen where its number is below.
        segments: (B, H, W) labels.
    """
    stays = onto((draws >= ratio).astype(np.float32), segments).expand(len(segments), -1)
    return stays.gather(1, segments.flatten(1) % draws.shape[1]).view_as(segments)[:, None]


class Slic:
    """How images are cut into superpixels, and how many of them are chosen.

    Args:
        n_segments: superpixels wanted.
        ratio: r, the probability that one is chosen.
        sigma: blur in pixels, or "scaled" for 5 pixels per 480 of the shorter side.
        compactness: how much place counts against colour.
    """

    def __init__(
        self, n_segments: int = 100, ratio: float = 0.4, sigma: Sigma = 5.0, compactness: float = 10.0
    ) -> None:
        self.n_segments = int(number_in("n_segments", n_segments, 1))
        self.ratio = number_in("ratio", ratio, 0, 1)
        self.sigma = sigma if sigma == "scaled" else number_in("sigma", sigma, 0)
        self.compactness = number_in("compactness", compactness, 0, open_low=True)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, 2·n_segments) uniforms in [0, 1), more than SLIC makes superpixels."""
        return rng.random((rows, 2 * self.n_segments))

    def segments(self, batch: Batch) -> Int64[Tensor, "b h w"]:
        """The superpixels of each image; those in `extras["superpixels"]` if there are.

        Raises:
            BatchError: the images have no pixel grid, their normalisation is not known, or given maps do not fit them.
        """
        size = batch.images.shape[2:]
        if batch.images.ndim != 4:
            raise BatchError(
                f"superpixel_grid cuts pixel grids: expected images (B, C, H, W), got {tuple(batch.images.shape)}. For "
                "other shapes take a recipe such as mixup."
            )
        if (given := batch.extras.get("superpixels")) is not None:
            if given.shape != (len(batch), *size) or given.is_floating_point():
                raise BatchError(
                    f"extras['superpixels'] must be integer labels of shape {(len(batch), *size)}, got {given.dtype} "
                    f"of shape {tuple(given.shape)}. Crop and flip the maps as the images."
                )
            return given.long()
        sigma = 5 * min(size) / 480 if self.sigma == "scaled" else float(self.sigma)
        return superpixels(batch.raw.detach(), self.n_segments, sigma, self.compactness)


class SuperpixelFill(SelfBlend):
    """Make the chosen superpixels black, or give each its mean colour; the label stays.

    Args:
        fill: "cut" or "mean".
        slic: the superpixels.
    """

    def __init__(self, fill: Literal["cut", "mean"], slic: Slic) -> None:
        super().__init__()
        self.fill = fill
        self.slic = slic

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        return self.slic.draw(rows, rng)

    def images(self, draws: np.ndarray, scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        """One view.

        Raises:
            BatchError: the images have no pixel grid, or their normalisation is not known.
        """
        batch, images = scene.batch, scene.batch.images
        segments = self.slic.segments(batch)
        if self.fill == "mean":
            # Given maps may have any number of labels, but no more than pixels.
            means = superpixel_means(images, segments, segments[0].numel()).to(images.dtype)
            labels = segments.flatten(1)[:, None].expand(-1, images.shape[1], -1)
            filling = means.gather(2, labels).view(images.shape)
        else:
            if batch.pixels is None:
                raise BatchError(
                    "superpixel_grid(variant='cut') makes pixels black, but the batch does not say how its images were "
                    "normalised. Give pixels=Pixels(mean=..., std=...) to the Batch or to mixwell.create."
                )
            filling = batch.pixels.normalise(images.new_zeros(1, images.shape[1], 1, 1))
        return (torch.lerp(filling, images, kept(draws, self.slic.ratio, segments).to(images.dtype)),)


class SuperpixelMix(Blend):
    """Show the partner in the chosen superpixels of the image.

    Args:
        slic: the superpixels.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    takes_lam = False

    def __init__(self, slic: Slic) -> None:
        super().__init__()
        self.slic = slic

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        return self.slic.draw(rows, rng)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        keep = kept(draws, self.slic.ratio, self.slic.segments(scene.batch))
        own = keep.mean((1, 2, 3))

        def apply(x: Tensor) -> Tensor:
            same = x.shape[2:] == keep.shape[2:]
            mask = keep if same else F.interpolate(keep, x.shape[2:], mode="nearest-exact")
            return partners.under(x, mask)

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        return Mix.of_pair(apply(images), partners, own, apply, area=own, make_masks=masks)


class SameClass(Pairing):
    """Mix each image with a random other one of its class; one without such is its own partner."""

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) a random order."""
        return rng.permutation(rows)

    def partners(self, draws: np.ndarray, scene: Scene) -> Partners:
        """Each image's partner is the next of its class in the drawn order; the last one's is the first.

        Raises:
            BatchError: the labels are rows, which name no single class.
        """
        labels = scene.batch.labels
        classes, rows = Targets.of(labels).classes[:, 0], torch.arange(len(labels), device=labels.device)
        order = torch.argsort(classes * len(labels) + onto(draws, labels))
        changes = torch.diff(classes[order]) != 0
        first, last = F.pad(changes, (1, 0), value=True), F.pad(changes, (0, 1), value=True)
        start = torch.where(first, rows, 0).cummax(0).values
        partner = torch.empty_like(order)
        partner[order] = order[torch.where(last, start, rows + 1).clamp_max(len(labels) - 1)]
        return Partners.at(partner[:, None].to(scene.batch.images.device), labels)


@method("superpixel_grid", section="1.3", paper="2204.08458", venue="arXiv 2022")
def superpixel_grid(
    variant: Literal["cut", "mean", "mix"] = "mix",
    n_segments: int = 100,
    ratio: float = 0.4,
    sigma: Sigma = 5.0,
    compactness: float = 10.0,
    same_class: bool = False,
    prob: float = 1.0,
) -> Pieces:
    """Args:
    variant: what chosen superpixels show: black ("cut"), their mean colour ("mean") or another image ("mix").
    n_segments: superpixels wanted; the paper shows 100 to 1000 on photographs, and 30 suits 32×32 pixels.
    ratio: r, the probability that a superpixel is chosen; the paper shows 0.2 and 0.4.
    sigma: SLIC's blur in pixels, or "scaled" for 5 pixels per 480 of the shorter side.
    compactness: how much place counts against colour in SLIC.
    same_class: whether "mix" pairs images of one class only, as in the paper's examples.
    prob: share of the batches that are changed.
    """
    slic = Slic(n_segments, ratio, sigma, compactness)
    if variant == "mix":
        return Pieces((SuperpixelMix(slic), SameClass()) if same_class else SuperpixelMix(slic), prob=prob)
    if same_class:
        raise ParameterError(f"same_class pairs images, but variant={variant!r} mixes no two. Take variant='mix'.")
    return Pieces(SuperpixelFill(variant, slic), prob=prob)
