"""A residual CNN small enough for two CPU cores.

Basic blocks after He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385: a stem of
stride 2 and three stages of one block. Channels are multiples of 16, which vectorise well, and `channels_last` is the
fast memory format on CPU.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CNNS"]


class CNNS(nn.Module):
    """Residual CNN with stages `layer1`, `layer2`, `layer3` at 1/2, 1/4 and 1/8 of the image; about 79 k parameters.

    Args:
        num_classes: rows of the classifier.
        channels: image channels.
        width: channels of `layer1`; each later stage doubles them.
    """

    def __init__(self, num_classes: int, channels: int = 3, *, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _Block(width, width, stride=1)
        self.layer2 = _Block(width, 2 * width, stride=2)
        self.layer3 = _Block(2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "r classes"]:
        features = self.layer3(self.layer2(self.layer1(self.stem(images))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, stream: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(stream)))))
        return F.relu(residual + self.shortcut(stream))
