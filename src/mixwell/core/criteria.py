"""The criteria that any recipe may use; methods with a criterion of their own define it in their file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.axes import Criterion, Need
from mixwell.core.errors import BatchError, ParameterError, closest
from mixwell.core.targets import Targets

__all__ = [
    "BinaryCrossEntropy",
    "PerSource",
    "SoftCrossEntropy",
    "SoftmaxBinaryCrossEntropy",
    "SquaredError",
    "criterion_of",
    "softmax_bce",
]


class SoftCrossEntropy(Criterion):
    """Cross-entropy against the label shares: Σ_k w_k · CE(z, y_k).

    With class weights, a row counts in the mean as the weight of its classes does, so that unmixed class ids give
    exactly `torch.nn.CrossEntropyLoss(weight=...)`.
    """

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        log_p = F.log_softmax(logits.float(), 1)
        scaled = log_p if self.class_weights is None else log_p * self.class_weights.to(log_p.device)
        if targets.hard and targets.soft is None:
            rows = -(targets.weights * scaled.gather(1, targets.classes)).sum(1)
            if self.smoothing:
                rows = rows * (1 - self.smoothing) - self.smoothing * targets.total * scaled.mean(1)
            return rows
        wanted = targets.dense(smoothing=self.smoothing)
        if wanted.shape != logits.shape:
            raise BatchError(
                f"label rows must have the shape of the logits, {tuple(logits.shape)}, got {tuple(wanted.shape)}. "
                "If they are class ids, use labels.long()."
            )
        return -(wanted * scaled).sum(1)

    def norms(self, targets: Targets) -> Float[Tensor, " r"] | None:
        if self.class_weights is None:
            return None
        if targets.hard and targets.soft is None:
            weights = self.class_weights.to(targets.weights.device)
            weighted, total = (targets.weights * weights[targets.classes]).sum(1), targets.total
        else:
            dense = targets.dense()
            weighted, total = dense @ self.class_weights.to(dense.device, dense.dtype), dense.sum(1)
        return weighted / total.clamp_min(torch.finfo(total.dtype).tiny)


class BinaryCrossEntropy(Criterion):
    """Sigmoid cross-entropy of every class: Σ_k w_k · BCE(z, y_k), the mean over classes; also for multi-label."""

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        wanted = targets.dense(logits.shape[1], self.smoothing).to(torch.float32)
        scores = logits.float()
        total = 1.0 if targets.soft is not None else targets.total[:, None]
        loss = F.softplus(scores) * total - scores * wanted
        return (loss if self.class_weights is None else loss * self.class_weights.to(loss.device)).mean(1)

    def probabilities(self, logits: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


def softmax_bce(logits: Float[Tensor, "r c"], wanted: Float[Tensor, "r c"]) -> Float[Tensor, " r"]:
    """Binary cross-entropy of softmax probabilities, the mean over classes, each logarithm at least -100.

    The loss of the official code of Manifold Mixup and Puzzle Mix (CIFAR). Runs in fp32 with autocast off.
    """
    with torch.autocast(logits.device.type, enabled=False):
        p = F.softmax(logits.float(), 1)
        return F.binary_cross_entropy(p, wanted.float(), reduction="none").mean(1)


class SoftmaxBinaryCrossEntropy(Criterion):
    """`softmax_bce` against the label shares."""

    needs = frozenset({Need.SIMPLEX})
    weightable = False

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        return softmax_bce(logits, targets.dense(logits.shape[1], self.smoothing))


class SquaredError(Criterion):
    """Squared error of the outputs from the share-weighted mean of numeric targets, for regression.

    Targets are (B,) or (B, D) floating rows; the mean over D.
    """

    needs = frozenset({Need.SIMPLEX})
    smoothable = weightable = False

    def rows(self, logits: Float[Tensor, "r ..."], targets: Targets) -> Float[Tensor, " r"]:
        if targets.hard:
            raise BatchError(
                f"criterion='mse' is for numbers, got class ids ({targets.pool.dtype}). Give floating targets (B,) or "
                "(B, D), or take cross-entropy."
            )
        wanted = targets.dense().float()
        if logits.numel() != wanted.numel():
            raise BatchError(
                f"The outputs must have the shape of the targets, {tuple(wanted.shape)}, got {tuple(logits.shape)}."
            )
        return (logits.float().view_as(wanted) - wanted).square().reshape(len(wanted), -1).mean(1)


class PerSource(Criterion):
    """A loss of the user's own: `loss(outputs, labels) -> (R,)` per source, weighted by the label shares."""

    smoothable = weightable = False

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def rows(self, logits: Float[Tensor, "r ..."], targets: Targets) -> Float[Tensor, " r"]:
        if targets.soft is not None:
            return self._of(logits, targets.soft)
        columns = [
            targets.weights[:, k] * self._of(logits, targets.pool[targets.sources[:, k]])
            for k in range(targets.sources.shape[1])
        ]
        return torch.stack(columns).sum(0)

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        rows = self.loss(logits, labels)
        if rows.shape != logits.shape[:1]:
            raise BatchError(
                f"criterion: expected one loss per row, shape {tuple(logits.shape[:1])}, got {tuple(rows.shape)}. "
                "Use reduction='none' (and average over classes, if the loss has them)."
            )
        return rows


_NAMED: dict[str, type[Criterion]] = {
    "cross_entropy": SoftCrossEntropy,
    "bce": BinaryCrossEntropy,
    "softmax_bce": SoftmaxBinaryCrossEntropy,
    "mse": SquaredError,
}


def criterion_of(value: Any) -> Criterion:
    """A criterion by name ("cross_entropy", "bce", "softmax_bce", "mse"), a Criterion, or a callable `(outputs, labels)
    -> (R,)`.

    Raises:
        ParameterError: anything else.
    """
    if isinstance(value, Criterion):
        return value
    if isinstance(value, str):
        if value not in _NAMED:
            raise ParameterError(f"criterion {value!r} is not known; {closest(value, _NAMED)}")
        return _NAMED[value]()
    if isinstance(value, nn.Module) or callable(value):
        return PerSource(value)
    raise ParameterError(f"criterion must be one of {', '.join(_NAMED)}, or a callable, got {value!r}.")
