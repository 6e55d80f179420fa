"""The networks of Adversarial Mixup Resynthesis: an auto-encoder whose codes are maps, and a critic of its images.

Beckham, Honari, Verma, Lamb, Ghadiri, Hjelm, Bengio, Pal, "On Adversarial Mixup Resynthesis", NeurIPS 2019,
arXiv:1903.02709. Encoder and critic halve the sides `scales` times, with twice the channels each time; the decoder
mirrors the encoder. The critic's convolutions are divided by their largest singular value, which every pass estimates
a little better → `SpectralConv2d`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.errors import BatchError, ParameterError

__all__ = ["AutoEncoder", "Critic", "SpectralConv2d", "fill_up", "scales_for"]

_CODE = 4
"""Sides of the paper's codes."""
_SLOPE = 0.2
"""Of the leaky ReLU that the initial weights are scaled for; that of the networks is 0.01."""


def scales_for(size: tuple[int, int]) -> int:
    """How often sides are halved so that the codes' shorter one is about 4, at least twice."""
    return max(2, round(math.log2(min(size) / _CODE)))


def fill_up(images: Float[Tensor, "b c height width"], scales: int) -> Float[Tensor, "b c h w"]:
    """Repeat the images' border on the right and below until the sides are multiples of 2^scales, and at least two."""
    stride = 2**scales
    rest = [max(2, -(-side // stride)) * stride - side for side in images.shape[2:]]
    return F.pad(images, (0, rest[1], 0, rest[0]), mode="replicate") if any(rest) else images


class AutoEncoder(nn.Module):
    """Images in [-1, 1] → codes (B, latent, H/2^scales, W/2^scales) → images.

    The sides of the images must be multiples of 2^scales, at least two (`fill_up`). The decoder's output is linear, so
    it may leave [-1, 1].

    Args:
        image_channels: C.
        scales: how often sides are halved, ≥ 2: the first convolution lays a border of one pixel around the images, and
            it takes two halvings to lose it again.
        depth: channels of the first layer.
        latent: channels of a code.

    Raises:
        ParameterError: a number is out of range.
    """

    def __init__(self, image_channels: int, scales: int, depth: int = 16, latent: int = 64) -> None:
        super().__init__()
        _check(image_channels, scales, depth, latent)
        self.image_channels = image_channels
        down: list[nn.Module] = [nn.Conv2d(image_channels, depth, 1, padding=1)]
        up: list[nn.Module] = []
        inside = depth
        for scale in range(scales):
            wide = depth * 2**scale
            down += [*_normed(inside, wide), *_normed(wide, wide), nn.AvgPool2d(2)]
            inside = wide
        self.encoder = nn.Sequential(
            *down, *_normed(inside, depth * 2**scales), nn.Conv2d(depth * 2**scales, latent, 3, padding=1)
        )
        inside = latent
        for scale in reversed(range(scales)):
            wide = depth * 2**scale
            up += [*_normed(inside, wide), *_normed(wide, wide), nn.Upsample(scale_factor=2)]
            inside = wide
        self.decoder = nn.Sequential(*up, *_normed(depth, depth), nn.Conv2d(depth, image_channels, 3, padding=1))
        self.apply(_initialise)

    def encode(self, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d h w"]:
        """f(x).

        Raises:
            BatchError: the images have other channels than the network was made for.
        """
        if images.ndim != 4 or images.shape[1] != self.image_channels:
            raise BatchError(
                f"The auto-encoder was made for images (B, {self.image_channels}, H, W), got {tuple(images.shape)}. "
                "Bind the recipe with images like those that are mixed."
            )
        codes: Tensor = self.encoder(images)
        return codes

    def decode(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c height width"]:
        """g(h)."""
        images: Tensor = self.decoder(codes)
        return images


class Critic(nn.Module):
    """Images in [-1, 1] → (B,) logits of their being real: the mean over all places and channels of the last map.

    Args:
        image_channels, scales, depth, latent: as the auto-encoder's.
    """

    def __init__(self, image_channels: int, scales: int, depth: int = 16, latent: int = 64) -> None:
        super().__init__()
        _check(image_channels, scales, depth, latent)
        layers: list[nn.Module] = [nn.Conv2d(image_channels, depth, 1, padding=1)]
        inside = depth
        for scale in range(scales):
            wide = depth * 2**scale
            layers += [*_bounded(inside, wide), *_bounded(wide, wide), nn.AvgPool2d(2)]
            inside = wide
        self.encoder = nn.Sequential(
            *layers, *_bounded(inside, depth * 2**scales), SpectralConv2d(depth * 2**scales, latent, 3, padding=1)
        )
        _initialise(self.encoder[0])

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        logits: Tensor = self.encoder(images).float().mean((1, 2, 3))
        return logits


class SpectralConv2d(nn.Conv2d):
    """A convolution with W / σ in place of its weight W: σ, the largest singular value, is estimated in every pass.

    W is seen as a matrix with a row per output channel. One step of the power method, v ← Wᵀu / ‖Wᵀu‖ and u ← Wv /
    ‖Wv‖, goes before every pass, in evaluation too; then σ = uᵀWv, with a gradient to W. In fp32, autocast off.

    Attributes:
        u: (outputs,) the estimated singular vector, a buffer that every pass moves.
    """

    u: Tensor

    def __init__(self, inside: int, outside: int, kernel: int, **settings: Any) -> None:
        super().__init__(inside, outside, kernel, **settings)
        self.register_buffer("u", F.normalize(torch.randn(outside), dim=0))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d height width"]:
        with torch.autocast(images.device.type, enabled=False):
            rows = self.weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(rows.T @ self.u, dim=0)
                u = F.normalize(rows @ v, dim=0)
                self.u.copy_(u)
            weight = self.weight / (u @ (rows @ v))
        found: Tensor = self._conv_forward(images, weight, self.bias)
        return found


def _normed(inside: int, outside: int) -> list[nn.Module]:
    """A 3×3 convolution, normalised per image and channel, and rectified."""
    return [nn.Conv2d(inside, outside, 3, padding=1), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU()]


def _bounded(inside: int, outside: int) -> list[nn.Module]:
    """A 3×3 convolution of norm 1, rectified."""
    return [SpectralConv2d(inside, outside, 3, padding=1), nn.LeakyReLU()]


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 1 / ((1 + 0.2²)·n)), where n counts a weight's numbers but for its last axis; biases 0.

    That is the authors' rule, which takes kernels for those of another library, where n would be the fan-in. It also
    draws the gains of normalisations, with n = 1.
    """
    if isinstance(module, nn.Conv2d | nn.InstanceNorm2d):
        assert module.weight is not None, "both have weights"
        assert module.bias is not None, "and biases"
        count = math.prod(module.weight.shape[:-1])
        nn.init.normal_(module.weight, std=1 / math.sqrt((1 + _SLOPE**2) * count))
        nn.init.zeros_(module.bias)


def _check(image_channels: int, scales: int, depth: int, latent: int) -> None:
    numbers = {"image_channels": image_channels, "depth": depth, "latent": latent}
    for name, value, least in (*((name, value, 1) for name, value in numbers.items()), ("scales", scales, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(f"{name} must be a whole number ≥ {least}, got {value!r}.")
