"""GradSalMix: where boxes lie, what labels count, and at which sites there is anything salient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.sample.saliency.gradsalmix import (
    SalientBox,
    boxes_at,
    gradient_saliency,
    kept,
    saliency_share,
    salient_centres,
)

ROWS, SIZE = 7, (12, 20)


class Planted(nn.Module):
    """Logits whose loss has a given gradient with respect to the images, up to a factor per row."""

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.gradient = gradient
        self.bias = nn.Parameter(torch.zeros(ROWS))

    def forward(self, images: Tensor) -> Tensor:
        first = (images * self.gradient.to(images.dtype)).flatten(1).sum(1, keepdim=True)
        return F.pad(0.1 * first, (0, ROWS - 1)) + self.bias


def mix_of(box, images, gradient, lam, points=None, partner=None):
    """One mix at the input under a given gradient; everyone's partner is the next row."""
    rows = len(images)
    labels = torch.arange(rows)
    partner = labels.roll(-1) if partner is None else partner
    batch = Batch(images, labels)
    scene = Scene(batch, views=mixwell.Views(mixwell.Probe(Planted(gradient)), batch))
    points = np.random.rand(rows) if points is None else points  # noqa: NPY002
    lam = torch.as_tensor(lam, dtype=torch.float64).expand(rows)
    return box.mix(images, Partners.at(partner[:, None], labels), lam, points, scene)


def turns_at(recipe, model, images, place):
    """The turn of a step at one of the recipe's sites."""
    (option,) = recipe.options
    draws = option.draw(len(images), Streams(0), 0)
    draws.of[option.place] = place
    (turn,) = recipe.turns(model, images, torch.arange(len(images)), draws=draws)
    return turn


# Where boxes lie


def test_centres_are_drawn_in_proportion_to_saliency_among_the_most_salient():
    saliency = torch.rand(*SIZE)
    rows = 40_000
    points = torch.from_numpy(np.random.rand(rows))  # noqa: NPY002
    centres = salient_centres(saliency.expand(rows, *SIZE), points, 0.1)
    places = centres[:, 0] * SIZE[1] + centres[:, 1]
    top = saliency.flatten().topk(24).indices
    seen = torch.bincount(places, minlength=240)
    assert seen[top].sum() == rows, "a centre is not among the tenth with the largest saliency"
    expected = saliency.flatten()[top] / saliency.flatten()[top].sum() * rows
    assert stats.chisquare(seen[top], expected.double() * rows / expected.double().sum()).pvalue > 1e-4


def test_candidates_are_taken_from_the_most_salient_on_and_the_first_of_equal_ones():
    saliency = torch.tensor([[1.0, 5.0, 5.0, 0.0, 5.0, 3.0, 3.0, 3.0, 0.0, 0.0]])[:, None]
    points = torch.tensor([0, 0.23, 0.24, 0.7, 0.72, 0.99])
    centres = salient_centres(saliency.expand(6, 1, 10), points, 0.45)  # 5 candidates: 1, 2, 4, 5, 6
    assert centres.tolist() == [[0, column] for column in (1, 1, 2, 4, 5, 6)]


def test_without_saliency_all_candidates_are_alike():
    points = (torch.arange(24) + 0.5) / 24
    centres = salient_centres(torch.zeros(24, *SIZE), points, 0.1)
    assert torch.equal(centres[:, 0] * SIZE[1] + centres[:, 1], torch.arange(24))


@pytest.mark.parametrize("top", [1e-6, 1.0])
def test_there_is_always_a_candidate(top):
    points = torch.tensor([0.0, 0.5, 1 - 1e-12], dtype=torch.float64)
    saliency = torch.rand(3, 1, 3)
    centres = salient_centres(saliency, points, top)
    assert ((centres >= 0) & (centres < torch.tensor([1, 3]))).all()
    if top < 1:
        assert torch.equal(centres[:, 1], saliency[:, 0].argmax(1))


def test_boxes_are_cutmix_boxes_around_the_centre():
    """Sides of 2·(⌊side·√(1-λ)⌋ // 2), half-open, clipped at the border."""
    centres = torch.tensor([[0, 0], [6, 10], [11, 19], [5, 7]])
    cuts = np.sqrt(1 - np.array([0.5, 0.5, 0.5, 0.99]))
    boxes = boxes_at(centres, cuts, SIZE)
    assert boxes.tolist() == [[0, 4, 0, 7], [2, 10, 3, 17], [7, 12, 12, 20], [5, 5, 6, 8]]


