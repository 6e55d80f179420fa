"""How far confidence can be trusted: accuracy by confidence.

DeGroot and Fienberg, "The Comparison and Evaluation of Forecasters", 1983; as a measure of networks: Guo, Pleiss, Sun,
Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from mixwell.data import Loader
from mixwell.probe.capture import logits_of
from mixwell.report.runs import Trained

__all__ = ["Reliability", "reliability"]


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width over confidence in [0, 1].

    Attributes:
        counts: images per bin.
        confidences, accuracies: their means, 0 in empty bins.
    """

    counts: tuple[int, ...]
    confidences: tuple[float, ...]
    accuracies: tuple[float, ...]

    @classmethod
    def of(cls, confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], bins: int = 15) -> Reliability:
        """Sort images into bins: each holds its lower edge, the last one also 1."""
        edges = np.linspace(0, 1, bins + 1)
        place = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
        counts = np.bincount(place, minlength=bins)
        sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, correct))
        confidences, accuracies = (total / np.maximum(counts, 1) for total in sums)
        return cls(tuple(counts.tolist()), tuple(confidences.tolist()), tuple(accuracies.tolist()))

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy over the images."""
        gaps = np.abs(np.subtract(self.confidences, self.accuracies))
        return float(np.average(gaps, weights=self.counts))


def reliability(of: Trained, *, batch_size: int = 500) -> Reliability:
    """The reliability of a trained network on its test set."""
    confidences, rights = [], []
    with torch.no_grad():
        for batch in Loader(of.data.test, batch_size, pixels=of.data.pixels, shuffle=False).epoch(0):
            logits = logits_of(of.predictor(of.recipe.eval_images(batch.images)))
            confidence, guess = logits.softmax(1).max(1)
            classes = batch.labels.argmax(1) if batch.labels.ndim == 2 else batch.labels
            confidences.append(confidence)
            rights.append(guess == classes)
    return Reliability.of(torch.cat(confidences).double().numpy(), torch.cat(rights).numpy())
