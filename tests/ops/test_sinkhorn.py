"""Entropic transport beside the iteration written out, its marginals and its stop."""

import pytest
import torch

from mixwell.ops import sinkhorn as module
from mixwell.ops.sinkhorn import sinkhorn, squared_distances


def costs(b=3, n=6, m=6, scale=1.0):
    return scale * torch.rand(b, n, m, dtype=torch.float64)


def written_out(cost, eps, iterations, threshold):
    """The authors' iteration of unscaled potentials; the plan and how many iterations it took."""
    n, m = cost.shape[1:]
    u, v = torch.zeros_like(cost[:, :, 0]), torch.zeros_like(cost[:, 0])

    def log_plan():
        return (-cost + u[:, :, None] + v[:, None]) / eps

    for step in range(1, iterations + 1):
        before = u
        u = eps * (torch.tensor(1 / n).log() - log_plan().logsumexp(2)) + u
        v = eps * (torch.tensor(1 / m).log() - log_plan().logsumexp(1)) + v
        found = log_plan().exp(), step
        if (u - before).abs().sum(1).mean() < threshold:
            break
    return found


@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
@pytest.mark.parametrize("size", [(6, 6), (4, 9), (1, 1)], ids=str)
def test_as_written_out(size, scale):
    cost = costs(3, *size, scale=scale)
    expected, steps = written_out(cost, 0.1, 40, 0.1)
    plan, iterations = sinkhorn(cost, 0.1, 40, 0.1)
    assert iterations == steps
    torch.testing.assert_close(plan, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(sinkhorn(cost.float(), 0.1, 40, 0.1).plan.double(), expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("every", [3, 7, 1000])
def test_a_host_that_looks_seldom_gets_the_same(every, monkeypatch):
    cost = costs(scale=5.0)
    expected = sinkhorn(cost)
    assert 1 < expected.iterations < 50
    monkeypatch.setitem(module._LOOK_EVERY, "cpu", every)
    found = sinkhorn(cost)
    assert torch.equal(found.plan, expected.plan)
    assert found.iterations == expected.iterations


def test_marginals():
    cost = costs(4, 5, 8, scale=10.0)
    loose, tight = sinkhorn(cost, 1.0, 100, 1.0).plan, sinkhorn(cost, 1.0, 300, 0.0).plan
    for plan in (loose, tight):
        assert (plan >= 0).all()
        torch.testing.assert_close(plan.sum(1), torch.full((4, 8), 1 / 8).double())
    torch.testing.assert_close(tight.sum(2), torch.full((4, 5), 1 / 5).double())
    assert (loose.sum(2) - 1 / 5).abs().max() > 1e-3


def test_cheap_matches_are_taken_and_much_entropy_ignores_costs():
    order = torch.randperm(7)
    cost = 100 * (1 - torch.eye(7))[None, :, order]
    torch.testing.assert_close(sinkhorn(cost).plan[0] * 7, torch.eye(7)[:, order])
    torch.testing.assert_close(sinkhorn(cost, eps=1e6).plan, torch.full((1, 7, 7), 1 / 49), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_distances(dtype):
    x, y = torch.randn(3, 5, 4).to(dtype), torch.randn(3, 5, 7).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(x.requires_grad_(), y)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.requires_grad
    expected = (x.double()[:, :, :, None] - y.double()[:, :, None]).square().sum(1)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert (squared_distances(x, x) >= 0).all()


def test_a_common_offset_costs_no_precision():
    x, y = torch.randn(2, 64, 9), torch.randn(2, 64, 9)
    moved = squared_distances(x + 300, y + 300)
    torch.testing.assert_close(moved, squared_distances(x, y), rtol=1e-3, atol=0)


def test_costs_far_beyond_the_range_of_exp_stay_finite():
    plan = sinkhorn(costs(scale=1e5).float()).plan
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(1), torch.full((3, 6), 1 / 6), rtol=2e-2, atol=0)
