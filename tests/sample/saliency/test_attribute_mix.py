"""Attribute Mix: what rounds of mining find, what is pasted of it, and how the head learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import mixwell
from mixwell.core.rng import Streams
from mixwell.nets.attribute_head import AttributeHead, multi_hot
from mixwell.sample.saliency.attribute_mix import AttributeMasks, mined, salient

SIZE = (12, 20)
PERM = np.array([5, 1, 4, 3, 0, 2])


class Passes(nn.Module):
    """Notes what it was shown."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, classes)
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach().clone())
        return self.fc(self.layer1(images).mean((2, 3)))


@pytest.fixture
def made():
    """`made("attributes=2", draws)`: a mix, its option, the scene and the network."""

    def make(text: str = "threshold=0.5", draws: np.ndarray | None = None, labels: Tensor | None = None):
        torch.manual_seed(0)
        images, net = torch.randn(6, 3, *SIZE), Passes()
        recipe = mixwell.create(f"attribute_mix(prob=1, {text})", 7).bind(net, images)
        (option,) = recipe.options
        batch = mixwell.Batch(images, torch.tensor([2, 6, 1, 0, 3, 6]) if labels is None else labels)
        drawn = option.draw(6, Streams(0), 0)
        drawn.of[option.pairing] = PERM
        if draws is not None:
            drawn.of[option.blend] = draws
        scene = mixwell.Scene(batch, drawn, mixwell.Views(mixwell.Probe(net), batch, option.view_wants))
        net.shown.clear()
        return option.mix(images, scene), option, scene, net

    return make


def all_rounds(option, scene):
    """Every round of every image of the batch: (B, K, H, W) masks."""
    last = np.full(6, option.blend.attributes - 1)
    return torch.stack([found.masks for found in option.blend.mine(torch.arange(6), last, scene)], 1)


# Mining


def test_saliency_is_from_0_to_1_and_0_of_flat_maps():
    maps = torch.randn(3, 4, 5)
    maps[1] = 2.5
    found = salient(maps, (4, 5))
    unit = (maps[0] - maps[0].min()) / (maps[0].max() - maps[0].min())
    torch.testing.assert_close(found[0], unit)
    assert not found[1].any()
    torch.testing.assert_close(salient(7 * maps - 3, (9, 11)), salient(maps, (9, 11)), atol=1e-5, rtol=0)
    assert salient(maps.bfloat16(), (9, 11)).dtype == torch.float32


def test_rounds_erase_what_was_found_and_find_other_places():
    images, shown = torch.randn(4, 3, *SIZE), []
    kept = images.clone()

    def look(erased: Tensor, rows: np.ndarray, number: int) -> Tensor:
        shown.append((erased.clone(), rows, number))
        return torch.randn(len(rows), 3, 5, generator=torch.Generator().manual_seed(number))

    last = np.array([2, 0, 1, 2])
    rounds = list(mined(look, images, last, 0.5))
    assert [found.rows.tolist() for found in rounds] == [[0, 1, 2, 3], [0, 2, 3], [0, 3]]
    assert torch.equal(images, kept)
    used = torch.zeros(4, *SIZE, dtype=torch.bool)
    for number, ((erased, rows, asked), found) in enumerate(zip(shown, rounds, strict=True)):
        assert asked == number
        assert torch.equal(erased, images[rows] * ~used[rows][:, None])
        assert torch.equal(found.masks, (found.saliency >= 0.5) & ~used[rows])
        used[rows] |= found.masks
        assert found.masks.any()


def test_a_round_that_finds_nothing_new_changes_nothing(made):
    images = torch.randn(2, 3, *SIZE)
    rounds = list(mined(lambda *_: torch.arange(6.0).view(1, 2, 3).expand(2, -1, -1), images, np.array([1, 1]), 0.5))
    assert rounds[0].masks.any()
    assert not rounds[1].masks.any()
    mix, *_ = made("threshold=1.5")
    assert mix.weights.tolist() == [[1, 0]] * 6


