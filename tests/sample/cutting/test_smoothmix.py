"""SmoothMix's blobs and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.ops.gaussian import profiles
from mixwell.sample.cutting.smoothmix import circle_masks, square_masks

X = torch.randn(6, 3, 24, 40)
SIZES = [(32, 32), (24, 40), (7, 5), (1, 9)]
VARIANTS = ["circle", "square"]


def drawn(rows=6):
    return np.random.default_rng(0).random((rows, 3))


def circle_by_hand(draw, size):
    (height, width), sigma = size, 0.25 + 0.25 * draw[2]
    y, x = np.mgrid[:height, :width] + 0.5
    down, across = (y - draw[0] * height) / (sigma * height), (x - draw[1] * width) / (sigma * width)
    return np.exp(-(down**2 + across**2) / 2)


def square_by_hand(draw, size, k):
    (height, width), side = size, draw[2]
    y, x = np.mgrid[:height, :width] + 0.5
    down = (side * height / 2 - abs(y - draw[0] * height)) / (k * height / 2) + 0.5
    across = (side * width / 2 - abs(x - draw[1] * width)) / (k * width / 2) + 0.5
    return np.minimum(down.clip(0, 1), across.clip(0, 1))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_circles_are_gaussians(size):
    keep, own = circle_masks(drawn(), size, X)
    expected = np.stack([1 - circle_by_hand(draw, size) for draw in drawn()])
    np.testing.assert_allclose(keep[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(own, expected.mean((1, 2)), atol=1e-12)


@pytest.mark.parametrize("k", [0.2, 0.05, 1.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squares_have_ramps(size, k):
    keep, own = square_masks(drawn(), size, X, k)
    expected = np.stack([1 - square_by_hand(draw, size, k) for draw in drawn()])
    np.testing.assert_allclose(keep[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(own, expected.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("masks", [circle_masks, square_masks])
def test_blobs_are_symmetric_about_their_centre_and_fall_away_from_it(masks):
    blob = 1 - masks(np.array([[0.5, 0.5, 0.4]]), (24, 40), X)[0][0, 0]
    torch.testing.assert_close(blob, blob.flip(0))
    torch.testing.assert_close(blob, blob.flip(1))
    assert (blob[:12].diff(dim=0) >= -1e-6).all()
    assert (blob[:, :20].diff(dim=1) >= -1e-6).all()
    assert blob.max() > 0.9
    assert blob[0, 0] < 0.2


def test_rows_are_rows():
    """A blob at the top right."""
    blob = 1 - circle_masks(np.array([[0.0, 0.99, 0.0]]), (24, 40), X)[0][0, 0]
    assert divmod(int(blob.argmax()), 40) == (0, 39)


def test_a_square_narrower_than_its_ramps_never_shows_the_partner_alone():
    """σ = 0 leaves a bump of at most half, as the definition says."""
    keep, own = square_masks(np.array([[0.5, 0.5, 0.0]]), (33, 33), X)
    assert keep.min() == 0.5
    assert 0.98 < own.item() < 1


def test_profiles_are_normal_densities_up_to_scale():
    (profile,) = profiles(np.array([4.2]), np.array([2.5]), 16)
    density = stats.norm(4.2, 2.5).pdf(np.arange(16) + 0.5)
    np.testing.assert_allclose(profile / profile.sum(), density / density.sum())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_the_image_keeps_what_is_outside_and_its_label_the_mean_of_that(per, variant):
    """Not the blob's own mean, which a known port gives to the image."""
    images = torch.zeros(6, 1, 24, 40)
    images[0] = 1
    recipe = mixwell.create(f"smoothmix(variant={variant}, per={per})", 6)
    (option,) = recipe.options
    away = np.roll(np.arange(6), 1)
    draws = option.draw(6, recipe._streams, 0)
    given = mixwell.Draws({**draws.of, option.pairing: away})
    mix = option.mix(images, mixwell.Scene(mixwell.Batch(images, torch.arange(6)), given))
    blob = circle_by_hand if variant == "circle" else lambda draw, size: square_by_hand(draw, size, 0.2)
    drawn_blobs = draws[option.blend]
    np.testing.assert_allclose(mix.images[0, 0], 1 - blob(drawn_blobs[0], (24, 40)), atol=1e-6)
    np.testing.assert_allclose(mix.images[1, 0], blob(drawn_blobs[-1 if per == "batch" else 1], (24, 40)), atol=1e-6)
    torch.testing.assert_close(mix.weights[0, 0], mix.images[0].mean())
    torch.testing.assert_close(mix.weights[1, 1], mix.images[1].mean())
    torch.testing.assert_close(mix.weights.sum(1), torch.ones(6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_lie_between_those_of_the_pair(variant):
    images, targets = mixwell.create(f"smoothmix(variant={variant})", 6, seed=1).mix_batch(X, torch.arange(6))
    pair = X[targets.sources]
    assert (images >= pair.min(1).values - 1e-6).all()
    assert (images <= pair.max(1).values + 1e-6).all()


def test_shares_of_circles_are_moderate_and_never_0_or_1():
    own = circle_masks(np.random.default_rng(1).random((4000, 3)), (32, 32), X)[1]
    assert 0.25 < own.min() < 0.35
    assert 0.85 < own.max() < 0.95
    np.testing.assert_allclose(circle_masks(np.array([[0.5, 0.5, 1.0]]), (64, 64), X)[1], 1 - 0.7328, atol=1e-3)


def test_centres_and_extents_are_uniform_and_independent():
    (option,) = mixwell.create("smoothmix").options
    draws = option.blend.draw(4000, np.random.default_rng(2))
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert stats.pearsonr(draws[:, one], draws[:, other]).pvalue > 1e-4


def test_no_ratio_can_be_given():
    assert mixwell.create("smoothmix").options[0].ratio is None


def test_maps_of_another_size_get_the_same_blob():
    recipe = mixwell.create("smoothmix", 6)
    (option,) = recipe.options
    draws = option.draw(6, recipe._streams, 0)
    mix = option.mix(X, mixwell.Scene(mixwell.Batch(X, torch.arange(6)), draws))
    rows = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 12, 20)
    keep = circle_masks(draws[option.blend], (12, 20), X)[0]
    torch.testing.assert_close(mix.apply(rows), torch.lerp(rows[mix.sources[:, 1]], rows, keep))


@pytest.mark.parametrize("edge", [0, -0.1])
def test_ramps_have_a_width(edge):
    with pytest.raises(mixwell.ParameterError, match="edge must be a number"):
        mixwell.create(f"smoothmix(edge={edge})")
