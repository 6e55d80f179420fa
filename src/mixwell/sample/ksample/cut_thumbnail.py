"""Cut-Thumbnail: show a reduced version of an image inside a random square of it, or of another image.

Xie, Cheng, Wang, Liu, Deng, Zhou, Liu, "Cut-Thumbnail: A Novel Data Augmentation for Convolutional Neural Network",
ACM MM 2021, arXiv:2103.05342.

A thumbnail of a partner (Mixed Single Thumbnail) covers a box of fixed size at a random place, so that global shape is
seen locally; the label gives the partner a fixed share, whatever the box covers. Self Thumbnail takes the image's own
thumbnail and leaves the label alone; the multiple variant pastes one thumbnail each of several partners, later ones on
top. Equations: T(x) → `thumbnail`; x̃ = M⊙x_i + (1-M)⊙T(x_j) → `paste_thumbnails`; ỹ = (1-λ)·y_i + λ·y_j →
`FixedShares`.

Paper and code: the authors' code takes one place for the whole batch (`per="batch"`); it reduces images by nearest
neighbours, and `resize="bilinear"` makes smoother thumbnails. It has no multiple variant: ours divides λ evenly among
the thumbnails. Its sizes are pixels (16 of 32, 112 of 224); ours are shares of either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Label, Need, Per, Scene, SelfBlend, Step, per_of
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.boxes import area_of, boxes_between, outside

__all__ = [
    "FixedShares",
    "OwnThumbnail",
    "OwnThumbnailDraws",
    "Resize",
    "Thumbnails",
    "paste_thumbnails",
    "placed",
    "thumbnail",
    "visible_masks",
    "visible_origins",
]

Resize = Literal["nearest", "bilinear"]
Variant = Literal["self", "single", "multiple"]


def thumbnail(
    images: Float[Tensor, "b c h w"], size: tuple[int, int], resize: Resize = "nearest"
) -> Float[Tensor, "b c _h _w"]:
    """The images reduced to height and width `size`, without antialiasing; may be a view of them."""
    height, width = images.shape[2:]
    if resize == "nearest" and height % size[0] == 0 and width % size[1] == 0:
        return images[:, :, :: height // size[0], :: width // size[1]]
    return F.interpolate(images, size, mode=resize)


def placed(
    corners: Float[np.ndarray, "b 2"], share: float | Float[np.ndarray, " 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "b 4"]:
    """Boxes of one size (top, bottom, left, right) that lie inside the image, at uniformly random pixels.

    Args:
        corners: (B, 2) top and left, uniform in [0, 1).
        share: of the image's sides that the boxes' sides have, rounded to at least one pixel; of both or of each.
        size: height and width of the image.
    """
    extent = np.array(size)
    sides = np.maximum(np.rint(share * extent), 1).astype(np.int64)
    low = (corners * (extent - sides + 1)).astype(np.int64)
    return boxes_between(low, low + sides)


def paste_thumbnails(
    images: Float[Tensor, "b c h w"],
    boxes: Sequence[Int64[np.ndarray, "_b 4"]],
    partners: Partners | None = None,
    resize: Resize = "nearest",
) -> Float[Tensor, "b c h w"]:
    """The images with thumbnails inside boxes, later ones on top.

    Args:
        images: (B, C, H, W).
        boxes: K arrays (B, 4), or (1, 4) for one place in all images; the boxes of an array are of one size.
        partners: whose thumbnails are shown, in the order of the boxes; None for each image's own.
        resize: how thumbnails are made.
    """
    mixed = images.clone()
    for which, at in enumerate(boxes):
        top, bottom, left, right = at[0].tolist()
        small = thumbnail(images, (bottom - top, right - left), resize)
        _show(mixed, small if partners is None else partners.of(small, which), at)
    return mixed


def _show(mixed: Float[Tensor, "b c h w"], small: Float[Tensor, "b c _h _w"], boxes: Int64[np.ndarray, "_b 4"]) -> None:
    if len(boxes) == 1:
        top, bottom, left, right = boxes[0].tolist()
        mixed[:, :, top:bottom, left:right] = small
        return
    height, width = small.shape[2:]
    rows = torch.arange(len(mixed), device=mixed.device)
    top, left = onto(np.ascontiguousarray(boxes[:, ::2].T), mixed)
    if mixed.is_cpu and not mixed.requires_grad:
        # Windows overlap, which autograd and deterministic CUDA kernels do not respect, but copies run line by line.
        mixed.unfold(2, height, 1).unfold(3, width, 1)[rows, :, top, left] = small
        return
    lines = top[:, None, None] + torch.arange(height, device=mixed.device)[:, None]
    columns = left[:, None, None] + torch.arange(width, device=mixed.device)
    mixed.permute(0, 2, 3, 1)[rows[:, None, None], lines, columns] = small.permute(0, 2, 3, 1)


def visible_masks(
    boxes: Sequence[Int64[np.ndarray, "b 4"]], size: tuple[int, int], device: torch.device | None = None
) -> Float[Tensor, "b k h w"]:
    """What is outside all boxes, then what is inside each and not hidden by a later one; 1 + K masks."""
    free = torch.ones((), device=device)
    shown = []
    for at in reversed(boxes):
        outer = outside(at, size, device)
        shown.append(free * (1 - outer))
        free = free * outer
    return torch.cat((free, *reversed(shown)), 1)


def visible_origins(
    boxes: Sequence[Int64[np.ndarray, "b 4"]], size: tuple[int, int], device: torch.device | None = None
) -> Float[Tensor, "b k h w"]:
    """What of each source's own image `visible_masks` show, in the place that it has there."""
    shown = visible_masks(boxes, size, device)
    seen = [shown[:, :1]]
    for which, at in enumerate(boxes, 1):
        mask = shown[:, which : which + 1]
        for axis, side in enumerate(size):
            low, high = at[:, 2 * axis, None], at[:, 2 * axis + 1, None]
            # The thumbnail's line that stands for each line of the image.
            lines = onto(low + ((np.arange(side) + 1) * (high - low) - 1) // side, shown)
            index = lines[:, None, :, None] if axis == 0 else lines[:, None, None, :]
            mask = mask.gather(2 + axis, index.expand(mask.shape))
        seen.append(mask)
    return torch.cat(seen, 1)


def _corners(rows: int, count: int, per: Per, rng: Generator) -> np.ndarray:
    return rng.random((1 if per == "batch" else rows, count, 2))


class Thumbnails(Blend):
    """Show thumbnails of partners inside boxes of fixed size at random places, one of each partner.

    The label shares of its mixes are the visible areas; `FixedShares` takes their place in the published method.

    Args:
        sizes: of the thumbnails, as shares of the image's sides in (0, 1].
        resize: "nearest" or "bilinear".
        per: places per "sample", or one per thumbnail and "batch".
    """

    takes_lam = False
    aligned = False

    def __init__(self, sizes: Sequence[float] = (0.5,), resize: Resize = "nearest", per: Per = "sample") -> None:
        super().__init__()
        self.sizes = [_share(size) for size in sizes]
        self.partners = len(self.sizes)
        self.gives = (OF_A_PAIR if self.partners == 1 else OF_A_PAIR - {Need.PAIR}) | {Need.MASKS}
        self.resize = resize
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, K, 2) or (1, K, 2) corners, uniform in [0, 1): top, left."""
        return _corners(rows, self.partners, self.per, rng)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        def boxes(size: tuple[int, int]) -> list[np.ndarray]:
            return [placed(draws[:, which], share, size) for which, share in enumerate(self.sizes)]

        def apply(x: Tensor) -> Tensor:
            return paste_thumbnails(x, boxes((x.shape[2], x.shape[3])), partners, self.resize)

        def masks(mix: Mix) -> Tensor:
            return visible_masks(boxes(size), size, images.device)

        def origins(mix: Mix) -> Tensor:
            return visible_origins(boxes(size), size, images.device)

        size = (images.shape[2], images.shape[3])
        if self.partners == 1:
            own = torch.from_numpy(1 - area_of(boxes(size)[0][:1], size))
            return Mix.of_pair(apply(images), partners, own, apply, area=own, make_masks=masks, make_origins=origins)
        shown = visible_masks(boxes(size), size, images.device)
        shares = shown.mean((2, 3)).expand(len(images), -1)
        return Mix(
            apply(images),
            partners.sources,
            shares,
            partners.pool,
            apply,
            area=shares[:, 0],
            make_masks=lambda mix: shown,
            make_origins=origins,
        )


class FixedShares(Label):
    """The same share for partners in every mix, divided evenly among them.

    Args:
        lam: of all partners together, in [0, 1]; the image's own label has the rest.
    """

    needs = frozenset({Need.OWN_ROW})

    def __init__(self, lam: float = 0.25) -> None:
        super().__init__()
        self.lam = number_in("lam", lam, 0, 1)

    def targets(self, step: Step) -> Targets:
        sources = step.mix.weights.shape[1]
        weights = torch.full_like(step.mix.weights, self.lam / (sources - 1))
        weights[:, 0] = 1 - self.lam
        return step.mix.targets(weights)


class OwnThumbnailDraws(NamedTuple):
    """Whether images of this batch get a thumbnail, and where.

    Attributes:
        acts: whether they do.
        corners: (B, 1, 2) or (1, 1, 2), uniform in [0, 1): top, left.
    """

    acts: bool
    corners: np.ndarray


class OwnThumbnail(SelfBlend):
    """Show an image's own thumbnail inside a box of fixed size at a random place.

    It has its own gate: on the other batches images stay as they are, and whatever else the recipe mixes is mixed.

    Args:
        size: of the thumbnail, as a share of the image's sides in (0, 1].
        rate: share of the batches that get thumbnails.
        resize: "nearest" or "bilinear".
        per: a place per "sample" or per "batch".
    """

    def __init__(self, size: float = 0.5, rate: float = 0.8, resize: Resize = "nearest", per: Per = "sample") -> None:
        super().__init__()
        self.sizes = [_share(size)]
        self.rate = number_in("participation_rate", rate, 0, 1)
        self.resize = resize
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> OwnThumbnailDraws:
        return OwnThumbnailDraws(rng.random() < self.rate, _corners(rows, 1, self.per, rng))

    def images(self, draws: OwnThumbnailDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        """The images with their thumbnails, or as they are.

        Raises:
            BatchError: the images have no pixel grid.
        """
        images = scene.batch.images
        if images.ndim != 4:
            raise BatchError(
                f"cut_thumbnail reduces pixel grids: expected images (B, C, H, W), got {tuple(images.shape)}. Take a "
                "recipe such as mixup."
            )
        if not draws.acts:
            return (images,)
        boxes = placed(draws.corners[:, 0], self.sizes[0], (images.shape[2], images.shape[3]))
        return (paste_thumbnails(images, [boxes], resize=self.resize),)


def _share(size: float) -> float:
    return number_in(
        "size", size, 0, 1, open_low=True, hint="Sizes are shares of the image's side, such as 0.5 for 112 of 224."
    )


@method("cut_thumbnail", section="1.4", paper="2103.05342", venue="ACM MM 2021", gate="participation_rate")
def cut_thumbnail(
    variant: Variant = "single",
    size: float | tuple[float, ...] = 0.5,
    lam: float = 0.25,
    participation_rate: float = 0.8,
    label: Literal["fixed", "area"] = "fixed",
    resize: Resize = "nearest",
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: a thumbnail of a "single" partner (MST), of "multiple" partners, or of the image itself ("self", ST).
    size: side of a thumbnail as a share of the image's side; "multiple" takes one for each, or makes two of one size.
    lam: label share of all thumbnails together; has no effect on "self".
    participation_rate: share of the batches that get thumbnails.
    label: the "fixed" share, or the visible "area" of each source.
    resize: "nearest" as in the authors' code, or "bilinear".
    per: places per "sample" or per "batch".
    """
    if isinstance(size, tuple) and (variant != "multiple" or not size):
        raise ParameterError(
            f"cut_thumbnail(variant={variant}): size must be a number, or for variant=multiple a number for each "
            f"thumbnail, got {size}."
        )
    sizes = size if isinstance(size, tuple) else (size,) * (2 if variant == "multiple" else 1)
    if variant == "self":
        return Pieces(essential=OwnThumbnail(sizes[0], participation_rate, resize, per))
    blend = Thumbnails(sizes, resize, per)
    return Pieces(essential=(blend, FixedShares(lam)) if label == "fixed" else blend, prob=participation_rate)
