"""Reliability bins against torchmetrics and against cases known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from mixwell.evaluate import Reliability


def test_ece_equals_torchmetrics() -> None:
    confidence = torch.rand(1000, dtype=torch.float64)
    correct = torch.rand(1000) < 0.7
    found = Reliability.of(confidence.numpy(), correct.numpy())
    expected = binary_calibration_error(confidence, correct.long(), n_bins=15, norm="l1")
    assert found.ece == pytest.approx(float(expected), abs=1e-6)
    assert sum(found.counts) == 1000


def test_bins_hold_their_lower_edge_and_the_last_one_also_1() -> None:
    found = Reliability.of(np.array([0.0, 0.5, 1.0, 1.0]), np.array([False, True, True, False]), bins=2)
    assert found.counts == (1, 3)
    assert found.accuracies == pytest.approx((0.0, 2 / 3))
    assert found.confidences == pytest.approx((0.0, 2.5 / 3))
    assert found.ece == pytest.approx(3 / 4 * (2.5 / 3 - 2 / 3))
