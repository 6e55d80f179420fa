"""A Vision Transformer small enough for two CPU cores.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, as written in timm: class token,
learned position embedding, pre-norm blocks with fused attention. At 32 px it sees 8×8 patches of 4 px.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mixwell.core.errors import ModelError
from mixwell.nets.library import library

__all__ = ["vit_s"]


def vit_s(num_classes: int, channels: int = 3, size: int = 32, **kwargs: Any) -> nn.Module:
    """A timm `VisionTransformer` for square images of `size` pixels.

    Args:
        num_classes: rows of the classifier.
        channels: image channels.
        size: height and width of the images.
        **kwargs: passed on to `VisionTransformer`, over the values chosen here (`embed_dim`, `depth`, `drop_path_rate`,
            `dynamic_img_size`, …). `patch_size` is by default the largest that gives 7 to 14 patches a side.

    Raises:
        ModelError: no patch size gives 7 to 14 patches a side, and none was given.
    """
    vision_transformer = library("timm.models.vision_transformer")
    if "patch_size" not in kwargs:
        fitting = [patch for patch in range(1, size // 7 + 1) if size % patch == 0 and size // patch <= 14]
        if not fitting:
            raise ModelError(
                f"vit-s cuts an image into 7 to 14 patches a side, but no patch size does that for {size} px. "
                f"Resize the images (32 px gives 8 patches of 4 px) or pass patch_size=, a divisor of the size."
            )
        kwargs["patch_size"] = max(fitting)
    chosen = {"img_size": size, "in_chans": channels, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    net: nn.Module = vision_transformer.VisionTransformer(num_classes=num_classes, **(chosen | kwargs))
    return net
