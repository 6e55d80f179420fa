"""timm: `timm.data.Mixup` and `FastCollateMixup`, for scripts that change one import.

    from mixwell.compat.timm import FastCollateMixup, Mixup  # in place of: from timm.data import ...

Without a recipe both mix as timm does: rows meet in reverse order, with mixup or CutMix in boxes of timm's sizes.
Besides, batches may be odd (the row in the middle meets itself), no row is looped over, images are not modified, and
draws come from streams of their own, not from NumPy's global generator. With `recipe=` that recipe mixes instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import default_collate

from mixwell.compat.framework import framework
from mixwell.compat.images_alone import floating, mixed_of, recipe_of, restored
from mixwell.core.batch import Batch, Pixels
from mixwell.core.check import check_images, check_labels
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import onto
from mixwell.core.recipe import Recipe
from mixwell.core.rng import Streams
from mixwell.core.targets import Targets
from mixwell.ops.boxes import area_of, boxes_between, outside

__all__ = ["FastCollateMixup", "Mixup", "boxes_around", "boxes_between_limits"]

_timm = framework("timm.data.mixup", "train")

Mode = Literal["batch", "pair", "elem", "half"]


def boxes_around(
    lam: Float[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "n 4"]:
    """Boxes (top, bottom, left, right) with sides of ⌊side·√(1-λ)⌋ pixels around random centres, clipped at the border.

    Args:
        lam: (N,) share that stays outside.
        points: (N, 2) row and column of the centre, uniform in [0, 1).
        size: height and width.
    """
    extent = np.array(size)
    sides = (np.sqrt(1 - lam)[:, None] * extent).astype(np.int64)
    centres = (points * extent).astype(np.int64)
    low, high = np.maximum(centres - sides // 2, 0), np.minimum(centres + (sides + 1) // 2, extent)
    return boxes_between(low, high)


def boxes_between_limits(
    minmax: Sequence[float], draws: Float[np.ndarray, "n 4"], size: tuple[int, int]
) -> Int64[np.ndarray, "n 4"]:
    """Boxes whose sides lie between two shares of the image's, anywhere inside it.

    Args:
        minmax: least and largest share of a side; the largest is left out.
        draws: (N, 4) uniform in [0, 1): of the height, the width, the top and the left.
        size: height and width.
    """
    extent = np.array(size)
    least, most = ((extent * share).astype(np.int64) for share in minmax)
    sides = least + (draws[:, :2] * np.maximum(most - least, 1)).astype(np.int64)
    low = (draws[:, 2:] * (extent - sides + 1)).astype(np.int64)
    return boxes_between(low, low + sides)


def _groups(rows: int, mode: Mode) -> Int64[np.ndarray, " rows"]:
    """Which rows are mixed alike: all, the two of a pair, or each by itself."""
    if mode == "batch":
        return np.zeros(rows, np.int64)
    each = np.arange(rows)
    return np.minimum(each, each[::-1]) if mode == "pair" else each


class Mixup(_timm.Mixup):  # type: ignore[misc, name-defined]
    """mixup and CutMix as timm does them, or a recipe, with timm's constructor and call.

    Called with (images, labels), it gives mixed images and their (B, C) float32 targets, as timm's
    `SoftTargetCrossEntropy` takes them. Set `mixup_enabled` to False to stop mixing; labels are still smoothed.

    Args:
        mixup_alpha: of mixup's Beta(α, α); 0 for no mixup.
        cutmix_alpha: of CutMix's Beta(α, α); 0 for no CutMix.
        cutmix_minmax: least and largest share of a side of CutMix's boxes, in place of `cutmix_alpha`.
        prob: how often a batch, pair or element is mixed.
        switch_prob: how often by CutMix, where both are on.
        mode: what shares λ and box: the "batch", a "pair", or each "elem" alone; for FastCollateMixup also "half",
            which is "elem" without the second half of the mixes.
        correct_lam: whether the label follows the box that is seen, in place of λ.
        label_smoothing: ε; classes that are not an image's get ε/C.
        num_classes: C.
        multi_label: labels are (B, C) rows, each class of which is smoothed towards 1/2.
        recipe: what to do instead: the text of a recipe that needs no network, or such a recipe. Both alphas are then
            ignored, since timm's scripts must set one to turn mixing on.
        seed: of the draws; None takes the one that `torch.manual_seed` set last.
        pixels: how images are normalised, for recipes that need raw pixels.

    Raises:
        ParameterError: a number is out of range, or would have no effect beside a recipe.
        IncompatibleRecipe: the recipe acts in the network or in the loss; names the way to use it.
        BatchError: images or labels that must not be trained on.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: Mode = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        recipe: str | Recipe | None = None,
        seed: int | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        super().__init__(
            mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode, correct_lam, label_smoothing, num_classes
        )
        self.multi_label = multi_label
        self.mixup_enabled = True
        self.recipe: Recipe | None = None
        self.steps = 0
        self._check()
        if recipe is None:
            if pixels is not None:
                raise ParameterError("Mixup: pixels are for recipes; mixup and CutMix need none. Leave them out.")
            self._streams = Streams(torch.initial_seed() if seed is None else seed)
            return
        idle = {
            "cutmix_minmax": cutmix_minmax is not None,
            "prob": prob != 1,
            "switch_prob": switch_prob != 0.5,
            "mode": mode != "batch",
            "correct_lam": not correct_lam,
        }
        if any(idle.values()):
            names = " and ".join(name for name, given in idle.items() if given)
            raise ParameterError(
                f"Mixup: the recipe {str(recipe)!r} decides how images are mixed, so {names} would have no effect. Say "
                "it in the recipe, such as 'cutmix(prob=0.5, per=batch)' or '0.5*mixup | 0.5*cutmix'."
            )
        known = None if multi_label or isinstance(recipe, Recipe) else num_classes
        self.recipe = recipe_of(
            recipe, known, f"{type(self).__name__} of mixwell.compat.timm", seed=seed, pixels=pixels
        )
        if self.recipe.num_classes not in (None, num_classes):
            raise ParameterError(
                f"Mixup: num_classes={num_classes}, but the recipe is made for {self.recipe.num_classes} classes."
            )

    def _check(self) -> None:
        """See that timm's parameters make sense."""
        for name in ("mixup_alpha", "cutmix_alpha"):
            number_in(name, getattr(self, name), 0)
        number_in("prob", self.mix_prob, 0, 1)
        number_in("switch_prob", self.switch_prob, 0, 1)
        number_in("label_smoothing", self.label_smoothing, 0, 1, open_high=True)
        modes = [mode for mode in get_args(Mode) if mode != "half" or isinstance(self, _timm.FastCollateMixup)]
        if self.mode not in modes:
            raise ParameterError(f"mode must be one of {', '.join(modes)}, got {self.mode!r}.")
        if self.cutmix_minmax is not None:
            least, most = self.cutmix_minmax
            number_in("cutmix_minmax", least, 0, 1)
            number_in("cutmix_minmax", most, least, 1)

    def __call__(
        self, x: Float[Tensor, "b ..."], target: Shaped[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b ..."], Float32[Tensor, "b c"]]:
        images, targets = self._mixed(x, target)
        return images, self._dense(targets)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        step, self.steps = self.steps, self.steps + 1
        if self.recipe is not None and self.mixup_enabled:
            found = mixed_of(self.recipe, images, labels)
            return restored(found.images, images), found.targets
        batch = Batch(floating(images), labels)
        check_images(batch.images, step % 100 == 0)
        check_labels(batch, self.num_classes, step % 100 == 0, rows_sum_to_1=not self.multi_label)
        if not self.mixup_enabled:
            return images, Targets.of(labels, self.num_classes)
        groups = _groups(len(batch), self.mode)
        lam, boxed, places = self._drawn(int(groups.max()) + 1, self._streams.at("timm", step))
        mixed, lam = self._blended(batch.images, groups, lam, boxed, places)
        rows = torch.arange(len(batch), device=images.device)
        own = onto(lam.astype(np.float32)[groups], images)
        sources, weights = torch.stack((rows, rows.flip(0)), 1), torch.stack((own, 1 - own), 1)
        return restored(mixed, images), Targets(labels, sources, weights, self.num_classes)

    def _drawn(
        self, count: int, rng: Generator
    ) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"], Float[np.ndarray, "n 4"]]:
        """λ, whether it is of a box, and where the box lies."""
        mixup, cutmix = self.mixup_alpha, self.cutmix_alpha
        if not (mixup > 0 or cutmix > 0):
            raise ParameterError(
                "Mixup has nothing to do: mixup_alpha and cutmix_alpha are 0. Give one of them, cutmix_minmax or "
                "recipe, or set mixup_enabled to False."
            )
        kept, chosen, places = rng.random(count), rng.random(count), rng.random((count, 4))
        boxed = chosen < (self.switch_prob if mixup > 0 else 1.0) if cutmix > 0 else np.zeros(count, bool)
        alpha = np.where(boxed, cutmix, mixup)
        mixes = kept < self.mix_prob
        lam = np.where(mixes, rng.beta(alpha, alpha), 1.0)
        return lam, boxed & mixes, places

    def _blended(
        self,
        images: Float[Tensor, "b ..."],
        groups: Int64[np.ndarray, " b"],
        lam: Float[np.ndarray, " n"],
        boxed: Bool[np.ndarray, " n"],
        places: Float[np.ndarray, "n 4"],
    ) -> tuple[Float[Tensor, "b ..."], Float[np.ndarray, " n"]]:
        """The mixes, and the label shares of the images' own rows."""
        if not boxed.any():
            return torch.lerp(images.flip(0), images, self._weights(lam[groups], images)), lam
        if images.ndim != 4:
            raise BatchError(
                f"CutMix needs images (B, C, H, W), got {tuple(images.shape)}. Take mixup for other tensors."
            )
        size = (images.shape[2], images.shape[3])
        if self.cutmix_minmax is not None:
            boxes = boxes_between_limits(self.cutmix_minmax, places, size)
        else:
            boxes = boxes_around(lam, places[:, :2], size)
        follows = boxed & (self.correct_lam or self.cutmix_minmax is not None)
        shares = np.where(follows, 1 - area_of(boxes, size), lam)
        if self.mode == "batch":
            top, bottom, left, right = boxes[0].tolist()
            mixed = images.clone()
            mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
            return mixed, shares
        keep = outside(boxes[groups], size, images.device, images.dtype)
        if not boxed.all():
            keep = torch.where(onto(boxed[groups], images).view(-1, 1, 1, 1), keep, self._weights(lam[groups], images))
        return torch.lerp(images.flip(0), images, keep), shares

    def _weights(self, lam: Float[np.ndarray, " b"], images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return onto(lam, images).to(images.dtype).view(-1, *(1,) * (images.ndim - 1))

    def _dense(self, targets: Targets) -> Float32[Tensor, "b c"]:
        """The targets as timm smooths them."""
        smoothing: float = self.label_smoothing
        if not self.multi_label:
            return targets.dense(self.num_classes, smoothing).float()
        return targets.dense().float() * (1 - smoothing) + targets.total[:, None] * (smoothing / 2)


class FastCollateMixup(Mixup, _timm.FastCollateMixup):  # type: ignore[misc, name-defined]
    """`Mixup` as the `collate_fn` of timm's prefetching loader: uint8 samples in, a mixed uint8 batch and targets out.

    Mixes are rounded to whole pixels. A recipe sees pixels in [0, 1]. Every loading worker draws its own numbers.
    """

    def __call__(  # type: ignore[override]
        self, batch: Sequence[Any], _: Any = None
    ) -> tuple[Tensor, Float32[Tensor, "b c"]]:
        images, labels = default_collate([(sample[0], sample[1]) for sample in batch])
        if images.dtype is not torch.uint8:
            raise BatchError(
                f"FastCollateMixup takes uint8 images (C, H, W), got {images.dtype}. Take Mixup for images that are "
                "normalised already."
            )
        mixed, targets = self._mixed(images, labels)
        dense = self._dense(targets)
        kept = (len(images) + 1) // 2 if self.mode == "half" else len(images)
        return mixed[:kept], dense[:kept]
