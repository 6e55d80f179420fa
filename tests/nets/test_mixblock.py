"""MixBlock: attention between two feature maps, masks, and what may be done to them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixwell.nets.mixblock import MixBlock, attend, match_area, outside_margin

PARTNER = torch.tensor([2, 0, 1, 3])


def sharp(channels: int = 6, **options: object) -> MixBlock:
    """A MixBlock with weights far from those it begins with."""
    block = MixBlock(channels, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block


def test_attention_is_softmax_of_scaled_products() -> None:
    q, k = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    got = attend(q, k)
    value = torch.randn(2, 1, 12, 1)
    flat = (part.flatten(2).transpose(1, 2)[:, None] for part in (q, k))
    torch.testing.assert_close(got[:, None] @ value, F.scaled_dot_product_attention(*flat, value))
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 12))


@pytest.mark.parametrize("lam_concat", [False, True])
def test_convolves_concatenated_features(lam_concat: bool) -> None:
    """Convolving once and gathering is the same as convolving each image with its channel of λ."""
    block, x, lam = sharp(lam_concat=lam_concat), torch.randn(4, 6, 3, 5), torch.rand(4)

    def with_lam(features: Tensor, value: Tensor) -> Tensor:
        channel = value.view(-1, 1, 1, 1).expand(4, 1, 3, 5)
        return torch.cat((features, channel), 1) if lam_concat else features

    own, other = with_lam(x, lam), with_lam(x[PARTNER], 1 - lam)
    wanted = block.query(own), block.query(other), block.value(other)
    for got, want in zip(block.maps(x, PARTNER, lam.view(-1, 1, 1, 1)), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_nearest_masks_are_constant_blocks_on_non_square_grids() -> None:
    mask = sharp()(torch.randn(4, 6, 3, 5), PARTNER, torch.rand(4), (12, 10))
    assert mask.shape == (4, 1, 12, 10)
    assert (mask > 0).all()
    assert (mask < 1).all()
    blocks = mask.view(4, 3, 4, 5, 2)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert mask.std() > 0.01


def test_bilinear_masks_are_enlarged_before_the_sigmoid() -> None:
    block = sharp(upsample="bilinear")
    x, lam = torch.randn(4, 6, 4, 4), torch.rand(4)
    small = block(x, PARTNER, lam, (4, 4)).logit()
    wanted = F.interpolate(small, (8, 8), mode="bilinear").sigmoid()
    torch.testing.assert_close(block(x, PARTNER, lam, (8, 8)), wanted, atol=1e-5, rtol=1e-4)


def test_begins_at_one_half() -> None:
    mask = MixBlock(16)(torch.randn(4, 16, 4, 4), PARTNER, torch.rand(4), (8, 8))
    assert (mask - 0.5).abs().max() < 0.05


def test_runs_in_fp32_under_autocast() -> None:
    block, x, lam = sharp(), torch.randn(4, 6, 4, 4).bfloat16(), torch.rand(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = block(x, PARTNER, lam, (8, 8))
    assert got.dtype == torch.float32
    assert torch.equal(got, block(x.float(), PARTNER, lam, (8, 8)))


def test_one_lam_is_every_rows_lam() -> None:
    block, x = sharp(lam_concat=True), torch.randn(4, 6, 4, 4)
    one = block(x, PARTNER, torch.tensor([0.3]), (8, 8))
    torch.testing.assert_close(one, block(x, PARTNER, torch.full((4,), 0.3), (8, 8)))
    assert not torch.allclose(one, block(x, PARTNER, torch.full((4,), 0.6), (8, 8)), atol=1e-3)


def test_margin_replaces_only_rows_with_extreme_lam() -> None:
    mask = torch.rand(5, 1, 3, 4)
    lam = torch.tensor([0.08, 0.09, 0.5, 0.91, 0.93])
    got = outside_margin(mask, lam, 0.08)
    assert torch.equal(got[1:4], mask[1:4])
    for row in (0, 4):
        assert (got[row] == 1 - lam[row]).all()


def test_adjusted_masks_have_the_area_and_stay_in_range() -> None:
    mask = torch.rand(200, 1, 6, 5) ** torch.linspace(0.2, 5, 200).view(-1, 1, 1, 1)
    lam = torch.rand(200)
    got = match_area(mask, lam)
    torch.testing.assert_close(got.mean((1, 2, 3)), 1 - lam)
    assert got.min() >= 0
    assert got.max() <= 1
    torch.testing.assert_close(match_area(got, lam), got, atol=1e-5, rtol=1e-5)


def test_adjusting_survives_masks_that_are_all_one_image() -> None:
    mask = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    torch.testing.assert_close(match_area(mask, torch.tensor([0.4])), torch.full((2, 1, 3, 3), 0.6))


@pytest.mark.parametrize("lam_concat", [False, True])
def test_one_look_at_the_features_serves_any_partners(lam_concat: bool) -> None:
    block, x, lam = sharp(lam_concat=lam_concat), torch.randn(4, 6, 4, 4), torch.rand(4)
    read = block.read(x)
    for partner in (PARTNER, PARTNER.flip(0)):
        assert torch.equal(block.mask(read, partner, lam, (8, 8)), block(x, partner, lam, (8, 8)))
    with torch.no_grad():
        assert not block.mask(read, PARTNER, lam, (8, 8)).requires_grad
