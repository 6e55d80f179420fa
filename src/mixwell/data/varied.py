"""RandAugment and random erasing, as timm has them, after a set's own crops and mirror images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError, ParameterError, number_in
from mixwell.data.items import exposed_labels, read_item
from mixwell.data.memory import InMemory
from mixwell.data.optional import require
from mixwell.data.pictures import Pictures

__all__ = ["Varied", "varied"]

_OPTIONS = ("least_area", "randaugment", "erase")
_TRANSLATION = 0.45
"""Share of the image by which RandAugment moves it at most, as in the trainings of timm and DeiT."""


def varied(dataset: Dataset[Any], options: Mapping[str, Any], pixels: Pixels, name: str) -> Dataset[Any]:
    """A training set under the options of an augmentation.

    Args:
        dataset: as it was loaded.
        options: `least_area`, share of the image that the smallest crop of "rrc-flip" shows; `randaugment`, a policy in
            timm's words, such as "rand-m9-mstd0.5-inc1"; `erase`, the probability of random erasing.
        pixels: of the set.
        name: of the set, for errors.

    Raises:
        ParameterError: an option is unknown or out of range.
        DataError: the set is none of mixwell's own, or its images are not RGB.
    """
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise ParameterError(f"augment_options has no {unknown[0]!r}; it takes {', '.join(_OPTIONS)}.")
    if not options:
        return dataset
    if not isinstance(dataset, InMemory | Pictures):
        raise DataError(f"augment_options are for mixwell's own data sets; {name} augments its images itself.")
    if "least_area" in options:
        share = number_in("augment_options: least_area", options["least_area"], 0, 1, open_low=True)
        if dataset.augment != "rrc-flip":
            raise ParameterError(f"augment_options: least_area is for augment 'rrc-flip', not {dataset.augment!r}.")
        dataset = dataset.with_least_area(share)
    policy, erase = options.get("randaugment", ""), options.get("erase", 0.0)
    number_in("augment_options: erase", erase, 0, 1)
    return Varied(dataset, policy, erase, pixels) if policy or erase else dataset


class Varied(Dataset[Any]):
    """RandAugment, then random erasing, of the images of a set.

    What is drawn comes from the global generators of Python, NumPy and torch, which `Loader` keys by seed, epoch and
    index. "crop" in the items' extras is that of the set: RandAugment's shears, turns and shifts are not in it.

    Args:
        dataset: of RGB images.
        randaugment: a policy in timm's words; "" for none.
        erase: probability that a box of an image is replaced by noise of the data's mean and deviation.
        pixels: the set's normalisation.

    Raises:
        ParameterError: timm cannot read the policy.
        DataError: images are not RGB, or timm is not installed.
    """

    def __init__(self, dataset: InMemory | Pictures, randaugment: str, erase: float, pixels: Pixels) -> None:
        if isinstance(dataset, InMemory) and dataset.images.shape[1] != 3:
            raise DataError(f"RandAugment and erasing are for 3 channels, got {dataset.images.shape[1]}.")
        self.dataset = dataset
        self.settings = (randaugment, erase, pixels)
        self.targets = exposed_labels(dataset)
        self._pixels = pixels
        self._policy = _randaugment(randaugment, pixels, len(dataset[0][0][0])) if randaugment else None
        erasing = require("timm.data.random_erasing", "Random erasing")
        self._erase = erasing.RandomErasing(erase, mode="pixel", device="cpu") if erase else None

    @property
    def augment(self) -> str | None:
        """Augmentation of the set below."""
        return self.dataset.augment

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        image, label, extras = self._item(index)
        if self._policy is not None:
            pil = require("PIL.Image", "RandAugment").fromarray(image.permute(1, 2, 0).numpy())
            image = torch.from_numpy(np.array(self._policy(pil))).permute(2, 0, 1)
        if self._erase is not None:
            erased = self._erase(self._pixels.normalise(image[None].float() / 255)[0])
            image = self._pixels.raw(erased[None])[0].mul(255).round().clamp(0, 255).to(torch.uint8)
        return image.contiguous(), label, extras

    def _item(self, index: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        if not isinstance(self.dataset, InMemory):
            image, label, extras = read_item(self.dataset[index])
            return image, int(label), extras
        words = None
        if self.augment is not None:
            words = torch.randint(-(2**63), 2**63 - 1, (1, 4)).numpy().view(np.uint64)
        images, labels, extras = self.dataset.rows(np.array([index]), words)
        return images[0], int(labels[0]), {name: value[0] for name, value in extras.items()}

    def over(self, dataset: InMemory | Pictures) -> Varied:
        """The same of another set."""
        return Varied(dataset, *self.settings)

    def unaugmented(self) -> InMemory | Pictures:
        """The same images without any augmentation."""
        return self.dataset.unaugmented()


def _randaugment(policy: str, pixels: Pixels, size: int) -> Any:
    module = require("timm.data.auto_augment", "RandAugment")
    settings = {
        "translate_const": int(_TRANSLATION * size),
        "img_mean": tuple(round(255 * value) for value in pixels.mean),
    }
    try:
        # timm skips parts that it cannot read.
        if unread := next((part for part in policy.split("-")[1:] if not re.fullmatch(r"[a-z]+\d.*", part)), None):
            raise ValueError(f"{unread!r} has no number")
        made = module.rand_augment_transform(policy, settings)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ParameterError(
            f"augment_options: randaugment={policy!r} is no policy of timm ({error}). Take one such as "
            "'rand-m9-mstd0.5-inc1'."
        ) from error
    for operation in made.ops:
        if operation.name.startswith("Posterize"):
            operation.level_fn = partial(_some_bits, operation.level_fn)
    return made


def _some_bits(level_fn: Callable[..., tuple[int]], level: float, hparams: dict[str, Any]) -> tuple[int]:
    """Bits that posterising keeps: at least one, as Pillow wants, though timm asks for none at full strength."""
    return (max(1, level_fn(level, hparams)[0]),)
