"""FMix's grey images, masks and labels, and where paper and code differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mixwell
from mixwell.ops.fourier import brightest, grey_images, ramped, spectrum_shape, stretched
from mixwell.ops.noise import normal_noise
from mixwell.sample.cutting.fmix import FourierDraws, fourier_masks, pixels_shown

SIZES = [(24, 40), (32, 32), (9, 5), (5, 12)]
X = torch.randn(6, 3, 24, 40)


def noise_of(rows, size, spectrum="paper"):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((rows, *spectrum_shape(size, spectrum), 2)))


def transform_by_hand(half, size):
    """Real part of the inverse transform of a half spectrum, wave by wave; self-conjugate columns count once."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    image = np.zeros(size)
    for ky in range(min(half.shape[0], height)):
        for kx in range(min(half.shape[1], width // 2 + 1)):
            wave = half[ky, kx] * np.exp(2j * np.pi * (ky * y / height + kx * x / width))
            image += wave.real * (1 if kx == 0 or 2 * kx == width else 2)
    return (image - image.min()) / (image.max() - image.min())


def amplitude(ky, kx, size, decay):
    frequency = np.hypot(min(ky, size[0] - ky) / size[0], kx / size[1])
    return max(frequency, 1 / max(size)) ** -decay


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_papers_grey_image_holds_all_frequencies(size):
    noise = noise_of(1, size)
    half = np.array(
        [
            [complex(*noise[0, ky, kx]) * amplitude(ky, kx, size, 2) for kx in range(noise.shape[2])]
            for ky in range(size[0])
        ]
    )
    np.testing.assert_allclose(stretched(grey_images(noise, size, 2))[0], transform_by_hand(half, size), atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_codes_grey_image_mixes_up_the_axes(size):
    """Rows 0 and 1 of the noise are real and imaginary part; its columns become vertical frequencies."""
    noise = noise_of(1, size, "code")
    columns = np.abs(np.fft.fftfreq(size[1]))[: noise.shape[2]] * size[1]
    half = np.array(
        [
            [
                noise[0, 0, j, c] * amplitude(0, k, size, 2) + 1j * noise[0, 1, j, c] * amplitude(1, k, size, 2)
                for c in (0, 1)
            ]
            for j, k in enumerate(columns)
        ]
    )
    np.testing.assert_allclose(
        stretched(grey_images(noise, size, 2, "code"))[0], transform_by_hand(half, size), atol=1e-12
    )


def test_only_the_codes_spectrum_lacks_horizontal_frequencies():
    grey = {
        spectrum: torch.fft.rfft2(stretched(grey_images(noise_of(4, (32, 32), spectrum), (32, 32), 1, spectrum))).abs()
        for spectrum in ("paper", "code")
    }
    assert grey["code"][:, :, 2:].max() < 1e-9
    assert grey["paper"][:, :, 2:].max() > 1


def test_the_codes_spectrum_needs_two_rows():
    with pytest.raises(mixwell.BatchError, match="at least 2 rows of pixels, got 1"):
        mixwell.create("fmix(spectrum=code)").mix_batch(torch.randn(2, 3, 1, 8), torch.arange(2))
    mixwell.create("fmix").mix_batch(torch.randn(2, 3, 1, 8), torch.arange(2))


def test_a_higher_decay_gives_larger_blobs():
    def border(decay):
        masks = brightest(grey_images(noise_of(200, (32, 32)), (32, 32), decay), np.full(200, 512))
        return masks.diff(dim=1).abs().mean() + masks.diff(dim=2).abs().mean()

    borders = [border(decay) for decay in (0, 1, 2, 3, 5)]
    assert borders == sorted(borders, reverse=True)
    assert borders[0] > 10 * borders[-1]


def test_masks_are_the_brightest_pixels():
    grey, count = torch.rand(5, 7, 9), np.array([0, 1, 20, 62, 63])
    masks = brightest(grey, count)
    assert masks.sum((1, 2)).tolist() == count.tolist()
    for image, mask in zip(grey[1:4], masks[1:4], strict=True):
        assert image[mask == 1].min() > image[mask == 0].max()


@pytest.mark.parametrize("count", [0, 1, 31, 62, 63])
def test_one_rank_for_all_rows_and_one_each_select_alike(count):
    grey = torch.rand(3, 7, 9)
    each = brightest(grey, np.array([count, 5, 40]))
    assert torch.equal(brightest(grey, np.full(3, count))[0], each[0])
    assert torch.equal(brightest(grey[:1], np.array([count, count]))[1], each[0])


def test_a_larger_share_contains_the_smaller():
    grey = torch.rand(1, 16, 16)
    masks = brightest(grey, np.arange(0, 257, 16))
    assert (masks.diff(dim=0) >= 0).all()


def test_a_ramp_of_no_width_is_a_hard_edge():
    grey, count = torch.rand(4, 7, 9), np.array([0, 10, 40, 63])
    assert torch.equal(ramped(grey, count, count), brightest(grey, count))


def test_softened_masks_fall_by_rank_and_keep_their_mean():
    grey, lam, coins = torch.rand(4, 16, 16), np.array([0.1, 0.5, 0.7, 1.0]), np.zeros(4)
    count = pixels_shown(lam, coins, 256)
    masks = fourier_masks(grey, count, lam, 0.3).flatten(1)
    torch.testing.assert_close(masks.mean(1), torch.from_numpy(count / 256).float())
    ordered = masks.gather(1, grey.flatten(1).argsort(1))
    assert (ordered.diff(dim=1) >= 0).all()
    soft = [25, 76, 76, 0]  # no wider than the smaller of λ and 1-λ on either side
    assert [int(((row > 0) & (row < 1)).sum()) for row in masks] == [max(2 * n - 2, 0) for n in soft]


def test_the_coin_rounds_up_or_down():
    assert pixels_shown(np.full(3, 0.301), np.array([0.2, 0.5, 0.51]), 100).tolist() == [30, 30, 31]


def test_the_label_is_the_drawn_lambda_and_the_area_a_pixel_away():
    recipe = mixwell.create("fmix", 6)
    (option,) = recipe.options
    batch = mixwell.Batch(X, torch.arange(6))
    mix = option.mix(X, mixwell.Scene(batch, option.draw(6, recipe._streams, 0)))
    torch.testing.assert_close(mix.weights[:, 0], mix.lam.float())
    torch.testing.assert_close(mix.masks[:, 0].mean((1, 2)), mix.area.float())
    assert ((mix.area - mix.lam).abs() <= 1 / (24 * 40)).all()


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_every_pixel_comes_from_one_of_the_pair(per):
    images, targets = mixwell.create(f"fmix(per={per})", 6, seed=3).mix_batch(X, torch.arange(6))
    pair = X[targets.sources]
    assert ((images == pair[:, 0]) | (images == pair[:, 1])).all()


def test_the_key_alone_decides_the_noise():
    shape, device = (2, 5, 3, 2), torch.device("cpu")
    assert torch.equal(normal_noise(7, shape, device), normal_noise(7, shape, device))
    assert not torch.equal(normal_noise(7, shape, device), normal_noise(8, shape, device))
    drawn = normal_noise(2**63 - 1, (200, 200), device).double()
    assert stats.kstest(drawn.flatten(), "norm").pvalue > 1e-4


def test_one_lambda_and_a_mask_each_or_the_reverse():
    """λ per sample over one grey image gives nested masks; one λ over grey images of their own, equal areas."""
    batch = mixwell.Batch(X, torch.arange(6))
    for per, lams in (("batch", np.linspace(0.1, 0.9, 6)), ("sample", np.array([0.4]))):
        (option,) = mixwell.create(f"fmix(per={per})", 6).options
        coins = np.full(1 if per == "batch" else 6, 0.3)
        draws = {option.pairing: np.arange(6), option.ratio: lams, option.blend: FourierDraws(1, coins)}
        mix = option.mix(X, mixwell.Scene(batch, mixwell.Draws(draws)))
        keep = mix.masks[:, 0]
        assert keep.shape == (6, 24, 40)
        expected = np.floor(lams * 960) * np.ones(6)
        assert keep.sum((1, 2)).tolist() == expected.tolist()
        assert (keep.diff(dim=0) >= 0).all() == (per == "batch")


def test_a_map_of_half_the_size_shows_mean_shares():
    recipe = mixwell.create("fmix", 6)
    (option,) = recipe.options
    mix = option.mix(X, mixwell.Scene(mixwell.Batch(X, torch.arange(6)), option.draw(6, recipe._streams, 0)))
    rows = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 24, 40)
    torch.testing.assert_close(mix.apply(rows[:, :, ::2, ::2]), F.avg_pool2d(mix.apply(rows), 2))


def test_reformulated_labels_are_the_images_own():
    recipe = mixwell.create("fmix(alpha=0.5, reformulate=True)", 6)
    _, targets = recipe.mix_batch(X, torch.arange(6))
    assert torch.equal(targets.dense(), torch.eye(6))
    (option,) = recipe.options
    lam = option.ratio.draw(4000, np.random.default_rng(0))
    assert stats.kstest(lam, stats.beta(1.5, 0.5).cdf).pvalue > 1e-4


@pytest.mark.parametrize("wrong", ["decay=-1", "max_soft=1.5", "alpha=0"])
def test_settings_out_of_range(wrong):
    with pytest.raises(mixwell.ParameterError, match=f"{wrong.partition('=')[0]} must be a number"):
        mixwell.create(f"fmix({wrong})")
