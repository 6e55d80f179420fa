"""The discrete auto-encoder: codes, sizes, its training loss, and that training makes use of the codebook."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.nets.vq import VQAutoEncoder, train_vq, vq_autoencoder


def net_of(**changes: int) -> VQAutoEncoder:
    sizes = {"stride": 4, "channels": 8, "codes": 16, "dim": 6, **changes}
    return vq_autoencoder(3, **sizes)


def test_each_vector_gets_its_nearest_code():
    net, z = net_of(), torch.randn(2, 6, 3, 5)
    net.codebook.data = torch.randn(16, 6)
    away = torch.cdist(z.movedim(1, -1).reshape(-1, 6).double(), net.codebook.double())
    assert torch.equal(net.nearest(z).flatten(), away.argmin(1))


def test_of_equally_near_codes_the_lowest_is_taken():
    net = net_of()
    net.codebook.data = torch.tensor([9.0, 1.0, -1.0, 1.0]).repeat(4)[:, None].expand(16, 6).clone()
    z = torch.zeros(1, 6, 2, 2)
    assert (net.nearest(z) == 1).all()
    assert (net.nearest(z + 0.5) == 1).all()
    assert (net.nearest(z - 0.5) == 2).all()


def test_codes_are_their_own_nearest():
    net = net_of()
    net.codebook.data = torch.randn(16, 6)
    indices = torch.randint(16, (2, 3, 5))
    assert torch.equal(net.nearest(net.vectors(indices)), indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_no_code(dtype: torch.dtype):
    net, z = net_of(), torch.randn(4, 6, 8, 8)
    net.codebook.data = torch.randn(16, 6)
    with torch.autocast("cpu", dtype):
        assert torch.equal(net.nearest(z), net.nearest(z.clone()))
        cast = net.nearest(z)
    assert torch.equal(cast, net.nearest(z))


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 5), (3, 17), (1, 1)], ids=str)
def test_any_size(stride: int, size: tuple[int, int]):
    net, images = net_of(stride=stride), torch.rand(2, 3, *size)
    assert net.encode(images).shape[2:] == tuple(-(-side // stride) for side in size)
    assert net(images).shape == images.shape


def test_sides_are_filled_up_by_reflection():
    net, images = net_of(), torch.rand(2, 3, 6, 9)
    torch.testing.assert_close(net.encode(images), net.encode(F.pad(images, (0, 3, 0, 2), mode="reflect")))


def test_the_reconstruction_depends_on_the_image_only_through_the_codes():
    net, images = net_of(), torch.rand(3, 3, 16, 16)
    net.codebook.data = net.encode(images).detach().movedim(1, -1).flatten(0, 2)[:16].clone()
    torch.testing.assert_close(net(images), net.decode(net.vectors(net.nearest(net.encode(images))), images))
    nudged = images + 1e-6
    assert torch.equal(net.nearest(net.encode(nudged)), net.nearest(net.encode(images)))
    assert torch.equal(net(nudged), net(images))


def test_gradients_go_straight_through_and_to_the_right_parts():
    net, images = net_of(), torch.rand(3, 3, 16, 16)
    z = net.encode(images)
    codes = net.vectors(net.nearest(z))
    passed = z.detach().requires_grad_()
    reconstruction = F.mse_loss(net.decode(codes.detach() + passed - passed.detach(), images), images)
    (of_reconstruction,) = torch.autograd.grad(reconstruction, passed)
    of_commitment = 0.25 * 2 * (z - codes).detach() / z.numel()
    wanted = torch.autograd.grad(z, net.encoder.parameters(), of_reconstruction + of_commitment)
    net.loss(images, beta=0.25).total.backward()
    torch.testing.assert_close([p.grad for p in net.encoder.parameters()], list(wanted))
    of_codes = torch.zeros_like(codes).requires_grad_()
    (pull,) = torch.autograd.grad(F.mse_loss(codes.detach() + of_codes, z.detach()), of_codes)
    summed = torch.zeros(16, 6).index_add_(0, net.nearest(z).flatten(), pull.movedim(1, -1).reshape(-1, 6))
    torch.testing.assert_close(net.codebook.grad, summed)


def test_the_total_is_its_parts():
    net, images = net_of(), torch.rand(3, 3, 16, 16)
    loss = net.loss(images, beta=2.0)
    torch.testing.assert_close(loss.total, loss.reconstruction + 3 * loss.codebook)
    torch.testing.assert_close(loss.reconstruction, F.mse_loss(net(images), images))


def colours(rows: int) -> torch.Tensor:
    """Images of one of eight colours each."""
    palette = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]).float()
    return palette[torch.arange(rows) % 8, :, None, None].repeat(1, 1, 8, 8)


@pytest.mark.usefixtures("one_thread")
def test_training_learns_the_images_and_uses_the_codes():
    images, told = colours(64), []
    torch.manual_seed(0)
    net = net_of(channels=32, codes=64, dim=8)
    train_vq(net, lambda: images.split(8), 40, lr=5e-3, progress=told.append)
    assert F.mse_loss(net(images), images) < 0.2 * images.var()
    assert len(net.nearest(net.encode(images)).unique()) > 16, "a code for each colour and place"
    assert told == list(range(41))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("epochs", [1, 4])
def test_training_repeats_itself_and_leaves_the_global_generator_alone(epochs: int):
    images, trained = colours(8), []
    for seed in (1, 2):
        torch.manual_seed(0)
        net = net_of()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train_vq(net, lambda: images.split(4), epochs)
        assert torch.equal(torch.get_rng_state(), before)
        trained.append(net.state_dict())
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=0)


def test_a_loss_that_is_not_finite_is_told():
    images = colours(8)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(mixwell.MixwellError, match="not finite after 1 epochs"):
        train_vq(net_of(), lambda: [images], 2)


@pytest.mark.parametrize("changes", [{"stride": 3}, {"stride": 1}, {"channels": 0}, {"codes": 0}, {"dim": 0}], ids=str)
def test_sizes_out_of_range(changes: dict[str, int]):
    with pytest.raises(mixwell.ParameterError, match=next(iter(changes))):
        net_of(**changes)


def test_other_channels_are_told():
    with pytest.raises(mixwell.BatchError, match=r"\(B, 3, H, W\), got \(2, 1, 8, 8\)"):
        net_of()(torch.rand(2, 1, 8, 8))
