"""LGCOAMix's decoder: the authors' layers for their networks, and any size; attention that sees no padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixwell.nets.superpixel_decoder import SuperpixelAttention, SuperpixelDecoder


def layers_of(decoder: nn.Module) -> list[tuple[int, int, int, int]]:
    """Channels given and made, kernel and stride of each convolution."""
    return [
        (module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0])
        for module in decoder.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]


def test_the_authors_decoder_of_a_resnet_50_on_32_pixels():
    maps = [(2048, 4, 4), (1024, 8, 8), (512, 16, 16), (256, 32, 32), (64, 32, 32)]
    assert layers_of(SuperpixelDecoder(maps, (32, 32))) == [
        (2048, 512, 3, 2),
        (512 + 1024, 256, 3, 2),
        (256 + 512, 128, 3, 2),
        (128 + 256, 64, 1, 1),
        (64 + 64, 64, 1, 1),
    ]


def test_the_authors_decoder_of_a_deit():
    assert layers_of(SuperpixelDecoder([(768, 14, 14)], (224, 224))) == [
        (768, 256, 3, 2),
        (256, 128, 3, 2),
        (128, 64, 3, 2),
        (64, 64, 3, 2),
    ]


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 5), (30, 37)], ids=str)
def test_maps_of_any_size_end_at_the_images(size):
    """Sides that strided convolutions leave, and those of patches that do not fill the image."""
    h, w = size
    halves = [((h + 2**k - 1) // 2**k, (w + 2**k - 1) // 2**k) for k in (3, 2, 1)]
    maps = [(16, *halves[0]), (12, *halves[1]), (8, *halves[2]), (3, h, w)]
    for shapes in (maps, [(16, 3, 4)], maps[:2]):
        decoder = SuperpixelDecoder(shapes, size, width=6)
        given = [torch.randn(4, *shape, requires_grad=True) for shape in shapes]
        found = decoder(given, size)
        assert found.shape == (4, 6, *size)
        found.square().mul(torch.rand_like(found)).sum().backward()
        for part in (*given, *decoder.parameters()):
            assert part.grad.isfinite().all()
            assert part.grad.abs().sum() > 0


def test_images_of_another_size_than_it_was_made_for():
    decoder = SuperpixelDecoder([(16, 4, 4), (8, 8, 8)], (16, 16), width=6)
    assert decoder([torch.randn(2, 16, 6, 5), torch.randn(2, 8, 12, 10)], (23, 20)).shape == (2, 6, 23, 20)


def test_enlarging_keeps_places():
    """A side of 2n-1 is what an output padding of 0 gives."""
    decoder = SuperpixelDecoder([(1, 5, 5)], (9, 10), width=1).eval()
    (conv,) = (module for module in decoder.modules() if isinstance(module, nn.ConvTranspose2d))
    shown = torch.randn(2, 1, 5, 5)
    expected = F.conv_transpose2d(shown, conv.weight, stride=2, padding=1, output_padding=(0, 1))
    torch.testing.assert_close(decoder([shown], (9, 10)), expected, rtol=1e-4, atol=1e-5)


def test_attention_is_the_authors_and_sees_no_padding():
    attention = SuperpixelAttention(8)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    parts, exists = torch.randn(3, 6, 8), torch.rand(3, 6) < 0.6
    exists[:, 0] = True
    found = attention(parts, exists)
    for row in range(3):
        here = parts[row, exists[row]]
        scores = attention.query(here) @ attention.key(here).T / 8**0.5
        expected = F.layer_norm(
            scores.softmax(1) @ attention.value(here) + here, (8,), attention.norm.weight, attention.norm.bias, 1e-12
        )
        torch.testing.assert_close(found[row, exists[row]], expected, rtol=1e-4, atol=1e-4)
