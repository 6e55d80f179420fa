"""What the truth about a mixed sample is.

Targets stay sparse: rows of a pool of labels, and the weight of each. Integer class ids stay integers, nothing
renormalises the weights, and any loss that takes a label can be weighted with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mixwell.core.errors import BatchError

__all__ = ["Targets", "summed"]


def summed(
    x: Float[Tensor, "p ..."], sources: Int[Tensor, "r k"], weights: Float[Tensor, "r k"]
) -> Float[Tensor, "r ..."]:
    """Σ_k weights_rk · x[sources_rk], in the dtype of x; without a copy per row where all rows have equal sources."""
    if sources.stride(0) == 0:
        return torch.einsum("rk,k...->r...", weights.to(x.dtype), x[sources[0]])
    return torch.einsum("rk,rk...->r...", weights.to(x.dtype), x[sources])


@dataclass(eq=False)
class Targets:
    """The labels of R mixed rows, each made of K sources.

    A function of torch that is given Targets where it expects a tensor gets `dense()`, so `F.cross_entropy(logits,
    targets)` and `nn.BCEWithLogitsLoss()(logits, targets)` work as they stand.

    Attributes:
        pool: (P,) integer class ids, or (P, C) floating one-hot, soft or multi-hot rows.
        sources: (R, K) rows of the pool.
        weights: (R, K) label share of each source; need not sum to 1.
        num_classes: C, or None if the pool is dense or the task has no classes.
        soft: (R, C) rows that a method made itself; they replace the sparse form in `dense`.
        tokens: (R, N, C) targets per token, where a method makes them.
    """

    pool: Shaped[Tensor, "p ..."]
    sources: Int[Tensor, "r k"]
    weights: Float[Tensor, "r k"]
    num_classes: int | None = None
    soft: Float[Tensor, "r c"] | None = None
    tokens: Float[Tensor, "r n c"] | None = None

    @classmethod
    def of(cls, labels: Shaped[Tensor, "b ..."], num_classes: int | None = None) -> Targets:
        """Plain targets: every row is its own source with weight 1."""
        rows = torch.arange(labels.shape[0], device=labels.device)[:, None]
        return cls(labels, rows, torch.ones(rows.shape, device=labels.device), num_classes)

    def __len__(self) -> int:
        return int(self.sources.shape[0])

    @property
    def hard(self) -> bool:
        """Whether the pool holds class ids."""
        return not self.pool.is_floating_point()

    @property
    def classes(self) -> Int[Tensor, "r k"]:
        """The class id of each source.

        Raises:
            BatchError: the labels are soft or multi-hot rows, which name no single class.
        """
        if not self.hard:
            raise BatchError(
                f"This recipe needs one class id per image, got label rows of shape {tuple(self.pool.shape)}. "
                "Give integer class ids, or take a recipe whose label and loss accept soft labels."
            )
        return self.pool.take(self.sources).long()

    def dense(self, num_classes: int | None = None, smoothing: float = 0.0) -> Float[Tensor, "r c"]:
        """The (R, C) matrix of label shares; `smoothing` ε gives each source (1 - ε)·label + ε/C.

        Raises:
            BatchError: the number of classes is not known.
        """
        if self.soft is not None:
            rows = self.soft
        elif self.hard:
            count = num_classes or self.num_classes
            if count is None:
                raise BatchError(
                    "Targets.dense needs the number of classes: give num_classes here or to mixwell.create."
                )
            rows = self.weights.new_zeros(len(self), count).scatter_add_(1, self.classes, self.weights)
        else:
            rows = summed(self.pool, self.sources, self.weights)
        if smoothing:
            rows = rows * (1 - smoothing) + smoothing / rows.shape[-1] * self.total[:, None].to(rows.dtype)
        return rows

    @property
    def total(self) -> Float[Tensor, " r"]:
        """The sum of each row's label shares."""
        return self.weights.sum(1)

    def accuracy(self, logits: Float[Tensor, "r c"]) -> Float[Tensor, ""]:
        """Label-weighted accuracy: the mean share of the sources whose class is the arg-max.

        For class ids only; for label rows, the share that the row gives to the arg-max.
        """
        guess = logits.argmax(1)
        if self.hard and self.soft is None:
            return (self.weights * (self.pool[self.sources] == guess[:, None])).sum(1).mean()
        return self.dense().gather(1, guess[:, None]).mean()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Targets:
        """The same targets on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """The same targets in pinned host memory (called by DataLoader(pin_memory=True))."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        return replace(
            self,
            pool=change(self.pool),
            sources=change(self.sources),
            weights=change(self.weights),
            soft=None if self.soft is None else change(self.soft),
            tokens=None if self.tokens is None else change(self.tokens),
        )

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        def plain(value: Any) -> Any:
            return value.dense() if isinstance(value, Targets) else value

        return func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})
