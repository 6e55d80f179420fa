"""ResNets of ImageNet with the stem for small images: a 3×3 convolution of stride 1 and no max-pooling.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, as the trainings on
CIFAR and Tiny-ImageNet change it (OpenMixup's ResNet_CIFAR and ResNeXt_CIFAR); the blocks are timm's.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mixwell.nets.library import library

__all__ = ["resnet_cifar"]


def resnet_cifar(name: str, num_classes: int, channels: int = 3, **kwargs: Any) -> nn.Module:
    """A ResNet of timm whose first stage sees the image at its own resolution.

    ResNet-18 has 11.22 M parameters and ResNeXt-50 (32×4d) 23.18 M, for 100 classes.

    Args:
        name: of the network in timm, "resnet18" or "resnext50_32x4d".
        num_classes: rows of the classifier.
        channels: image channels.
        **kwargs: passed to timm, such as `drop_path_rate` or `zero_init_last`.
    """
    net: Any = library("timm").create_model(name, num_classes=num_classes, in_chans=channels, **kwargs)
    stem = nn.Conv2d(channels, net.conv1.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1, net.maxpool = stem, nn.Identity()
    return net  # type: ignore[no-any-return]
