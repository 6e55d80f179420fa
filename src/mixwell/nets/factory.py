"""Networks by name: mixwell's own, then timm's, then torchvision's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from mixwell.core.errors import ModelError, ParameterError, closest
from mixwell.nets.cnn_s import CNNS
from mixwell.nets.library import library
from mixwell.nets.preact_resnet import PreActResNet
from mixwell.nets.resnet_cifar import resnet_cifar
from mixwell.nets.vit_s import vit_s
from mixwell.nets.wide_resnet import WideResNet

__all__ = ["create_net", "nets"]


def nets() -> list[str]:
    """Names of mixwell's own networks; `wrn-<depth>-<width>` is understood for every depth 6n + 4."""
    return ["cnn-s", "preact-resnet18", "resnet18-cifar", "resnext50-cifar", "vit-s", "wrn-28-10"]


def create_net(
    name: str,
    num_classes: int,
    *,
    channels: int = 3,
    size: int = 32,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a classifier that maps images (B, channels, size, size) to logits (B, num_classes).

    Args:
        name: one of `nets()`, a timm name (`resnet18`, `vit_tiny_patch16_224.augreg_in21k`), or a torchvision name,
            looked up in this order; `timm/NAME` and `torchvision/NAME` force the library.
        num_classes: rows of the classifier.
        channels: image channels; torchvision's networks take 3 only.
        size: height and width of the images, for networks that are built for one size (ViT and its kin).
        pretrained: load the library's default weights, downloading them if need be; the classifier is new where its
            size differs.
        **kwargs: passed to the network's constructor, over what is chosen here.

    Raises:
        ModelError: the name or a parameter is unknown, the library is missing, or there are no such weights.
        ParameterError: `num_classes`, `channels` or `size` is not a positive integer.
    """
    for label, value in (("num_classes", num_classes), ("channels", channels), ("size", size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ParameterError(f"{label} must be a positive integer, got {value!r}.")

    own = _own(name, size)
    if own is not None:
        if pretrained:
            raise ModelError(f"{name} has no pretrained weights. Load your own with --init FILE.")
        with _naming_parameters(name, kwargs):
            return own(num_classes, channels, **kwargs)

    forced, _, model = name.partition("/") if name.startswith(("timm/", "torchvision/")) else ("", "", name)
    if forced != "torchvision" and library("timm").is_model(model):
        return _timm(model, num_classes, channels, size, pretrained, kwargs)
    if forced != "timm" and model in _torchvision_names():
        return _torchvision(model, num_classes, channels, size, pretrained, kwargs)
    hint = closest(model, _known(forced))
    if hint.startswith("known:"):  # nothing is close, and a list of some 1300 names would bury the message
        hint = f"known: {', '.join(nets())}, and what timm.list_models() and torchvision.models.list_models() give"
    raise ModelError(f"unknown network {name!r}; {hint}")


def _own(name: str, size: int) -> Callable[..., nn.Module] | None:
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        return partial(WideResNet, depth=int(wide[1]), width=int(wide[2]))
    by_name: dict[str, Callable[..., nn.Module]] = {
        "cnn-s": CNNS,
        "preact-resnet18": PreActResNet,
        "resnet18-cifar": partial(resnet_cifar, "resnet18"),
        "resnext50-cifar": partial(resnet_cifar, "resnext50_32x4d"),
        "vit-s": partial(vit_s, size=size),
    }
    return by_name.get(name)


def _timm(name: str, num_classes: int, channels: int, size: int, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    timm = library("timm")
    architecture, _, tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ModelError(f"timm's {architecture} has no weights tagged {tag!r}; {closest(tag, tags)}")
    if pretrained and not tags:
        raise ModelError(f"timm has no pretrained weights for {architecture}. Load your own with --init FILE.")

    arguments: dict[str, Any] = {"in_chans": channels}
    config = timm.models.get_pretrained_cfg(name)
    # timm marks so the networks whose position embedding or windows fix the input size; only they take img_size.
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = size
    with _naming_parameters(name, kwargs), _naming_downloads(name):
        net: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **(arguments | kwargs))
    return net


def _torchvision(
    name: str, num_classes: int, channels: int, size: int, pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    if channels != 3:
        raise ModelError(
            f"torchvision's {name} takes images of 3 channels, got {channels}. "
            f"timm's networks take any number: try timm/{name}, or one of mixwell's own ({', '.join(nets())})."
        )
    arguments: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers their training output is a tuple, not logits.
        arguments["aux_logits"] = False
    if name.startswith("vit_") and not pretrained:
        arguments["image_size"] = size
    models = library("torchvision").models
    with _naming_parameters(name, kwargs), _naming_downloads(name):
        if not pretrained:
            scratch: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **(arguments | kwargs))
            return scratch
        net: nn.Module = models.get_model(name, weights="DEFAULT", **(arguments | kwargs))
    _resize_classifier(net, num_classes)
    return net


def _resize_classifier(net: nn.Module, num_classes: int) -> None:
    """Replace a torchvision network's last linear layer (SqueezeNet: convolution) by one of `num_classes` rows."""
    path, last = [(p, m) for p, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(last, nn.Linear):
        if last.out_features == num_classes:
            return
        new: nn.Module = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    else:
        if last.out_channels == num_classes:
            return
        new = nn.Conv2d(last.in_channels, num_classes, last.kernel_size, bias=last.bias is not None)  # type: ignore[arg-type]
    net.set_submodule(path, new)


def _torchvision_names() -> list[str]:
    """torchvision's classifiers; its detectors and the like live in submodules."""
    models = library("torchvision").models
    names: list[str] = models.list_models(module=models)
    return names


def _known(forced: str) -> set[str]:
    timm = library("timm").list_models() if forced != "torchvision" else []
    torchvision = _torchvision_names() if forced != "timm" else []
    return {*timm, *torchvision, *([] if forced else nets())}


@contextmanager
def _naming_parameters(net: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turn a constructor's complaint about one of the user's `kwargs` into a `ModelError`."""
    try:
        yield
    except TypeError as error:
        unexpected = re.search(r"(\w+)\.?\w*\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None or unexpected[2] not in kwargs:
            raise
        raise ModelError(
            f"{net} has no parameter {unexpected[2]!r}. Leave it out, or use one that {unexpected[1]} takes."
        ) from error


@contextmanager
def _naming_downloads(net: str) -> Iterator[None]:
    """Turn a failed download into a `ModelError`."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"could not load the pretrained weights of {net}: {error}. "
            f"Check the connection, or load weights from a file with --init FILE."
        ) from error
