"""Wide ResNet for CIFAR-sized images.

Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146. Three stages of pre-activation blocks with
16k, 32k and 64k channels (Table 1): few layers, k times as wide.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.errors import ModelError
from mixwell.nets.preact_resnet import preact_stage

__all__ = ["WideResNet"]


class WideResNet(nn.Module):
    """WRN-`depth`-`width`; WRN-28-10 has 36.5 M parameters.

    Args:
        num_classes: rows of the classifier.
        channels: image channels.
        depth: convolutional layers, 6n + 4 for n blocks a stage.
        width: the widening factor k.
        dropout: probability between the two convolutions of each block (Sec. 2.4; the paper's CIFAR value is 0.3).

    Raises:
        ModelError: `depth` is not 6n + 4 with n ≥ 1, or `width` is not positive.
    """

    def __init__(
        self, num_classes: int, channels: int = 3, *, depth: int = 28, width: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ModelError(
                f"a Wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40, …) and a width of at least 1, "
                f"got depth {depth} and width {width}. Ask for e.g. wrn-28-10 or wrn-16-8."
            )
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.layer1 = preact_stage(16, 16 * width, blocks, stride=1, dropout=dropout)
        self.layer2 = preact_stage(16 * width, 32 * width, blocks, stride=2, dropout=dropout)
        self.layer3 = preact_stage(32 * width, 64 * width, blocks, stride=2, dropout=dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "r classes"]:
        stream = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        logits: Tensor = self.fc(F.relu(self.bn(stream)).mean((2, 3)))
        return logits
