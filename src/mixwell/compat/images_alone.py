"""What adapters share that mix images and labels without a network."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mixwell.core.batch import Batch, Pixels
from mixwell.core.errors import BatchError, IncompatibleRecipe, ParameterError
from mixwell.core.mixed import Mixed
from mixwell.core.recipe import Recipe, create

__all__ = ["floating", "mixed_of", "recipe_of", "restored"]

_PIXELS = Pixels((0.0,), (1.0,))
"""How bytes are normalised once they were divided by 255: not at all."""


def recipe_of(
    recipe: str | Recipe, num_classes: int | None, adapter: str, *, seed: int | None, pixels: Pixels | None
) -> Recipe:
    """The recipe, if it needs no network.

    Args:
        recipe: its text, or a recipe, which keeps its own seed and pixels.
        num_classes: C, or None where labels are rows or the recipe knows it.
        adapter: who asks, for messages.
        seed: of the recipe's draws; None takes the one that `torch.manual_seed` set last.
        pixels: how images are normalised, for methods that need raw pixels.

    Raises:
        IncompatibleRecipe: a method acts in the network or in the loss.
        ParameterError: what was said of a recipe is not what it was made with.
    """
    if isinstance(recipe, Recipe):
        made = recipe
        if num_classes not in (None, made.num_classes) or seed is not None or pixels is not None:
            raise ParameterError(
                f"{adapter} was given a recipe that is made for {made.num_classes} classes, and also "
                f"num_classes={num_classes}, seed={seed}, pixels={pixels}. Say these to mixwell.create, or give "
                f"{adapter} the recipe's text."
            )
    else:
        made = create(recipe, num_classes, seed=torch.initial_seed() if seed is None else seed, pixels=pixels)
    if made.beyond_images:
        raise IncompatibleRecipe(
            f"{adapter} mixes images and labels alone, but {' and '.join(made.beyond_images)} act inside the network "
            f"or in the loss. Make recipe = mixwell.create({str(made)!r}, num_classes=...), and in the training loop "
            "take loss = recipe(model, images, labels)."
        )
    return made


def floating(images: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Bytes as numbers in [0, 1]; other images as they are."""
    return images / 255 if images.dtype is torch.uint8 else images


def restored(mixed: Float[Tensor, "b ..."], like: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
    """Bytes again, rounded, if `like` are bytes."""
    return mixed.mul(255).round_().clamp_(0, 255).to(torch.uint8) if like.dtype is torch.uint8 else mixed


def mixed_of(recipe: Recipe, images: Shaped[Tensor, "b ..."], labels: Shaped[Tensor, "b ..."]) -> Mixed:
    """The mix of images, which may be bytes (then of numbers in [0, 1]), and of labels, ids or rows of any dtype."""
    if not isinstance(images, Tensor):
        raise BatchError(
            f"images must be a tensor (B, C, H, W), got {type(images).__name__}. Collate the images first."
        )
    rows = labels if labels.ndim == 1 or labels.is_floating_point() else labels.float()
    return recipe.mixed(Batch(floating(images), rows, _PIXELS if images.dtype is torch.uint8 else None))
