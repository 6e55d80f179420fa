"""What a recipe needs before training, made of a data set's training images or loaded."""

from __future__ import annotations

import hashlib

import torch

from mixwell.core.artefacts import Progress
from mixwell.core.axes import Piece
from mixwell.core.recipe import Recipe
from mixwell.data import DataSet, Loader

__all__ = ["needs_preparing", "prepare"]

_ROWS = 64
"""Images per batch; not the training's own number, so that trainings of any share what was made."""


def needs_preparing(recipe: Recipe) -> bool:
    """Whether any of its pieces makes or loads something before training begins."""
    return any(isinstance(module, Piece) and type(module).prepare is not Piece.prepare for module in recipe.modules())


def prepare(
    recipe: Recipe,
    data: DataSet,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Make or load what the recipe needs, of the training images as `data` augments them.

    What is made depends on the images and on the recipe's parameters, not on seeds, ranks or batch sizes. It is kept
    under the data's name, number of images and a digest of some of them.

    Args:
        recipe: before it is bound.
        data: its training set is read, once for every pass.
        device: where to compute.
        workers: processes that read images.
        progress: called with (what is made, steps done, steps in all).
    """
    if not needs_preparing(recipe):
        return
    loader = Loader(data.train, _ROWS, pixels=data.pixels, workers=workers)
    digest = hashlib.blake2b(next(loader.epoch(0)).images.numpy().tobytes(), digest_size=10).hexdigest()
    rows = len(data.train)  # type: ignore[arg-type]
    recipe.prepare(lambda: loader.epoch(0), f"{data.name}, {rows} images, {digest}", device=device, progress=progress)
