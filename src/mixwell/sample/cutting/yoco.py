"""YOCO: cut the image in two halves, augment each with randomness of its own, and join them again.

Han, Fang, Li, Hong, Armin, Reid, Petersson, Li, "You Only Cut Once: Boosting Data Augmentation with a Single Cut",
ICML 2022, arXiv:2201.12078.

The cut runs across the height or the width, by a fair coin, and both halves go through the same augmentation, drawn
anew for each. Labels stay; where the augmentation is a mix, its label shares are weighted by the halves' areas.
Equations: cut → `halves`; flips inside halves → `flipped`; joined → the pieces' last step.

Paper and code: the paper cuts image by image (`per="sample"`); the authors' classification script draws one cut and one
flip per half for the whole batch (`per="batch"`). The script's augmentation is a horizontal flip, the default here; a
mix or an augmentation of images is given as a recipe: `yoco(mixup)`, `yoco(pixmix)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.algebra import Node
from mixwell.core.axes import Blend, Need, Per, Scene, SelfBlend, per_of
from mixwell.core.errors import IncompatibleRecipe
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.policy import Inner, InnerDraws, picked
from mixwell.core.registry import Pieces, method

__all__ = ["HalfAugmentations", "HalfFlips", "HalfMixes", "flipped", "halves"]

_ROWS, _COLUMNS = 2, 3
"""Axes of an image that a cut divides: across the height, and across the width."""


def halves(x: Float[Tensor, "b c h w"], axis: int) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The first ⌊side/2⌋ rows (axis 2) or columns (axis 3), and the rest."""
    first = x.shape[axis] // 2
    return x.narrow(axis, 0, first), x.narrow(axis, first, x.shape[axis] - first)


def flipped(
    images: Float[Tensor, "b c h w"], width: Bool[np.ndarray, " #b"], flips: Bool[np.ndarray, "#b 2"]
) -> Float[Tensor, "b c h w"]:
    """Mirror the halves of each image from left to right, each inside itself.

    Args:
        width: (B,) or (1,) whether the cut divides the width, rather than the height.
        flips: (B, 2) or (1, 2) whether the first and the second half are mirrored.
    """

    def one(axis: int, which: Bool[np.ndarray, "#b 2"]) -> Tensor:
        """Mirror where `which` says so; weights 0 and 1 make lerp an exact choice."""
        if not which.any():
            return images
        chosen = onto(which.astype(np.float32), images).to(images.dtype)[:, :, None, None, None]
        parts = zip(halves(images, axis), chosen.unbind(1), strict=True)
        return torch.cat([part.lerp(part.flip(_COLUMNS), mirror) for part, mirror in parts], axis)

    across, along = width[:, None] & flips, ~width[:, None] & flips
    images = one(_COLUMNS, across)
    return one(_ROWS, along)


def _per_row(coins: Bool[np.ndarray, " #b"], if_true: Tensor, if_false: Tensor) -> Tensor:
    """Each row from the one or the other."""
    chosen = onto(coins.astype(np.float32), if_true).to(if_true.dtype)
    return if_false.lerp(if_true, chosen.view(-1, *(1,) * (if_true.ndim - 1)))


@dataclass(eq=False)
class FlipDraws:
    """Cuts and flips: (B,) or (1,), and (B, 2) or (1, 2)."""

    width: Bool[np.ndarray, " #b"]
    flips: Bool[np.ndarray, "#b 2"]


