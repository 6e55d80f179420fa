"""Every corruption against a straight-line version of its definition for one image, by NumPy, SciPy, skimage, Pillow.

Both are given the same random numbers, so that results are compared pixel by pixel.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn, idctn
from scipy.stats import poisson
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian

from mixwell.evaluate import CORRUPTIONS, corrupt
from mixwell.evaluate.corrupting.constants import CONSTANTS
from mixwell.evaluate.corrupting.draws import Draws
from mixwell.evaluate.corrupting.frost import pictures
from mixwell.evaluate.corrupting.weather import grey

SEED = 7
INDEX = torch.tensor([0, 1234])

Values = np.ndarray
"""(H, W, C) in [0, 1], or (H, W)."""


def gaussian_noise(x: Values, draws: Draws, sigma: float) -> Values:
    return x + sigma * image(draws.normal("noise", *chw(x)))


def shot_noise(x: Values, draws: Draws, photons: float) -> Values:
    uniform = image(draws.uniform("photons", *chw(x))) + 2.0**-25
    return poisson.ppf(uniform, x * photons) / photons


def impulse_noise(x: Values, draws: Draws, amount: float) -> Values:
    uniform = image(draws.uniform("impulses", *chw(x)))
    out = x.copy()
    out[uniform < amount] = 0
    out[uniform < amount / 2] = 1
    return out


def defocus_blur(x: Values, draws: Draws, radius: float, alias: float) -> Values:
    reach = max(8, int(radius))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            kernel[i + reach, j + reach] = math.hypot(i, j) <= radius
    kernel /= kernel.sum()
    away = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    soft = np.exp(-(away**2) / (2 * alias**2))
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, soft / soft.sum(), axis, mode="mirror")
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(x.shape[2])], -1)


def glass_blur(x: Values, draws: Draws, sigma: float, reach: int, rounds: int) -> Values:
    height, width = x.shape[:2]
    x = gaussian(x, sigma, channel_axis=-1)
    for turn in range(rounds):
        step = np.floor(draws.uniform(f"places {turn}", 2, height, width)[0].numpy() * 2 * reach).astype(int) - reach
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                x[h, w] = x[h + step[0, h, w], w + step[1, h, w]]
    return gaussian(x, sigma, channel_axis=-1)


def motion(x: Values, angle: float, radius: int, sigma: float) -> Values:
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = x.shape[:2]
    out = np.zeros_like(x)
    for i, weight in enumerate(weights):
        down, right = (math.ceil(i * along - 0.5) for along in (math.sin(angle), math.cos(angle)))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        out += weight * x[rows][:, columns]
    return out


def motion_blur(x: Values, draws: Draws, radius: int, sigma: float) -> Values:
    return motion(x, math.radians(90 * float(draws.uniform("angle")) - 45), radius, sigma)


def zoomed(x: Values, factor: float) -> Values:
    first, last = zip(*(((n - math.ceil(n / factor)) // 2, math.ceil(n / factor)) for n in x.shape[:2]), strict=True)
    part = x[first[0] : first[0] + last[0], first[1] : first[1] + last[1]]
    grown = ndimage.zoom(part, (factor, factor, 1), order=1)
    top, left = ((grown.shape[axis] - x.shape[axis]) // 2 for axis in (0, 1))
    return grown[top : top + x.shape[0], left : left + x.shape[1]]


def zoom_blur(x: Values, draws: Draws, stop: float, step: float) -> Values:
    return np.mean([x, *(zoomed(x, factor) for factor in np.arange(1, stop, step))], 0)


def snow(
    x: Values, draws: Draws, mean: float, deviation: float, zoom: float, threshold: float, radius: int, sigma: float,
    kept: float,
) -> Values:  # fmt: skip
    flakes = image(draws.normal("flakes", 1, *x.shape[:2])) * deviation + mean
    flakes = zoomed(flakes, zoom)
    flakes[flakes < threshold] = 0
    flakes = motion(np.clip(flakes, 0, 1), math.radians(90 * float(draws.uniform("angle")) - 135), radius, sigma)
    grey = x @ (0.299, 0.587, 0.114) if x.shape[2] == 3 else x.mean(2)
    return kept * x + (1 - kept) * np.maximum(x, 1.5 * grey[..., None] + 0.5) + flakes + flakes[::-1, ::-1]


def frost(x: Values, draws: Draws, kept: float, added: float, scale: float) -> Values:
    which, row, column = draws.uniform("part", 3)[0].tolist()
    ice = pictures(scale)[int(which * 5)].permute(1, 2, 0).numpy()
    if x.shape[2] != 3:
        ice = ice @ np.array([[0.299], [0.587], [0.114]])
    rolled = np.roll(ice, (-int(row * ice.shape[0]), -int(column * ice.shape[1])), (0, 1))
    return kept * x + added * rolled[: x.shape[0], : x.shape[1]]


def fog(x: Values, draws: Draws, density: float, decay: float) -> Values:
    size = 2 ** math.ceil(math.log2(max(x.shape[:2])))
    noise = iter(draws.uniform("fog", size**2 - 1)[0].tolist())
    cloud = np.zeros((size, size))
    step, spread = size, 1.0
    while step > 1:
        half = step // 2
        places = range(0, size, step)

        def fill(y: int, x: int, near: tuple[tuple[int, int], ...], half: int = half, spread: float = spread) -> None:
            values = [cloud[(y + half * dy) % size, (x + half * dx) % size] for dy, dx in near]
            cloud[y, x] = sum(values) / 4 + spread * (2 * next(noise) - 1)

        diamond = ((-1, 0), (1, 0), (0, -1), (0, 1))
        for y in places:
            for z in places:
                fill(y + half, z + half, ((-1, -1), (-1, 1), (1, -1), (1, 1)))
        for y in places:
            for z in places:
                fill(y, z + half, diamond)
        for y in places:
            for z in places:
                fill(y + half, z, diamond)
        step, spread = half, spread / decay**2
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    brightest = x.max()
    return (x + density * cloud[: x.shape[0], : x.shape[1], None]) * brightest / (brightest + density)


def brightness(x: Values, draws: Draws, added: float) -> Values:
    if x.shape[2] != 3:  # the largest channel grows to its new value, the others with it
        value = x.max(2, keepdims=True)
        return np.where(value > 0, x * np.minimum(value + added, 1) / np.where(value > 0, value, 1), added)
    hsv = rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return hsv2rgb(hsv)


def contrast(x: Values, draws: Draws, kept: float) -> Values:
    mean = x.mean((0, 1))
    return (x - mean) * kept + mean


def elastic_transform(x: Values, draws: Draws, strength: float, sigma: float, shift: float) -> Values:
    height, width = x.shape[:2]
    side = min(height, width)
    middle, third = np.array([width // 2, height // 2]), side // 3
    before = np.array([middle + third, middle + np.array([third, -third]), middle - third], float)
    after = before + (2 * draws.uniform("points", 3, 2)[0].double().numpy() - 1) * shift * side
    forth = np.linalg.solve(np.c_[before, np.ones(3)], after).T
    back, offset = np.linalg.inv(forth[:, :2]), forth[:, 2]
    # ndimage counts rows first
    matrix = back[::-1, ::-1]
    moved = np.stack(
        [
            ndimage.affine_transform(x[..., c], matrix, -matrix @ offset[::-1], order=1, mode="mirror")
            for c in range(x.shape[2])
        ],
        -1,
    )
    noise = 2 * draws.uniform("noise", 2, height, width)[0].double().numpy() - 1
    right, down = (gaussian(part, sigma * side, mode="reflect", truncate=3) * strength * side for part in noise)
    y, z = np.mgrid[:height, :width]
    places = np.stack((y + down, z + right))
    return np.stack(
        [ndimage.map_coordinates(moved[..., c], places, order=1, mode="reflect") for c in range(x.shape[2])], -1
    )


def pillow(x: Values) -> Image.Image:
    levels = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(levels if x.shape[2] == 3 else levels[..., 0])


def unpillow(x: Image.Image) -> Values:
    return np.atleast_3d(np.asarray(x)) / 255


def pixelate(x: Values, draws: Draws, share: float) -> Values:
    if x.shape[2] not in (1, 3):
        return np.concatenate([pixelate(x[..., c : c + 1], draws, share) for c in range(x.shape[2])], 2)
    size = x.shape[1], x.shape[0]
    small = pillow(x).resize((int(size[0] * share), int(size[1] * share)), Image.Resampling.BOX)
    return unpillow(small.resize(size, Image.Resampling.BOX))


def jpeg_compression(x: Values, draws: Draws, quality: int) -> Values:
    if x.shape[2] not in (1, 3):
        return np.concatenate([jpeg_compression(x[..., c : c + 1], draws, quality) for c in range(x.shape[2])], 2)
    file = io.BytesIO()
    pillow(x).save(file, "JPEG", quality=quality)
    return unpillow(Image.open(file))


REFERENCES: dict[str, Callable[..., Values]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip

TOLERANCE = {"pixelate": 1.01 / 255}
"""Pillow rounds to grey levels between the two axes."""


def chw(x: Values) -> tuple[int, int, int]:
    return x.shape[2], x.shape[0], x.shape[1]


def image(batch: torch.Tensor) -> Values:
    """The only image of a batch."""
    return batch[0].permute(1, 2, 0).double().numpy()


def smooth(channels: int, height: int, width: int) -> torch.Tensor:
    """Two images of 8 bits with edges, ramps and fine texture, and the whole range of values."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, channels, 5, 5, generator=generator, dtype=torch.float64)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    images = images + 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    images[:, :, height // 3 : height // 2, width // 4 : width // 2] = 0
    images[:, :, -height // 3 :, : width // 5] = 1
    return (images.clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize(
    ("benchmark", "channels", "height", "width", "severities"),
    [
        ("cifar-c", 3, 32, 32, (1, 2, 3, 4, 5)),
        ("cifar-c", 1, 28, 37, (2, 5)),
        ("tiny-imagenet-c", 5, 33, 20, (4,)),
        ("imagenet-c", 3, 46, 40, (2, 4, 5)),
    ],
)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_what_its_definition_says(name, benchmark, channels, height, width, severities):
    for severity in severities:
        compare(name, benchmark, smooth(channels, height, width), severity)


def compare(name: str, benchmark: str, images: torch.Tensor, severity: int) -> None:
    ours = corrupt(images, name, severity, seed=SEED, index=INDEX, constants=benchmark)
    row = [int(value) if float(value).is_integer() else value for value in CONSTANTS[benchmark][name][severity - 1]]
    for i in range(2):
        x = images[i].permute(1, 2, 0).numpy()
        draws = Draws(SEED, name, severity, index=INDEX[i : i + 1])
        expected = np.clip(REFERENCES[name](x.copy(), draws, *row), 0, 1)
        away = np.abs(ours[i].permute(1, 2, 0).numpy() - expected)
        assert away.max() < TOLERANCE.get(name, 1e-5), f"severity {severity}, image {i}: off by {away.max()}"


def test_grey_is_luminance():
    images = smooth(3, 8, 9).float()
    for ours, x in zip(grey(images), images, strict=True):
        expected = np.asarray(pillow(x.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(255 * ours[0].numpy() - expected).max() < 0.51


JPEG_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""


def test_jpeg_is_rounding_of_cosine_coefficients_to_steps_of_the_standard_table():
    """Table K.1 of ITU-T T.81 and a floating-point transform; libjpeg's integers may tip a coefficient over a half."""
    x = smooth(1, 32, 40)
    for severity, quality in enumerate((80, 65, 58, 50, 40), 1):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        steps = (np.array(JPEG_LUMA.split(), int).reshape(8, 8) * scale + 50) // 100
        blocks = (255 * x.numpy() - 128).reshape(-1, 4, 8, 5, 8)
        rounded = np.round(dctn(blocks, axes=(2, 4), norm="ortho") / steps[:, None, :]) * steps[:, None, :]
        expected = np.clip(np.round(idctn(rounded, axes=(2, 4), norm="ortho") + 128), 0, 255).reshape(x.shape)
        away = np.abs(255 * corrupt(x, "jpeg_compression", severity).numpy() - expected)
        assert (away < 0.5).mean() > 0.8
        assert away.mean() < 0.15 * np.abs(255 * x.numpy() - expected).mean()
