"""Class activation maps: what each place of a network's last stage adds to the logit of a class."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mixwell.core.errors import ModelError
from mixwell.probe.anatomy import Anatomy

__all__ = ["class_activation"]


def class_activation(
    anatomy: Anatomy, maps: Float[Tensor, "b c h w"], labels: Shaped[Tensor, "b ..."], *, bias: bool = True
) -> Float[Tensor, "b h w"]:
    """The map of each row's own label, in fp32; no gradient reaches the classifier.

    Args:
        anatomy: of the network, whose classifier takes the mean of the rectified maps.
        maps: of its last stage.
        labels: class ids, or rows that weight the classes' maps.
        bias: whether the classifier's offset is added at every place.

    Raises:
        ModelError: the classifier does not take the last stage's channels.
    """
    name = anatomy.classifier
    head = cast(nn.Linear, anatomy.modules[name])
    weight: Tensor = head.weight.detach().float()
    if weight.shape[1] != maps.shape[1]:
        raise ModelError(
            f"Class activation maps need a classifier of the last stage's {maps.shape[1]} channels, but {name!r} "
            f"takes {weight.shape[1]}. Take a network that pools its last stage and classifies that, such as "
            "'resnet18', or another saliency."
        )
    offset = torch.zeros_like(weight[:, 0]) if head.bias is None or not bias else head.bias.detach().float()
    with torch.autocast(maps.device.type, enabled=False):
        if labels.is_floating_point():
            chosen, shift = labels.float() @ weight, labels.float() @ offset
        else:
            chosen, shift = weight[labels.long()], offset[labels.long()]
        return torch.einsum("bc,bchw->bhw", chosen, maps.float().relu()) + shift[:, None, None]
