"""The head of Attribute Mix: K maps for every class, where each of a class's attributes is.

Li, Zhang, Xiong, Tian, "Attribute Mix: Semantic Data Augmentation for Fine-grained Recognition", VCIP 2020,
arXiv:2004.02684.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["AttributeHead", "multi_hot"]


def multi_hot(labels: Float[Tensor, "r c"], attributes: int) -> Float[Tensor, "r ck"]:
    """Label rows as targets of the head: a class's K attributes, one after the other, all have its share."""
    return labels.repeat_interleave(attributes, 1)


class AttributeHead(nn.Module):
    """A 1×1 convolution to C·K maps; those of class y are y·K … y·K+K-1.

    Args:
        channels: of the features.
        classes: C.
        attributes: K.
    """

    def __init__(self, channels: int, classes: int, attributes: int) -> None:
        super().__init__()
        self.classes = classes
        self.attributes = attributes
        self.maps = nn.Linear(channels, classes * attributes)

    def forward(self, features: Float[Tensor, "r d h w"]) -> Float[Tensor, "r ck"]:
        """Logits of all attributes: the means of their maps."""
        logits: Tensor = self.maps(features.mean((2, 3)))
        return logits

    def map_of(
        self, features: Float[Tensor, "r d h w"], labels: Shaped[Tensor, "r ..."], attribute: int
    ) -> Float[Tensor, "r h w"]:
        """The map of one attribute of each row's own class, in fp32 at least; label rows weight the classes' maps.

        Args:
            labels: (R,) class ids, or (R, C) rows.
            attribute: 0 … K-1.
        """
        wide = torch.promote_types(features.dtype, torch.float32)
        weight = self.maps.weight[attribute :: self.attributes].to(wide)
        bias = self.maps.bias[attribute :: self.attributes].to(wide)
        if labels.is_floating_point():
            weight, bias = labels.to(wide) @ weight, labels.to(wide) @ bias
        else:
            weight, bias = weight[labels.long()], bias[labels.long()]
        with torch.autocast(features.device.type, enabled=False):
            found: Tensor = torch.einsum("rd,rdhw->rhw", weight, features.to(wide)) + bias[:, None, None]
        return found