def test_the_partner_is_shown_in_the_box_around_its_own_salient_place():
    images, gradient = torch.randn(ROWS, 3, *SIZE), torch.full((ROWS, 3, *SIZE), 1e-3)
    peaks = torch.stack((torch.arange(ROWS) + 2, 2 * torch.arange(ROWS) + 3), 1)
    gradient[torch.arange(ROWS), :, peaks[:, 0], peaks[:, 1]] = 1
    mix = mix_of(SalientBox(1e-6), images, gradient, 0.75)
    partner, keep = mix.sources[:, 1], mix.masks[:, :1].bool()
    assert torch.equal(mix.images, torch.where(keep, images, images[partner]))
    boxes = boxes_at(peaks[partner], np.full(ROWS, 0.5), SIZE)
    assert torch.equal(keep.float(), kept(boxes, SIZE))
    assert not keep[torch.arange(ROWS), 0, *peaks[partner].T].any(), "a centre outside its own box"
    assert torch.equal(mix.area, keep.float().mean((1, 2, 3)))


def test_permuting_batch_and_draws_permutes_the_mix():
    images, gradient = torch.randn(ROWS, 3, *SIZE), torch.randn(ROWS, 3, *SIZE)
    partner, lam, points = torch.randperm(ROWS), torch.rand(ROWS), np.random.rand(ROWS)  # noqa: NPY002
    order = torch.randperm(ROWS)
    place = order.argsort()
    # Labels are row numbers, which enter the loss: the factor per row differs, normalised shares do not.
    mix = mix_of(SalientBox(), images, gradient, lam, points, partner)
    other = mix_of(SalientBox(), images[order], gradient[order], lam[order], points[order], place[partner[order]])
    assert torch.equal(other.images, mix.images[order])
    torch.testing.assert_close(other.weights, mix.weights[order])


def test_blur_prefers_regions_to_single_places():
    gradient = torch.zeros(ROWS, 1, *SIZE)
    gradient[:, :, 2, 2] = 3
    gradient[:, :, 7:10, 13:16] = 1
    images = torch.randn(ROWS, 1, *SIZE)
    sharp, blurred = (mix_of(SalientBox(1e-6, blur=blur), images, gradient, 0.9) for blur in (False, True))
    assert (sharp.masks[:, 0, 2, 2] == 0).all()
    assert (blurred.masks[:, 0, 2, 2] == 1).all()
    assert (blurred.masks[:, 0, 8, 14] == 0).all()
    flat = mix_of(SalientBox(1e-6, blur=True), images, torch.ones(ROWS, 1, *SIZE), 0.9)
    assert (flat.masks[:, 0, 0, 0] == 0).all(), "the border counts less in the mean"


def test_other_resolutions_show_the_box_at_the_same_place():
    images, gradient = torch.randn(ROWS, 3, 32, 64), torch.randn(ROWS, 3, 32, 64)
    mix = mix_of(SalientBox(), images, gradient, 0.5)
    for scale in (2, 4):
        large = mix.apply(F.interpolate(images, scale_factor=scale))
        shown = (large[:, :, ::scale, ::scale] == mix.images).all(1).float()
        assert (shown.mean((1, 2)) > 0.85).all()


# What labels count


def test_labels_are_weighted_by_the_saliency_that_is_shown():
    own, partner = torch.rand(ROWS, *SIZE), torch.rand(ROWS, *SIZE)
    boxes = boxes_at(torch.randint(0, 12, (ROWS, 2)), np.full(ROWS, 0.6), SIZE)
    keep = kept(boxes, SIZE)
    for weights in ("normalised", "raw"):
        found = saliency_share(own, partner, keep, weights)
        for i, (top, bottom, left, right) in enumerate(boxes.tolist()):
            shown = own[i].sum() - own[i, top:bottom, left:right].sum()
            pasted = partner[i, top:bottom, left:right].sum()
            if weights == "normalised":
                shown, pasted = shown / own[i].sum(), pasted / partner[i].sum()
            torch.testing.assert_close(found[i], shown / (shown + pasted))


