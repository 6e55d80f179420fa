"""ResizeMix: paste a thumbnail of the whole partner into the image.

Qin, Fang, Zhang, Liu, Wang, Wang, "ResizeMix: Mixing Data with Preserved Object Information and True Labels",
Computational Visual Media 2023, arXiv:2012.11101.

The partner is shrunk by a random scale and pasted at a random place, so that the patch always shows its object, and the
label follows the area of the patch. The thumbnail is never cut: near the border it is shifted inwards.
Equations: τ ~ U(α, β) → `UniformScale`; P = T(x_j), x̃ = Paste(P, x_i) → `paste`; λ = 1 - area of P → the mix's label
shares.

Paper and code: the authors' code draws one scale per batch, but a place for each image (`per="batch",
places="sample"`). It shrinks to the nearest pixel without smoothing; `interpolation="bilinear"` smooths. Sides are
rounded down, to no less than one pixel, where the code has an error.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Uniform
from mixwell.core.registry import Pieces, method
from mixwell.ops.boxes import area_of, boxes_within, outside, pair_masks
from mixwell.ops.gather import gathered

__all__ = ["ResizedPaste", "UniformScale", "paste", "scales_of", "thumbnail_boxes"]

Interpolation = Literal["nearest", "nearest-size", "bilinear"]


def scales_of(lam: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """The scale τ of a thumbnail that leaves the share λ of the image."""
    # λ has lost τ's last digits; without them 0.8 of 40 pixels must still be 32.
    scales: np.ndarray = np.sqrt(np.maximum(1 - lam, 0)).round(12)
    return scales


def thumbnail_boxes(
    scales: Float[np.ndarray, " #b"], centres: Float[np.ndarray, "#b 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "b 4"]:
    """Where the thumbnails are pasted: boxes of ⌊τ·side⌋ pixels, at least 1 (0 if τ = 0), inside the image."""
    sides = (scales[:, None] * size).astype(np.int64)
    return boxes_within(np.maximum(sides, scales[:, None] > 0), centres, size)


def paste(
    images: Float[Tensor, "b c h w"],
    partners: Partners,
    scales: Float[np.ndarray, " #b"],
    boxes: Int64[np.ndarray, "#b 4"],
    interpolation: Interpolation = "nearest",
) -> Float[Tensor, "b c h w"]:
    """The images with their partners, shrunk by the scales, inside the boxes: one box each, or one for all."""
    size = (images.shape[2], images.shape[3])
    if len(boxes) == 1:
        top, bottom, left, right = boxes[0].tolist()
        mixed = images.clone()
        if top < bottom:
            spans = ((top, bottom), (left, right))
            mixed[:, :, top:bottom, left:right] = _shrunk(images, partners, scales, boxes, spans, interpolation)
        return mixed
    keep = outside(boxes, size, images.device, images.dtype)
    spans = ((0, size[0]), (0, size[1]))
    # With weights 0 and 1 lerp copies exactly, and is several times as fast as `where` with a mask that broadcasts.
    return _shrunk(images, partners, scales, boxes, spans, interpolation).lerp_(images, keep)


def _shrunk(
    images: Float[Tensor, "b c h w"],
    partners: Partners,
    scales: Float[np.ndarray, " #b"],
    boxes: Int64[np.ndarray, "#b 4"],
    spans: tuple[tuple[int, int], tuple[int, int]],
    interpolation: Interpolation,
) -> Float[Tensor, "b c p q"]:
    """The rows and columns `spans` of canvases with the partners' thumbnails in the boxes, and anything around them."""
    # Pixel u of a thumbnail shows the partner at u/τ, in fp32 as torch's `interpolate` has it.
    steps = (1 / np.maximum(scales, 1e-9)).astype(np.float32)[:, None]
    places = [
        np.arange(*span, dtype=np.float32) - boxes[:, 2 * axis, None].astype(np.float32)
        for axis, span in enumerate(spans)
    ]
    sides = images.shape[2:]
    if interpolation == "nearest-size":
        starts, ends = boxes[:, ::2], boxes[:, 1::2]
        rows, columns = (
            onto(np.clip(index, 0, side - 1), images)
            for axis, side in enumerate(sides)
            for index in [
                (np.arange(*spans[axis]) - starts[:, axis, None]) * side // np.maximum(ends - starts, 1)[:, axis, None]
            ]
        )
        return gathered(images, partners.column(), rows, columns)
    if interpolation == "nearest":
        rows, columns = (
            onto(np.clip(place * steps, 0, side - 1).astype(np.int64), images)
            for place, side in zip(places, sides, strict=True)
        )
        return gathered(images, partners.column(), rows, columns)
    down, across = (onto(_triangles(place, steps, side), images) for place, side in zip(places, sides, strict=True))
    with torch.autocast(images.device.type, enabled=False):
        other = partners.of(images).float()
        made = down[:, None] @ other @ across[:, None].mT
    return made.to(images.dtype, memory_format=layout_of(images))


