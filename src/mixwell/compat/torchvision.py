"""torchvision: recipes as transforms of whole batches, in the manner of `torchvision.transforms.v2.MixUp`.

Use them as torchvision's own: on what a DataLoader gives, or in a collate_fn,
`DataLoader(dataset, collate_fn=lambda samples: transform(*default_collate(samples)))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mixwell.compat.framework import framework
from mixwell.compat.images_alone import floating, mixed_of, recipe_of, restored
from mixwell.core.axes import Per
from mixwell.core.batch import Pixels
from mixwell.core.errors import BatchError, ParameterError
from mixwell.core.mixed import Mixed
from mixwell.core.recipe import Recipe

__all__ = ["CutMix", "MixUp", "Mixwell"]

_v2 = framework("torchvision.transforms.v2", "train")
_tv = framework("torchvision.tv_tensors", "train")

LabelsGetter = str | Callable[[Any], Any]


class Mixwell(_v2.Transform):  # type: ignore[misc, name-defined]
    """A recipe that needs no network, on batches in any pytree.

    The first `tv_tensors.Image` or `Video`, or without these the first plain tensor that is not the labels, is mixed by
    the recipe; further images, videos and `tv_tensors.Mask` of the batch exactly as it was. All else is passed on, but
    for boxes, key points and PIL images, which cannot be mixed. Labels become (B, C) rows. Images that are bytes are
    taken as pixels in [0, 1], and given back as bytes.

    Args:
        recipe: its text, or a recipe.
        num_classes: C; None only where labels are rows already, or the recipe knows it.
        labels_getter: finds the labels in the input, a tensor (B,) of ids or (B, C) of rows. "default" takes the second
            of a pair, or what is called "labels", or else something with "label" in its name, in a mapping.
        seed: of the draws; None takes the one that `torch.manual_seed` set last.
        pixels: how images are normalised, for recipes that need raw pixels.

    Raises:
        IncompatibleRecipe: the recipe acts in the network or in the loss, or cannot mix further images and masks alike.
        BatchError: no labels or images are found, or they must not be trained on.
    """

    def __init__(
        self,
        recipe: str | Recipe,
        *,
        num_classes: int | None = None,
        labels_getter: LabelsGetter = "default",
        seed: int | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        super().__init__()
        if labels_getter != "default" and not callable(labels_getter):
            raise ParameterError(
                f"labels_getter must be 'default' or a function of the input, got {labels_getter!r}. Mixing "
                "needs labels."
            )
        name = f"{type(self).__name__} of mixwell.compat.torchvision"
        self.recipe = recipe_of(recipe, num_classes, name, seed=seed, pixels=pixels)
        self._labels_getter: Callable[[Any], Any] = labels_getter if callable(labels_getter) else _labels_of

    def extra_repr(self) -> str:
        return str(self.recipe)

    def forward(self, *inputs: Any) -> Any:
        sample = inputs if len(inputs) > 1 else inputs[0]
        leaves, tree = tree_flatten(sample)
        _refuse(leaves)
        labels = self._labels_getter(sample)
        if not isinstance(labels, Tensor):
            raise BatchError(
                f"labels must be a tensor, got {type(labels).__name__}. Collate them, or see labels_getter."
            )
        if not any(leaf is labels for leaf in leaves):
            raise BatchError("labels_getter must return the very tensor that is in the input, not a copy of it.")
        first = _image_of(leaves, labels)
        mixed = mixed_of(self.recipe, _frames_in_channels(leaves[first]), labels)

        def changed(at: int, leaf: Any) -> Any:
            if leaf is labels:
                return mixed.targets.dense()
            if at == first:
                found = restored(mixed.images, leaf)
            elif isinstance(leaf, _tv.Image | _tv.Video | _tv.Mask):
                found = _alike(mixed, leaf)
            else:
                return leaf
            if isinstance(leaf, _tv.Video):
                found = found.reshape(len(found), *leaf.shape[1:3], *found.shape[2:])
            return _tv.wrap(found, like=leaf) if isinstance(leaf, _tv.TVTensor) else found

        return tree_unflatten([changed(at, leaf) for at, leaf in enumerate(leaves)], tree)


class MixUp(Mixwell):
    """`torchvision.transforms.v2.MixUp`, with random partners in place of each row's neighbour.

    Args:
        alpha: λ ~ Beta(α, α).
        num_classes, labels_getter, seed: as for `Mixwell`.
        per: one λ per "batch", as torchvision draws it, or per "sample".
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: LabelsGetter = "default",
        per: Per = "batch",
        seed: int | None = None,
    ) -> None:
        text = f"mixup(alpha={alpha!r}, per={per})"
        super().__init__(text, num_classes=num_classes, labels_getter=labels_getter, seed=seed)


