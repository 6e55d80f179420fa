"""Attentive CutMix: paste the cells of an image that a pretrained classifier responds to most onto a partner.

Walawalkar, Shen, Liu, Savvides, "Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image
Classification", ICASSP 2020, arXiv:2003.13048.

A frozen classifier's last map, taken on a grid of 7 × 7, tells the 6 most responsive cells of an image; they are shown
in their own places, and the partner everywhere else. The label follows the pixels. Equations: the grid map →
`heat_map`; the top N cells → `top_cells`; the binary mask B → `enlarged`; x̃ = B⊙x₁ + (1-B)⊙x₂ → `AttentiveCells`;
λ = N/49 → label="nominal".

The image itself is x₁, whose cells are pasted, and the partner x₂ is the background: λ weights the image's own label
and is small, 0.12 by default.

The classifier is there before training: `recipe.prepare(batches, data)`, which `mixwell train` and `mixwell prepare`
call. By default it is a small CNN, trained on the clean training images; `teacher="resnet50"` takes the paper's from
timm, the folder of a finished run that run's network. One of your own is given with
`recipe.options[0].blend.teacher.use(net)`. It always sees the images themselves, also in recipes that mix hidden maps.

Paper and code: the authors published no code. The paper does not say how the map's channels become one number. We take
their mean; the known third-party code takes the last channel (`reduce="last"`). That code resizes small images to 224
pixels, mixes them and resizes them back; we paste at the images' own size, where cells need not be equally large, so
the label follows the real area of each mask (`label="area"`). It also leaves the classifier's BatchNorm in training
mode, and shows it pixels without normalisation; we do neither.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Blend, Need, Scene
from mixwell.core.errors import ParameterError
from mixwell.core.mix import Mix, Partners, with_rest
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import resized
from mixwell.nets.pretrained import Pretrained

__all__ = ["AttentiveCells", "enlarged", "heat_map", "top_cells"]

Reduce = Literal["mean", "last"]
Own = Literal["own"]


def heat_map(features: Float[Tensor, "b d h w"], reduce: Reduce = "mean") -> Float[Tensor, "b h w"]:
    """One number for each place, in fp32: the mean over channels, or the last channel."""
    return features.float().mean(1) if reduce == "mean" else features[:, -1].float()


def top_cells(heat: Float[Tensor, "b h w"], count: int) -> Float[Tensor, "b h w"]:
    """1 at the `count` largest places of each map, 0 elsewhere; which of equal ones is arbitrary."""
    flat = heat.flatten(1)
    return torch.zeros_like(flat).scatter_(1, flat.topk(count, sorted=False).indices, 1).view_as(heat)


def enlarged(cells: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b 1 y x"]:
    """The cell of each pixel: pixel i of H lies in cell ⌊i·h/H⌋, so that cells differ by a pixel where h divides no H.

    Args:
        cells: a value per cell.
        size: height and width in pixels.
    """
    for axis, side in enumerate(size, 1):
        place = torch.arange(side, device=cells.device)
        cells = cells.index_select(axis, place * cells.shape[axis] // side)
    return cells[:, None]


class AttentiveCells(Blend):
    """Show the image in the cells that a frozen classifier responds to most, and the partner elsewhere.

    Args:
        teacher: the classifier.
        top_k: cells of the image that are shown.
        grid: cells along each side; "own" for the places of the classifier's map.
        reduce: how the map's channels become one number.
        label: the own label's share is the "area" of the cells in pixels, or "nominal", their share of all cells.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    takes_lam = False

    def __init__(
        self,
        teacher: Pretrained,
        top_k: int = 6,
        grid: int | Own = 7,
        reduce: Reduce = "mean",
        label: Literal["area", "nominal"] = "area",
    ) -> None:
        super().__init__()
        if grid != "own" and grid < 1:
            raise ParameterError(f"grid must be a whole number ≥ 1, or 'own' for the teacher's own, got {grid!r}.")
        if top_k < 1 or (grid != "own" and top_k > grid**2):
            most = "" if grid == "own" else f" up to grid² = {grid**2}"
            raise ParameterError(f"top_k must be a whole number ≥ 1{most}, got {top_k!r}.")
        self.teacher = teacher
        self.top_k, self.cells_along, self.reduce, self.label = top_k, grid, reduce, label

    def prepare(self, workshop: Workshop) -> None:
        self.teacher.prepare(workshop)

    @torch.no_grad()
    def cells(self, scene: Scene) -> Float[Tensor, "b h w"]:
        """1 for each cell of the batch's images that is shown, 0 for the others.

        Raises:
            MixwellError: there is no classifier yet.
            ParameterError: its map has fewer places than cells are wanted.
        """
        batch = scene.batch
        heat = heat_map(self.teacher.features(batch.images, batch.pixels), self.reduce)
        if self.cells_along != "own":
            heat = resized(heat, (self.cells_along, self.cells_along))
        if self.top_k > heat[0].numel():
            raise ParameterError(
                f"top_k={self.top_k}, but the teacher's map has only {heat.shape[1]}×{heat.shape[2]} places. Give a "
                "grid, or a larger teacher_size."
            )
        return top_cells(heat, self.top_k)

    def looked_at(self, scene: Scene) -> Float[Tensor, "b h w"]:
        """The classifier's responses, from 0 at the least."""
        heat = heat_map(self.teacher.features(scene.batch.images, scene.batch.pixels), self.reduce)
        return heat - heat.amin((1, 2), keepdim=True)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: None,
        scene: Scene,
    ) -> Mix:
        cells = self.cells(scene)
        keep = enlarged(cells, (images.shape[2], images.shape[3]))
        area = keep.mean((1, 2, 3))
        nominal = torch.full((1,), self.top_k / cells[0].numel())

        def apply(x: Tensor) -> Tensor:
            return partners.under(x, enlarged(cells, (x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep)

        own = area if self.label == "area" else nominal
        return Mix.of_pair(partners.under(images, keep), partners, own, apply, lam=nominal, area=area, make_masks=masks)


@method("attentive_cutmix", section="1.7", paper="2003.13048", venue="ICASSP 2020")
def attentive_cutmix(
    top_k: int = 6,
    grid: int | Own = 7,
    reduce: Reduce = "mean",
    label: Literal["area", "nominal"] = "area",
    teacher: str | None = None,
    teacher_size: int | None = None,
    teacher_epochs: int = 5,
    prob: float = 1.0,
) -> Pieces:
    """Args:
    top_k: N, cells of the image that are pasted; the paper tries 1 to 15.
    grid: cells along each side; "own" for the places of the teacher's map.
    reduce: what of the map's channels counts, their "mean", or the "last" one as in the third-party code.
    label: the own label's share is the "area" of the cells in pixels, or "nominal", N/grid².
    teacher: the classifier: None for a small CNN trained beforehand, a name of timm (the paper's is "resnet50"), or
        the folder of a finished run.
    teacher_size: pixels of both sides at which the teacher sees images; None for the network's own.
    teacher_epochs: passes of the small CNN's training over the training images.
    prob: share of the batches that are mixed.
    """
    found = Pretrained(teacher, owner="attentive_cutmix", size=teacher_size, epochs=teacher_epochs)
    return Pieces(essential=AttentiveCells(found, top_k, grid, reduce, label), prob=prob)
