"""Style transfer networks: their maps and sizes, AdaIN's layout of weights, and that training reconstructs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.nets.style import load_weights, style_networks, train_style, vgg_networks

ENCODER_CONVS = [
    (3, 3, 1), (3, 64, 3), (64, 64, 3), (64, 128, 3), (128, 128, 3), (128, 256, 3), (256, 256, 3), (256, 256, 3),
    (256, 256, 3), (256, 512, 3),
]  # fmt: skip
DECODER_CONVS = [
    (512, 256, 3), (256, 256, 3), (256, 256, 3), (256, 256, 3), (256, 128, 3), (128, 128, 3), (128, 64, 3),
    (64, 64, 3), (64, 3, 3),
]  # fmt: skip


def convs(net: nn.Module) -> list[tuple[int, int, int]]:
    found = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    return [(conv.in_channels, conv.out_channels, conv.kernel_size[0]) for conv in found]


def as_published() -> nn.Sequential:
    """AdaIN's encoder layer by layer, with padding as layers of its own, and one convolution more than is needed."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    for place, (inside, outside, _) in enumerate([*ENCODER_CONVS[1:], (512, 512, 3)]):
        if place in (2, 4, 8):
            layers.append(nn.MaxPool2d(2, 2, 0, ceil_mode=True))
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(inside, outside, 3), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def published() -> nn.Sequential:
    torch.manual_seed(0)
    return as_published().requires_grad_(False)


def test_the_vgg_networks_have_adains_layers():
    encoder, decoder = vgg_networks()
    assert convs(encoder) == ENCODER_CONVS
    assert convs(decoder) == DECODER_CONVS
    pads = [layer for net in (encoder, decoder) for layer in net.modules() if isinstance(layer, nn.Conv2d)][1:]
    assert all(conv.padding_mode == "reflect" and conv.padding == (1, 1) for conv in pads)


def test_published_weights_give_the_published_maps(published: nn.Sequential, tmp_path: Path):
    torch.save(published.state_dict(), tmp_path / "vgg.pth")
    encoder, decoder = vgg_networks()
    load_weights(encoder, tmp_path / "vgg.pth")
    images = torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        maps = encoder(images)
        wanted = images
        taps = []
        for layer in published:
            wanted = layer(wanted)
            if isinstance(layer, nn.ReLU):
                taps.append(wanted)
    for level, tap in zip(maps, (0, 2, 4, 8), strict=True):
        torch.testing.assert_close(level, taps[tap])
    assert maps[-1].shape == (1, 512, 3, 5)
    assert decoder(maps[-1]).shape == (1, 3, 24, 40)


def test_files_that_are_no_weights_or_other_ones(tmp_path: Path):
    encoder, decoder = style_networks(3)
    with pytest.raises(mixwell.ModelError, match="FileNotFoundError"):
        load_weights(encoder, tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(mixwell.ModelError, match="Expected a file of weights"):
        load_weights(encoder, tmp_path / "text.pth")
    torch.save(decoder.state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(mixwell.ModelError, match=r"expected \(16, 3, 3, 3\) as number 1, got \(16, 32, 3, 3\)"):
        load_weights(encoder, tmp_path / "decoder.pth")
    torch.save(dict(list(encoder.state_dict().items())[:3]), tmp_path / "part.pth")
    with pytest.raises(mixwell.ModelError, match="as number 4, got no more"):
        load_weights(encoder, tmp_path / "part.pth")


@pytest.mark.parametrize("size", [(32, 32), (9, 5), (3, 17)], ids=str)
def test_levels_halve_and_the_decoder_covers_the_image(size: tuple[int, int]):
    encoder, decoder = style_networks(2, (4, 6))
    first, second = encoder(torch.rand(3, 2, *size))
    assert first.shape == (3, 4, *size)
    assert second.shape == (3, 6, *(-(-side // 2) for side in size))
    assert decoder(second).shape == (3, 2, *(side + side % 2 for side in size))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8), (2, 3, 2, 8)], ids=str)
def test_images_it_cannot_encode(shape: tuple[int, ...]):
    with pytest.raises(mixwell.BatchError, match=r"\(B, 3, H, W\) with sides of at least 3 pixels, got"):
        style_networks(3)[0](torch.rand(shape))


@pytest.mark.parametrize("given", [{"image_channels": 0}, {"channels": 0}], ids=str)
def test_sizes_out_of_range(given: dict[str, int]):
    widths = (given.get("channels", 4), 8)
    with pytest.raises(mixwell.ParameterError, match=next(iter(given))):
        style_networks(given.get("image_channels", 3), widths)


@pytest.mark.usefixtures("one_thread")
def test_training_reconstructs():
    images, told = F.interpolate(torch.randn(32, 2, 4, 4), scale_factor=2), []
    torch.manual_seed(0)
    encoder, decoder = style_networks(2, (8, 16))
    train_style(encoder, decoder, lambda: images.split(8), 60, progress=told.append)
    assert F.mse_loss(decoder(encoder(images)[-1]), images) < 0.25 * images.var()
    assert told == list(range(61))


@pytest.mark.usefixtures("one_thread")
def test_channels_are_normalised_as_in_the_normalised_vgg():
    images = torch.rand(32, 2, 8, 8)
    encoder, decoder = style_networks(2, (8, 16))
    train_style(encoder, decoder, lambda: images.split(8), 2)
    for one in encoder(images):
        means = one.mean((0, 2, 3))
        assert (means < 1 + 1e-4).all()
        assert (means > 1 - 1e-4).float().mean() > 0.5


def test_a_loss_that_is_not_finite_is_told():
    images = torch.rand(2, 2, 8, 8)
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(mixwell.MixwellError, match="not finite after 1 epochs"):
        train_style(*style_networks(2), lambda: [images], 2)
