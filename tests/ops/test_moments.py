"""Moments of maps, against torch's and NumPy's own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from mixwell.core.errors import BatchError
from mixwell.ops.moments import adain, moments, positive_moments, with_moments

OVER = pytest.mark.parametrize("over", [(1,), (2, 3), (1, 2, 3)], ids=str)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@OVER
def test_they_are_torchs(over, layout):
    x = torch.randn(5, 4, 6, 3).contiguous(memory_format=layout) * 3 + 1
    mean, std = moments(x, over, eps=0.1)
    variance, expected = torch.var_mean(x, over, keepdim=True)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(std, (variance + 0.1).sqrt())


def test_a_large_mean_does_not_drown_the_deviation():
    x = torch.randn(2, 64, 3, 3) + 3000
    expected = x.double().std((1,), keepdim=True).float()
    torch.testing.assert_close(moments(x, (1,), eps=0.0)[1], expected, rtol=1e-3, atol=0)


@OVER
def test_first_and_second_derivatives(over):
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: moments(x, over), x)
    torch.autograd.gradgradcheck(lambda x: moments(x, over), x)


@pytest.mark.parametrize("found", [moments, positive_moments])
def test_halves_are_computed_in_single_and_doubles_in_double(found):
    x = torch.randn(2, 4, 8, 8).half() * 300  # the squares overflow in half precision
    mean, std = found(x, (2, 3))
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(std, found(x.double(), (2, 3))[1].float())
    assert found(x.double(), (2, 3))[0].dtype == torch.float64


def test_one_value_has_no_deviation():
    with pytest.raises(BatchError, match=r"at least 2 values, got 1 per moment of maps \(3, 1, 4, 4\)"):
        moments(torch.randn(3, 1, 4, 4), (1,))


@OVER
def test_positive_moments_leave_the_others_out(over):
    x = torch.randn(3, 8, 4, 5)
    x[:, :, 0] = -1  # positions without positive values
    kept = np.where(x.numpy() > 0, x.numpy(), np.nan)
    mean, std = positive_moments(x, over, eps=1e-3)
    some = (x > 0).any(over[0], keepdim=True) if len(over) == 1 else torch.ones_like(mean, dtype=torch.bool)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of positions without positive values
        means, variances = (f(kept, axis=over, keepdims=True) for f in (np.nanmean, np.nanvar))
    torch.testing.assert_close(mean[some], torch.from_numpy(means)[some])
    torch.testing.assert_close(std[some], (torch.from_numpy(variances)[some] + 1e-3).sqrt())
    assert (mean[~some] == 0).all()
    torch.testing.assert_close(std[~some], torch.full_like(std[~some], 1e-3**0.5))


def test_a_map_with_its_own_moments_is_itself():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(with_moments(x, *moments(x, (1,)), *moments(x, (1,))), x)


@OVER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_it_gets_the_moments_it_is_given(over, dtype):
    x, other = torch.randn(2, 4, 6, 5).to(dtype), 3 * torch.randn(2, 4, 6, 5) + 2
    changed = with_moments(x, *moments(x, over), *moments(other, over))
    assert changed.dtype == dtype
    tolerance = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for found, wanted in zip(moments(changed, over), moments(other, over), strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_adain_takes_a_style_of_any_size():
    content, style = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 5, 5) * 2 + 1
    found = adain(content, style)
    torch.testing.assert_close(found.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), style.std((2, 3)), rtol=1e-3, atol=1e-3)
    correlation = torch.corrcoef(torch.stack((found[0, 0].flatten(), content[0, 0].flatten())))[0, 1]
    assert correlation > 0.9999
