"""AugMix's operations: Pillow is the reference, image by image, grey level by grey level."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from mixwell.ops.augment import OPERATIONS, augment, parameters_of, quantised

NAMES = [operation.name for operation in OPERATIONS]


def pillow(image: Image.Image, name: str, parameter: float) -> Image.Image:
    affine = {
        "shear_x": (1, parameter, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, parameter, 1, 0),
        "translate_x": (1, 0, parameter, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, parameter),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], Image.Resampling.BILINEAR)
    if name == "rotate":
        return image.rotate(parameter, Image.Resampling.BILINEAR)
    if name in ("posterize", "solarize"):
        return getattr(ImageOps, name)(image, int(parameter))
    if name in ("autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    return getattr(ImageEnhance, name.capitalize())(image).enhance(parameter)


def pictures(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Noise, narrow-band noise, one grey level and smooth shapes that reach both ends, in turns."""
    noise = torch.randint(0, 256, (count, channels, height, width))
    walk = (torch.randn(count, channels, height, width).cumsum(2).cumsum(3) * 6 + 120).long()
    kinds = torch.stack((noise, 100 + noise % 9, torch.full_like(noise, 77), walk))
    return kinds[torch.arange(count) % 4, torch.arange(count)].clamp(0, 255).to(torch.uint8)


def levels_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(torch.initial_seed()).uniform(0.1, 10, shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (16, 5), (1, 9), (2, 2)])
def test_every_operation_is_pillows(name: str, size: tuple[int, int]):
    images = pictures(40, 3, *size)
    kinds = np.full((1, 40, 1, 1), NAMES.index(name))
    parameters = parameters_of(kinds, levels_of(*kinds.shape), levels_of(*kinds.shape) > 5, size)
    got = augment(images, kinds, parameters)[0, :, 0].permute(0, 2, 3, 1).numpy()
    for image, parameter, mine in zip(images.permute(0, 2, 3, 1).numpy(), parameters.ravel(), got, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(pillow(Image.fromarray(image), name, parameter)))


def test_one_channel_is_pillows_grey_image():
    images = pictures(52, 1, 19, 14)
    kinds = np.arange(52).reshape(1, 52, 1, 1) % 13
    parameters = parameters_of(kinds, levels_of(*kinds.shape), levels_of(*kinds.shape) > 5, (19, 14))
    got = augment(images, kinds, parameters)[0, :, 0, 0].numpy()
    for image, kind, parameter, mine in zip(images[:, 0].numpy(), kinds.ravel(), parameters.ravel(), got, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(pillow(Image.fromarray(image), NAMES[kind], parameter)))


def test_grey_of_other_channel_counts_is_their_mean():
    images = torch.tensor([10, 20, 30, 41], dtype=torch.uint8).view(1, 4, 1, 1).expand(1, 4, 3, 3)
    faded = augment(images, np.array([[[[NAMES.index("color")]]]]), np.zeros((1, 1, 1, 1)))
    assert faded.unique().tolist() == [25]  # 101 / 4, rounded


def test_chains_run_in_order_end_at_minus_one_and_leave_their_image_alone():
    images = pictures(5, 3, 12, 10)
    before = images.clone()
    kinds = np.random.default_rng(0).integers(-1, 13, (2, 5, 3, 4))
    parameters = parameters_of(kinds, levels_of(*kinds.shape), levels_of(*kinds.shape) > 5, (12, 10))
    got = augment(images.contiguous(memory_format=torch.channels_last), kinds, parameters)
    assert torch.equal(images, before)
    for view, row, chain in np.ndindex(kinds.shape[:3]):
        image = Image.fromarray(images[row].permute(1, 2, 0).numpy())
        for kind, parameter in zip(kinds[view, row, chain], parameters[view, row, chain], strict=True):
            image = image if kind < 0 else pillow(image, NAMES[kind], parameter)
        np.testing.assert_array_equal(got[view, row, chain].permute(1, 2, 0).numpy(), np.asarray(image))


def test_parameters_are_the_papers_table():
    """At level 3, on 60 × 90 images: integers are truncated towards zero before the sign."""
    kinds = np.arange(13)
    up = parameters_of(kinds, np.full(13, 3.0), np.zeros(13, bool), (60, 90))
    down = parameters_of(kinds, np.full(13, 3.0), np.ones(13, bool), (60, 90))
    factor = 3 * 1.8 / 10 + 0.1
    np.testing.assert_allclose(up[2:], [3, 9, 180, 0.09, 0.09, 9, 6, factor, factor, factor, factor])
    np.testing.assert_array_equal(np.flatnonzero(up != down), [3, 5, 6, 7, 8])
    np.testing.assert_array_equal(down[[3, 5, 6, 7, 8]], -up[[3, 5, 6, 7, 8]])
    small = parameters_of(np.array([2, 3, 7]), np.full(3, 0.3), np.ones(3, bool), (32, 32))
    np.testing.assert_array_equal(small, [4, 0, 0])


def test_no_bits_are_black_and_all_grey_levels_can_be_solarized():
    images = pictures(4, 3, 8, 8)
    ends = augment(images, np.array([2, 4]).repeat(4).reshape(2, 4, 1, 1), np.zeros((2, 4, 1, 1)))[:, :, 0]
    assert not ends[0].any()
    assert torch.equal(ends[1], 255 - images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_grey_levels_survive_the_way_to_pixels_and_back(dtype: torch.dtype):
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    back = quantised((levels.double() / 255).to(dtype)).short()
    assert (back - levels.short()).abs().max() <= (1 if dtype == torch.bfloat16 else 0)
    assert quantised(torch.tensor([[[[-0.2, 1.3]]]])).flatten().tolist() == [0, 255]