def test_normalised_shares_do_not_depend_on_the_size_of_a_loss_but_raw_ones_do():
    own, partner = torch.rand(ROWS, *SIZE), torch.rand(ROWS, *SIZE)
    keep = kept(boxes_at(torch.randint(0, 12, (ROWS, 2)), np.full(ROWS, 0.6), SIZE), SIZE)
    scaled = own * torch.logspace(-30, 3, ROWS)[:, None, None]
    torch.testing.assert_close(saliency_share(scaled, partner, keep), saliency_share(own, partner, keep))
    raw = saliency_share(scaled, partner, keep, "raw")
    assert raw[0] < 1e-6 < 0.99 < raw[-1]
    both = saliency_share(100 * own, 100 * partner, keep, "raw")
    torch.testing.assert_close(both, saliency_share(own, partner, keep, "raw"))


@pytest.mark.parametrize("flat", [0.0, 2.0])
def test_flat_saliency_gives_the_area(flat):
    maps = torch.full((ROWS, *SIZE), flat)
    keep = kept(boxes_at(torch.randint(0, 12, (ROWS, 2)), np.full(ROWS, 0.6), SIZE), SIZE)
    area = keep.mean((1, 2, 3))
    for weights in ("normalised", "raw", "area"):
        torch.testing.assert_close(saliency_share(maps, maps, keep, weights), area)
    assert torch.equal(saliency_share(torch.rand(ROWS, *SIZE), maps, keep, "area"), area)


