"""The auto-encoder of maps and its critic: sizes, initial weights, and what a spectral convolution does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.nets.resynthesis import AutoEncoder, Critic, SpectralConv2d, fill_up, scales_for

SIZES = [(32, 32), (28, 28), (24, 40), (9, 5), (1, 1)]


@pytest.mark.parametrize(
    ("size", "scales"), [((32, 32), 3), ((28, 28), 3), ((16, 16), 2), ((224, 224), 6), ((64, 24), 3), ((9, 5), 2)]
)
def test_sides_are_halved_until_codes_are_about_4_wide(size: tuple[int, int], scales: int) -> None:
    assert scales_for(size) == scales


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_of_any_size_are_filled_up_coded_and_decoded(size: tuple[int, int]) -> None:
    scales, images = scales_for(size), torch.rand(3, 2, *size)
    net, critic = AutoEncoder(2, scales, 4, 5), Critic(2, scales, 4, 5)
    canvas = fill_up(images, scales)
    assert all(side % 2**scales == 0 and side >= 2 * 2**scales for side in canvas.shape[2:])
    assert torch.equal(canvas[:, :, : size[0], : size[1]], images)
    assert (canvas[:, :, size[0] :] == canvas[:, :, size[0] - 1 : size[0]]).all()
    codes = net.encode(canvas)
    assert codes.shape == (3, 5, *(side // 2**scales for side in canvas.shape[2:]))
    assert net.decode(codes).shape == canvas.shape
    assert critic(canvas).shape == (3,)


def test_images_that_fit_are_not_copied() -> None:
    images = torch.rand(2, 3, 24, 40)
    assert fill_up(images, 3) is images


def test_rows_do_not_meet() -> None:
    net, critic, images = AutoEncoder(3, 2, 4, 5), Critic(3, 2, 4, 5), torch.randn(3, 3, 16, 16)
    together, logits = net.decode(net.encode(images)), critic.eval()(images)
    torch.testing.assert_close(net.decode(net.encode(images[1:2])), together[1:2])
    critic.load_state_dict(Critic(3, 2, 4, 5).state_dict())
    state = {name: value.clone() for name, value in critic.state_dict().items()}
    logits = critic(images)
    critic.load_state_dict(state)
    torch.testing.assert_close(critic(images[1:2]), logits[1:2])


def test_the_auto_encoder_is_the_same_in_every_mode() -> None:
    net, images = AutoEncoder(3, 2, 4, 5), torch.randn(3, 3, 16, 16)
    training = net.train().decode(net.encode(images))
    assert torch.equal(net.eval().decode(net.encode(images)), training)
    assert not dict(net.named_buffers())


def test_initial_weights_are_the_authors() -> None:
    net = AutoEncoder(3, 3, 16, 64)
    wide = net.encoder[-1].weight  # (64, 128, 3, 3)
    assert wide.std().item() == pytest.approx((1.04 * 64 * 128 * 3) ** -0.5, rel=0.02)
    gains = torch.cat([part.weight for part in net.modules() if isinstance(part, torch.nn.InstanceNorm2d)])
    assert gains.std().item() == pytest.approx(1.04**-0.5, rel=0.15)
    assert gains.min() < 0
    assert all((part.bias == 0).all() for part in net.modules() if hasattr(part, "bias"))
    critic = Critic(3, 3, 16, 64)
    assert (critic.encoder[0].bias == 0).all()
    assert critic.encoder[1].bias.abs().max() > 0, "convolutions of norm 1 begin as torch's do"


def test_the_used_weight_has_singular_values_up_to_1() -> None:
    conv, images = SpectralConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    conv.eval()
    for _ in range(300):
        conv(images)
    used = conv.weight / torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    torch.testing.assert_close(conv(images), F.conv2d(images, used, conv.bias, padding=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_every_pass_takes_one_step_of_the_power_method(training: bool) -> None:
    conv, images = SpectralConv2d(4, 6, 3).train(training), torch.randn(2, 4, 8, 8)
    rows, u = conv.weight.detach().flatten(1), conv.u.clone()
    for _ in range(3):
        v = rows.T @ u
        v = v / v.norm()
        u = rows @ v
        sigma, u = u.norm(), u / u.norm()
        got = conv(images)
        torch.testing.assert_close(conv.u, u)
        torch.testing.assert_close(got, F.conv2d(images, conv.weight / sigma, conv.bias))


def test_gradients_see_the_estimated_norm() -> None:
    """The size of a weight has no effect, so that the gradient has no part along it; unless σ were a constant."""
    conv, images = SpectralConv2d(4, 6, 3), torch.randn(2, 4, 8, 8)
    (conv(images) ** 2).sum().backward()
    along = (conv.weight.grad * conv.weight).sum() / conv.weight.norm() / conv.weight.grad.norm()
    assert along.abs() < 1e-4


def test_several_passes_before_one_backward() -> None:
    critic, images = Critic(3, 2, 4, 5), torch.randn(3, 3, 16, 16)
    (critic(images) - critic(-images)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in critic.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_are_found_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    critic, images = Critic(3, 2, 4, 5), torch.randn(3, 3, 16, 16)
    state = {name: value.clone() for name, value in critic.state_dict().items()}
    expected = critic(images), critic.encoder[1].u.clone()
    critic.load_state_dict(state)
    with torch.autocast("cpu", dtype):
        got = critic(images)
    assert got.dtype == torch.float32
    assert torch.equal(critic.encoder[1].u, expected[1])
    torch.testing.assert_close(got, expected[0], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("net", [AutoEncoder, Critic])
@pytest.mark.parametrize("sizes", [(0, 2), (3, 1), (3, 2, 0), (3, 2, 4, 0), (3, 2.0)], ids=str)
def test_sizes_out_of_range(net: type[torch.nn.Module], sizes: tuple[int, ...]) -> None:
    with pytest.raises(mixwell.ParameterError, match="must be a whole number"):
        net(*sizes)


def test_other_channels_are_told() -> None:
    with pytest.raises(mixwell.BatchError, match=r"\(B, 3, H, W\), got \(2, 1, 16, 16\)"):
        AutoEncoder(3, 2, 4, 5).encode(torch.rand(2, 1, 16, 16))