class CutMix(Mixwell):
    """`torchvision.transforms.v2.CutMix`, with random partners in place of each row's neighbour.

    Args:
        alpha: λ ~ Beta(α, α).
        num_classes, labels_getter, seed: as for `Mixwell`.
        per: one λ and box per "batch", as torchvision draws them, or per "sample".
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: LabelsGetter = "default",
        per: Per = "batch",
        seed: int | None = None,
    ) -> None:
        text = f"cutmix(alpha={alpha!r}, per={per})"
        super().__init__(text, num_classes=num_classes, labels_getter=labels_getter, seed=seed)


def _refuse(leaves: list[Any]) -> None:
    """Raise where there is something that belongs to the images but cannot be mixed."""
    for leaf in leaves:
        if isinstance(leaf, _tv.TVTensor) and not isinstance(leaf, _tv.Image | _tv.Video | _tv.Mask):
            raise BatchError(
                f"{type(leaf).__name__} cannot be mixed with the images. Mix masks of them in their place, or take "
                "them out of the input."
            )
        if type(leaf).__module__.partition(".")[0] == "PIL":
            raise BatchError("PIL images cannot be mixed: use the transform on batches, after default_collate.")


def _labels_of(sample: Any) -> Any:
    """Where torchvision looks for labels, too: the second of a pair, or by their name in a mapping."""
    part = sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else sample
    if isinstance(part, Mapping):
        names = [name for name in part if isinstance(name, str)]
        named = [name for name in names if name.lower() == "labels"] + [
            name for name in names if "label" in name.lower()
        ]
        if named:
            return part[named[0]]
    if isinstance(part, Tensor) and part is not sample:
        return part
    raise BatchError(
        "The labels were not found: expected (images, labels), or a mapping with 'labels', alone or second. Give "
        "labels_getter, a function of the input that returns them."
    )


def _image_of(leaves: list[Any], labels: Tensor) -> int:
    """Where the images are that are mixed first."""
    pure = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and not isinstance(leaf, _tv.TVTensor)]
    named = [at for at, leaf in enumerate(leaves) if isinstance(leaf, _tv.Image | _tv.Video)]
    found = named or [at for at in pure if leaves[at] is not labels]
    if not found:
        raise BatchError("No images were found: expected a tensor or tv_tensors.Image (B, C, H, W) beside the labels.")
    leaf = leaves[found[0]]
    wanted = "(B, T, C, H, W)" if isinstance(leaf, _tv.Video) else "(B, C, H, W)"
    if leaf.ndim != wanted.count(",") + 1:
        raise BatchError(
            f"Expected a batch {wanted}, got {tuple(leaf.shape)}. Use the transform after default_collate."
        )
    return found[0]


def _frames_in_channels(leaf: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
    """A plain tensor; the frames of a video are laid among its channels, so that all are mixed alike."""
    plain = leaf.as_subclass(torch.Tensor)
    return plain.flatten(1, 2) if isinstance(leaf, _tv.Video) else plain


def _alike(mixed: Mixed, leaf: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "r ..."]:
    """Further images or masks, mixed as the first images were."""
    plain = _frames_in_channels(leaf)
    if isinstance(leaf, _tv.Mask):
        return mixed.apply(plain)
    return restored(mixed.apply(floating(plain)), plain)
