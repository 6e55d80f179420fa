"""SnapMix: crops in boxes of another size, and labels by what class activation maps say of them."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.core.saliency import resized
from mixwell.label.saliency.snapmix import TwoBoxes, counted_twice, paste, semantic_maps, semantic_shares

ROWS, SIZE = 6, (32, 40)
NEXT = torch.arange(ROWS).roll(-1)


def partners():
    return Partners.at(NEXT[:, None], torch.arange(ROWS))


def mix_of(lam=None, draws=None, images=None, per="sample"):
    """One mix; everyone's partner is the next row."""
    images = torch.randn(ROWS, 3, *SIZE) if images is None else images
    blend, streams = TwoBoxes(per=per), Streams(3)
    lam = np.linspace(0.2, 0.8, 1 if per == "batch" else ROWS) if lam is None else np.atleast_1d(lam)
    drawn = blend.draw(ROWS, streams.at("blend", 0)) if draws is None else np.array(draws)[None]
    return blend.mix(images, partners(), torch.from_numpy(lam), drawn, Scene(Batch(images, torch.arange(ROWS))))


def shares_of(mix, maps):
    return semantic_shares(semantic_maps(maps), mix.origins, mix.sources, mix.weights)


def turn_of(text, model, seed=0, labels=None, images=None):
    images = torch.randn(ROWS, 3, 32, 32) if images is None else images
    labels = torch.arange(ROWS) if labels is None else labels
    (turn,) = mixwell.create(text, 7, seed=seed).turns(model, images, labels)
    return turn


# Images


@pytest.mark.parametrize("one", [False, True])
def test_crops_are_resized_as_interpolate_does(one):
    images = torch.randn(ROWS, 3, *SIZE)
    boxes = np.array([[2, 30, 1, 7], [0, 1, 5, 6], [0, 32, 0, 40], [8, 20, 10, 30], [3, 3, 4, 9], [31, 32, 0, 40]])
    crops = np.array([[0, 5, 2, 40], [3, 9, 1, 20], [4, 20, 8, 10], [8, 20, 10, 30], [3, 3, 4, 9], [0, 32, 0, 1]])
    for row in range(ROWS):
        some = (boxes[row : row + 1], crops[row : row + 1]) if one else (boxes, crops)
        mixed = paste(images, partners(), *some)
        (top, bottom, left, right), (first, last, start, end) = boxes[row], crops[row]
        expected = images[row].clone()
        if top < bottom:
            seen = images[NEXT[row], :, first:last, start:end][None]
            size = (bottom - top, right - left)
            expected[:, top:bottom, left:right] = F.interpolate(seen, size, mode="bilinear", align_corners=True)[0]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-4, atol=1e-4)
        outer = torch.ones(SIZE, dtype=torch.bool)
        outer[top:bottom, left:right] = False
        assert torch.equal(mixed[row][:, outer], images[row][:, outer])


def test_equal_boxes_give_the_images_of_cutmix():
    images = torch.randn(ROWS, 3, *SIZE)
    mix = mix_of(0.4, [0.4, 0.3, 0.6, 0.3, 0.6], images)
    kept = mix.masks[:, :1]
    torch.testing.assert_close(mix.images, kept * images + (1 - kept) * images[NEXT], rtol=1e-5, atol=1e-5)
    assert torch.equal(mix.origins, mix.masks)


@pytest.mark.parametrize(("own", "other"), [(1.0, 0.3), (0.3, 1.0), (0.999, 0.3), (0.3, 0.999)])
def test_an_empty_box_on_either_side_leaves_the_image_as_it_is(own, other):
    images = torch.randn(ROWS, 3, *SIZE)
    mix = mix_of(np.full(ROWS, own), [other, 0.5, 0.5, 0.5, 0.5], images)
    assert torch.equal(mix.images, images)
    torch.testing.assert_close(shares_of(mix, torch.rand(ROWS, *SIZE)), torch.tensor([[1.0, 0.0]] * ROWS))


def test_both_boxes_are_drawn_for_each_pair_and_independently():
    rows = 4000
    drawn = TwoBoxes(5.0).draw(rows, Streams(1).at("blend", 0))
    assert stats.kstest(drawn[:, 0], stats.beta(5, 5).cdf).pvalue > 1e-4
    for column in drawn[:, 1:].T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    (option,) = mixwell.create("snapmix").options
    draws = option.draw(rows, Streams(2), 0).of
    assert stats.kstest(draws[option.ratio], stats.beta(5, 5).cdf).pvalue > 1e-4
    columns = np.column_stack((draws[option.ratio], draws[option.blend]))
    apart = np.corrcoef(columns.T)[np.triu_indices(6, 1)]
    assert np.abs(apart).max() < 4.5 / rows**0.5
    assert len(option.blend.draw(1, Streams(0).at("blend", 0))) == 1


