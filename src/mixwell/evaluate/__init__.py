"""How good, calibrated and robust a trained network is, and what its recipe mixes and costs."""

from mixwell.evaluate.attacks import ATTACKS, Attack, attacked, fgsm, pgd
from mixwell.evaluate.clean import clean_figures, corruption_errors, cross_fitted
from mixwell.evaluate.corruptions import CORRUPTIONS, corrupt, corrupted
from mixwell.evaluate.cost import Steps, alternating_times, peak_memory, training_cost
from mixwell.evaluate.intrusion import intrusion_rates, mixes_of, nearest_labels
from mixwell.evaluate.metrics import accuracy, brier, nll, temperature
from mixwell.evaluate.occlusion import occluded, patch_drop
from mixwell.evaluate.ood import NOISES, SCORES, auroc, detected, fpr95, outside, shuffled_patches
from mixwell.evaluate.reliability import Reliability, reliability
from mixwell.evaluate.run import PARTS, evaluate_run
from mixwell.evaluate.subject import Subject

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "NOISES",
    "PARTS",
    "SCORES",
    "Attack",
    "Reliability",
    "Steps",
    "Subject",
    "accuracy",
    "alternating_times",
    "attacked",
    "auroc",
    "brier",
    "clean_figures",
    "corrupt",
    "corrupted",
    "corruption_errors",
    "cross_fitted",
    "detected",
    "evaluate_run",
    "fgsm",
    "fpr95",
    "intrusion_rates",
    "mixes_of",
    "nearest_labels",
    "nll",
    "occluded",
    "outside",
    "patch_drop",
    "peak_memory",
    "pgd",
    "reliability",
    "shuffled_patches",
    "temperature",
    "training_cost",
]
