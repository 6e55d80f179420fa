"""TransformMix's module: how two images are moved, and which of them each pixel then shows.

Cheung, Yeung, "TransformMix: Learning Transformation and Mixing Strategies from Data", 2024, arXiv:2403.12429. A
spatial transformer network gives one affine map per image, a mask prediction network a mask of the images so moved.
Both see λ and what a teacher makes of the two images: class activation and features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.ops.affine import warped

__all__ = ["Transform", "TransformMixer", "mask_of"]

Transform = Literal["affine", "scale-translate"]

_RESTING = {"affine": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "scale-translate": (1.0, 0.0, 0.0)}
"""The numbers per image that leave it in its place."""


def mask_of(logits: Float[Tensor, "b 1 h w"], size: tuple[int, int], tau: float = 1.0) -> Float[Tensor, "b 1 y x"]:
    """σ(logit/τ) at another resolution; logits are enlarged bilinearly before the sigmoid."""
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return torch.sigmoid(logits / tau)


class TransformMixer(nn.Module):
    """The localisation network and the mask network.

    At first no image is moved. Everything runs in fp32 with autocast off.

    Args:
        channels: C of the teacher's features.
        transform: what a map may do: "affine" (6 numbers per image) or "scale-translate" (a scale and two shifts).
        width: channels of the hidden layers.

    Raises:
        ParameterError: a number is out of range.
    """

    def __init__(self, channels: int, transform: Transform = "affine", width: int = 64) -> None:
        super().__init__()
        if transform not in _RESTING:
            raise ParameterError(f"transform must be 'affine' or 'scale-translate', got {transform!r}.")
        number_in("width", width, 1)
        self.channels = channels
        resting = torch.tensor(_RESTING[transform]).repeat(2)
        last = nn.Linear(32, len(resting))
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(resting)
        inputs = 2 * (1 + channels) + 1
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.locate = nn.Sequential(*_layers(inputs, width), *pooled, nn.Linear(width, 32), nn.ReLU(), last)
        self.mask = nn.Sequential(*_layers(inputs, width), nn.Conv2d(width, 1, 1))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> TransformMixer:
        """The module that these are the weights of.

        Raises:
            ModelError: they are no such module's.
        """
        try:
            width, inputs = weights["locate.0.weight"].shape[:2]
            transform: Transform = "affine" if len(weights["locate.10.bias"]) == 12 else "scale-translate"
            with torch.device("meta"):  # nothing is drawn for weights that are replaced
                made = cls((inputs - 3) // 2, transform, width)
            made.load_state_dict(dict(weights), assign=True)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"These are not the weights of a module of TransformMix: {error}") from error
        return made

    def forward(
        self, maps: Float[Tensor, "b d h w"], partner: Int[Tensor, " b"], lam: Float[Tensor, " #b"]
    ) -> tuple[Float[Tensor, "b 2 2 3"], Float[Tensor, "b 1 h w"]]:
        """θ of each row and of its partner, and the mask's logits: how much the row itself shows.

        Args:
            maps: class activation and features of each row.
            partner: row of each row's partner.
            lam: share of the row itself; one each, or one for all.
        """
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            other = maps[partner]
            level = lam.to(maps.device, torch.float32).view(-1, 1, 1, 1).expand(len(maps), 1, *maps.shape[2:])
            theta = self._theta(self.locate(torch.cat((maps, other, level), 1)))
            moved = warped(maps, theta[:, 0]), warped(other, theta[:, 1])
            logits: Tensor = self.mask(torch.cat((*moved, level), 1))
            return theta, logits

    def _theta(self, numbers: Float[Tensor, "b n"]) -> Float[Tensor, "b 2 2 3"]:
        if numbers.shape[1] == 12:
            return numbers.view(-1, 2, 2, 3)
        scale, across, down = numbers.view(-1, 2, 3).unbind(2)
        none = torch.zeros_like(scale)
        return torch.stack((scale, none, across, none, scale, down), 2).view(-1, 2, 2, 3)


def _layers(inputs: int, width: int) -> tuple[nn.Module, ...]:
    """Two 3×3 convolutions with normalisation."""
    layers = []
    for channels in (inputs, width):
        layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return tuple(layers)
