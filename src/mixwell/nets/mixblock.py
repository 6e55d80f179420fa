"""MixBlock: cross-attention between the feature maps of two images, which predicts the mask that mixes them.

Liu, Li, Wu, Liu, Chen, Wu, Li, "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
arXiv:2103.13027, Sec. 3.2. A mixer sees a batch's features, a partner and a λ per row, and gives per pixel how much of
the partner to show. `PairMixer` is what such mixers share: attention → `attend`, upsampling and sigmoid.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["MixBlock", "PairMixer", "Upsample", "attend", "match_area", "outside_margin"]

Upsample = Literal["nearest", "bilinear"]

_STD = 0.01
"""Standard deviation of a fresh mixer's weights in the authors' code: masks begin at ½."""


def attend(query: Float[Tensor, "r d h w"], key: Float[Tensor, "r d h w"]) -> Float[Tensor, "r n n"]:
    """softmax(q·kᵀ/√d): for each position of one map, how much it looks at each position of the other (n = h·w)."""
    q, k = query.flatten(2), key.flatten(2)
    return torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, -1)


def outside_margin(
    mask: Float[Tensor, "r 1 h w"], lam: Float[Tensor, " #r"], margin: float
) -> Float[Tensor, "r 1 h w"]:
    """The mask, but the constant 1-λ (plain mixup) in rows whose λ or 1-λ is at most `margin`."""
    lam = lam.view(-1, 1, 1, 1)
    return torch.where(torch.minimum(lam, 1 - lam) <= margin, 1 - lam, mask)


def match_area(mask: Float[Tensor, "r 1 h w"], lam: Float[Tensor, " #r"]) -> Float[Tensor, "r 1 h w"]:
    """The mask, rescaled so that each row's mean is 1-λ; stays in [0, 1].

    What there is too much of, the image or its partner, is scaled down, and the other takes the rest.
    """
    other = 1 - lam.view(-1, 1, 1, 1)
    area = mask.mean((1, 2, 3), keepdim=True)
    less_of_partner = mask * (other / area)
    less_of_own = 1 - (1 - mask) * ((1 - other) / (1 - area))
    return torch.where(area > other, less_of_partner, torch.where(area < other, less_of_own, mask))


class PairMixer(nn.Module):
    """A network that predicts from the features of two images the mask that mixes them.

    A subclass says how features become queries, keys and values. Everything runs in fp32 with autocast off.

    Args:
        upsample: how the attended map is enlarged to the images' size.
    """

    def __init__(self, upsample: Upsample = "nearest") -> None:
        super().__init__()
        self.upsample = upsample

    def maps(
        self, features: Float[Tensor, "r c h w"], partner: Int[Tensor, " r"], lam: Float[Tensor, "#r 1 1 1"]
    ) -> tuple[Float[Tensor, "r d h w"], Float[Tensor, "r d h w"], Float[Tensor, "r 1 h w"]]:
        """Queries, keys and values of each row and its partner, in fp32."""
        raise NotImplementedError

    def forward(
        self,
        features: Float[Tensor, "r c h w"],
        partner: Int[Tensor, " r"],
        lam: Float[Tensor, " #r"],
        size: tuple[int, int],
    ) -> Float[Tensor, "r 1 height width"]:
        """How much of the partner each pixel shows, in (0, 1), fp32.

        Args:
            features: any floating dtype.
            partner: row of each row's partner.
            lam: share of the row itself; one each, or one for all.
            size: height and width of the images.
        """
        with torch.autocast(features.device.type, enabled=False):
            lam = lam.to(features.device, torch.float32, non_blocking=True)
            query, key, value = self.maps(features.float(), partner, lam.view(-1, 1, 1, 1))
            logits = (attend(query, key) @ value.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(value)
            # The sigmoid comes last: it does not commute with bilinear upsampling.
            return torch.sigmoid(F.interpolate(logits, size, mode=self.upsample))


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
        for conv in (self.query, self.value):
            nn.init.normal_(conv.weight, std=_STD)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # both have a bias

    def maps(
        self, features: Float[Tensor, "r c h w"], partner: Int[Tensor, " r"], lam: Float[Tensor, "#r 1 1 1"]
    ) -> tuple[Float[Tensor, "r d h w"], Float[Tensor, "r d h w"], Float[Tensor, "r 1 h w"]]:
        query, query_lam = self._convolved(self.query, features)
        value, value_lam = self._convolved(self.value, features)
        key, value = query[partner], value[partner]
        if self.lam_concat:
            query, key, value = query + lam * query_lam, key + (1 - lam) * query_lam, value + (1 - lam) * value_lam
        return query, key, value

    def _convolved(self, conv: nn.Conv2d, features: Tensor) -> tuple[Tensor, Tensor]:
        """The convolved features, and the weights of the channel that holds λ."""
        weight = conv.weight.float()
        bias = None if conv.bias is None else conv.bias.float()
        return F.conv2d(features, weight[:, : self.channels], bias), weight[:, self.channels :].transpose(0, 1)
