"""Which images of the data are kept from training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from mixwell.core.errors import ParameterError
from mixwell.core.recipe import Recipe
from mixwell.data import DataSet, held_out

__all__ = ["split"]

_HELD_OUT = 0.1
"""Share of the training images that is kept for recipes that look at held-out images."""


def split(data: DataSet, recipe: Recipe, share: float | None, seed: int) -> tuple[DataSet, Dataset[Any] | None]:
    """The data without the training images that are held out, and these; None if there are none.

    Args:
        data: what to train on.
        recipe: may look at held-out images.
        share: of the training images; None for 0.1 where the recipe looks at them, else 0.
        seed: of the run.

    Raises:
        ParameterError: the recipe looks at held-out images and the share is 0.
    """
    kept = (_HELD_OUT if recipe.holds_out else 0.0) if share is None else share
    if recipe.holds_out and not kept:
        raise ParameterError(f"The recipe {recipe!s} looks at held-out images. Give held_out=0.1, or so.")
    if not kept:
        return data, None
    train, rest = held_out(data.train, kept, seed)
    return replace(data, train=train), rest
