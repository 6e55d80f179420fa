"""Superpixels of a batch beside scikit-image's, image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score

from mixwell.ops.superpixels import blurred, lab, superpixel_means, superpixels

skimage = pytest.importorskip("skimage")
from skimage import color, data, segmentation, transform  # noqa: E402


def photographs(height: int, width: int) -> torch.Tensor:
    pictures = [transform.resize(photo, (height, width), anti_aliasing=True) for photo in PHOTOGRAPHS]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


PHOTOGRAPHS = [data.astronaut()[:300, :300], data.coffee()[:300, :400], data.chelsea()]


def reference(images: torch.Tensor, count: int, **options: object) -> np.ndarray:
    """Without its last step, which joins stray pixels to their neighbours."""
    settings = {"sigma": 5, "compactness": 10, "enforce_connectivity": False, "start_label": 0, **options}
    each = images.permute(0, 2, 3, 1).double().numpy()
    return np.stack([segmentation.slic(image, n_segments=count, **settings) for image in each])


def agreement(one: np.ndarray, other: torch.Tensor) -> float:
    return min(adjusted_rand_score(a.ravel(), b.ravel()) for a, b in zip(one, other.numpy(), strict=True))


def test_lab_is_scikit_images():
    rgb = torch.rand(2, 3, 17, 9)
    rgb[0, :, 0] /= 50  # the linear part of both curves
    expected = color.rgb2lab(rgb.double().permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(lab(rgb).permute(0, 2, 3, 1), expected, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.4, 2.0, 5.0, 30.0])
def test_the_blur_mirrors_the_border(sigma):
    maps = torch.rand(1, 1, 24, 7, dtype=torch.float64)
    expected = ndimage.gaussian_filter(maps[0, 0].numpy(), sigma, mode="reflect")
    np.testing.assert_allclose(blurred(maps, sigma)[0, 0], expected, atol=1e-6)
    assert blurred(maps, 0) is maps


def test_maps_of_the_golden_file_are_met():
    """They are scikit-image's, with its last step, which finds nothing to join there."""
    with np.load(Path(__file__).parents[1] / "golden/superpixel_grid.npz") as golden:
        found = superpixels(torch.from_numpy(golden["images"]), int(golden["n_segments"]))
        assert agreement(golden["segments"], found) > 0.995


@pytest.mark.parametrize(
    ("size", "count", "options", "least"),
    [
        ((32, 32), 30, {}, 0.99),
        ((48, 31), 40, {}, 0.95),
        ((96, 128), 60, {}, 0.85),
        ((96, 128), 200, {"sigma": 1.0}, 0.8),
        ((64, 64), 50, {"compactness": 40.0}, 0.95),
    ],
    ids=str,
)
def test_superpixels_are_nearly_scikit_images(size, count, options, least):
    """Ours look at 3×3 seeds around a cell, theirs at windows around each seed."""
    images = photographs(*size)
    found = superpixels(images, count, **options)
    assert agreement(reference(images, count, **options), found) > least


def test_an_image_is_cut_the_same_in_any_batch():
    images = photographs(40, 56)
    together = superpixels(images, 30)
    for row in range(len(images)):
        assert (superpixels(images[row : row + 1], 30) == together[row]).float().mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (7, 3), (5, 64), (24, 40)], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 12, 5000])
def test_any_size_and_number_of_channels(size, channels, count):
    found = superpixels(torch.rand(2, channels, *size), count)
    assert found.shape == (2, *size)
    assert found.min() >= 0
    assert found.max() < size[0] * size[1]
    if count == 1:
        assert len(found.unique()) == 1
    if count >= size[0] * size[1]:
        assert len(found[0].unique()) == size[0] * size[1]


def test_flat_images_are_cut_into_rectangles():
    """Of equal size but for the pixels halfway between two seeds."""
    found = superpixels(torch.full((1, 3, 30, 20), 0.4), 6)[0]
    assert found.unique().tolist() == list(range(6))
    for label in range(6):
        rows, columns = (found == label).nonzero().unbind(1)
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert height * width == len(rows)
        assert {int(height), int(width)} <= {9, 10, 11}
    assert torch.equal(found[0], found[5])
    assert torch.equal(found[:, 0], found[:, 5])


def test_grey_images_are_cut_as_their_rgb():
    grey = photographs(40, 40).mean(1, keepdim=True)
    assert torch.equal(superpixels(grey, 20), superpixels(grey.expand(-1, 3, -1, -1), 20))


def test_edges_are_followed():
    """Where colours differ strongly, no superpixel crosses the edge."""
    images = torch.zeros(1, 3, 40, 40)
    images[:, 0, :, 17:] = 1
    found = superpixels(images, 16, sigma=0)[0]
    assert not set(found[:, :17].unique().tolist()) & set(found[:, 17:].unique().tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [2, 11])
def test_means_are_those_of_each_superpixel(dtype, layout, channels):
    images = torch.rand(3, channels, 9, 14).to(dtype).contiguous(memory_format=layout)
    segments = torch.randint(0, 6, (3, 9, 14))
    segments[segments == 4] = 0
    means = superpixel_means(images, segments, 7)
    assert means.dtype == torch.promote_types(dtype, torch.float32)
    for row, label in np.ndindex(3, 7):
        inside = images[row].double()[:, segments[row] == label]
        expected = inside.mean(1) if inside.numel() else torch.zeros(channels)
        torch.testing.assert_close(means[row, :, label].double(), expected.double(), atol=1e-5, rtol=0)
