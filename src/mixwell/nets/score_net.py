"""ScoreNet: what a transformer knows of an image in front of one of its blocks, read off by a small classifier.

Choi, Choi, Kim, "TokenMixup: Efficient Attention-guided Token-level Data Augmentation for Transformers", NeurIPS 2022,
arXiv:2210.07562.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ScoreNet"]


class ScoreNet(nn.Module):
    """A linear classifier of the class token, or of a learned mean of the patch tokens.

    Args:
        channels: of the tokens.
        classes: C.
        class_token: whether it reads the class token; else each patch has a learned score, whose softmax over the
            patches is its weight in the mean.
    """

    def __init__(self, channels: int, classes: int, class_token: bool) -> None:
        super().__init__()
        self.attention = None if class_token else nn.Linear(channels, 1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, patches: Float[Tensor, "r n d"], prefix: Float[Tensor, "r p d"] | None) -> Float[Tensor, "r c"]:
        """Logits of each row.

        Args:
            patches: (R, N, D) patch tokens.
            prefix: (R, P, D) tokens before them, the class token first, or None.
        """
        if self.attention is None:
            assert prefix is not None, "a network with a class token shows it"
            pooled = prefix[:, 0]
        else:
            pooled = torch.einsum("rno,rnd->rd", self.attention(patches).softmax(1), patches)
        logits: Tensor = self.classifier(pooled)
        return logits
