"""What a recipe needs before training, made of a data set's training images or loaded."""

from __future__ import annotations

import hashlib

import torch

from mixwell.core.artefacts import Progress
from mixwell.core.axes import Piece
from mixwell.core.recipe import Recipe
from mixwell.data import DataSet, Loader
from mixwell.data.items import exposed_labels, size_of
from mixwell.data.split import unaugmented

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
    under the data's name, number of images and a digest of some of them and of their labels. What is kept of every
    single image is made of it without augmentation; sets of one's own that augment by themselves are read as they are.

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
    stored = Loader(unaugmented(data.train), _ROWS, pixels=data.pixels, workers=workers, shuffle=False)
    digest = hashlib.blake2b(next(loader.epoch(0)).images.numpy().tobytes(), digest_size=10)
    if (labels := exposed_labels(data.train)) is not None:
        digest.update(labels.numpy().tobytes())  # tells another order of the same images
    rows = size_of(data.train, "train")
    recipe.prepare(
        lambda: loader.epoch(0),
        f"{data.name}, {rows} images, {digest.hexdigest()}",
        device=device,
        progress=progress,
        unaugmented=lambda: stored.epoch(0),
        rows=rows,
    )
