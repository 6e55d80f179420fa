"""mixup's invariants."""

from __future__ import annotations

import pytest
import torch

import mixwell
from mixwell.sample.linear.mixup import linear

X = torch.randn(6, 3, 5, 7)
PARTNER = torch.tensor([3, 0, 5, 1, 2, 4])


def test_the_equation():
    lam = torch.rand(6, dtype=torch.float64)
    expected = lam[:, None, None, None].float() * X + (1 - lam[:, None, None, None].float()) * X[PARTNER]
    torch.testing.assert_close(linear(X, X[PARTNER], lam), expected)


@pytest.mark.parametrize("lam", [torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.3])], ids=["fp64", "fp32"])
def test_one_lambda_serves_all_rows(lam):
    torch.testing.assert_close(linear(X, X[PARTNER], lam), linear(X, X[PARTNER], lam.expand(6)))


def test_swapping_the_roles():
    lam = torch.rand(6)
    torch.testing.assert_close(linear(X, X[PARTNER], lam), linear(X[PARTNER], X, 1 - lam))


def test_one_lambda_keeps_the_mean_of_the_batch():
    images, _ = mixwell.create("mixup(per=batch)").mix_batch(X, torch.arange(6))
    torch.testing.assert_close(images.mean(0), X.mean(0))


def test_nothing_lies_outside_the_range_of_its_sources():
    images, targets = mixwell.create("mixup").mix_batch(X, torch.arange(6))
    pair = X[targets.sources]
    assert (images >= pair.min(1).values - 1e-6).all()
    assert (images <= pair.max(1).values + 1e-6).all()


def test_mixing_commutes_with_normalisation():
    images = mixwell.create("mixup").mix_batch((X - 0.4) / 0.2, torch.arange(6))[0]
    raw = mixwell.create("mixup").mix_batch(X, torch.arange(6))[0]
    torch.testing.assert_close(images, (raw - 0.4) / 0.2, rtol=1e-4, atol=1e-4)


def test_gradients_reach_lambda():
    lam = torch.rand(6, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear(X, X[PARTNER], lam).sum(), lam)
    torch.testing.assert_close(gradient, (X - X[PARTNER]).sum((1, 2, 3)))


@pytest.mark.parametrize("alpha", [0.001, 1e-5])
def test_small_alpha_gives_lambdas_of_0_and_1_and_stays_finite(alpha):
    images, targets = mixwell.create(f"mixup(alpha={alpha})", 6).mix_batch(X.half(), torch.arange(6))
    assert torch.isfinite(images).all()
    assert torch.isfinite(targets.weights).all()
    assert set(targets.weights.round(decimals=4).flatten().tolist()) == {0.0, 1.0}
