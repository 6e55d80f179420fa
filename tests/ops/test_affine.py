"""Affine maps: images moved by whole pixels, and maps undone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixwell.ops.affine import inverse_of, warped

SIZE = (12, 20)


def theta_of(
    a: float = 1, b: float = 0, x: float = 0, c: float = 0, d: float = 1, y: float = 0, rows: int = 1
) -> Tensor:
    return torch.tensor([[[a, b, x], [c, d, y]]], dtype=torch.float64).expand(rows, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_identity_leaves_images_as_they_are(dtype: torch.dtype):
    x = torch.randn(3, 2, *SIZE, dtype=dtype)
    torch.testing.assert_close(warped(x, theta_of(rows=3)), x, atol=2e-6, rtol=2e-5)
    assert warped(x.half(), theta_of(rows=3)).dtype == torch.float32


def test_shifts_move_whole_pixels_and_leave_nothing_behind():
    x = torch.randn(1, 2, *SIZE, dtype=torch.float64)
    found = warped(x, theta_of(x=2 * 3 / SIZE[1], y=-2 * 2 / SIZE[0]))
    torch.testing.assert_close(found[..., 2:, :-3], x[..., :-2, 3:])
    torch.testing.assert_close(found[..., :2, :], torch.zeros_like(found[..., :2, :]))
    torch.testing.assert_close(found[..., :, -3:], torch.zeros_like(found[..., :, -3:]))


def test_mirror_images_and_half_turns():
    x = torch.randn(1, 2, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(warped(x, theta_of(a=-1)), x.flip(3))
    torch.testing.assert_close(warped(x, theta_of(a=-1, d=-1)), x.flip(2, 3))


def test_the_inverse_undoes_a_map():
    turn = math.radians(25)
    theta = theta_of(1.3 * math.cos(turn), -math.sin(turn), 0.2, math.sin(turn), 0.8 * math.cos(turn), -0.1)
    full = torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64)
    product = torch.cat((theta, full), 1) @ torch.cat((inverse_of(theta), full), 1)
    torch.testing.assert_close(product[0], torch.eye(3, dtype=torch.float64))


def test_of_a_map_that_flattens_the_plane_nothing_comes_back():
    theta = torch.cat((theta_of(a=0), theta_of(1, 2, 0, 2, 4, 0), theta_of()))
    back = warped(torch.ones(3, 1, *SIZE, dtype=torch.float64), inverse_of(theta))
    assert (back[:2] == 0).all()
    torch.testing.assert_close(back[2], torch.ones_like(back[2]))