def _triangles(
    places: Float[np.ndarray, "b p"], steps: Float[np.ndarray, "b 1"], side: int
) -> Float[np.ndarray, "b p s"]:
    """Weights of the partner's pixels in each of a thumbnail's: a triangle as wide as two of the thumbnail's pixels."""
    middles = ((places + 0.5) * steps)[:, :, None]
    away = np.abs(np.arange(side, dtype=np.float32) + 0.5 - middles) / steps[:, :, None]
    weights = np.maximum(1 - away, 0)
    shares: np.ndarray = weights / np.maximum(weights.sum(2, keepdims=True), np.finfo(np.float32).tiny)
    return shares


class UniformScale(Uniform):
    """λ = 1 - τ², what a thumbnail of scale τ ~ U(low, high) leaves of the image.

    Args:
        low, high: range of the scale, 0 < low ≤ high ≤ 1.
        per: one scale per "sample" or per "batch".
    """

    def __init__(self, low: float, high: float, per: Per = "sample") -> None:
        low = number_in("the smallest scale", low, 0, 1, open_low=True)
        super().__init__(low, number_in("the largest scale", high, low, 1), per)

    def lam(self, draws: np.ndarray, scene: Scene) -> Float[Tensor, " #r"]:
        return super().lam(1 - draws**2, scene)


class ResizedPaste(Blend):
    """Show a thumbnail of the partner, of area 1 - λ, at a random place.

    Args:
        per: one place per "sample" or per "batch".
        interpolation: "nearest", "nearest-size", or "bilinear" for thumbnails without aliasing.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    aligned = False

    def __init__(self, per: Per = "sample", interpolation: Interpolation = "nearest") -> None:
        super().__init__()
        self.per = per_of(per)
        if interpolation not in get_args(Interpolation):
            raise ParameterError(
                f"interpolation must be 'nearest', 'nearest-size' or 'bilinear', got {interpolation!r}."
            )
        self.interpolation: Interpolation = interpolation

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
        size = (images.shape[2], images.shape[3])
        scales = scales_of(lam.detach().cpu().numpy())
        boxes = thumbnail_boxes(scales, draws, size)
        own = torch.from_numpy(1 - area_of(boxes, size))

        def apply(x: Tensor) -> Tensor:
            there = thumbnail_boxes(scales, draws, (x.shape[2], x.shape[3]))
            return paste(x, partners, scales, there, self.interpolation)

        def masks(mix: Mix) -> Tensor:
            return pair_masks(boxes, size, images.device)

        def origins(mix: Mix) -> Tensor:
            keep = outside(boxes, size, images.device)
            seen = onto(boxes[:, 0] < boxes[:, 1], images)[:, None, None, None]  # all of the partner, or nothing
            return torch.cat((keep, seen.to(keep.dtype).expand_as(keep)), 1)

        mixed = paste(images, partners, scales, boxes, self.interpolation)
        return Mix.of_pair(mixed, partners, own, apply, lam=lam, area=own, make_masks=masks, make_origins=origins)


@method("resizemix", section="1.3", paper="2012.11101", venue="CVMJ 2023")
def resizemix(
    scale: tuple[float, ...] = (0.1, 0.8),
    interpolation: Interpolation = "nearest",
    prob: float = 1.0,
    per: Per = "sample",
    places: Per | None = None,
) -> Pieces:
    """Args:
    scale: range of the thumbnail's side, as a share of the image's: τ ~ U(α, β).
    interpolation: "nearest" takes the pixel at u/τ, as the official code, "nearest-size" the one at u·H/h for a
        thumbnail of h pixels; "bilinear" makes thumbnails without aliasing.
    prob: share of the batches that are mixed.
    per: one scale per "sample" or per "batch".
    places: one place per "sample" or per "batch"; as `per` if not given.
    """
    if len(scale) != 2:
        raise ParameterError(f"scale must be the smallest and the largest scale, such as (0.1, 0.8), got {scale!r}.")
    return Pieces(ResizedPaste(places or per, interpolation), UniformScale(*scale, per=per), prob)
