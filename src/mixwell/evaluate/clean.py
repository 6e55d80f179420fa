"""How good and how well calibrated a network is on the test images as they are, and on corrupted ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mixwell.data.streams import Purpose, permutation
from mixwell.evaluate.metrics import accuracy, brier, nll, temperature
from mixwell.evaluate.reliability import Reliability
from mixwell.evaluate.subject import Progress, Subject, silent

__all__ = ["clean_figures", "corruption_errors", "cross_fitted"]


def cross_fitted(
    logits: Float[Tensor, "n k"], labels: Shaped[Tensor, "n ..."], seed: int = 0
) -> tuple[Float[Tensor, "n k"], float]:
    """Logits divided by a temperature that was fitted on the other half of them, and the geometric mean of both
    temperatures.

    Args:
        logits: (N, K), N ≥ 2.
        labels: (N,) class ids, or (N, K) rows.
        seed: of the halves.
    """
    order = torch.from_numpy(permutation(len(logits), seed, 0, Purpose.SPLIT))
    halves = order.tensor_split(2)
    scaled, found = logits.double(), []
    for own, other in (halves, halves[::-1]):
        found.append(temperature(logits[other], labels[other]))
        scaled[own] = scaled[own] / found[-1]
    return scaled, float(np.sqrt(found[0] * found[1]))


def clean_figures(
    subject: Subject, *, seed: int = 0, progress: Progress = silent
) -> tuple[dict[str, float], Reliability]:
    """Accuracy and calibration on the test set.

    The temperature is fitted on held-out images of the training set, if there are any, else on the half of the test set
    to which it is not applied; where nothing was held out, it is the geometric mean of the two.

    Args:
        subject: what is evaluated.
        seed: of the halves.
        progress: called with the passes done and to do.
    """
    (logits, labels), kept = subject.test, subject.trained.held_out
    if kept is None:
        scaled, fitted = cross_fitted(logits, labels, seed)
    else:
        fitted = temperature(*subject.over(kept))
        scaled = logits.double() / fitted
    bins = Reliability.of_logits(logits, labels)
    progress(1, 1)
    return {
        "accuracy": accuracy(logits, labels),
        "top5": accuracy(logits, labels, top=5),
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": bins.ece,
        "adaptive_ece": Reliability.of_logits(logits, labels, equal_counts=True).ece,
        "overconfidence": bins.overconfidence,
        "confidence": float(logits.double().softmax(1).amax(1).mean()),
        "temperature": fitted,
        "ece_at_temperature": Reliability.of_logits(scaled, labels).ece,
    }, bins


def corruption_errors(
    subject: Subject, *, images: int | None = None, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """The error on corrupted test images: its mean, and of each corruption at the severities 1 to 5.

    Args:
        subject: what is evaluated.
        images: how many test images, every class in proportion; None for all.
        seed: of their choice and of the corruptions.
        progress: called with the corruptions done and to do.
    """
    from mixwell.evaluate.corruptions import CORRUPTIONS, corrupted  # loads image libraries

    levels, labels = subject.levels(images, seed)
    errors: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    severities = range(1, 6)
    for number, name in enumerate(CORRUPTIONS):
        for severity in severities:
            found = subject.over_levels(corrupted(levels, name, severity, seed=seed))
            errors[name].append(1 - accuracy(found, labels))
            progress(number * len(severities) + severity, len(CORRUPTIONS) * len(severities))
    return {"error": float(np.mean(list(errors.values()))), "errors": errors}
