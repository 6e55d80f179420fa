"""DCutMix's stick and boxes, DMixup's mean, and what their traps are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.ops.nested import nest, nested_boxes, nested_masks, segment_areas, stick_breaks
from mixwell.sample.ksample.dcutmix import Convex, NestDraws, NestedBoxes, convex

X = torch.randn(6, 3, 24, 40)
SIZES = pytest.mark.parametrize("size", [(24, 40), (7, 5), (1, 9)], ids=str)


def sticks(rows, k, alpha=1.0, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(k, alpha), rows).astype(np.float32)


def boxes_for(shares, size, seed=1):
    places = np.random.default_rng(seed).random((len(shares), shares.shape[1] - 1, 2))
    return nested_boxes(stick_breaks(shares), places, size)


def partners_of(rows, count):
    index = np.random.default_rng(0).permuted(np.tile(np.arange(rows), (count, 1)), axis=1).T
    return Partners.at(torch.from_numpy(index.copy()), torch.arange(rows))


def mix_of(text, images, **draws):
    """Mix by given draws in place of drawn ones; labels are the row numbers."""
    (option,) = mixwell.create(text, 6).options
    given = dict(option.draw(len(images), Streams(0), 0).of)
    given |= {getattr(option, slot): value for slot, value in draws.items()}
    batch = mixwell.Batch(images, torch.arange(len(images)))
    return option.mix(images, mixwell.Scene(batch, mixwell.Draws(given)))


def test_breaks_take_the_shares_off_the_stick():
    shares = sticks(200, 6)
    breaks = stick_breaks(shares)
    left = np.cumprod(1 - breaks.astype(float), 1)
    np.testing.assert_allclose(left, 1 - np.cumsum(shares[:, :-1].astype(float), 1), atol=1e-5)


def test_a_stick_of_one_piece_breaks_at_once():
    """Nothing is left for the later breaks, which divide by the guard alone."""
    shares = np.eye(4, dtype=np.float32)
    boxes = boxes_for(shares, (24, 40))
    assert np.isfinite(stick_breaks(shares)).all()
    assert segment_areas(boxes, (24, 40)).tolist() == np.eye(4).tolist()


@SIZES
def test_boxes_lie_in_each_other(size):
    boxes = boxes_for(sticks(500, 5), size)
    around = np.concatenate((np.broadcast_to([[0, size[0], 0, size[1]]], (1, 500, 4)), boxes))
    assert (np.diff(around[:, :, ::2], axis=0) >= 0).all()
    assert (np.diff(around[:, :, 1::2], axis=0) <= 0).all()
    assert (boxes[:, :, ::2] <= boxes[:, :, 1::2]).all()


@SIZES
def test_sides_are_the_root_of_what_is_left_rounded_to_even(size):
    """Break after break and row after row, as the authors' code does it."""
    breaks = stick_breaks(sticks(300, 5))
    boxes = nested_boxes(breaks, np.zeros((300, 4, 2)), size)
    for row in range(300):
        height, width = size
        for which in range(4):
            ratio = np.sqrt(max(np.float32(1) - breaks[row, which], np.float32(0)))
            height, width = round(height * float(ratio)), round(width * float(ratio))
            top, bottom, left, right = boxes[which, row]
            assert (bottom - top, right - left) == (height, width)


def test_places_are_uniform_inside_the_box_around():
    """For two images, of which the second covers a quarter: unlike CutMix's, the box never leaves the image."""
    shares = np.tile(np.float32([0.75, 0.25]), (20_000, 1))
    (boxes,) = boxes_for(shares, (8, 12))
    assert (boxes[:, 1] - boxes[:, 0] == 4).all()
    assert (boxes[:, 3] - boxes[:, 2] == 6).all()
    for edge, places in ((0, 5), (2, 7)):
        counts = np.bincount(boxes[:, edge], minlength=places)
        assert len(counts) == places
        np.testing.assert_allclose(counts / 20_000, 1 / places, atol=0.015)


def test_a_box_as_long_as_the_one_around_stays_in_its_corner():
    """The official rule: a place is drawn only where both sides are shorter."""
    (box,) = nested_boxes(np.float32([[0.2]]), np.full((1, 1, 2), 0.99), (2, 100))[0].tolist()
    assert box == [0, 2, 0, 89]


@SIZES
def test_segments_tile_the_image_once(size):
    boxes = boxes_for(sticks(100, 4), size)
    masks, areas = nested_masks(boxes, size), segment_areas(boxes, size)
    assert ((masks == 0) | (masks == 1)).all()
    assert (masks.sum(1) == 1).all()
    np.testing.assert_allclose(masks.mean((2, 3)).numpy(), areas, atol=1e-6)
    np.testing.assert_allclose(areas.sum(1), 1, atol=1e-12)


