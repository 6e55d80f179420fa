"""What is evaluated: a trained network as a function of images, and its test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from mixwell.core.batch import Batch
from mixwell.data import InMemory, Loader
from mixwell.data.items import labels_of, size_of
from mixwell.data.pictures import Pictures
from mixwell.data.split import stratified
from mixwell.evaluate.metrics import classes_of
from mixwell.probe.capture import logits_of
from mixwell.probe.trace import untouched
from mixwell.train import Trained

__all__ = ["Progress", "Subject", "fraction", "levels_of", "silent"]

Progress = Callable[[int, int], None]
"""Called with what is done and how much there is to do."""


def silent(done: int, total: int) -> None:
    """The progress that nobody sees."""


def levels_of(pixels: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Pixels in [0, 1] as the nearest of 256 levels."""
    return (pixels.clamp(0, 1) * 255).round_().to(torch.uint8)


def fraction(dataset: Dataset[Any], count: int | None, seed: int) -> Dataset[Any]:
    """`count` images of a set that is not augmented, with every class in proportion, in its order; all of them if there
    are no more or for None.
    """
    if count is None or count >= size_of(dataset, "data set"):
        return dataset
    rows = stratified(classes_of(labels_of(dataset)).numpy(), count, seed)[1]
    if isinstance(dataset, InMemory | Pictures):
        return dataset.subset(rows, augment=None)
    return Subset(dataset, rows.tolist())


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network and its test set, as every part of an evaluation looks at them. Computed in fp32.

    Attributes:
        trained: what is evaluated; its predictor is moved to `device`.
        batch_size: images per pass.
        device: where to compute.
        channels_last: whether images and weights lie in channels-last memory.
    """

    trained: Trained
    batch_size: int = 100
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    channels_last: bool = False

    @cached_property
    def net(self) -> nn.Module:
        """The predictor, in its place."""
        net = self.trained.predictor.to(self.device)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    @property
    def layout(self) -> torch.memory_format:
        """How images lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """What the predictor says of normalised images; differentiable in them."""
        images = self.trained.recipe.eval_images(images.to(self.device, memory_format=self.layout))
        return logits_of(self.net(images)).float()

    def logits_of_pixels(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The same of pixels in [0, 1]."""
        return self.logits(self.trained.data.pixels.normalise(pixels))

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of test images, which may be larger than those of the training."""
        channels, height, width = next(iter(self.batches(1, 0))).images.shape[1:]
        return channels, height, width

    @cached_property
    def test(self) -> tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]:
        """Logits and labels of all test images, on the CPU."""
        return self.over(self.trained.data.test)

    def over(
        self, dataset: Dataset[Any], progress: Progress = silent
    ) -> tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]:
        """Logits and labels of all images of a set, on the CPU."""
        loader = self._loader(dataset)
        found, labels = [], []
        with untouched(self.net), torch.no_grad():
            for number, batch in enumerate(loader.epoch(0), 1):
                found.append(self.logits(batch.images).cpu())
                labels.append(batch.labels)
                progress(number, len(loader))
        return torch.cat(found), torch.cat(labels)

    def over_levels(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in 256 levels, on the CPU."""
        with untouched(self.net), torch.no_grad():
            parts = (images[begin : begin + self.batch_size] for begin in range(0, len(images), self.batch_size))
            return torch.cat([self.logits_of_pixels(part.float() / 255).cpu() for part in parts])

    def some(self, count: int | None, seed: int) -> Dataset[Any]:
        """`count` images of the test set with every class in proportion; None for all."""
        return fraction(self.trained.data.test, count, seed)

    def batches(self, count: int | None, seed: int) -> Iterator[Batch]:
        """Batches of it, normalised, in the order of the test set."""
        return self._loader(self.some(count, seed)).epoch(0)

    def levels(self, count: int | None, seed: int) -> tuple[UInt8[Tensor, "n c h w"], Shaped[Tensor, "n ..."]]:
        """Its images in 256 levels, and its labels."""
        pixels, images, labels = self.trained.data.pixels, [], []
        for batch in self.batches(count, seed):
            images.append(levels_of(pixels.raw(batch.images)))
            labels.append(batch.labels)
        return torch.cat(images), torch.cat(labels)

    def _loader(self, dataset: Dataset[Any]) -> Loader:
        return Loader(dataset, self.batch_size, pixels=self.trained.data.pixels, shuffle=False)
