"""What a config names: the data, the network and the recipe."""

from __future__ import annotations

from typing import Any

from torch import nn

from mixwell.core.recipe import Recipe, create
from mixwell.data import DataSet, load
from mixwell.nets import create_net
from mixwell.train.config import TrainConfig

__all__ = ["data_of", "net_of", "recipe_of"]


def data_of(config: TrainConfig) -> DataSet:
    """The data that a config names, with true labels.

    Raises:
        MixwellError: it is missing or damaged, or an option does not fit it.
    """
    return load(
        config.data,
        root=config.root,
        augment=config.augment,
        augment_options=config.augment_options,
        **dict[str, Any](config.data_options),
    )


def net_of(config: TrainConfig, data: DataSet, *, pretrained: bool = False) -> nn.Module:
    """The network that a config names, for the images and classes of the data.

    Args:
        config: of the training.
        data: what it is to classify.
        pretrained: with the weights that its library has for it, else with new ones.

    Raises:
        MixwellError: there is no such network, or an option does not fit it.
    """
    channels, height, width = data.shape
    return create_net(
        config.model,
        data.num_classes,
        channels=channels,
        size=max(height, width),
        pretrained=pretrained,
        **config.model_options,
    )


def recipe_of(config: TrainConfig, data: DataSet, *, recipe: str | None = None) -> Recipe:
    """The recipe that a config names, with what the config says of the criterion; not bound.

    Args:
        config: of the training.
        data: what it mixes.
        recipe: another recipe in the config's place.

    Raises:
        MixwellError: the recipe cannot be.
    """
    return create(
        recipe or config.recipe,
        data.num_classes,
        seed=config.seed,
        criterion=config.criterion,
        label_smoothing=config.label_smoothing,
        class_weights=config.class_weights,
        pixels=data.pixels,
    )