def test_masks_of_an_image_are_disjoint(made):
    _, option, scene, _ = made()
    masks = all_rounds(option, scene)
    assert masks.sum(1).max() == 1
    assert masks.flatten(2).any(2).float().mean() > 0.5


def test_the_scale_of_the_head_does_not_matter(made):
    _, option, scene, _ = made()
    before = all_rounds(option, scene)
    with torch.no_grad():
        option.blend.head.maps.weight.mul_(4)
        option.blend.head.maps.bias.add_(3)
    assert torch.equal(all_rounds(option, scene), before)


# The mix


def test_the_drawn_attribute_of_the_partner_is_shown_in_its_place(made):
    draws = np.array([0, 2, 1, 1, 2, 0])
    mix, option, scene, _ = made(draws=draws)
    masks = all_rounds(option, scene)
    for row in range(6):
        shown = masks[PERM[row], draws[row]]
        images = scene.batch.images
        assert torch.equal(mix.images[row], torch.where(shown, images[PERM[row]], images[row]))
        torch.testing.assert_close(mix.weights[row, 1], shown.float().mean())
    assert len(mix.weights[:, 1].unique()) > 2


def test_only_as_many_passes_as_the_drawn_attributes_need(made):
    for draws, rows in (([0] * 6, [6]), ([0, 2, 1, 1, 2, 0], [6, 4, 2]), ([1] * 6, [6, 6])):
        _, _, _, net = made(draws=np.array(draws))
        assert [len(images) for images in net.shown] == rows


def test_mining_leaves_no_trace(made):
    _, option, scene, net = made()
    before = [value.clone() for value in net.state_dict().values()]
    net.train()
    list(option.blend.mine(torch.arange(6), np.full(6, 2), scene))
    assert all(torch.equal(*pair) for pair in zip(before, net.state_dict().values(), strict=True))
    assert net.training
    assert all(parameter.grad is None for parameter in [*net.parameters(), *option.blend.parameters()])


def test_partners_of_several_images_are_mined_for_each(made):
    mix, option, scene, _ = made()
    partners = mixwell.Partners.at(torch.tensor([[2], [2], [2], [0], [0], [0]]), scene.batch.labels)
    draws = np.array([0, 1, 2, 2, 1, 0])
    mix = option.blend.mix(scene.batch.images, partners, torch.ones(1), draws, scene)
    masks = all_rounds(option, scene)
    assert torch.equal(mix.masks[:, 1] == 1, masks[[2, 2, 2, 0, 0, 0], draws])


def test_one_attribute_for_a_batch(made):
    _, _, _, net = made("per=batch", draws=np.array([2]))
    assert [len(images) for images in net.shown] == [6, 6, 6]
    drawn = AttributeMasks(per="batch").draw(6, np.random.default_rng(0))
    assert drawn.shape == (1,)


def test_attributes_are_uniform():
    drawn = AttributeMasks(attributes=4).draw(4000, np.random.default_rng(0))
    assert stats.chisquare(np.bincount(drawn)).pvalue > 1e-4


def test_one_hot_rows_are_class_ids(made):
    mix, *_ = made()
    rows, *_ = made(labels=F.one_hot(torch.tensor([2, 6, 1, 0, 3, 6]), 7).float())
    assert torch.equal(rows.images, mix.images)


# The head


