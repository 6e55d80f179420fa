"""A U-Net that renders one image of two, each of which has a share of the feature channels.

Zhu, Shi, Yan, Zha, "AutoMix: Mixup Networks for Sample Interpolation via Cooperative Barycenter Learning", ECCV 2020,
doi:10.1007/978-3-030-58607-2_37. An encoder sees each image. At every one of its five levels some channels stay the
image's, the others are its partner's → `split_channels`; only what stays goes further down. The decoder joins both
parts of every level on its way up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixwell.core.errors import BatchError, ParameterError

__all__ = ["BarycenterUNet", "split_channels", "widths_of"]

_LEVELS = (1, 2, 4, 8, 8)
"""Channels of the encoder's levels as multiples of its width; each level has half the sides of the one before."""
_REDUCTION = 16
"""A gate's hidden layer has as many times fewer channels."""
_SLOPE = 0.2
_SHRUNK = 2 ** (len(_LEVELS) - 1)


def widths_of(width: int) -> tuple[int, ...]:
    """The channels of each level of a U-Net of this width.

    Raises:
        ParameterError: the width is no whole number ≥ 1.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ParameterError(f"width must be a whole number ≥ 1, such as the paper's 16, got {width!r}.")
    return tuple(width * level for level in _LEVELS)


def split_channels(
    features: Float[Tensor, "n c h w"],
    partner: Int[Tensor, " n"],
    places: Int[Tensor, "#n c"],
    lam: Float[Tensor, " #n"],
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """The features of each row in round(λ·C) channels, and those of its partner in the others; 0 elsewhere.

    Args:
        partner: (N,) rows of the partners.
        places: (N, C) or (1, C) permutations of the channels: the place of each. The first places are the row's own.
        lam: (N,) or (1,) λ, on the features' device. Half a channel is rounded to the even number.
    """
    count = (lam * features.shape[1]).round()
    own = (places < count[:, None])[:, :, None, None]
    return torch.where(own, features, 0), torch.where(own, 0, features.index_select(0, partner))


def _double(inside: int, outside: int) -> nn.Sequential:
    """Two 3×3 convolutions, each normalised and rectified."""
    layers: list[nn.Module] = []
    for channels in (inside, outside):
        layers += [nn.Conv2d(channels, outside, 3, padding=1), _norm(outside), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _norm(channels: int) -> nn.BatchNorm2d:
    """Normalisation by the batch's own moments in every mode: only batches of a training are ever rendered."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class _Gate(nn.Module):
    """Squeeze and excitation: all channels' means decide by how much each channel is weakened."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _REDUCTION)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        strength = torch.sigmoid(self.excite(F.relu(self.squeeze(features.mean((2, 3))))))
        return features * strength[:, :, None, None]


class BarycenterUNet(nn.Module):
    """Images, and who of them meets whom → an image of each pair, standardised over the batch by its last layer.

    Any size: where an odd side was halved, the map from below is filled up with zeros; sides too short to be halved
    four times are filled up with the images' border first.

    Args:
        image_channels: C.
        width: channels of the first level.

    Attributes:
        widths: channels of each level.
        downs: the encoder's levels, the one with the images' own sides first.
        merges, ups, joins: what joins both parts of a level, enlarges the deepest map and those above it, and joins it
            with the next level; in the levels' order.
        out: back to images.

    Raises:
        ParameterError: the width is no whole number ≥ 1.
    """

    def __init__(self, image_channels: int, width: int = 16) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.widths = widths_of(width)
        above = (image_channels, *self.widths)
        self.downs = nn.ModuleList(
            nn.Sequential(_double(inside, outside), _Gate(outside))
            for inside, outside in zip(above, self.widths, strict=False)
        )
        self.merges = nn.ModuleList(_double(2 * channels, channels) for channels in self.widths)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 2, 2) for channels in self.widths[:-1])
        self.joins = nn.ModuleList(
            _double(2 * channels, joined)
            for channels, joined in zip(self.widths[:-1], (width, *self.widths), strict=False)
        )
        self.out = nn.Sequential(nn.Conv2d(width, image_channels, 1), _norm(image_channels))

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        partner: Int[Tensor, " n"],
        places: Sequence[Int[Tensor, "#n _"]],
        lam: Float[Tensor, " #n"],
    ) -> Float[Tensor, "n c h w"]:
        """An image of each image and its partner.

        Args:
            images: N ≥ 1 of them.
            partner: (N,) rows of the partners.
            places: for each level the places of its channels, see `split_channels`.
            lam: (N,) or (1,) share of the image's own channels, on the images' device.

        Raises:
            BatchError: the images have other channels than the network was made for.
        """
        if images.shape[1] != self.image_channels:
            raise BatchError(
                f"The U-Net was made for images (N, {self.image_channels}, H, W), got {tuple(images.shape)}. Bind the "
                "recipe with images like those that are mixed."
            )
        height, width = images.shape[2], images.shape[3]
        # Moments of a single image's single value would leave nothing of it.
        least = _SHRUNK if len(images) > 1 else 2 * _SHRUNK
        filling = (0, max(0, least - width), 0, max(0, least - height))
        features = F.pad(images, filling, mode="replicate") if any(filling) else images
        merged = []
        for level, (down, merge) in enumerate(zip(self.downs, self.merges, strict=True)):
            features = down(F.max_pool2d(features, 2) if level else features)
            features, others = split_channels(features, partner, places[level], lam)
            merged.append(merge(torch.cat((features, others), 1)))
        below = merged.pop()
        for up, join in zip(reversed(self.ups), reversed(self.joins), strict=True):
            beside = merged.pop()
            below = join(torch.cat((beside, _centred(up(below), beside)), 1))
        made: Tensor = self.out(below)
        return made[:, :, :height, :width]


def _centred(small: Float[Tensor, "n c _ _"], like: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h w"]:
    """The map with zeros around it, the odd row and column of them on the right and below."""
    down, across = like.shape[2] - small.shape[2], like.shape[3] - small.shape[3]
    if not down and not across:
        return small
    return F.pad(small, (across // 2, across - across // 2, down // 2, down - down // 2))
