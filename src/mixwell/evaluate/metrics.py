"""Figures of logits and labels, all computed in fp64.

Labels are (N,) class ids or (N, K) rows; where a class is needed, the largest entry of a row counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mixwell.core.errors import ParameterError

__all__ = ["COLDEST", "HOTTEST", "accuracy", "brier", "classes_of", "nll", "temperature"]

COLDEST, HOTTEST = 0.01, 100.0
"""Between which temperatures are sought."""


def classes_of(labels: Shaped[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """The class id of each label."""
    return labels.argmax(1) if labels.ndim == 2 else labels


def accuracy(logits: Float[Tensor, "n k"], labels: Shaped[Tensor, "n ..."], *, top: int = 1) -> float:
    """Share of the images whose class is among the `top` largest logits (all of them if there are fewer classes)."""
    guesses = logits.topk(min(top, logits.shape[1]), 1).indices
    return float((guesses == classes_of(labels)[:, None]).any(1).double().mean())


def nll(logits: Float[Tensor, "n k"], labels: Shaped[Tensor, "n ..."]) -> float:
    """Mean cross-entropy in nats."""
    return float(F.cross_entropy(logits.double(), _target(labels)))


def brier(logits: Float[Tensor, "n k"], labels: Shaped[Tensor, "n ..."]) -> float:
    """Mean over the images of the squared distance of softmax and label, summed over the classes; in [0, 2]."""
    rows = labels.double() if labels.ndim == 2 else F.one_hot(labels, logits.shape[1]).double()
    return float((logits.double().softmax(1) - rows).square().sum(1).mean())


def temperature(logits: Float[Tensor, "n k"], labels: Shaped[Tensor, "n ..."]) -> float:
    """The T in [0.01, 100] whose softmax(logits / T) has the smallest cross-entropy.

    Cross-entropy is convex in 1/T, so that its slope has at most one zero; an end of the range is returned where it has
    none inside, as for networks that are always right or never.

    Raises:
        ParameterError: there are no images.
    """
    if not len(logits):
        raise ParameterError("A temperature is fitted on at least one image, got none. Give more test images.")
    from scipy.optimize import brentq  # takes seconds to import

    scores = logits.double()
    rows = labels.double() if labels.ndim == 2 else F.one_hot(labels, scores.shape[1]).double()
    wanted = float((rows * scores).sum(1).mean())

    def slope(inverse: float) -> float:
        return float(((scores * inverse).softmax(1) * scores).sum(1).mean()) - wanted

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return 1 / float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


def _target(labels: Tensor) -> Tensor:
    return labels.double() if labels.ndim == 2 else labels.to(torch.int64)