def test_every_image_has_the_same_share_in_the_mean():
    areas = segment_areas(boxes_for(sticks(20_000, 5), (64, 64)), (64, 64))
    np.testing.assert_allclose(areas.mean(0), 0.2, atol=0.01)


@pytest.mark.parametrize("blend", [NestedBoxes(4, 0.5), Convex(4, 0.5)], ids=["dcutmix", "dmixup"])
def test_shares_follow_the_dirichlet_distribution(blend):
    drawn = blend.draw(40_000, np.random.default_rng(0))
    shares = drawn.shares if isinstance(drawn, NestDraws) else drawn
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(shares.mean(0), 0.25, atol=0.01)
    # Dirichlet(α·1_K) has variance (K - 1) / (K²·(K·α + 1)) and covariance -1 / (K²·(K·α + 1)).
    covariance = np.cov(shares.T)
    np.testing.assert_allclose(covariance, (np.eye(4) * 4 - 1) / 48, atol=0.003)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("count", [1, 6], ids=["batch", "sample"])
def test_every_pixel_is_the_same_pixel_of_its_segments_image(layout, count):
    images, partners = X.contiguous(memory_format=layout), partners_of(6, 4)
    boxes = boxes_for(sticks(count, 5, 2.0), (24, 40))
    mixed = nest(images, partners, boxes)
    expected = X.clone()
    for which, box in enumerate(boxes):
        for row in range(6):
            top, bottom, left, right = box[row % count]
            source = partners.index[row, which]
            expected[row, :, top:bottom, left:right] = X[source, :, top:bottom, left:right]
    assert torch.equal(mixed, expected)
    assert mixed.is_contiguous(memory_format=layout)


def test_the_label_is_the_realised_area_not_the_stick():
    """Half of 5 × 5 pixels is not to be had: a box of √½·5 ≈ 4 × 4 pixels has 16 of 25."""
    draws = NestDraws(np.tile(np.float32([0.5, 0.5]), (6, 1)), np.zeros((6, 1, 2)))
    mix = mix_of("dcutmix(k=2)", X[:, :, :5, :5], blend=draws)
    torch.testing.assert_close(mix.weights, torch.tensor([9 / 25, 16 / 25]).expand(6, 2))
    torch.testing.assert_close(mix.area, torch.full((6,), 9 / 25, dtype=torch.float64))


def test_shares_of_one_image_add_up():
    """Partners may repeat, also the image itself."""
    draws = NestDraws(sticks(6, 4), np.random.default_rng(0).random((6, 3, 2)))
    pairing = np.stack((np.arange(6), np.zeros(6, np.int64), np.zeros(6, np.int64)))
    mix = mix_of("dcutmix(k=4)", X, pairing=pairing, blend=draws)
    dense = mix.targets().dense(6)
    torch.testing.assert_close(dense[1:, 0], mix.weights[1:, 2:].sum(1))
    torch.testing.assert_close(dense.diagonal()[1:], mix.weights[1:, :2].sum(1))


# DMixup


def test_dmixup_is_the_weighted_mean():
    shares = sticks(6, 5)
    mix = mix_of("dcutmix(variant=dmixup)", X, blend=shares)
    expected = torch.einsum("rk,rkchw->rchw", torch.from_numpy(shares), X[mix.sources])
    torch.testing.assert_close(mix.images, expected)
    assert torch.equal(mix.weights, torch.from_numpy(shares))
    assert torch.equal(mix.sources[:, 0], torch.arange(6))


def test_dmixup_of_one_share_is_the_image():
    shares = np.eye(5, dtype=np.float32)[:1]
    assert torch.equal(mix_of("dcutmix(variant=dmixup, per=batch)", X, blend=shares).images, X)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 11), (6, 3, 8, 8)], ids=["table", "signal", "images"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dmixup_takes_any_shape_and_dtype(shape, dtype):
    x, partners, shares = torch.randn(shape), partners_of(6, 4), torch.from_numpy(sticks(6, 5))
    mixed = convex(x.to(dtype), partners, shares)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), convex(x, partners, shares), rtol=2e-2, atol=2e-2)


def test_dmixup_keeps_channels_last():
    assert mix_of("dcutmix(variant=dmixup)", X.contiguous(memory_format=torch.channels_last)).images.is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("k", [1, 0, -3])
def test_fewer_than_two_images_are_refused(k):
    with pytest.raises(mixwell.ParameterError, match=f"k must be a whole number ≥ 2, got {k}"):
        mixwell.create(f"dcutmix(k={k})", 6)


@pytest.mark.parametrize("text", ["dcutmix", "dcutmix(k=2, alpha=1)", "dcutmix(variant=dmixup)", "dcutmix(per=batch)"])
def test_a_training_step(cnn, text):
    model = cnn(6)
    loss = mixwell.create(text, 6)(model, X, torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
