"""Figures against torchmetrics, scikit-learn and SciPy, and cases known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from mixwell.core.errors import ParameterError
from mixwell.evaluate import Reliability, accuracy, brier, cross_fitted, nll, temperature


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    """Logits (600, 7) that favour the right class, and labels."""
    labels = torch.randint(7, (600,))
    return 2 * torch.randn(600, 7) + 2 * torch.nn.functional.one_hot(labels, 7), labels


def test_accuracy_nll_and_brier(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    p = softmax(logits.double().numpy(), axis=1)
    for top in (1, 3, 5):
        wanted = top_k_accuracy_score(labels.numpy(), p, k=top)
        assert accuracy(logits, labels, top=top) == pytest.approx(wanted, abs=1e-12)
    assert accuracy(logits, labels, top=9) == 1
    assert nll(logits, labels) == pytest.approx(log_loss(labels.numpy(), p), rel=1e-9)
    assert brier(logits, labels) == pytest.approx(((p - np.eye(7)[labels]) ** 2).sum(1).mean(), rel=1e-12)


def test_label_rows_count_as_the_class_ids_that_they_stand_for(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    rows = torch.nn.functional.one_hot(labels, 7).float()
    for figure in (accuracy, nll, brier, temperature):
        assert figure(logits, rows) == pytest.approx(figure(logits, labels), rel=1e-9)
    assert Reliability.of_logits(logits, rows) == Reliability.of_logits(logits, labels)


def test_soft_rows_are_met_by_the_same_distribution() -> None:
    rows = torch.rand(50, 4, dtype=torch.float64).softmax(1)
    assert brier(rows.log(), rows) == pytest.approx(0, abs=1e-20)
    assert nll(rows.log(), rows) == pytest.approx(float(-(rows * rows.log()).sum(1).mean()))
    assert temperature(rows.log(), rows) == pytest.approx(1, abs=1e-8)


def test_calibration_errors(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    p = logits.double().softmax(1)
    confidence, correct = p.amax(1).numpy(), (p.argmax(1) == labels).numpy()
    wanted = multiclass_calibration_error(p, labels, num_classes=7, n_bins=15, norm="l1")
    assert Reliability.of_logits(logits, labels).ece == pytest.approx(float(wanted), abs=1e-6)

    excess = adaptive = 0.0
    for low, high in zip(np.linspace(0, 1, 16), np.linspace(0, 1, 16)[1:], strict=False):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            conf, acc = confidence[inside].mean(), correct[inside].mean()
            excess += inside.mean() * conf * max(conf - acc, 0)
    for rows in np.array_split(np.argsort(confidence), 15):
        adaptive += len(rows) / 600 * abs(confidence[rows].mean() - correct[rows].mean())
    assert Reliability.of_logits(logits, labels).overconfidence == pytest.approx(excess, rel=1e-9)
    assert Reliability.of_logits(logits, labels, equal_counts=True).ece == pytest.approx(adaptive, rel=1e-9)


def test_bins_of_equal_counts_hold_as_many_each() -> None:
    found = Reliability.of_equal_counts(np.random.default_rng(0).random(47), np.ones(47, bool), bins=5)
    assert found.counts == (10, 10, 9, 9, 9)
    assert list(found.confidences) == sorted(found.confidences)


def test_only_overconfidence_counts_as_overconfidence() -> None:
    assert Reliability.of(np.array([0.4, 0.4]), np.array([True, True])).overconfidence == 0
    assert Reliability.of(np.array([0.9, 0.9]), np.array([True, False])).overconfidence == pytest.approx(0.9 * 0.4)


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_temperature_has_the_smallest_cross_entropy(case: tuple[Tensor, Tensor], scale: float) -> None:
    logits, labels = case[0] * scale, case[1]

    def loss(log_t: float) -> float:
        return -log_softmax(logits.double().numpy() / np.exp(log_t), axis=1)[np.arange(600), labels].mean()

    wanted = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    assert temperature(logits, labels) == pytest.approx(np.exp(wanted.x), rel=1e-5)
    assert nll(logits / temperature(logits, labels), labels) <= wanted.fun + 1e-9


def test_a_temperature_without_a_minimum_is_the_end_of_its_range() -> None:
    labels = torch.arange(3)
    right = torch.eye(3) * 5
    assert temperature(right, labels) == 0.01
    assert temperature(-right, labels) == 100
    with pytest.raises(ParameterError, match="at least one image"):
        temperature(right[:0], labels[:0])


def test_cross_fitting_never_fits_the_rows_that_it_scales(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    scaled, found = cross_fitted(logits, labels, seed=3)
    ratios = (logits.double() / scaled).mean(1)
    temperatures = sorted({round(float(ratio), 9) for ratio in ratios})
    assert len(temperatures) == 2
    assert found == pytest.approx(np.sqrt(np.prod(temperatures)), rel=1e-8)
    for own, other in ((0, 1), (1, 0)):
        fitted_on = (ratios - temperatures[other]).abs() < 1e-6
        assert int(fitted_on.sum()) == 300
        assert temperature(logits[fitted_on], labels[fitted_on]) == pytest.approx(temperatures[own], rel=1e-6)
