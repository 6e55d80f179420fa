"""RICAP's corners and labels, its relatives, and what its traps are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.ops.corners import corner_areas, corner_masks, corner_points, crop_shifts, patched, stitched, tile_boxes
from mixwell.sample.ksample.ricap import CornerDraws, FourCorners

X = torch.randn(6, 3, 24, 40)
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def partners_of(rows, seed=0):
    index = np.random.default_rng(seed).permuted(np.tile(np.arange(rows), (4, 1)), axis=1).T
    return Partners.at(torch.from_numpy(index.copy()), torch.arange(rows))


def mix_of(recipe, images, **draws):
    """Mix by given draws in place of drawn ones; labels are the row numbers."""
    (option,) = recipe.options
    given = dict(option.draw(len(images), Streams(0), 0).of)
    given |= {getattr(option, slot): value for slot, value in draws.items()}
    batch = mixwell.Batch(images, torch.arange(len(images)))
    return option.mix(images, mixwell.Scene(batch, mixwell.Draws(given)))


def ricap_by_hand(images, partners, points, shifts):
    """Pixel after pixel."""
    mixed = torch.full_like(images, torch.nan)
    for row in range(len(images)):
        at, shift = points[row % len(points)], shifts[row % len(shifts)]
        for i in range(images.shape[2]):
            for j in range(images.shape[3]):
                corner = 2 * int(i >= at[0]) + int(j >= at[1])
                source = partners.index[row, corner]
                mixed[row, :, i, j] = images[source, :, i + shift[corner, 0], j + shift[corner, 1]]
    return mixed


@LAYOUTS
@pytest.mark.parametrize("count", [1, 6], ids=["batch", "sample"])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (5, 3), (1, 4)])
def test_every_pixel_comes_from_its_corners_crop(layout, count, height, width):
    rng = np.random.default_rng(0)
    images = torch.randn(6, 3, height, width).contiguous(memory_format=layout)
    partners = partners_of(6)
    points = rng.integers(0, [height + 1, width + 1], (count, 2))
    points[0] = [0, width]
    shifts = crop_shifts(points, rng.random((count, 4, 2)), (height, width))
    mixed = patched(images, partners, points, shifts)
    assert torch.equal(mixed, ricap_by_hand(images, partners, points, shifts))
    assert mixed.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_gradients_go_to_the_pixels_that_are_shown(per):
    images = torch.randn(3, 1, 3, 5, dtype=torch.float64, requires_grad=True)
    recipe = mixwell.create(f"ricap(per={per})", 6)
    assert torch.autograd.gradcheck(lambda x: mix_of(recipe, x).images, images)


def test_points_are_rounded_halves_to_even():
    fractions = np.array([[0.05, 0.15], [0.25, 0.35], [0.0, 1.0]])
    assert corner_points(fractions, (10, 10)).tolist() == [[0, 2], [2, 4], [0, 10]]


def test_the_first_number_splits_rows():
    """On a flat image, whose height is the paper's width."""
    (point,) = corner_points(np.array([[0.5, 0.25]]), (10, 100)).tolist()
    assert point == [5, 25]


def test_crops_begin_anywhere_and_end_inside():
    points, size = np.array([[3, 8]]), (10, 12)
    first, last = (crop_shifts(points, np.full((1, 4, 2), u), size) for u in (0.0, 1.0))
    assert first.tolist() == [[[0, 0], [0, -8], [-3, 0], [-3, -8]]]
    assert last.tolist() == [[[7, 4], [7, 0], [0, 4], [0, 0]]]
    drawn = np.random.default_rng(0).random((20_000, 4, 2))
    begin = crop_shifts(points.repeat(20_000, 0), drawn, size)[:, 0]
    for axis, places in ((0, 8), (1, 5)):
        counts = np.bincount(begin[:, axis], minlength=places)
        assert len(counts) == places
        np.testing.assert_allclose(counts / 20_000, 1 / places, atol=0.01)


def test_corners_tile_the_canvas_once():
    rng = np.random.default_rng(0)
    points = np.concatenate((rng.integers(0, [25, 41], (50, 2)), [[0, 0], [24, 0], [24, 40]]))
    masks, areas = corner_masks(points, (24, 40)), corner_areas(points, (24, 40))
    assert (masks.sum(1) == 1).all()
    assert areas.sum(1).tolist() == pytest.approx([1] * 53)
    np.testing.assert_allclose(masks.mean((2, 3)).numpy(), areas, atol=1e-6)


def test_points_are_beta_and_rows_are_independent_of_columns():
    point = FourCorners().draw(40_000, np.random.default_rng(0)).point
    # Beta(0.3, 0.3) has variance 1 / (4·(2·0.3 + 1)).
    np.testing.assert_allclose(point.var(0), 1 / 6.4, rtol=0.02)
    np.testing.assert_allclose(point.mean(0), 0.5, atol=0.01)
    assert abs(np.corrcoef(point.T)[0, 1]) < 0.02