class HalfFlips(SelfBlend):
    """Mirror each half with probability ½.

    Args:
        per: one cut and two flips per "sample", or per "batch".
    """

    def __init__(self, per: Per = "sample") -> None:
        super().__init__()
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> FlipDraws:
        count = 1 if self.per == "batch" else rows
        return FlipDraws(rng.random(count) > 0.5, rng.random((count, 2)) < 0.5)

    def images(self, draws: FlipDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        return (flipped(scene.batch.images, draws.width, draws.flips),)


@dataclass(eq=False)
class HalfDraws:
    """Cuts, (B,) or (1,), and what the recipe drew for each half."""

    width: Bool[np.ndarray, " #b"]
    first: InnerDraws
    second: InnerDraws


def _drawn(inner: Inner, per: Per, rows: int, rng: Generator) -> HalfDraws:
    width = rng.random(1 if per == "batch" else rows) > 0.5
    option = picked(inner.weights, rng.random())
    return HalfDraws(width, inner.draw(rows, rng, option), inner.draw(rows, rng, option))


def _joined(width: Bool[np.ndarray, " #b"], of_cut: Callable[[int], Tensor]) -> Tensor:
    """What both cuts make, each row by its own; a cut that no row has is not made."""
    if width.all():
        return of_cut(_COLUMNS)
    return of_cut(_ROWS) if not width.any() else _per_row(width, of_cut(_COLUMNS), of_cut(_ROWS))


class HalfAugmentations(SelfBlend):
    """Run a recipe that augments single images on each half.

    Args:
        inner: the recipe.
        per: one cut per "sample" or per "batch".
    """

    def __init__(self, inner: Inner, per: Per = "sample") -> None:
        super().__init__()
        self.inner = inner
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> HalfDraws:
        return _drawn(self.inner, self.per, rows, rng)

    def images(self, draws: HalfDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        def of_cut(axis: int) -> Tensor:
            first, second = halves(scene.batch.images, axis)
            return torch.cat(
                (
                    self.inner.mix(first, draws.first, scene).images,
                    self.inner.mix(second, draws.second, scene).images,
                ),
                axis,
            )

        return (_joined(draws.width, of_cut),)


class HalfMixes(Blend):
    """Mix each half of an image with the same half of its partners, by draws of its own.

    Args:
        inner: the recipe that mixes.
        per: one cut per "sample" or per "batch".
    """

    takes_lam = False

    def __init__(self, inner: Inner, per: Per = "sample") -> None:
        super().__init__()
        counts = {blend.partners for blend in inner.blends if blend is not None}
        if len(counts) != 1:
            raise IncompatibleRecipe(
                f"yoco mixes both halves with the same partners, but its recipe's options take {sorted(counts)} of "
                "them. Give options that take equally many, such as mixup and cutmix."
            )
        self.inner = inner
        self.partners = counts.pop()
        self.per = per_of(per)
        self.gives = inner.gives - {Need.DIFFERENTIABLE}
        self.aligned = all(blend.aligned for blend in inner.blends if blend is not None)

    def draw(self, rows: int, rng: Generator) -> HalfDraws:
        return _drawn(self.inner, self.per, rows, rng)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: HalfDraws,
        scene: Scene,
    ) -> Mix:
        def of_halves(axis: int) -> tuple[Mix, Mix]:
            first, second = halves(images, axis)
            return (
                self.inner.mix(first, draws.first, scene, partners),
                self.inner.mix(second, draws.second, scene, partners),
            )

        axes = [axis for axis, cut in ((_ROWS, ~draws.width), (_COLUMNS, draws.width)) if cut.any()]
        made = {axis: of_halves(axis) for axis in axes}

        def weights(axis: int) -> Tensor:
            share = images.shape[axis] // 2 / images.shape[axis]
            first, second = made[axis]
            return first.weights * share + second.weights * (1 - share)

        def apply(x: Tensor) -> Tensor:
            def of_cut(axis: int) -> Tensor:
                pairs = zip(made[axis], halves(x, axis), strict=True)
                return torch.cat([mix.apply(half) for mix, half in pairs], axis)

            return _joined(draws.width, of_cut)

        def masks(mix: Mix) -> Tensor:
            def of_cut(axis: int) -> Tensor:
                pairs = zip(made[axis], halves(images, axis), strict=True)
                return torch.cat([part.shown(half.shape[2:]) for part, half in pairs], axis)

            return _joined(draws.width, of_cut)

        mixed = _joined(draws.width, lambda axis: torch.cat([part.images for part in made[axis]], axis))
        shares = _joined(draws.width, weights)
        sources = made[axes[0]][0].sources
        return Mix(mixed, sources, shares, partners.pool, apply, make_masks=masks)


@method("yoco", section="1.3", paper="2201.12078", venue="ICML 2022")
def yoco(recipe: Node | None = None, per: Per = "sample", prob: float = 1.0) -> Pieces:
    """Args:
    recipe: what is done to each half, such as mixup, cutmix or pixmix; a horizontal flip by a fair coin if not given.
    per: one cut, and one pair of flips, per "sample" or per "batch".
    prob: share of the batches that are cut.
    """
    if recipe is None:
        return Pieces(HalfFlips(per), prob=prob)
    inner = Inner(recipe, "yoco")
    if not any(inner.blends):
        return Pieces(HalfAugmentations(inner, per), prob=prob)
    pairings = [policy.pairing for policy in inner.policies if policy.pairing is not None]
    return Pieces(HalfMixes(inner, per), suggested=tuple(pairings[:1]), prob=prob)
