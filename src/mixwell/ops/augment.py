"""AugMix's thirteen operations on batches of 8-bit images: grey level by grey level what Pillow makes of each image.

Pillow rounds after every operation: affine maps, stretching and enhancing truncate, blurs and means round. The kernels
do its arithmetic in its order and precision: fp64 for coordinates, interpolation and stretching, fp32 for enhancing,
integers for grey and equalisation. A device without fp64 takes fp32 and may be one grey level off.

A kernel takes (N, C, H, W) images of any size and channel count and one parameter per image, and returns new images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

__all__ = ["OPERATIONS", "Operation", "augment", "parameters_of", "quantised"]

Images = UInt8[Tensor, "n c h w"]
Parameters = Float[Tensor, " n"]


def quantised(raw: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Pixels in [0, 1] → the nearest of 256 grey levels."""
    return (raw.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


# Grey levels


def autocontrast(images: Images, parameters: Parameters) -> Images:
    """Stretch each channel so that its darkest pixel is 0 and its brightest 255; a constant channel stays."""
    low, high = (level.to(_wide(images)) for level in torch.aminmax(images.flatten(2).permute(2, 0, 1), dim=0))
    # A number over a tensor would be its reciprocal times the number, rounded twice.
    scale = torch.where(high > low, torch.full_like(high, 255) / (high - low), 1)
    offset = torch.where(high > low, -low * scale, 0)
    return _grey_levels(images.to(scale.dtype).mul_(scale[:, :, None, None]).add_(offset[:, :, None, None]))


def equalize(images: Images, parameters: Parameters) -> Images:
    """Make each channel's histogram as flat as a map of grey levels can."""
    index = images.flatten(2).long()
    one = torch.ones((), dtype=torch.long, device=index.device)
    counts = index.new_zeros((*index.shape[:2], 256)).scatter_add_(2, index, one.expand_as(index))
    brightest = counts.gather(2, index.amax(2, keepdim=True))
    step = (index.shape[2] - brightest) // 255
    darker = counts.cumsum(2) - counts
    table = ((step // 2 + darker) // step.clamp_min(1)).clamp_max_(255)
    table = torch.where(step > 0, table, torch.arange(256, device=index.device)).to(torch.uint8)
    return table.gather(2, index).view_as(images)


def posterize(images: Images, parameters: Parameters) -> Images:
    """Keep the highest bits, as many as the parameter says; with none the image is black."""
    return images & _each(256 - 2 ** (8 - parameters)).to(torch.uint8)


def solarize(images: Images, parameters: Parameters) -> Images:
    """Invert the grey levels from the parameter on."""
    return torch.where(images.short() < _each(parameters).short(), images, ~images)


# Affine maps, each from output to input coordinates; beyond the input it is black


def translate_x(images: Images, parameters: Parameters) -> Images:
    """Show at x what was at x + parameter, a whole number of pixels."""
    width = images.shape[3]
    column = torch.arange(width, device=images.device) + parameters.long()[:, None]
    inside = (column >= 0) & (column < width)
    index = column.clamp_(0, width - 1)[:, None, None]
    return images.gather(3, index.expand(images.shape)).mul_(inside[:, None, None])


def translate_y(images: Images, parameters: Parameters) -> Images:
    """Show at y what was at y + parameter, a whole number of pixels."""
    return translate_x(images.mT, parameters).mT


def shear_x(images: Images, parameters: Parameters) -> Images:
    """Show at (x, y) what was at (x + parameter·y, y), seen from the top left corner; linear between columns."""
    height, width = images.shape[2:]
    slope = parameters.to(_wide(images))[:, None, None]
    x = _centres(width, slope) + slope * _centres(height, slope)[:, None]
    inside = _within(x, width)
    (left, right), share = _neighbours(x, width)
    sheared = _between(_pick(images, 3, left), _pick(images, 3, right), share)
    return _grey_levels(sheared).mul_(inside[:, None])


def shear_y(images: Images, parameters: Parameters) -> Images:
    """Show at (x, y) what was at (x, y + parameter·x), seen from the top left corner; linear between rows."""
    return shear_x(images.mT, parameters).mT


def rotate(images: Images, parameters: Parameters) -> Images:
    """Turn counter-clockwise by the parameter in degrees, about the middle; bilinear."""
    height, width = images.shape[2:]
    angle = -torch.deg2rad(parameters.to(_wide(images)) % 360)[:, None, None]
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    column, row = _centres(width, angle), _centres(height, angle)[:, None]
    x = cos * column + sin * row + (-cos * (width / 2) - sin * (height / 2) + width / 2)
    y = cos * row - sin * column + (sin * (width / 2) - cos * (height / 2) + height / 2)
    inside = _within(x, width) & _within(y, height)
    (left, right), across = _neighbours(x, width)
    (above, below), down = _neighbours(y, height)
    flat = images.flatten(2)

    def at(y: Tensor, x: Tensor) -> Tensor:
        return _pick(flat, 2, (y * width + x).flatten(1)).view(images.shape)

    top = _between(at(above, left), at(above, right), across)
    bottom = _between(at(below, left), at(below, right), across)
    return _grey_levels(_between(top, bottom, down)).mul_(inside[:, None])


# Enhancements: away from, or for parameters below 1 towards, a degenerate image


def color(images: Images, parameters: Parameters) -> Images:
    """Away from the grey image; an image of one channel stays."""
    return _enhanced(_grey(images), images, parameters)


def contrast(images: Images, parameters: Parameters) -> Images:
    """Away from the mean grey."""
    grey = _grey(images)
    pixels = grey[0].numel()
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _enhanced(mean, images, parameters)


def brightness(images: Images, parameters: Parameters) -> Images:
    """Away from black."""
    return _enhanced(images.new_zeros(1, 1, 1, 1), images, parameters)


def sharpness(images: Images, parameters: Parameters) -> Images:
    """Away from the image blurred by 3 × 3 weights of 1/13, 5/13 in the middle; the outermost pixels stay."""
    wide = images.short()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = wide.clone()
    blurred[:, :, 1:-1, 1:-1] = (around + 4 * wide[:, :, 1:-1, 1:-1] + 6) // 13
    return _enhanced(blurred, images, parameters)


# What the kernels share


def _each(parameters: Tensor) -> Tensor:
    return parameters[:, None, None, None]


def _wide(images: Tensor) -> torch.dtype:
    return torch.float32 if images.device.type == "mps" else torch.float64


def _grey_levels(values: Float[Tensor, "n c h w"]) -> Images:
    return values.clamp_(0, 255).to(torch.uint8)


def _centres(side: int, like: Tensor) -> Float[Tensor, " side"]:
    return torch.arange(side, dtype=like.dtype, device=like.device) + 0.5


def _within(coordinate: Float[Tensor, "n h w"], side: int) -> Bool[Tensor, "n h w"]:
    return (coordinate >= 0) & (coordinate < side)


def _neighbours(
    coordinate: Float[Tensor, "n h w"], side: int
) -> tuple[tuple[Int[Tensor, "n h w"], Int[Tensor, "n h w"]], Float[Tensor, "n 1 h w"]]:
    """The pixels whose centres are before and after a coordinate, and the share of the second."""
    coordinate = coordinate - 0.5
    before = coordinate.floor()
    index = before.long()
    return (index.clamp(0, side - 1), (index + 1).clamp_(0, side - 1)), coordinate.sub_(before)[:, None]


def _pick(images: UInt8[Tensor, "n c ..."], dim: int, index: Int[Tensor, "n ..."]) -> UInt8[Tensor, "n c ..."]:
    """The pixels at an index that all channels share."""
    return images.gather(dim, index[:, None].expand(images.shape))


def _between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """start + (end - start)·share, rounded as Pillow rounds it; a floating `end` is overwritten."""
    return end.to(share.dtype).sub_(start).mul_(share).add_(start)


def _grey(images: Images) -> Int[Tensor, "n 1 h w"]:
    """ITU-R 601 luma of three channels in Pillow's 16-bit fixed point; the rounded mean of any other number."""
    channels = images.shape[1]
    if channels == 3:
        luma = torch.tensor((19595, 38470, 7471), dtype=torch.int32, device=images.device).view(3, 1, 1)
        return ((images * luma).sum(1, keepdim=True, dtype=torch.int32) + 2**15) >> 16
    return (images.sum(1, keepdim=True, dtype=torch.int32) + channels // 2) // channels


def _enhanced(degenerate: Shaped[Tensor, "#n #c #h #w"], images: Images, parameters: Parameters) -> Images:
    start = degenerate.float()
    return _grey_levels(images.float().sub_(start).mul_(_each(parameters).float()).add_(start))


# The table


class Operation(NamedTuple):
    """One operation and how a level s makes its parameter: offset ± s·span/10.

    Attributes:
        name: as in the official code.
        kernel: (images, one parameter per image) → images.
        span: of the parameter, from the images' height and width.
        offset: the parameter of level 0.
        sign: -1, 1, or 0 where it is drawn.
        whole: whether s·span/10 is truncated to an integer.
    """

    name: str
    kernel: Callable[[Images, Parameters], Images]
    span: Callable[[int, int], float] = lambda height, width: 0.0
    offset: float = 0.0
    sign: int = 1
    whole: bool = False


OPERATIONS = (
    Operation("autocontrast", autocontrast),
    Operation("equalize", equalize),
    Operation("posterize", posterize, lambda height, width: 4, 4, -1, True),
    Operation("rotate", rotate, lambda height, width: 30, 0, 0, True),
    Operation("solarize", solarize, lambda height, width: 256, 256, -1, True),
    Operation("shear_x", shear_x, lambda height, width: 0.3, 0, 0),
    Operation("shear_y", shear_y, lambda height, width: 0.3, 0, 0),
    Operation("translate_x", translate_x, lambda height, width: width / 3, 0, 0, True),
    Operation("translate_y", translate_y, lambda height, width: height / 3, 0, 0, True),
    Operation("color", color, lambda height, width: 1.8, 0.1),
    Operation("contrast", contrast, lambda height, width: 1.8, 0.1),
    Operation("brightness", brightness, lambda height, width: 1.8, 0.1),
    Operation("sharpness", sharpness, lambda height, width: 1.8, 0.1),
)
"""In the official code's order; by default it takes the first nine, as the others overlap ImageNet-C's corruptions."""


def parameters_of(
    operations: Int[np.ndarray, "..."],
    levels: Float[np.ndarray, "..."],
    flips: Bool[np.ndarray, "..."],
    size: tuple[int, int],
) -> Float[np.ndarray, "..."]:
    """The parameters of operations at their levels, in fp64: bits, degrees, thresholds, slopes, pixels or factors.

    Args:
        operations: positions in `OPERATIONS`; the parameter of -1 (none) means nothing.
        levels: in [0, 10].
        flips: where a drawn sign is negative.
        size: height and width of the images.
    """
    span = np.array([operation.span(*size) for operation in OPERATIONS])[operations]
    offset = np.array([operation.offset for operation in OPERATIONS])[operations]
    sign = np.array([operation.sign for operation in OPERATIONS])[operations]
    whole = np.array([operation.whole for operation in OPERATIONS])[operations]
    change = levels * span / 10
    signed = np.where(sign == 0, np.where(flips, -1, 1), sign) * np.where(whole, np.trunc(change), change)
    return np.asarray(offset + signed)


def augment(
    images: UInt8[Tensor, "b c h w"], operations: Int[np.ndarray, "v b k d"], parameters: Float[np.ndarray, "v b k d"]
) -> UInt8[Tensor, "v b k c h w"]:
    """Send each image through V·K chains of D operations; one kernel call per depth and operation, for all chains.

    Args:
        images: (B, C, H, W), any device; not modified.
        operations: (V, B, K, D) positions in `OPERATIONS`, -1 for none.
        parameters: (V, B, K, D) of each operation, see `parameters_of`.
    """
    views, count, width, depth = operations.shape
    rows = np.tile(np.arange(count).repeat(width), views)
    for chosen, values in zip(operations.reshape(-1, depth).T, parameters.reshape(-1, depth).T, strict=True):
        # Chains that take the same operation now lie side by side, so that kernels read slices and write none back.
        order = chosen.argsort(kind="stable")
        kinds, sizes = np.unique(chosen, return_counts=True)
        given = torch.from_numpy(values[order]).to(images.device, _wide(images), non_blocking=True)
        parts = (torch.split(tensor, sizes.tolist()) for tensor in (_rows(images, rows[order]), given))
        images = torch.cat(
            [
                part if kind < 0 else OPERATIONS[kind].kernel(part, one)
                for kind, part, one in zip(kinds, *parts, strict=True)
            ]
        )
        rows = order.argsort()
    return _rows(images, rows).view(views, count, width, *images.shape[1:])


def _rows(images: Images, rows: Int[np.ndarray, " m"]) -> UInt8[Tensor, "m c h w"]:
    return images.index_select(0, torch.from_numpy(rows).to(images.device, non_blocking=True))
