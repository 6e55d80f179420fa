"""Looks that images are given: colours and textures after the words of a prompt.

They stand in for an image editor where none can be had: arithmetic of pixels without any notion of what an image shows.
The same image and prompt give the same picture. Images are fp32 or fp64 pixels in [0, 1] of any size; colours of images
with other than three channels are their mean (for one) or red, green and blue in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixwell.core.errors import ParameterError, closest
from mixwell.core.rng import key_of
from mixwell.ops.noise import uniform_noise

__all__ = ["LOOKS", "edited"]

Images = Float[Tensor, "b c h w"]
Colour = tuple[float, float, float]


def edited(images: Images, prompt: str) -> Images:
    """The images in the look of a prompt, in [0, 1].

    Raises:
        ParameterError: no look goes by that name.
    """
    if prompt not in LOOKS:
        raise ParameterError(f"There is no look {prompt!r}; {closest(prompt, LOOKS)}")
    return LOOKS[prompt](images).clamp(0, 1)


# Looks


def autumn(x: Images) -> Images:
    """Browns and golds by brightness, with stronger contrast."""
    return torch.lerp(x, _duotone(x, (0.18, 0.06, 0.02), (1.0, 0.78, 0.35)), 0.65).sub_(0.5).mul_(1.2).add_(0.5)


def snowy(x: Images) -> Images:
    """Pale and bluish, with flakes in the same places of every image."""
    pale = torch.lerp(x, _duotone(x, (0.35, 0.42, 0.55), (1.0, 1.0, 1.0)), 0.6)
    size = (max(1, x.shape[2] * 4 // 5), max(1, x.shape[3] * 4 // 5))
    flakes = (uniform_noise(key_of("snow"), (1, 1, *size), torch.device("cpu")) > 0.97).float()
    soft = F.interpolate(flakes, (x.shape[2], x.shape[3]), mode="bilinear").to(x)
    return torch.lerp(pale, torch.ones_like(pale), soft)


def sunset(x: Images) -> Images:
    """Under a sky from violet over orange to dusk."""
    down = _ramp(x, 2)
    sky = torch.lerp(_colour((0.45, 0.22, 0.55), x), _colour((1.0, 0.55, 0.2), x), (2 * down).clamp(max=1))
    sky = torch.lerp(sky, _colour((0.4, 0.12, 0.1), x), (2 * down - 1).clamp(min=0))
    return 0.45 * x + sky * (0.15 + 0.6 * _grey(x))


def watercolour(x: Images) -> Images:
    """Flat washes with soft edges, on light paper."""
    washes = _blurred((_blurred(x, 5) * 5).round() / 5, 3)
    return 0.75 * washes + 0.25


def rainbow(x: Images) -> Images:
    """All hues, from the upper left corner to the lower right."""
    turn = (_ramp(x, 2) + _ramp(x, 3)) / 2
    hues = torch.stack([_wave(turn - shift) for shift in (0, 1 / 3, 2 / 3)], 1)[:, :, 0]
    return 0.4 * x + 0.6 * _fitted(hues, x) * (0.3 + 0.7 * _grey(x))


def aurora(x: Images) -> Images:
    """At night, under green and violet curtains."""
    down, across = _ramp(x, 2), _ramp(x, 3)
    curtain = _wave(2 * across + 0.15 * _wave(2 * down)) * (1 - down)
    light = torch.lerp(_colour((0.55, 0.2, 0.8), x), _colour((0.1, 0.95, 0.55), x), _wave(across))
    return 0.5 * x * _colour((0.6, 0.7, 1.0), x) + 0.7 * curtain * light


def mosaic(x: Images) -> Images:
    """Square tiles of one colour each, twelve along a side, in dark grout where they are large enough."""
    count = [min(12, side) for side in x.shape[2:]]
    tiles = F.adaptive_avg_pool2d(x, (count[0], count[1]))
    places = [torch.arange(side, device=x.device) * n // side for side, n in zip(x.shape[2:], count, strict=True)]
    laid = tiles[:, :, places[0]][..., places[1]]
    for axis, place in enumerate(places, 2):
        if x.shape[axis] >= 3 * 12:
            grout = F.pad(place[1:] != place[:-1], (1, 0)).to(x.dtype).view(-1, *(1,) * (3 - axis))
            laid = laid * (1 - 0.6 * grout)
    return laid


def ukiyo_e(x: Images) -> Images:
    """A woodblock print: few flat colours between indigo and paper, and dark outlines."""
    flat = (_blurred(x, 3) * 3).round() / 3
    inked = torch.lerp(flat, _duotone(flat, (0.1, 0.16, 0.35), (0.95, 0.88, 0.72)), 0.5)
    return inked * (1 - (2.5 * _edges(_blurred(x, 3))).clamp(max=0.85))


def crayon(x: Images) -> Images:
    """Outlines on white paper, with a little of the colours."""
    grain = uniform_noise(key_of("paper"), (1, 1, x.shape[2], x.shape[3]), torch.device("cpu")).to(x)
    paper = torch.lerp(x, torch.ones_like(x), 0.6 + 0.2 * grain)
    return paper * (1 - (3 * _edges(x)).clamp(max=0.9))


LOOKS: dict[str, Callable[[Images], Images]] = {
    "autumn": autumn,
    "snowy": snowy,
    "sunset": sunset,
    "watercolor art": watercolour,
    "rainbow": rainbow,
    "aurora": aurora,
    "mosaic": mosaic,
    "ukiyo-e": ukiyo_e,
    "a sketch with crayon": crayon,
}
"""By prompt; those of DiffuseMix, in its paper's order."""


# What they share


def _fitted(colours: Float[Tensor, "#b 3 #h #w"], like: Images) -> Float[Tensor, "#b c #h #w"]:
    """Colours for images of other channels."""
    channels = like.shape[1]
    if channels == 1:
        return colours.mean(1, keepdim=True)
    return colours if channels == 3 else colours[:, torch.arange(channels, device=colours.device) % 3]


def _colour(rgb: Colour, like: Images) -> Float[Tensor, "1 c 1 1"]:
    return _fitted(like.new_tensor(rgb).view(1, 3, 1, 1), like)


def _grey(x: Images) -> Float[Tensor, "b 1 h w"]:
    return x.mean(1, keepdim=True)


def _duotone(x: Images, dark: Colour, light: Colour) -> Images:
    """Between two colours by brightness."""
    return torch.lerp(_colour(dark, x), _colour(light, x), _grey(x))


def _ramp(x: Images, axis: int) -> Float[Tensor, "1 1 #h #w"]:
    """From 0 to 1 along an axis."""
    side = x.shape[axis]
    places = (torch.arange(side, device=x.device, dtype=x.dtype) + 0.5) / side
    return places.view(1, 1, *((-1, 1) if axis == 2 else (1, -1)))


def _wave(turns: Tensor) -> Tensor:
    """1 at whole turns, 0 half-way between them."""
    return 0.5 + 0.5 * torch.cos(2 * math.pi * turns)


def _blurred(x: Images, taps: int) -> Images:
    """The mean of the pixels around each, as far as there are any."""
    return F.avg_pool2d(x, taps, 1, taps // 2, count_include_pad=False)


def _edges(x: Images) -> Float[Tensor, "b 1 h w"]:
    """How much brightness changes from pixel to pixel."""
    grey = _grey(x)
    down = F.pad((grey[:, :, 1:] - grey[:, :, :-1]).abs(), (0, 0, 1, 0))
    across = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (1, 0))
    return torch.maximum(down, across)