@pytest.mark.parametrize("weights", ["normalised", "raw", "area"])
def test_an_empty_box_keeps_the_label_and_a_full_one_takes_it(weights):
    own, partner = torch.rand(ROWS, *SIZE), torch.rand(ROWS, *SIZE)
    middle = torch.tensor([[6, 10]]).expand(ROWS, 2)
    empty, full = (kept(boxes_at(middle, np.full(ROWS, cut), SIZE), SIZE) for cut in (0.16, 1.0))
    assert torch.equal(saliency_share(own, partner, empty, weights), torch.ones(ROWS))
    assert torch.equal(saliency_share(own, partner, full, weights), torch.zeros(ROWS))
    assert torch.equal(saliency_share(0 * own, partner, empty, weights), torch.ones(ROWS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_saliency_is_summed_in_fp32(dtype):
    gradient = torch.full((2, 128, 3, 5), 4096.0, dtype=dtype)
    assert torch.equal(gradient_saliency(-gradient), torch.full((2, 3, 5), 128 * 4096.0))
    images = torch.randn(ROWS, 3, *SIZE, dtype=dtype)
    mix = mix_of(SalientBox(), images, torch.randn(ROWS, 3, *SIZE, dtype=dtype), 0.5)
    assert mix.images.dtype == dtype
    assert mix.weights.dtype == torch.float32


# In a network


def test_a_step_at_a_hidden_site_is_the_one_written_by_hand(cnn):
    images, model = torch.randn(ROWS, 3, *SIZE), cnn().eval()
    recipe = mixwell.create("gradsalmix(sites=(1, 2), prob=1.0)", 7)
    turn = turns_at(recipe, model, images, 1)
    (option,) = recipe.options
    draws = option.draw(ROWS, Streams(0), 0)

    hidden = model.layer2(model.layer1(images))
    loss = F.cross_entropy(model.fc(model.layer3(hidden.clone()).mean((2, 3))), torch.arange(ROWS))
    saliency = torch.autograd.grad(loss, hidden)[0].abs().sum(1)
    partner = torch.from_numpy(draws[option.pairing])
    centres = salient_centres(saliency[partner], torch.from_numpy(draws[option.blend]), 0.1)
    size = (hidden.shape[2], hidden.shape[3])
    keep = kept(boxes_at(centres, np.sqrt(1 - draws[option.ratio]), size), size)
    assert 0 < keep.mean() < 1
    mixed = torch.where(keep.bool(), hidden, hidden[partner])
    torch.testing.assert_close(turn.logits, model.fc(model.layer3(mixed).mean((2, 3))).detach())
    torch.testing.assert_close(turn.targets.weights[:, 0], saliency_share(saliency, saliency[partner], keep))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_step_looks_once_and_leaves_no_trace(cnn, place):
    images, model = torch.randn(ROWS, 3, *SIZE), cnn().train()
    recipe = mixwell.create("gradsalmix(prob=1.0)", 7).bind(model, images)
    passes = []
    model.fc.register_forward_hook(lambda module, *_: passes.append(module.training))
    turn = turns_at(recipe, model, images, place)
    assert sorted(passes) == [False, True]
    assert [int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [1, 1, 1]
    assert all(parameter.grad is None for parameter in model.parameters())
    turn.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert model.layer1[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_steps_at_every_site_under_autocast(request, kind, place, dtype):
    images = torch.randn(ROWS, 3, 24, 40)
    model = request.getfixturevalue("vit")(size=(24, 40)) if kind == "vit" else request.getfixturevalue("cnn")()
    with torch.autocast("cpu", dtype):
        turn = turns_at(mixwell.create("gradsalmix(prob=1.0)", 7), model, images, place)
    turn.loss.backward()
    assert torch.isfinite(turn.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_class_token_is_mixed_with_the_labels_shares(vit):
    model, images = vit(depth=4, patch_size=4), torch.randn(ROWS, 3, 32, 32)
    seen = {}
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.setdefault(len(seen), args[0]))
    turn = turns_at(mixwell.create("gradsalmix(sites=('blocks.0',), prob=1.0)", 7), model.eval(), images, 0)
    clean, mixed = (tokens[:, 0] for tokens in list(seen.values())[-2:])
    expected = torch.einsum("rk,rkc->rc", turn.targets.weights, clean[turn.targets.sources])
    torch.testing.assert_close(mixed, expected)
    assert (turn.targets.weights[:, 1] > 0).any()


# Sites


def names_of(model, example=None, sites=None):
    text = "gradsalmix(prob=1.0)" if sites is None else f"gradsalmix(sites={sites}, prob=1.0)"
    (option,) = mixwell.create(text, 7).bind(model, example).options
    return option.place.names


def test_the_default_sites_lie_before_the_last_stage(cnn, vit):
    assert names_of(cnn()) == (None, "layer1", "layer2")
    assert names_of(vit(depth=8)) == (None, "blocks.1", "blocks.3", "blocks.5")
    assert names_of(vit()) == (None, "blocks.0")
    assert names_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), torch.randn(2, 3, 32, 32)) == (None,)


@pytest.mark.parametrize("site", [3, -1, "layer3", "layer3.2", "embedding"])
def test_sites_where_nothing_is_salient_are_refused(cnn, site):
    wanted = r"gradsalmix: At '(layer3|layer3\.2|embedding)' of SmallCNN .* Choose sites=.*input.*: layer1, layer2\."
    with pytest.raises(mixwell.IncompatibleRecipe, match=wanted):
        names_of(cnn(), torch.randn(2, 3, 32, 32), (0, 1, site))


@pytest.mark.parametrize("site", [3, "embedding"])
def test_they_are_refused_without_example_images_too(cnn, site):
    with pytest.raises(mixwell.IncompatibleRecipe, match="Choose sites"):
        names_of(cnn(), None, (site,))


@pytest.mark.parametrize("site", [-1, "blocks.3", "norm"])
def test_patches_of_which_only_a_class_token_is_read_are_refused(vit, site):
    with pytest.raises(mixwell.IncompatibleRecipe, match="reads a class token"):
        names_of(vit(depth=4), torch.randn(2, 3, 32, 32), (site,))


def test_last_stages_that_are_not_pooled_alike_can_be_named(vit):
    """Here each patch is normalised, or has weights, of its own."""
    images = torch.randn(2, 3, 32, 32)
    assert names_of(vit(depth=4, global_pool="avg", fc_norm=False), images, (-1,)) == ("blocks.3",)
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.ReLU())]
    net = nn.Sequential(*stages, nn.Flatten(), nn.Linear(4 * 7 * 7, 7))
    assert names_of(net, images, ("1",)) == ("1",)


def test_a_classifier_of_zeros_says_nothing_against_early_sites(cnn):
    model, images = cnn(), torch.randn(2, 3, 32, 32)
    nn.init.zeros_(model.fc.weight)
    assert names_of(model, images, (1, "stem")) == ("layer1", "stem")
    with pytest.raises(mixwell.IncompatibleRecipe, match="'layer3'"):
        names_of(model, images, (3,))