def test_coordinates_show_the_partners_box():
    """What the mix shows of a partner is what its origins say."""
    lines, columns = (torch.arange(float(side)) for side in SIZE)
    rows = torch.arange(float(ROWS))[:, None, None].expand(-1, *SIZE)
    places = torch.stack((lines[:, None].expand(SIZE), columns[None].expand(SIZE))).expand(ROWS, -1, -1, -1)
    mix = mix_of()
    seen = mix.apply(torch.cat((rows[:, None], places), 1))
    for row in range(ROWS):
        inside = mix.masks[row, 1] == 1
        torch.testing.assert_close(seen[row, 0][inside], NEXT[row].float().expand(int(inside.sum())), atol=1e-5, rtol=0)
        origin = mix.origins[row, 1].nonzero().float()
        shown = seen[row, 1:][:, inside]
        torch.testing.assert_close(shown.amin(1), origin.amin(0), rtol=0, atol=1e-3)
        torch.testing.assert_close(shown.amax(1), origin.amax(0), rtol=0, atol=1e-3)
        assert torch.equal(mix.origins[row, 0], mix.masks[row, 0])


# Labels


def test_semantic_maps_by_hand():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 6.0]], [[5.0, 5.0], [5.0, 5.0]]])
    expected = torch.tensor([[[0, 2], [1, 5]], [[0, 0], [0, 0]]]) / torch.tensor([8.0, 1.0])[:, None, None]
    torch.testing.assert_close(semantic_maps(maps), expected)


def test_semantic_maps_are_percentages_whatever_the_scale():
    maps = torch.randn(ROWS, 9, 11)
    found = semantic_maps(maps)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(ROWS))
    torch.testing.assert_close(semantic_maps(7 * maps + 3), found, rtol=1e-4, atol=1e-6)


def test_shares_are_each_sources_own_mass():
    """The image loses its box's mass, the partner brings its own box's: λ_a by the own map, λ_b by the partner's."""
    mix, maps = mix_of(), torch.rand(ROWS, *SIZE)
    shares, percent = shares_of(mix, maps), semantic_maps(maps)
    for row in range(ROWS):
        lost = percent[row][mix.masks[row, 1] == 1].sum()
        brought = percent[NEXT[row]][mix.origins[row, 1] == 1].sum()
        torch.testing.assert_close(shares[row], torch.stack((1 - lost, brought)), rtol=1e-4, atol=1e-5)
    assert ((shares >= 0) & (shares <= 1 + 1e-6)).all()
    assert (shares.sum(1) - 1).abs().max() > 0.05


def test_even_maps_give_both_areas():
    """With the least place in a corner that no box covers or takes, all other places count alike."""
    maps = torch.ones(ROWS, *SIZE)
    maps[:, 0, 0] = 0
    mix = mix_of(np.full(ROWS, 0.6), [0.5, 0.5, 0.5, 0.5, 0.5])
    areas = mix.origins.mean((2, 3))
    torch.testing.assert_close(shares_of(mix, maps), areas, atol=2e-3, rtol=0)
    assert abs(float(areas[0].sum()) - 1) > 0.05


def test_a_map_that_says_nothing_leaves_the_area():
    mix, maps = mix_of(), torch.rand(ROWS, *SIZE)
    maps[2] = 0.5
    shares, others = shares_of(mix, maps), shares_of(mix, torch.rand(ROWS, *SIZE))
    assert shares[2, 0] == mix.weights[2, 0]
    assert shares[1, 1] == mix.weights[1, 1]  # whose partner is row 2
    assert (shares[[0, 3, 4]] != mix.weights[[0, 3, 4]]).all()
    assert torch.isfinite(others).all()


def test_the_whole_image_covered_has_no_share():
    mix = mix_of(np.zeros(ROWS), [0.5, 0.5, 0.5, 0.5, 0.5])
    torch.testing.assert_close(shares_of(mix, torch.rand(ROWS, *SIZE))[:, 0], torch.zeros(ROWS), atol=1e-6, rtol=0)


def test_the_codes_pairs_of_one_class_count_twice():
    """A difference between paper and code."""
    shares, classes = torch.tensor([[0.5, 0.3], [0.5, 0.3]]), torch.tensor([[4, 4], [4, 1]])
    torch.testing.assert_close(counted_twice(shares, classes), torch.tensor([[0.8, 0.8], [0.5, 0.3]]))


def test_same_label_in_a_recipe(cnn):
    labels, images, model = torch.tensor([3, 3, 3, 3, 3, 3]), torch.randn(ROWS, 3, 32, 32), cnn().eval()
    paper = turn_of("snapmix", model, labels=labels, images=images)
    code = turn_of("snapmix(same_label=code)", model, labels=labels, images=images)
    torch.testing.assert_close(code.targets.weights, paper.targets.total[:, None].expand(-1, 2))
    torch.testing.assert_close(code.loss, 2 * paper.loss)
    with pytest.raises(mixwell.BatchError, match="one class id per image"):
        turn_of("snapmix(same_label=code)", model, labels=torch.eye(7)[:ROWS], images=images)


def test_the_loss_is_a_sum_of_two_weighted_losses(cnn):
    turn = turn_of("snapmix", cnn().eval())
    classes, weights = turn.targets.classes, turn.targets.weights
    parts = [weights[:, k] * F.cross_entropy(turn.logits, classes[:, k], reduction="none") for k in (0, 1)]
    torch.testing.assert_close(turn.loss, sum(parts).mean())


