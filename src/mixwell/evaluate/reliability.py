"""How far confidence can be trusted: accuracy by confidence.

DeGroot and Fienberg, "The Comparison and Evaluation of Forecasters", 1983; as a measure of networks: Guo, Pleiss, Sun,
Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mixwell.evaluate.metrics import classes_of
from mixwell.evaluate.subject import Subject
from mixwell.train import Trained

__all__ = ["BINS", "Reliability", "reliability"]

BINS = 15
"""The usual number in the calibration literature since Guo et al."""


@dataclass(frozen=True)
class Reliability:
    """Bins over confidence.

    Attributes:
        counts: images per bin.
        confidences, accuracies: their means, 0 in empty bins.
    """

    counts: tuple[int, ...]
    confidences: tuple[float, ...]
    accuracies: tuple[float, ...]

    @classmethod
    def of(cls, confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], bins: int = BINS) -> Reliability:
        """Bins of equal width over [0, 1]: each holds its lower edge, the last one also 1."""
        edges = np.linspace(0, 1, bins + 1)
        return cls._of(np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1), confidence, correct, bins)

    @classmethod
    def of_equal_counts(
        cls, confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], bins: int = BINS
    ) -> Reliability:
        """Bins of equal counts (the first ones hold one more where they do not come out even), by rising confidence.

        Images of one confidence on both sides of an edge are taken in their own order.
        """
        place = np.empty(len(confidence), np.int64)
        for number, rows in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
            place[rows] = number
        return cls._of(place, confidence, correct, bins)

    @classmethod
    def of_logits(cls, logits: Float[Tensor, "n k"], labels: Tensor, *, equal_counts: bool = False) -> Reliability:
        """Of the largest softmax value, in fp64.

        Args:
            logits: (N, K).
            labels: (N,) class ids, or (N, K) rows, of which the largest entry counts.
            equal_counts: bins of equal counts in place of equal widths.
        """
        confidence, guess = logits.double().softmax(1).max(1)
        correct = (guess == classes_of(labels)).cpu().numpy()
        return (cls.of_equal_counts if equal_counts else cls.of)(confidence.cpu().numpy(), correct)

    @classmethod
    def _of(cls, place: Int[np.ndarray, " n"], confidence: np.ndarray, correct: np.ndarray, bins: int) -> Reliability:
        counts = np.bincount(place, minlength=bins)
        sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, correct))
        confidences, accuracies = (total / np.maximum(counts, 1) for total in sums)
        return cls(tuple(counts.tolist()), tuple(confidences.tolist()), tuple(accuracies.tolist()))

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy over the images."""
        gaps = np.abs(np.subtract(self.confidences, self.accuracies))
        return float(np.average(gaps, weights=self.counts))

    @property
    def overconfidence(self) -> float:
        """Overconfidence error (Thulasidasan et al., NeurIPS 2019): the mean over the images of confidence times the
        part of it that is beyond accuracy.
        """
        excess = np.maximum(np.subtract(self.confidences, self.accuracies), 0)
        return float(np.average(np.multiply(self.confidences, excess), weights=self.counts))


def reliability(of: Trained, *, batch_size: int = 500) -> Reliability:
    """The reliability of a trained network on its test set."""
    return Reliability.of_logits(*Subject(of, batch_size=batch_size, device=torch.device("cpu")).test)
