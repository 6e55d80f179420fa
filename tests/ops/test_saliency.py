"""Saliency of images alone, against slow references written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mixwell.ops.saliency import blurred, fine_grained, fine_grained_bytes, grey_levels, spectral_residual

SCALES = (12, 24, 48, 28, 56, 112)


def bytes_of(rows, channels=3, size=(32, 32)):
    """Smooth pictures, as photographs are."""
    small = torch.rand(rows, channels, 5, 5)
    return (255 * F.interpolate(small, size, mode="bicubic").clamp(0, 1)).to(torch.uint8)


def contrasts_by_hand(level, grey):
    """OpenCV's algorithm, one pixel after the other; also its sums before they are kept in a byte."""
    height, width = grey.shape
    on, off = np.zeros(grey.shape), np.zeros(grey.shape)
    for y in range(height):
        for x in range(width):
            for reach in SCALES:
                window = grey[max(y - reach + 1, 0) : y + reach + 1, max(x - reach + 1, 0) : x + reach + 1]
                mean = (window.sum() - level[y, x]) / (window.size - 1)
                on[y, x] += int(max(level[y, x] - mean, 0)) % 256
                off[y, x] += int(max(mean - level[y, x], 0)) % 256
    on, off = (np.floor(255 * part / max(part.max(), 1)) for part in (on, off))
    both = np.floor(255 * (on + off) / max(on.max(), off.max(), 1))
    return (both % 256).astype(np.uint8), both


def blurred_by_hand(grey):
    """The binomial filter of 3×3 places, times 16."""
    padded = np.pad(grey, 1, mode="reflect")
    lines = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return lines[:, :-2] + 2 * lines[:, 1:-1] + lines[:, 2:]


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 5), (60, 13)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_fine_grained_is_opencvs(size, channels):
    pixels = bytes_of(2, channels, size)
    for image, found in zip(pixels.numpy().astype(np.int64), fine_grained(pixels).numpy(), strict=True):
        grey = image[0]
        if channels == 3:
            grey = (3735 * image[0] + 19235 * image[1] + 9798 * image[2] + 16384) >> 15
        for _ in range(2):
            grey = (blurred_by_hand(grey) + 8) >> 4
        expected, sums = contrasts_by_hand(grey, grey)
        assert np.array_equal(found, expected)
        assert sums.max() >= 255


def test_sums_above_255_wrap():
    """A pixel that is brighter than what is near and darker than what is far has both contrasts."""
    widths = [14, 11, 3, 4, 10, 44, 57, 31, 25, 41]
    stripes = np.repeat([19, 133, 99, 123, 35, 161, 218, 204, 154, 110], widths)
    grey = np.tile(stripes, (2, 1))
    pixels = torch.from_numpy(grey).to(torch.uint8)[None, None]
    for _ in range(2):
        grey = (blurred_by_hand(grey) + 8) >> 4
    expected, sums = contrasts_by_hand(grey, grey)
    assert sums.max() > 255, "nothing wraps, so the test saw nothing"
    assert np.array_equal(fine_grained(pixels)[0].numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (1, 9)], ids=str)
def test_images_without_contrast_have_no_saliency(channels, size):
    assert not fine_grained(torch.full((2, channels, *size), 77, dtype=torch.uint8)).any()


def test_an_image_is_as_salient_alone_as_in_a_batch():
    pixels = bytes_of(4, size=(24, 40))
    found = fine_grained(pixels.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found, torch.cat([fine_grained(one[None]) for one in pixels]))


def test_a_dot_is_salient():
    pixels = torch.full((1, 3, 32, 32), 40, dtype=torch.uint8)
    pixels[:, :, 8:11, 21:24] = 250
    assert fine_grained(pixels)[0, 9, 22] == 255