def test_maps_of_a_class_are_next_to_each_other():
    head = AttributeHead(5, 4, 3)
    features, labels = torch.randn(6, 5, 2, 3), torch.tensor([3, 0, 1, 2, 2, 1])
    every = F.conv2d(features, head.maps.weight[:, :, None, None], head.maps.bias)
    for attribute in range(3):
        expected = every[torch.arange(6), labels * 3 + attribute]
        torch.testing.assert_close(head.map_of(features, labels, attribute), expected)
        torch.testing.assert_close(head.map_of(features, F.one_hot(labels, 4).float(), attribute), expected)
    torch.testing.assert_close(head(features), every.mean((2, 3)))
    assert multi_hot(torch.eye(4), 3).sum(1).tolist() == [3] * 4
    assert multi_hot(torch.eye(4), 3)[1].tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_the_heads_loss_has_the_shares_of_the_label(made):
    mix, option, scene, net = made("attribute_weight=2")
    outputs = mixwell.Probe(net).run(mix.images, wants=option.wants)
    step = mixwell.Step(scene, mix, outputs)
    targets = replace(option.targets(step), num_classes=7)
    (found,) = (term.value(step, targets, option.criterion) for term in option.terms)
    logits = option.blend.head(next(iter(outputs.seen.values())))
    wanted = torch.zeros(6, 7, 3)
    for row, (own, other) in enumerate(zip(scene.batch.labels, scene.batch.labels[PERM], strict=True)):
        wanted[row, own] += mix.weights[row, 0]
        wanted[row, other] += mix.weights[row, 1]
    torch.testing.assert_close(found, 2 * F.binary_cross_entropy_with_logits(logits, wanted.flatten(1)))


def test_a_network_whose_stages_only_a_pass_can_tell():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    images = torch.randn(4, 3, *SIZE)
    recipe = mixwell.create("attribute_mix(prob=1)", 7).bind(net, images)
    assert recipe(net, images, torch.arange(4)).isfinite()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_trains_network_and_head_together(cnn, vit, autocast):
    for net, side in ((cnn(), 32), (vit(), 32), (timm.create_model("resnet18", num_classes=7), 64)):
        images = torch.randn(5, 3, side, side)
        recipe = mixwell.create("attribute_mix(prob=1)", 7).bind(net, images)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (turn,) = recipe.turns(net, images, torch.arange(5))
        turn.loss.backward()
        head = recipe.options[0].blend.head
        owned = {parameter for group in recipe.parameter_groups(net) for parameter in group["params"]}
        for parameter in [*head.parameters(), *net.parameters()]:
            assert parameter.grad.isfinite().all()
            assert parameter in owned
        assert head.maps.weight.grad.abs().sum() > 0
        assert recipe.predictor(net) is net


def test_the_head_learns_attributes_of_its_classes(cnn):
    """Trained on mixes, it tells the class of a clean image."""
    torch.manual_seed(0)
    places = torch.zeros(3, 3, 16, 16)
    places[0, 0, :8], places[1, 1, 8:], places[2, 2, :, 8:] = 3, 3, 3
    net = cnn(3)
    recipe = mixwell.create("attribute_mix(prob=1)", 3).bind(net, places)
    optimiser = torch.optim.SGD(recipe.parameter_groups(net), lr=0.1, momentum=0.9)
    labels = torch.arange(24) % 3
    for _ in range(40):
        optimiser.zero_grad()
        recipe(net, places[labels] + 0.3 * torch.randn(24, 3, 16, 16), labels).backward()
        optimiser.step()
        recipe.after_step(net)
    net.eval()
    seen = mixwell.Probe(net).run(places, wants=[mixwell.Want("features", -1)])
    scores = recipe.options[0].blend.head(next(iter(seen.seen.values()))).unflatten(1, (3, 3)).sum(2)
    assert scores.argmax(1).tolist() == [0, 1, 2]


def test_what_it_needs():
    with pytest.raises(mixwell.IncompatibleRecipe, match="example=images"):
        mixwell.create("attribute_mix", 7).bind(Passes())
    with pytest.raises(mixwell.IncompatibleRecipe, match="attribute_mix"):
        mixwell.create("attribute_mix", 7).mix_batch(torch.randn(2, 3, 8, 8), torch.arange(2))


@pytest.mark.parametrize("text", ["attributes=0", "threshold=0", "attribute_weight=-1", "prob=2", "per=pixel"])
def test_parameters_out_of_range(text):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"attribute_mix({text})")
