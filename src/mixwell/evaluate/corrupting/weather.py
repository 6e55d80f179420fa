"""Weather: snow, frost, fog, brightness."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mixwell.evaluate.corrupting.blur import motion
from mixwell.evaluate.corrupting.draws import Draws
from mixwell.evaluate.corrupting.frost import pictures
from mixwell.evaluate.corrupting.resample import along, zoom_matrix

__all__ = ["brightness", "fog", "frost", "grey", "plasma", "snow"]

Images = Float[Tensor, "b c h w"]

_LUMINANCE = 0.299, 0.587, 0.114


def grey(images: Images) -> Float[Tensor, "b 1 h w"]:
    """Luminance (ITU-R BT.601) of three channels, the mean of any other number."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.unbind(1)
    luminance: Tensor = red * _LUMINANCE[0] + green * _LUMINANCE[1] + blue * _LUMINANCE[2]
    return luminance[:, None]


def snow(
    images: Images,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Images:
    """Whiten the image and add flakes, which are enlarged noise above a threshold, falling at -135° to -45°.

    A second layer of flakes is the first one upside down. The image's share of the whitened image is `kept`.
    """
    height, width = images.shape[2:]
    flakes = mean + deviation * draws.normal("flakes", 1, height, width)
    flakes = along(along(flakes, zoom_matrix(height, zoom), 2), zoom_matrix(width, zoom), 3)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp_(0, 1)
    angle = (draws.uniform("angle") * 90 - 135).deg2rad()
    flakes = motion(flakes, angle, int(radius), sigma).to(images)
    white = torch.maximum(images, grey(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + flakes + flakes.rot90(2, (2, 3))


def frost(images: Images, draws: Draws, kept: float, added: float, scale: float) -> Images:
    """Add a random part of a random frost picture to the dimmed image.

    The pictures are those of `mixwell.evaluate.corrupting.frost`; CIFAR-C and ImageNet-C cut parts of photographs.

    Args:
        images: of three channels, or of any other number, for which the frost is grey.
        draws: of this corruption and severity.
        kept: the image's weight.
        added: the frost's weight.
        scale: of the frost pictures.
    """
    ice = pictures(scale).to(images)
    if images.shape[1] != 3:
        ice = grey(ice)
    count, _, tall, broad = ice.shape
    which, row, column = draws.uniform("part", 3).unbind(1)
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device)
    right = torch.arange(width, device=images.device)
    rows = ((row * tall).long()[:, None] + down).remainder(tall)[:, :, None]
    columns = ((column * broad).long()[:, None] + right).remainder(broad)[:, None]
    part = ice.permute(0, 2, 3, 1)[(which * count).long()[:, None, None], rows, columns]
    return kept * images + added * part.permute(0, 3, 1, 2)


def fog(images: Images, draws: Draws, density: float, decay: float) -> Images:
    """Add a plasma fractal and scale the sum back so that the image's brightest value could stay."""
    height, width = images.shape[2:]
    size = 1 << max(1, (max(height, width) - 1).bit_length())
    brightest = images.amax((1, 2, 3), keepdim=True)
    cloud = plasma(draws.uniform("fog", size * size - 1), decay)[:, None, :height, :width].to(images)
    return (images + density * cloud) * (brightest / (brightest + density))


def plasma(uniform: Float32[Tensor, "b n"], decay: float) -> Float32[Tensor, "b size size"]:
    """Height maps in [0, 1] by the diamond-square algorithm on a torus.

    Args:
        uniform: (B, size² - 1) uniform numbers, size a power of two; from the coarsest level to the finest, the middles
            of the squares, then those of their upper and their left sides.
        decay: the noise of each level is that of the level above, divided by its square.
    """
    rows = len(uniform)
    size = round((uniform.shape[1] + 1) ** 0.5)
    height = uniform.new_zeros(rows, size, size)
    step, spread, used = size, 1.0, 0

    def noise(like: Tensor) -> Tensor:
        nonlocal used
        count = like[0].numel()
        drawn = uniform[:, used : used + count].view_as(like)
        used += count
        return (drawn * 2 - 1) * spread

    while step >= 2:
        half = step // 2
        corner = height[:, ::step, ::step]
        row = corner + corner.roll(-1, 2)
        column = corner + corner.roll(-1, 1)
        middle = (row + row.roll(-1, 1)) / 4
        middle = middle + noise(middle)
        upper = (row + middle + middle.roll(1, 1)) / 4
        left = (column + middle + middle.roll(1, 2)) / 4
        height[:, half::step, half::step] = middle
        height[:, ::step, half::step] = upper + noise(upper)
        height[:, half::step, ::step] = left + noise(left)
        step, spread = half, spread / decay**2
    height -= height.amin((1, 2), keepdim=True)
    return height / height.amax((1, 2), keepdim=True)


def brightness(images: Images, draws: Draws, added: float) -> Images:
    """Raise the value of the HSV colour, hue and saturation kept: all channels grow by what the largest one does."""
    value = images.amax(1, keepdim=True)
    raised = (value + added).clamp_max(1)
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised)