def test_there_is_no_own_row():
    """The first corner's image is drawn as the others are."""
    mix = mix_of(mixwell.create("ricap", 512), torch.zeros(512, 1, 2, 2))
    assert mix.sources.shape == (512, 4)
    assert (mix.sources == torch.arange(512)[:, None]).float().mean() < 0.02
    assert all(len(column.unique()) == 512 for column in mix.sources.T)


def test_small_beta_shows_nearly_one_image():
    mix = mix_of(mixwell.create("ricap(beta=0.01)", 64), torch.randn(64, 3, 16, 16))
    assert (mix.weights.max(1).values == 1).float().mean() > 0.8


def test_the_batch_rule_of_the_code_is_one_point_and_one_crop_for_all():
    draws = FourCorners(per="batch").draw(9, np.random.default_rng(0))
    assert (draws.point.shape, draws.crops.shape) == ((1, 2), (1, 4, 2))
    each = CornerDraws(draws.point.repeat(6, 0), draws.crops.repeat(6, 0))
    one, same = (
        mix_of(mixwell.create(f"ricap(per={per})", 6), X, blend=d)
        for per, d in zip(("batch", "sample"), (draws, each), strict=True)
    )
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.weights, same.weights)


# Mosaic


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_a_mosaic_is_the_middle_of_the_detectors_canvas(per):
    mix = mix_of(mixwell.create(f"ricap(variant=mosaic, per={per})", 6), X)
    for row, (top_left, top_right, bottom_left, _) in enumerate(mix.masks.expand(6, -1, -1, -1)):
        point = int((top_left + top_right)[:, 0].sum()), int((top_left + bottom_left)[0].sum())
        tiles = [X[source][None] for source in mix.sources[row]]
        canvas = stitched(tiles, (12 + point[0], 20 + point[1]), (48, 80), fill=torch.nan)
        assert torch.equal(mix.images[row], canvas[0, :, 12:36, 20:60])


def test_the_mosaics_point_is_uniform():
    (option,) = mixwell.create("ricap(variant=mosaic)", 6).options
    point = option.blend.draw(40_000, np.random.default_rng(0)).point
    np.testing.assert_allclose(np.quantile(point, [0.1, 0.5, 0.9], axis=0).T, [[0.1, 0.5, 0.9]] * 2, atol=0.01)


def test_a_canvas_cuts_what_is_beyond_it_and_fills_the_rest():
    sides = [(3, 4), (2, 5), (4, 4), (1, 1)]
    tiles = [torch.full((1, 2, *side), which + 1) for which, side in enumerate(sides)]
    canvas = stitched(tiles, (2, 6), (5, 8), fill=9)
    boxes = tile_boxes(sides, (2, 6), (5, 8))
    assert boxes.tolist() == [[0, 2, 2, 6], [0, 2, 6, 8], [2, 5, 2, 6], [2, 3, 6, 7]]
    assert canvas[0, 1].tolist() == [
        [9, 9, 1, 1, 1, 1, 2, 2],
        [9, 9, 1, 1, 1, 1, 2, 2],
        [9, 9, 3, 3, 3, 3, 4, 9],
        [9, 9, 3, 3, 3, 3, 9, 9],
        [9, 9, 3, 3, 3, 3, 9, 9],
    ]


@LAYOUTS
@pytest.mark.parametrize("size", [(8, 12), (7, 12), (5, 5), (1, 1)], ids=str)
def test_stitching_halves_four_whole_images(size, layout):
    images = torch.rand(6, 3, *size).contiguous(memory_format=layout)
    mix = mix_of(mixwell.create("ricap(variant=stitch)", 6), images)
    first, second, third, last = (images[mix.sources[:, which]] for which in range(4))
    whole = torch.cat((torch.cat((first, second), 3), torch.cat((third, last), 3)), 2)
    torch.testing.assert_close(mix.images, torch.nn.functional.avg_pool2d(whole, 2))
    assert mix.images.is_contiguous(memory_format=layout)
    assert (mix.weights == 0.25).all()
    torch.testing.assert_close(mix.masks.sum(1), torch.ones(1, *size))
    torch.testing.assert_close(mix.masks.mean((2, 3)), mix.weights[:1])


@pytest.mark.parametrize("variant", ["mosaic", "stitch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_variants_keep_the_dtype(variant, dtype):
    recipe = mixwell.create(f"ricap(variant={variant})", 6)
    mix = mix_of(recipe, X.to(dtype))
    assert mix.images.dtype == dtype
    torch.testing.assert_close(mix.images.float(), mix_of(recipe, X).images, rtol=1e-2, atol=2e-2)


def test_a_beta_that_could_not_act_is_refused():
    with pytest.raises(mixwell.ParameterError, match=r"beta is a parameter of variant='ricap', got 0\.5 with 'mosaic'"):
        mixwell.create("ricap(beta=0.5, variant=mosaic)", 6)


@pytest.mark.parametrize("variant", ["ricap", "mosaic", "stitch"])
def test_a_training_step(cnn, variant):
    model = cnn(6)
    loss = mixwell.create(f"ricap(variant={variant})", 6)(model, X, torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
