"""What LGCOAMix adds to a network: features at the images' own resolution, and attention among superpixels.

Dornaika, Sun, "LGCOAMix: Local and Global Context-and-Object-Part-Aware Superpixel-Based Data Augmentation for Deep
Visual Recognition", IEEE TIP 2024, arXiv:2512.00130.

The authors' decoder is written out for each of their networks; ours is made for the maps of any. For their ResNet-50 on
32×32 pixels and their DeiT it has the same layers and channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["SuperpixelAttention", "SuperpixelDecoder"]


class SuperpixelDecoder(nn.Module):
    """A map of the images' size from the maps of a network.

    It begins with the deepest map. Each step makes it as large as the next map, which is then joined to it; the last
    step makes it as large as the images. A step halves the channels, the first leaves a quarter; the last two have
    `width`. It doubles the sides as often as needed by transposed 3×3 convolutions, or is a 1×1 convolution; a side
    that is no multiple of the map's is reached by cutting off the rest, or else by bilinear interpolation.

    Args:
        maps: channels, height and width of each map, the deepest first.
        size: height and width of the images that have such maps.
        width: channels of the result.
    """

    def __init__(self, maps: Sequence[tuple[int, int, int]], size: tuple[int, int], width: int = 64) -> None:
        super().__init__()
        deepest, known, steps = maps[0][0], 0, []
        for number, (channels, height, line) in enumerate(maps):
            last = number >= len(maps) - 2
            ahead = size if number + 1 == len(maps) else maps[number + 1][1:]
            doublings = max(0, round(math.log2(ahead[0] * ahead[1] / (height * line)) / 2))
            wide = width if last else max(1, deepest // 2 ** (number + 2))
            steps.append(_Enlarged(known + channels, wide, doublings))
            known = wide
        self.steps = nn.ModuleList(steps)

    def forward(self, maps: Sequence[Float[Tensor, "r _ _ _"]], size: tuple[int, int]) -> Float[Tensor, "r d h w"]:
        """The joined map, normalised but not rectified.

        Args:
            maps: as many as it was made for, the deepest first, with these channels and any size.
            size: height and width of the images.
        """
        ahead = [*((shown.shape[2], shown.shape[3]) for shown in maps[1:]), size]
        joined = maps[0]
        for number, (step, there) in enumerate(zip(self.steps, ahead, strict=True)):
            joined = step(joined if number == 0 else torch.cat((joined, maps[number]), 1), there)
            if number + 1 < len(self.steps):
                joined = F.relu(joined)
        return joined


class _Enlarged(nn.Module):
    """Convolutions that double a map's sides a number of times, with batch normalisation; none after the last.

    Several of them have channels that halve, from at most the map's own on down to twice `width`, and then `width`.
    """

    def __init__(self, channels: int, width: int, doublings: int) -> None:
        super().__init__()
        self.slack = 2**doublings
        layers: list[nn.Module] = []
        for left in range(max(1, doublings), 0, -1):
            wide = max(width, min(channels, width * 2 ** max(0, left - 2)))
            if doublings:
                conv: nn.Module = nn.ConvTranspose2d(channels, wide, 3, 2, 1, output_padding=1, bias=False)
            else:
                conv = nn.Conv2d(channels, wide, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
            channels = wide
        self.layers = nn.Sequential(*layers[:-1])
        for module in self.layers:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, joined: Float[Tensor, "r c h w"], size: tuple[int, int]) -> Float[Tensor, "r d y x"]:
        found: Tensor = self.layers(joined)
        if found.shape[2:] == size:
            return found
        if all(0 <= side - wanted < self.slack for side, wanted in zip(found.shape[2:], size, strict=True)):
            return found[:, :, : size[0], : size[1]]
        return F.interpolate(found, size, mode="bilinear", align_corners=False)


class SuperpixelAttention(nn.Module):
    """H = LayerNorm(softmax(QKᵀ/√d)·V + P): every superpixel looks at all of its image.

    Args:
        width: d, channels.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, parts: Float[Tensor, "r s d"], exists: Bool[Tensor, "r s"]) -> Float[Tensor, "r s d"]:
        """What each superpixel is in its image.

        Args:
            parts: P, the mean features of each superpixel.
            exists: which are there, at least one in each image; the others' rows of the result mean nothing.
        """
        query, key, value = self.query(parts), self.key(parts), self.value(parts)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=exists[:, None])
        attended: Tensor = self.norm(seen + parts)
        return attended
