"""Cut-Thumbnail: what stands inside the boxes and outside them, where the boxes are, and labels that ignore them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mixwell
from mixwell.core.mix import Partners
from mixwell.sample.ksample.cut_thumbnail import Thumbnails, paste_thumbnails, placed, thumbnail, visible_masks

X = torch.randn(6, 3, 24, 40)
PARTNERS = Partners.at(torch.tensor([[3, 5], [0, 2], [5, 0], [1, 4], [2, 1], [4, 3]]), torch.arange(6))
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def boxes_of(share=0.5, size=(24, 40), rows=6, seed=0):
    return placed(np.random.default_rng(seed).random((rows, 2)), share, size)


def test_a_whole_ratio_keeps_every_second_pixel():
    assert torch.equal(thumbnail(X, (12, 20)), X[..., ::2, ::2])


@pytest.mark.parametrize("size", [(12, 20), (7, 9), (24, 40), (1, 1), (11, 20)], ids=str)
@pytest.mark.parametrize("resize", ["nearest", "bilinear"])
def test_thumbnails_are_those_of_interpolate_without_antialiasing(size, resize):
    assert torch.equal(thumbnail(X, size, resize), F.interpolate(X, size, mode=resize, antialias=False))


@LAYOUTS
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("share", [0.5, 0.3, 1.0, 0.01])
@pytest.mark.parametrize("rows", [1, 6])
def test_inside_stands_the_thumbnail_and_outside_the_image(share, rows, graph, layout):
    boxes = boxes_of(share, rows=rows)
    images = X.contiguous(memory_format=layout).requires_grad_(graph)
    mixed = paste_thumbnails(images, [boxes], PARTNERS)
    expected = X.clone()
    for row, (top, bottom, left, right) in enumerate(boxes.repeat(6 // rows, 0).tolist()):
        small = F.interpolate(X[PARTNERS.index[row, :1]], (bottom - top, right - left))[0]
        expected[row, :, top:bottom, left:right] = small
    assert torch.equal(mixed, expected)
    assert mixed.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("rows", [1, 6])
def test_gradients_are_those_of_finite_differences(rows):
    """Where many pixels are covered by a partner's thumbnail, the own ones must get no gradient."""
    images = torch.randn(6, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    boxes = boxes_of(size=(4, 6), rows=rows)
    assert torch.autograd.gradcheck(lambda x: paste_thumbnails(x, [boxes], PARTNERS), images)


def test_partners_that_are_the_images_make_self_thumbnails():
    boxes = boxes_of()
    itself = Partners.at(torch.arange(6)[:, None], torch.arange(6))
    assert torch.equal(paste_thumbnails(X, [boxes], itself), paste_thumbnails(X, [boxes]))


def test_later_thumbnails_hide_earlier_ones():
    low, high = boxes_of(seed=1), boxes_of(0.75, seed=2)
    mixed = paste_thumbnails(X, [low, high], PARTNERS)
    masks = visible_masks([low, high], (24, 40))
    assert torch.equal(masks.sum(1), torch.ones(6, 24, 40))
    once = paste_thumbnails(X, [low], PARTNERS)
    twice = paste_thumbnails(X, [high], Partners.at(PARTNERS.index[:, 1:], PARTNERS.pool))
    own, first, second = (masks[:, which, None].expand_as(X) == 1 for which in range(3))
    for where, shown in ((own, X), (first, once), (second, twice)):
        assert where.any()
        assert torch.equal(mixed[where], shown[where])
    assert second[:, 0].sum().item() == 6 * 18 * 30, "the last one is never hidden"


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("share", [0.5, 0.34, 1.0])
def test_boxes_lie_inside_and_have_one_size(size, share):
    boxes = boxes_of(share, size, rows=500)
    assert (boxes[:, ::2] >= 0).all()
    assert (boxes[:, 1::2] <= size).all()
    sides = np.maximum(np.rint(share * np.array(size)), 1)
    assert (boxes[:, 1::2] - boxes[:, ::2] == sides).all()


def test_places_are_uniform_and_rows_and_columns_are_told_apart():
    draws = Thumbnails().draw(4000, np.random.default_rng(0))
    top, _, left, _ = placed(draws[:, 0], 0.5, (8, 12)).T
    assert stats.chisquare(np.bincount(top, minlength=5)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(left, minlength=7)).pvalue > 1e-4
    assert stats.chi2_contingency(stats.contingency.crosstab(top, left)[1]).pvalue > 1e-4


def test_the_authors_code_takes_one_place_for_the_batch():
    rng = np.random.default_rng(0)
    assert Thumbnails((0.5, 0.5), per="batch").draw(7, rng).shape == (1, 2, 2)
    assert len(np.unique(Thumbnails().draw(7, rng), axis=0)) == 7


@pytest.mark.parametrize(
    ("variant", "size", "lam", "shares"),
    [
        ("single", 0.5, 0.25, [0.75, 0.25]),
        ("single", 1.0, 0.25, [0.75, 0.25]),
        ("single", 0.2, 0.4, [0.6, 0.4]),
        ("multiple", 0.5, 0.25, [0.75, 0.125, 0.125]),
        ("multiple", (0.2, 0.5, 0.7), 0.6, [0.4, 0.2, 0.2, 0.2]),
    ],
)
def test_labels_do_not_depend_on_the_boxes(variant, size, lam, shares):
    recipe = mixwell.create(f"cut_thumbnail(variant={variant}, size={size}, lam={lam}, participation_rate=1)", 6)
    for labels in (torch.arange(6), torch.eye(6)):
        _, targets = recipe.mix_batch(X, labels)
        torch.testing.assert_close(targets.weights, torch.tensor(shares).expand(6, -1))
        assert torch.equal(targets.sources[:, 0], torch.arange(6))


@pytest.mark.parametrize("size", ["0.5", "(0.3, 0.6)"])
def test_area_labels_are_what_can_be_seen(size):
    recipe = mixwell.create(f"cut_thumbnail(variant=multiple, size={size}, label=area, participation_rate=1)", 6)
    flat = torch.arange(6.0)[:, None, None, None].expand(6, 1, 24, 40)
    images, targets = recipe.mix_batch(flat, torch.arange(6))
    shown = torch.stack([(images == row).float().mean((1, 2, 3)) for row in range(6)], 1)
    torch.testing.assert_close(targets.dense(), shown)


def test_self_thumbnails_leave_labels_alone_and_act_on_their_share_of_the_batches():
    recipe = mixwell.create("cut_thumbnail(variant=self)", 6, seed=1)
    acted = 0
    for _ in range(1000):
        images, targets = recipe.mix_batch(X[:, :1, :4, :4], torch.arange(6))
        assert torch.equal(targets.dense(), torch.eye(6))
        acted += not torch.equal(images, X[:, :1, :4, :4])
    assert stats.binomtest(acted, 1000, 0.8).pvalue > 1e-4


def test_beside_self_thumbnails_every_batch_is_mixed():
    """Their rate says nothing about the other method of the recipe."""
    recipe = mixwell.create("mixup + cut_thumbnail(variant=self, participation_rate=0.3)", 6)
    assert all(recipe.mix_batch(X, torch.arange(6))[1].sources.shape[1] == 2 for _ in range(20))


def test_self_thumbnails_need_a_grid():
    with pytest.raises(mixwell.BatchError, match=r"expected images \(B, C, H, W\), got \(6, 5\)"):
        mixwell.create("cut_thumbnail(variant=self)").mix_batch(torch.randn(6, 5), torch.arange(6))


@pytest.mark.parametrize("variant", ["self", "single", "multiple"])
def test_a_training_step_is_finite(variant, cnn):
    recipe, net = mixwell.create(f"cut_thumbnail(variant={variant}, participation_rate=1)", 7), cnn()
    loss = recipe(net, X, torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("size=0", r"size must be a number in \(0, 1\], got 0\. .*such as 0.5 for 112 of 224"),
        ("size=112", r"size must be a number in \(0, 1\], got 112"),
        ("size=(0.5, 0.5)", "size must be a number, or for variant=multiple a number for each thumbnail"),
        ("lam=1.5", r"lam must be a number in \[0, 1\], got 1.5"),
        ("variant=self, participation_rate=2", r"participation_rate must be a number in \[0, 1\], got 2"),
    ],
)
def test_bad_parameters(given, message):
    with pytest.raises(mixwell.ParameterError, match=message):
        mixwell.create(f"cut_thumbnail({given})")
