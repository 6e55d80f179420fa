"""What comes from the loader: images, labels, and whatever is aligned with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mixwell.core.errors import BatchError

__all__ = ["Batch", "Pixels"]


@dataclass(frozen=True)
class Pixels:
    """How images were normalised: `(pixel - mean) / std` per channel, with pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise BatchError(
                f"Pixels: mean and std must have one value per channel, got {len(self.mean)} and {len(self.std)} "
                "values."
            )
        if any(not s > 0 for s in self.std):
            raise BatchError(f"Pixels: every std must be > 0, got {self.std}.")

    def _shaped(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        if like.ndim < 2 or (like.shape[1] not in (len(values), 1) and len(values) != 1):
            raise BatchError(
                f"Pixels: normalisation has {len(values)} channels, but the images have shape {tuple(like.shape)}. "
                "Give mean and std per channel of axis 1."
            )
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *(1,) * (like.ndim - 2))

    def normalise(self, raw: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        """Pixels in [0, 1] → normalised images."""
        return (raw - self._shaped(self.mean, raw)) / self._shaped(self.std, raw)

    def raw(self, images: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        """Normalised images → pixels in [0, 1]."""
        return images * self._shaped(self.std, images) + self._shaped(self.mean, images)


@dataclass(eq=False)
class Batch:
    """One batch of a classification task.

    Attributes:
        images: (B, C, H, W) floating, normalised; any `(B, ...)` for recipes that need no pixel grid.
        labels: (B,) integer class ids, or (B, C) floating one-hot, soft or multi-hot rows.
        pixels: how the images were normalised, for pieces that need raw pixels; None if unknown.
        index: (B,) position of each row in its data set, or None.
        extras: per-row tensors aligned with the images (domain ids, label maps, crop geometry, ...).
        checked: whether the labels' range was already checked on the host.
    """

    images: Float[Tensor, "b ..."]
    labels: Shaped[Tensor, "b ..."]
    pixels: Pixels | None = None
    index: Int[Tensor, " b"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    checked: bool = False

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @cached_property
    def raw(self) -> Float[Tensor, "b ..."]:
        """The images' pixels in [0, 1].

        Raises:
            BatchError: the normalisation is not known.
        """
        if self.pixels is None:
            raise BatchError(
                "A piece of this recipe needs raw pixels, but the batch does not say how its images were normalised. "
                "Expected `pixels=Pixels(mean=..., std=...)` in the Batch or in mixwell.create(..., pixels=...)."
            )
        return self.pixels.raw(self.images)

    def at(self, rows: Int[Tensor, " n"]) -> Batch:
        """The batch of these rows alone."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            index=None if self.index is None else self.index[rows],
            extras={name: value[rows] for name, value in self.extras.items()},
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False, channels_last: bool = False) -> Batch:
        """The same batch on `device` (images in channels_last memory if asked)."""

        def move(value: Any, **options: Any) -> Any:
            return value if value is None else value.to(device, non_blocking=non_blocking, **options)

        layout = {"memory_format": torch.channels_last} if channels_last and self.images.ndim == 4 else {}
        return replace(
            self,
            images=move(self.images, **layout),
            labels=move(self.labels),
            index=move(self.index),
            extras={name: move(value) for name, value in self.extras.items()},
        )

    def pin_memory(self) -> Batch:
        """The same batch in pinned host memory (called by DataLoader(pin_memory=True))."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            index=None if self.index is None else self.index.pin_memory(),
            extras={name: value.pin_memory() for name, value in self.extras.items()},
        )
