"""PreAct ResNet for CIFAR-sized images.

He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv:1603.05027. Normalisation and ReLU
come before each convolution, so the residual stream itself is never rectified; one last BatchNorm and ReLU end it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PreActBlock", "PreActResNet", "preact_stage"]


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU, added to the stream.

    Where the shape changes, the shortcut is a 1×1 convolution of the pre-activated input; elsewhere the input itself.

    Args:
        dropout: probability between the two convolutions (Wide ResNet, arXiv:1605.07146, Sec. 2.4).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, stream: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        # Not in place: `stream` is a stage's output, which hooks keep and mix.
        active = F.relu(self.bn1(stream))
        hidden = self.dropout(F.relu(self.bn2(self.conv1(active))))
        shortcut = stream if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(hidden)
        return residual + shortcut


def preact_stage(
    in_channels: int, out_channels: int, blocks: int, *, stride: int, dropout: float = 0.0
) -> nn.Sequential:
    """`blocks` pre-activation blocks, the first of which changes channels and stride."""
    first = PreActBlock(in_channels, out_channels, stride=stride, dropout=dropout)
    rest = (PreActBlock(out_channels, out_channels, dropout=dropout) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class PreActResNet(nn.Module):
    """PreAct ResNet with a 3×3 stem of stride 1 and four stages; 18 layers and 11.17 M parameters by default.

    Args:
        num_classes: rows of the classifier.
        channels: image channels.
        blocks: blocks in each of `layer1` … `layer4`; (2, 2, 2, 2) is ResNet-18.
        width: channels of `layer1`; each later stage doubles them and halves the resolution.
    """

    def __init__(
        self, num_classes: int, channels: int = 3, *, blocks: Sequence[int] = (2, 2, 2, 2), width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.layer1 = preact_stage(width, width, blocks[0], stride=1)
        self.layer2 = preact_stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = preact_stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = preact_stage(4 * width, 8 * width, blocks[3], stride=2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "r classes"]:
        stream = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        logits: Tensor = self.fc(F.relu(self.bn(stream)).mean((2, 3)))
        return logits
