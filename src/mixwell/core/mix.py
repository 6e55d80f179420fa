"""Who mixes with whom, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mixwell.core.batch import Batch
from mixwell.core.targets import Targets, summed

__all__ = ["Mix", "Partners", "layout_of", "onto", "with_rest"]


def onto(array: np.ndarray, like: Tensor) -> Tensor:
    """What was drawn on the host, on the device of `like`; shares the array's memory if that is the host."""
    tensor = torch.from_numpy(array)
    return tensor if like.is_cpu else tensor.to(like.device, non_blocking=True)


def layout_of(images: Shaped[Tensor, "b ..."]) -> torch.memory_format:
    """The memory format of the images: channels_last, or contiguous."""
    if images.ndim != 4 or images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def with_rest(keep: Float[Tensor, "r 1 h w"]) -> Float[Tensor, "r 2 h w"]:
    """The masks of a pair: what shows the own row, and the rest."""
    return torch.cat((keep, 1 - keep), 1)


@dataclass(eq=False)
class Partners:
    """The rows that each row of a batch is mixed with.

    Attributes:
        sources: (R, 1 + P) rows of the batch, on the images' device: each row itself, then its partners; P = 1 for
            pairs.
        pool: the batch's labels, which the sources of a mix point into.
    """

    sources: Int[Tensor, "r k"]
    pool: Shaped[Tensor, "b ..."]

    @classmethod
    def at(cls, index: Int[Tensor, "r p"], pool: Shaped[Tensor, "b ..."]) -> Partners:
        """Row i's partners are the rows `index[i]`."""
        own = torch.arange(index.shape[0], device=index.device)
        return cls(torch.cat((own[:, None], index), 1), pool)

    @classmethod
    def alone(cls, batch: Batch) -> Partners:
        """No row has a partner."""
        return cls(torch.arange(len(batch), device=batch.images.device)[:, None], batch.labels)

    @property
    def index(self) -> Int[Tensor, "r p"]:
        """The partners alone."""
        return self.sources[:, 1:]

    def column(self, which: int = 0) -> Int[Tensor, " r"]:
        """One partner of each row."""
        return self.sources.select(1, which + 1)

    def of(self, x: Float[Tensor, "b ..."], which: int = 0) -> Float[Tensor, "r ..."]:
        """Each row's partner in any tensor aligned with the batch (a gathered copy in the same memory layout)."""
        index = self.column(which)
        if layout_of(x) is torch.contiguous_format:
            return x.index_select(0, index)
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)

    def under(
        self, x: Float[Tensor, "b c h w"], keep: Float[Tensor, "#b 1 h w"], which: int = 0
    ) -> Float[Tensor, "b c h w"]:
        """Each row where `keep` is 1, its partner where it is 0, and their weighted mean in between.

        With weights 0 and 1 lerp copies exactly, and is several times as fast as `where` with a mask that broadcasts.
        """
        return self.of(x, which).lerp_(x, keep.to(x.dtype))

    def shares(self, own: Float[Tensor, " #r"]) -> Float[Tensor, "r 2"]:
        """(own, 1 - own) for each row of a pair, in fp32 on the rows' device."""
        rows = self.sources.shape[0]
        if own.requires_grad or not own.is_cpu:
            return torch.stack((own, 1 - own), 1).to(self.sources.device, torch.float32).expand(rows, 2)
        values, shares = own.numpy(), np.empty((rows, 2), np.float32)  # faster than as tensors
        shares[:, 0] = values
        shares[:, 1] = 1 - values
        return onto(shares, self.sources)


@dataclass(eq=False)
class Mix:
    """R mixed rows and what they are made of.

    Attributes:
        images: (R, ...) mixed rows, at the place where they were mixed (pixels or a hidden map).
        sources: (R, K) rows of the pool.
        weights: (R, K) label shares: λ weights the image's own row wherever there is one.
        pool: (P, ...) labels.
        apply: mixes any tensor aligned with the images, at any resolution that the method's rule allows, exactly as the
            images were mixed.
        lam: the drawn λ, before anything was realised; (R,) or (1,) if one was drawn for the batch.
        area: (R,) realised share of the own row in pixels, for mask-like blends.
        make_masks: builds the mix's `masks`; None for blends without masks.
        make_origins: builds the mix's `origins`; None where every pixel stays in its place.
        valid: (R,) rows that may be trained on; None means all.
    """

    images: Float[Tensor, "r ..."]
    sources: Int[Tensor, "r k"]
    weights: Float[Tensor, "r k"]
    pool: Shaped[Tensor, "p ..."]
    apply: Callable[[Tensor], Tensor]
    lam: Float[Tensor, " #r"] | None = None
    area: Float[Tensor, " #r"] | None = None
    make_masks: Callable[[Mix], Float[Tensor, "#r k #h #w"]] | None = None
    make_origins: Callable[[Mix], Float[Tensor, "#r k #h #w"]] | None = None
    valid: Shaped[Tensor, " r"] | None = None

    @classmethod
    def of_pair(
        cls,
        images: Float[Tensor, "r ..."],
        partners: Partners,
        own: Float[Tensor, " #r"],
        apply: Callable[[Tensor], Tensor],
        **kept: Any,
    ) -> Mix:
        """A mix of each row with its partner, in which the row itself has label share `own`."""
        return cls(images, partners.sources, partners.shares(own), partners.pool, apply, **kept)

    @classmethod
    def plain(cls, images: Float[Tensor, "b ..."], labels: Shaped[Tensor, "b ..."]) -> Mix:
        """Nothing mixed: every row is itself with weight 1."""
        targets = Targets.of(labels)
        return cls(images, targets.sources, targets.weights, labels, lambda x: x)

    @cached_property
    def masks(self) -> Float[Tensor, "#r k #h #w"] | None:
        """What each source contributes to each pixel, broadcastable to (R, K, H, W); None if the blend has no masks."""
        return None if self.make_masks is None else self.make_masks(self)

    @cached_property
    def origins(self) -> Float[Tensor, "#r k #h #w"] | None:
        """What of each pixel of a source's own image the mix shows, in the place that it has in the source.

        Like `masks` where pixels stay in their places; otherwise another thing: all of an image that is pasted smaller.
        Broadcastable to (R, K, H, W); None if the blend has no masks.
        """
        return self.masks if self.make_origins is None else self.make_origins(self)

    def shown(self, size: tuple[int, ...]) -> Float[Tensor, "r k h w"]:
        """`masks` for every row and of full size; the label shares everywhere where the blend has none."""
        masks = self.weights[:, :, None, None] if self.masks is None else self.masks
        return masks.expand(*self.weights.shape, *size)

    def share(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "r ..."]:
        """Mix what has no pixel grid (class tokens, embeddings): the sources' sum, weighted by the label shares."""
        return summed(x, self.sources, self.weights)

    def mean(self, rows: Float[Tensor, " r"]) -> Float[Tensor, ""]:
        """The mean of a value per row over the valid rows; 0 if there is none."""
        if self.valid is None:
            return rows.mean()
        return torch.where(self.valid, rows, 0).sum() / self.valid.sum().clamp_min(1)

    def targets(self, weights: Float[Tensor, "r k"] | None = None) -> Targets:
        """The labels of the mix, with its own shares or with `weights`."""
        return Targets(self.pool, self.sources, self.weights if weights is None else weights)
