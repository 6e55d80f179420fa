"""MixBlock: cross-attention between the feature maps of two images, which predicts the mask that mixes them.

Liu, Li, Wu, Liu, Chen, Wu, Li, "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
arXiv:2103.13027, Sec. 3.2. A mixer sees a batch's features, a partner and a λ per row, and gives per pixel how much of
the partner to show. `Mixer` is what AutoMix's mixer and those after it share: attention → `attend`, and upsampling;
`PairMixer` what those of two images share: the sigmoid.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["Chance", "MixBlock", "Mixer", "PairMixer", "Upsample", "attend", "extreme", "match_area", "outside_margin"]

Upsample = Literal["nearest", "bilinear"]

Chance = Float[np.ndarray, " 2"] | None
"""Two uniforms in [0, 1)."""

_STD = 0.01
"""Standard deviation of a fresh mixer's weights in the authors' code: masks begin at ½."""


def attend(query: Float[Tensor, "r d h w"], key: Float[Tensor, "r d h w"]) -> Float[Tensor, "r n n"]:
    """softmax(q·kᵀ/√d): for each position of one map, how much it looks at each position of the other (n = h·w)."""
    q, k = query.flatten(2), key.flatten(2)
    return torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, -1)


def extreme(lam: Float[Tensor, " r"], margin: float) -> Bool[Tensor, " r"]:
    """Whether λ or 1-λ is at most `margin`."""
    return torch.minimum(lam, 1 - lam) <= margin


def outside_margin(
    mask: Float[Tensor, "r 1 h w"], lam: Float[Tensor, " #r"], margin: float
) -> Float[Tensor, "r 1 h w"]:
    """The mask, but the constant 1-λ (plain mixup) in rows whose λ or 1-λ is at most `margin`."""
    return torch.where(extreme(lam, margin).view(-1, 1, 1, 1), 1 - lam.view(-1, 1, 1, 1), mask)


def match_area(mask: Float[Tensor, "r 1 h w"], lam: Float[Tensor, " #r"]) -> Float[Tensor, "r 1 h w"]:
    """The mask, rescaled so that each row's mean is 1-λ; stays in [0, 1].

    What there is too much of, the image or its partner, is scaled down, and the other takes the rest.
    """
    other = 1 - lam.view(-1, 1, 1, 1)
    area = mask.mean((1, 2, 3), keepdim=True)
    less_of_partner = mask * (other / area)
    less_of_own = 1 - (1 - mask) * ((1 - other) / (1 - area))
    return torch.where(area > other, less_of_partner, torch.where(area < other, less_of_own, mask))


class Mixer(nn.Module):
    """A network that predicts from the features of images which of them to show where.

    `read` looks at the features of a batch; what it gives serves any choice of partners, so that the batches of a step
    share it. Everything runs in fp32 with autocast off.

    Args:
        upsample: how the attended map is enlarged to the images' size.
    """

    def __init__(self, upsample: Upsample = "nearest") -> None:
        super().__init__()
        self.upsample = upsample

    def reset(self) -> None:
        """Weights and offsets of all convolutions as those of a fresh mixer in the authors' code."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def projected(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ h w"], ...]:
        """What the mixer makes of each row alone, from fp32 features."""
        raise NotImplementedError

    def read(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ h w"], ...]:
        """What the mixer makes of each row alone, in fp32; `features` have any floating dtype."""
        with torch.autocast(features.device.type, enabled=False):
            return self.projected(features.float())

    def attended(
        self,
        query: Float[Tensor, "r d h w"],
        key: Float[Tensor, "r d h w"],
        value: Float[Tensor, "r 1 h w"],
        size: tuple[int, int],
    ) -> Float[Tensor, "r 1 height width"]:
        """The mean value that each position's attention finds, enlarged to height and width `size`."""
        found = (attend(query, key) @ value.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(value)
        return F.interpolate(found, size, mode=self.upsample)


class PairMixer(Mixer):
    """A mixer of two images.

    A subclass says how features become queries, keys and values.
    """

    def paired(
        self,
        read: tuple[Tensor, ...],
        partner: Int[Tensor, " r"],
        lam: Float[Tensor, "#r 1 1 1"],
        chance: Chance = None,
    ) -> tuple[Float[Tensor, "r d h w"], Float[Tensor, "r d h w"], Float[Tensor, "r 1 h w"]]:
        """Queries, keys and values of each row and its partner, from what `read` gave; else as `mask`."""
        raise NotImplementedError

    def maps(
        self, features: Float[Tensor, "r c h w"], partner: Int[Tensor, " r"], lam: Float[Tensor, "#r 1 1 1"]
    ) -> tuple[Float[Tensor, "r d h w"], Float[Tensor, "r d h w"], Float[Tensor, "r 1 h w"]]:
        """Queries, keys and values of each row and its partner, in fp32."""
        return self.paired(self.read(features), partner, lam)

    def mask(
        self,
        read: tuple[Tensor, ...],
        partner: Int[Tensor, " r"],
        lam: Float[Tensor, " #r"],
        size: tuple[int, int],
        chance: Chance = None,
    ) -> Float[Tensor, "r 1 height width"]:
        """How much of the partner each pixel shows, in (0, 1), fp32.

        Args:
            read: what `read` gave.
            partner: row of each row's partner.
            lam: share of the row itself; one each, or one for all.
            size: height and width of the images.
            chance: for what the mixer leaves to chance; None leaves nothing to it.
        """
        device = read[0].device
        with torch.autocast(device.type, enabled=False):
            lam = lam.to(device, torch.float32, non_blocking=True)
            query, key, value = self.paired(read, partner, lam.view(-1, 1, 1, 1), chance)
            # The sigmoid comes last: it does not commute with bilinear upsampling.
            return torch.sigmoid(self.attended(query, key, value, size))

    def forward(
        self,
        features: Float[Tensor, "r c h w"],
        partner: Int[Tensor, " r"],
        lam: Float[Tensor, " #r"],
        size: tuple[int, int],
    ) -> Float[Tensor, "r 1 height width"]:
        """`mask`, straight from the features."""
        return self.mask(self.read(features), partner, lam, size)


class MixBlock(PairMixer):
    """AutoMix's mixer: queries and keys share their weights, values are the partner's.

    A 1×1 convolution can be taken before the partners are gathered, and a channel that holds λ everywhere only adds a
    multiple of its weights; so the features are convolved once, whoever the partners are.

    Args:
        channels: C of the features.
        reduction: queries and keys have C // reduction channels.
        lam_concat: whether one more channel tells λ (of the partner: 1-λ).
        upsample: how the attended map is enlarged to the images' size.
    """

    def __init__(
        self, channels: int, reduction: int = 2, lam_concat: bool = False, upsample: Upsample = "nearest"
    ) -> None:
        super().__init__(upsample)
        self.channels = channels
        self.lam_concat = lam_concat
        self.query = nn.Conv2d(channels + lam_concat, max(1, channels // reduction), 1)
        self.value = nn.Conv2d(channels + lam_concat, 1, 1)
        self.reset()

    def projected(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ h w"], ...]:
        return self._convolved(self.query, features), self._convolved(self.value, features)

    def paired(
        self,
        read: tuple[Tensor, ...],
        partner: Int[Tensor, " r"],
        lam: Float[Tensor, "#r 1 1 1"],
        chance: Chance = None,
    ) -> tuple[Float[Tensor, "r d h w"], Float[Tensor, "r d h w"], Float[Tensor, "r 1 h w"]]:
        query, value = read
        key, value = query[partner], value[partner]
        if self.lam_concat:
            of_query, of_value = (
                conv.weight.float()[:, self.channels :].transpose(0, 1) for conv in (self.query, self.value)
            )
            query, key, value = query + lam * of_query, key + (1 - lam) * of_query, value + (1 - lam) * of_value
        return query, key, value

    def _convolved(self, conv: nn.Conv2d, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ h w"]:
        """The convolved features, without the channel that holds λ."""
        bias = None if conv.bias is None else conv.bias.float()
        return F.conv2d(features, conv.weight.float()[:, : self.channels], bias)
