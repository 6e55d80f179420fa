"""What a report measures: each figure's name, unit and direction, and where a run keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from mixwell.train import Run

__all__ = ["GROUPS", "METRICS", "RELATIVE_EPOCH", "Estimate", "Group", "Metric", "quantile"]


@cache
def quantile(count: int) -> float:
    """How many standard errors the 95% interval of a mean of `count` values extends to each side, by Student's t."""
    return float(student.ppf(0.975, count - 1))


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        margin: half the width of the 95% interval of the mean, by Student's t; None for a single seed.
    """

    mean: float
    margin: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per seed."""
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean, None)
        return cls(mean, float(quantile(count) * np.std(values, ddof=1) / np.sqrt(count)))

    @property
    def certain(self) -> bool:
        """Whether the interval is there and excludes 0, so that the sign of a difference is not chance."""
        return self.margin is not None and abs(self.mean) > self.margin


@dataclass(frozen=True)
class Group:
    """Columns that are shown and hidden together.

    Attributes:
        shown: whether they are shown at first.
    """

    key: str
    title: str
    shown: bool = True


@dataclass(frozen=True)
class Metric:
    """A figure of a run.

    Attributes:
        key: its name in files.
        name: what it is called by itself.
        title: its heading below that of its group.
        group: key of its `Group`.
        better: which values are; "" if neither.
        unit: "%" for shares in [0, 1], which are shown in percent.
        digits: after the point, as shown.
        hint: what it is, in a sentence.
        path: where it is, below "result" (run.json's) or "evaluation"; empty for what only several runs tell.
        main: whether it counts in the mean rank and in the comparisons with `none`.
    """

    key: str
    name: str
    title: str
    group: str
    better: Literal["higher", "lower", ""]
    unit: Literal["%", "×", "nats", "s", "ms", "MB", ""]
    digits: int
    hint: str
    path: tuple[str, ...]
    main: bool = False

    def of(self, run: Run) -> float | None:
        """The run's figure, or None where the run lacks it."""
        if not self.path:
            return None
        found: Any = {"result": run.facts["result"], "evaluation": run.evaluation or {}}
        for name in self.path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return None if found is None else float(found)

    def sign(self, value: float) -> int:
        """1 where a larger value is better and this is positive, and so on; 0 for neither."""
        return ((value > 0) - (value < 0)) * {"higher": 1, "lower": -1, "": 0}[self.better]

    @property
    def scale(self) -> float:
        """By what a value is multiplied before it is shown."""
        return {"%": 100.0, "ms": 1e3, "MB": 1e-6}.get(self.unit, 1.0)

    def text(self, value: float, *, signed: bool = False) -> str:
        """The value as it is shown, without its unit."""
        if not math.isfinite(value):
            return "not finite"
        text = f"{value * self.scale:{'+' if signed else ''}.{self.digits}f}"
        return text.replace("-", "−")

    def interval(self, estimate: Estimate, *, signed: bool = False) -> str:
        """Mean ± margin as they are shown, without the unit."""
        text = self.text(estimate.mean, signed=signed)
        return text if estimate.margin is None else f"{text} ± {self.text(estimate.margin)}"


GROUPS = (
    Group("accuracy", "Accuracy"),
    Group("calibration", "Calibration"),
    Group("more", "Further figures", shown=False),
    Group("corruptions", "Corruptions"),
    Group("attacks", "Attacks"),
    Group("ood", "Unknown images"),
    Group("fpr", "Unknown images, FPR", shown=False),
    Group("occlusion", "Occlusion"),
    Group("intrusion", "Intrusion"),
    Group("cost", "Cost"),
    Group("time", "Training time", shown=False),
)

RELATIVE_EPOCH = "relative_epoch"
"""Key of the training time over that of `none`, which a run alone does not tell."""


def _under(*path: str) -> tuple[str, ...]:
    return ("evaluation", *path)