def test_each_image_is_seen_through_its_own_class(cnn):
    model, images, labels = cnn().eval(), torch.randn(ROWS, 3, 32, 32), torch.randint(7, (ROWS,))
    turn = turn_of("cutmix + snapmix", model, labels=labels, images=images, seed=4)
    with torch.no_grad():
        maps = F.relu(model.layer3(model.layer2(model.layer1(images))))
    own = torch.einsum("bc,bchw->bhw", model.fc.weight[labels], maps) + model.fc.bias[labels][:, None, None]
    percent = semantic_maps(resized(own.detach(), (32, 32)))
    option = mixwell.create("cutmix + snapmix", 7, seed=4).options[0]
    scene = Scene(Batch(images, labels), option.draw(ROWS, Streams(4), 0))
    mix = option.mix(images, scene)
    expected = (mix.masks * percent[mix.sources]).sum((2, 3))
    torch.testing.assert_close(turn.targets.weights, expected, rtol=1e-4, atol=1e-5)


def test_on_cutmix_one_image_with_itself_keeps_its_whole_share(cnn):
    """What is hidden of an image is what its partner shows."""
    images = torch.randn(1, 3, 32, 32)
    turn = turn_of("cutmix + snapmix", cnn().eval(), images=images, labels=torch.tensor([2]))
    torch.testing.assert_close(turn.targets.total, torch.ones(1))


def test_a_thumbnail_brings_the_whole_partner(cnn):
    weights = turn_of("resizemix + snapmix", cnn().eval()).targets.weights
    torch.testing.assert_close(weights[:, 1], torch.ones(ROWS))
    assert (weights[:, 0] < 1).all()


def test_stacked_images_are_both_whole(cnn):
    weights = turn_of("stackmix + snapmix", cnn().eval()).targets.weights
    torch.testing.assert_close(weights, torch.ones(ROWS, 2))


def test_an_image_shown_evenly_has_the_share_of_its_pixels(cnn):
    model, images = cnn().eval(), torch.randn(ROWS, 3, 32, 32)
    plain, semantic = (turn_of(text, model, images=images, seed=2) for text in ("mixup", "mixup + snapmix"))
    torch.testing.assert_close(semantic.targets.weights, plain.targets.weights)


def test_rows_of_an_older_batch_keep_their_area(cnn):
    """RecursiveMix: the old images' maps are not at hand."""
    recipe, model = mixwell.create("recursive_mix + snapmix", 7, seed=1), cnn()
    images, labels = torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    recipe.bind(model, example=images)
    list(recipe.turns(model, images, labels))
    (turn,) = recipe.turns(model, images, labels)
    option = recipe.options[0]
    drawn = option.draw(ROWS, recipe._streams, 1).of[option.blend]
    areas = (
        1
        - option.blend.mix(
            images, Partners.alone(Batch(images, labels)), torch.ones(1), drawn, Scene(Batch(images, labels))
        ).area.float()
    )
    assert (turn.targets.sources[:, 1] >= ROWS).all()
    torch.testing.assert_close(turn.targets.weights[:, 1], areas)
    assert not torch.allclose(turn.targets.weights[:, 0], 1 - areas)


# Networks


@pytest.mark.parametrize("text", ["snapmix", "snapmix(per=batch)", "manifold_mixup + snapmix", "fmix + snapmix"])
def test_a_step_of_networks_that_pool_their_last_map(text, cnn):
    for model in (cnn(), timm.create_model("resnet10t", num_classes=7)):
        turn = turn_of(text, model)
        turn.loss.backward()
        assert torch.isfinite(turn.loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_tokens_of_a_transformer_are_a_map(vit):
    turn = turn_of("snapmix", vit())
    turn.loss.backward()
    assert torch.isfinite(turn.loss)


def test_under_autocast(cnn):
    with torch.autocast("cpu", torch.bfloat16):
        turn = turn_of("snapmix", cnn())
    turn.loss.backward()
    assert turn.targets.weights.dtype == torch.float32
    assert torch.isfinite(turn.loss)


def test_a_classifier_of_other_channels_is_refused_before_training(cnn):
    model = cnn()
    model.fc = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 7))
    with pytest.raises(mixwell.IncompatibleRecipe, match="snapmix: Class activation maps need a classifier of the"):
        mixwell.create("snapmix", 7).bind(model, torch.randn(2, 3, 32, 32))
    mixwell.create("snapmix(saliency=activation)", 7).bind(model, torch.randn(2, 3, 32, 32))


def test_another_source_of_saliency_needs_no_network():
    images, targets = mixwell.create("snapmix(saliency=spectral)", 7).mix_batch(
        torch.rand(ROWS, 3, 32, 32), torch.arange(ROWS)
    )
    assert images.shape == (ROWS, 3, 32, 32)
    assert (targets.total != 1).any()


@pytest.mark.parametrize("text", ["snapmix(beta=0)", "snapmix(same_label=both)", "snapmix(saliency=eyes)"])
def test_parameters_that_mean_nothing(text):
    with pytest.raises(mixwell.ParameterError):
        mixwell.create(text)
