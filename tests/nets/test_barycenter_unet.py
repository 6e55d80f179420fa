"""The U-Net of barycenters: shares of channels, images of any size, and what decides about a row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mixwell
from mixwell.nets.barycenter_unet import BarycenterUNet, split_channels, widths_of

PARTNER = torch.tensor([2, 0, 1])


def places_of(width: int = 4, rows: int = 1) -> list[Tensor]:
    return [torch.rand(rows, channels).argsort(1) for channels in widths_of(width)]


def features_of(rows: int = 3, channels: int = 8) -> Tensor:
    """Row r, channel c show 10·r + c + 1 everywhere."""
    values = 10 * torch.arange(rows)[:, None] + torch.arange(channels) + 1
    return values.float()[:, :, None, None].expand(-1, -1, 2, 3)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.62, 1.0])
def test_channels_are_the_rows_or_its_partners(lam: float) -> None:
    features, places = features_of(), torch.rand(1, 8).argsort(1)
    own, other = split_channels(features, PARTNER, places, torch.tensor([lam]))
    kept = (own != 0).all((2, 3))
    assert torch.equal((other != 0).all((2, 3)), ~kept)
    assert (kept.sum(1) == round(8 * lam)).all()
    assert torch.equal(kept, (places < round(8 * lam)).expand(3, -1))
    torch.testing.assert_close(own + other, torch.where(kept[:, :, None, None], features, features[PARTNER]))


def test_half_a_channel_goes_to_the_even_number() -> None:
    features, places = features_of(), torch.arange(8)[None]
    shares = torch.tensor([0.5, 1.5, 2.5]) / 8
    own, _ = split_channels(features, PARTNER, places, shares)
    assert (own != 0).all((2, 3)).sum(1).tolist() == [0, 2, 2]


def test_each_row_by_its_own_share_and_order() -> None:
    features, places = features_of(), torch.rand(3, 8).argsort(1)
    shares = torch.tensor([0.25, 0.5, 1.0])
    together = split_channels(features, PARTNER, places, shares)
    for row in range(3):
        alone = split_channels(features, PARTNER, places[row : row + 1], shares[row : row + 1])
        assert torch.equal(together[0][row], alone[0][row])
        assert torch.equal(together[1][row], alone[1][row])


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (33, 17), (16, 16), (9, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_size(size: tuple[int, int], rows: int, channels: int) -> None:
    net, images = BarycenterUNet(channels, 4), torch.randn(rows, channels, *size)
    made = net(images, torch.arange(rows).flip(0), places_of(), torch.full((1,), 0.6))
    assert made.shape == images.shape
    assert torch.isfinite(made).all()


def test_images_are_standardised_over_the_batch() -> None:
    net, images = BarycenterUNet(3, 4), 5 + torch.randn(3, 3, 32, 32)
    made = net(images, PARTNER, places_of(), torch.full((1,), 0.6))
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.var((0, 2, 3), correction=0), torch.ones(3), rtol=1e-2, atol=0)


def test_a_share_of_1_shows_nothing_of_the_partner_and_0_nothing_of_the_row() -> None:
    net, images, places = BarycenterUNet(3, 4), torch.randn(3, 3, 16, 16), places_of()
    one, other = PARTNER, torch.tensor([1, 2, 0])

    def made(partner: Tensor, lam: float) -> Tensor:
        return net(images, partner, places, torch.full((1,), lam))

    assert torch.equal(made(one, 1.0), made(other, 1.0))
    assert not torch.equal(made(one, 0.5), made(other, 0.5))
    torch.testing.assert_close(made(one, 0.0)[one.argsort()], made(other, 0.0)[other.argsort()], rtol=1e-3, atol=1e-3)


def test_only_what_stays_goes_further_down() -> None:
    """Without an own channel at the first level, deeper levels see an image of zeros, as they do for every row."""
    net, seen = BarycenterUNet(3, 4), []
    net.downs[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.randn(3, 3, 16, 16), PARTNER, places_of(), torch.full((1,), 0.5))
    silent = (seen[0] == 0).all(3).all(2).all(0)
    assert silent.sum() == 2
    net(torch.randn(3, 3, 16, 16), PARTNER, places_of(), torch.full((1,), 0.0))
    assert not seen[1].any()


def test_every_parameter_learns_and_modes_do_not_differ() -> None:
    """With open gates: in a net this narrow one unit decides, which as often as not is below 0 for every image."""
    net, images, places = BarycenterUNet(3, 4), torch.randn(3, 3, 32, 32), places_of()
    for down in net.downs:
        down[1].squeeze.weight.data.abs_()
    made = net.train()(images, PARTNER, places, torch.full((1,), 0.6))
    (made * torch.randn_like(made)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters() if parameter.ndim > 1)
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert torch.equal(net.eval()(images, PARTNER, places, torch.full((1,), 0.6)), made)
    assert not dict(net.named_buffers())


@pytest.mark.parametrize("width", [0, True])
def test_widths_out_of_range(width: object) -> None:
    with pytest.raises(mixwell.ParameterError, match="width must be a whole number"):
        BarycenterUNet(3, width)


def test_other_channels_are_told() -> None:
    with pytest.raises(mixwell.BatchError, match=r"\(N, 3, H, W\), got \(2, 1, 16, 16\)"):
        BarycenterUNet(3, 4)(torch.rand(2, 1, 16, 16), torch.arange(2), places_of(), torch.ones(1))
