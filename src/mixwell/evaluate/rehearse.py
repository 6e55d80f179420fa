"""A finished run's recipe, made ready to mix or to train again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from mixwell.core.batch import Batch
from mixwell.core.recipe import Recipe
from mixwell.core.splits import Splits
from mixwell.data import DataSet, Loader
from mixwell.train import TrainConfig
from mixwell.train.named import recipe_of
from mixwell.train.prepare import prepare

__all__ = ["bound_recipe", "splits_of"]


def bound_recipe(
    config: TrainConfig,
    data: DataSet,
    held_out: Dataset[Any] | None,
    model: nn.Module,
    *,
    recipe: str | None = None,
    device: torch.device | str = "cpu",
) -> Recipe:
    """The recipe of a run, prepared, told of the data and bound to a network, as a training begins with it.

    Args:
        config: of the run.
        data: without the held-out images.
        held_out: these, or None.
        model: on `device`.
        recipe: another recipe in the run's place.
        device: where to compute.
    """
    made = recipe_of(config, data, recipe=recipe)
    prepare(made, data, device=device)
    splits = splits_of(config, data, held_out, device)
    made.use_data(train=splits.train_batches, held_out=splits.held_out_batches)
    return made.bind(model, next(splits.train()).images).to(device)


def splits_of(config: TrainConfig, data: DataSet, held_out: Dataset[Any] | None, device: torch.device | str) -> Splits:
    """Passes over the training and the held-out images, as recipes take them."""

    def passes(part: Dataset[Any]) -> Callable[[], Iterator[Batch]]:
        loader = Loader(part, config.batch_size, pixels=data.pixels, seed=config.seed, shuffle=False)
        return lambda: loader.epoch(0)

    kept = None if held_out is None else passes(held_out)
    return Splits(passes(data.train), kept, torch.device(device))