def test_the_first_channel_is_taken_for_blue():
    pixels = torch.zeros(3, 3, 1, 1, dtype=torch.uint8)
    for channel in range(3):
        pixels[channel, channel] = 255
    assert grey_levels(pixels).flatten().tolist() == [29, 150, 76]
    assert grey_levels(torch.tensor([1, 2, 3, 5], dtype=torch.uint8).view(1, 4, 1, 1)).item() == 3  # 2.75, rounded


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_floats_are_read_by_their_bytes(size):
    images = torch.randn(2, 1, *size)
    for image, found in zip(images.numpy()[:, 0], fine_grained_bytes(images).numpy(), strict=True):
        grey = image
        for _ in range(2):
            padded = np.pad(grey, 1, mode="reflect")
            lines = np.float32(0.25) * (padded[:, :-2] + padded[:, 2:]) + np.float32(0.5) * padded[:, 1:-1]
            grey = np.float32(0.25) * (lines[:-2] + lines[2:]) + np.float32(0.5) * lines[1:-1]
        level = grey.view(np.uint8)[:, : size[1]].astype(np.int64)
        expected = contrasts_by_hand(level, grey.astype(np.float64))[0]
        assert np.mean(found == expected) > 0.99  # the reference's means are rounded otherwise


def test_what_floats_give_is_noise():
    pixels = bytes_of(20)
    proper, noise = fine_grained(pixels).float(), fine_grained_bytes(pixels / 127.5 - 1).float()
    both = torch.stack((proper, noise)).flatten(2)
    away = both - both.mean(2, keepdim=True)
    correlation = (away[0] * away[1]).sum(1) / away.norm(dim=2).prod(0)
    assert correlation.abs().mean() < 0.2


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (4, 9)], ids=str)
def test_blur_is_a_gaussian_of_49_weights(size):
    maps = torch.rand(3, *size)
    line = torch.exp(-0.5 * (torch.arange(-3.0, 4) / 3) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(maps[:, None], (3,) * 4, mode="reflect")
    torch.testing.assert_close(blurred(maps), F.conv2d(padded, kernel[None, None])[:, 0])


def test_blur_of_small_maps_keeps_constants():
    torch.testing.assert_close(blurred(torch.full((2, 2, 5), 3.0)), torch.full((2, 2, 5), 3.0))


def residual_by_hand(grey):
    spectrum = np.fft.fft2(grey.astype(np.float64))
    size = np.sqrt(np.abs(spectrum) ** 2 + 1e-10)
    padded = np.pad(np.log(size), 1, mode="edge")
    height, width = grey.shape
    mean = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    return np.abs(np.fft.ifft2(spectrum * np.exp(np.log(size) - mean) / size))


@pytest.mark.parametrize("size", [(32, 32), (24, 41), (9, 5)], ids=str)
def test_spectral_residual_is_the_definition(size):
    images = torch.randn(2, 3, *size)
    grey = torch.einsum("bchw,c->bhw", images, torch.tensor([0.2989, 0.587, 0.114])).numpy()
    expected = torch.from_numpy(np.stack([residual_by_hand(one) for one in grey])).float()
    torch.testing.assert_close(spectral_residual(images, smooth=False), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spectral_residual(images), blurred(expected), rtol=1e-4, atol=1e-5)


def test_spectral_residual_of_tall_images_is_taken_at_128():
    images = torch.randn(1, 3, 200, 150)
    small = F.interpolate(images, (128, 128), mode="bilinear", antialias=True)
    expected = F.interpolate(spectral_residual(small)[:, None], (200, 150), mode="bilinear", antialias=True)[:, 0]
    torch.testing.assert_close(spectral_residual(images), expected, rtol=1e-3, atol=1e-5)
    assert spectral_residual(torch.randn(1, 3, 100, 300)).shape == (1, 100, 300)


def test_brightness_does_not_change_the_spectral_residual():
    images = torch.randn(2, 4, 24, 40)
    torch.testing.assert_close(spectral_residual(5 * images), spectral_residual(images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "function", [spectral_residual, lambda images: blurred(images[:, 0])], ids=["residual", "blur"]
)
def test_autocast_changes_nothing(function):
    images = torch.randn(2, 3, 150, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = function(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, function(images))