METRICS = (
    Metric("accuracy", "Accuracy", "Accuracy", "accuracy", "higher", "%", 2,
           "On the test set after the last epoch.",
           ("result", "accuracy"), main=True),
    Metric("nll", "NLL", "NLL", "calibration", "lower", "nats", 3,
           "Cross-entropy on the test set, in nats.",
           ("result", "nll"), main=True),
    Metric("ece", "ECE", "ECE", "calibration", "lower", "%", 2,
           "Expected calibration error, 15 bins of equal width.",
           ("result", "ece"), main=True),
    Metric("top5", "Top-5 accuracy", "Top 5", "more", "higher", "%", 2,
           "Share of test images whose class is among the five likeliest.",
           _under("clean", "top5")),
    Metric("brier", "Brier score", "Brier", "more", "lower", "", 3,
           "Squared distance of the probabilities from the truth.",
           _under("clean", "brier")),
    Metric("adaptive_ece", "Adaptive ECE", "Adaptive ECE", "more", "lower", "%", 2,
           "Expected calibration error, bins of equal counts.",
           _under("clean", "adaptive_ece")),
    Metric("overconfidence", "Overconfidence", "Overconfidence", "more", "lower", "%", 2,
           "What confidence exceeds accuracy by, over bins.",
           _under("clean", "overconfidence")),
    Metric("temperature", "Temperature", "Temperature", "more", "", "", 2,
           "By what the logits must be divided for the best NLL; above 1 means too much confidence.",
           _under("clean", "temperature")),
    Metric("ece_at_temperature", "ECE at the temperature", "ECE at it", "more", "lower", "%", 2,
           "ECE after the logits were divided by it.",
           _under("clean", "ece_at_temperature")),
    Metric("corruption_error", "Corruption error", "Error", "corruptions", "lower", "%", 1,
           "Share of corrupted test images that are classified wrongly, mean over corruptions and severities.",
           _under("corruptions", "error"), main=True),
    Metric("fgsm", "Accuracy under FGSM", "FGSM", "attacks", "higher", "%", 1,
           "Accuracy on test images attacked by FGSM.",
           _under("attacks", "fgsm")),
    Metric("pgd10", "Accuracy under PGD-10", "PGD-10", "attacks", "higher", "%", 1,
           "Accuracy on test images attacked by 10 steps of PGD.",
           _under("attacks", "pgd10")),
    Metric("pgd20_small", "Accuracy under PGD-20", "PGD-20", "attacks", "higher", "%", 1,
           "Accuracy on test images attacked by 20 steps of PGD inside a smaller ball.",
           _under("attacks", "pgd20_small"), main=True),
    Metric("ood_msp", "OOD AUROC", "AUROC", "ood", "higher", "%", 1,
           "How well the largest probability tells test images from images of other data sets; 50 is chance.",
           _under("ood", "mean", "msp", "auroc"), main=True),
    Metric("ood_energy", "OOD AUROC by energy", "by energy", "ood", "higher", "%", 1,
           "AUROC of the energy of the logits in place of the largest probability.",
           _under("ood", "mean", "energy", "auroc")),
    Metric("fpr95_msp", "OOD FPR95", "FPR95", "fpr", "lower", "%", 1,
           "Share of foreign images taken for known where 95% of the test images are, by the largest probability.",
           _under("ood", "mean", "msp", "fpr95")),
    Metric("fpr95_energy", "OOD FPR95 by energy", "by energy", "fpr", "lower", "%", 1,
           "The same by the energy of the logits.",
           _under("ood", "mean", "energy", "fpr95")),
    Metric("occlusion", "Occlusion accuracy", "Accuracy", "occlusion", "higher", "%", 1,
           "On test images of which patches are hidden, mean over the hidden shares.",
           _under("occlusion", "mean"), main=True),
    Metric("intrusion", "Intrusion rate", "Rate", "intrusion", "lower", "%", 1,
           "Share of mixes whose likeliest class is that of none of their sources.",
           _under("intrusion", "rate")),
    Metric("relative_time", "Time per step", "Time", "cost", "lower", "×", 2,
           "Time of a training step over that of none.",
           _under("cost", "relative_time")),
    Metric("relative_memory", "Memory", "Memory", "cost", "lower", "×", 2,
           "Peak memory of a training step over that of none.",
           _under("cost", "relative_memory")),
    Metric("seconds", "Seconds per epoch", "Epoch", "time", "lower", "s", 1,
           "Seconds of training per epoch, median over epochs.",
           ("result", "seconds_per_epoch")),
    Metric(RELATIVE_EPOCH, "Time per epoch", "Relative", "time", "lower", "×", 2,
           "Time per epoch over that of none in the same setting.",
           ()),
)  # fmt: skip
"""In the order of the columns."""
