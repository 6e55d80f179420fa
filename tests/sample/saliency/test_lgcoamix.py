"""LGCOAMix: whole superpixels of the partner, labels by attention, and two losses on the most salient superpixels."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import mixwell
from mixwell.core.rng import Streams
from mixwell.nets import CNNS
from mixwell.ops.superpixels import seed_grid, superpixels
from mixwell.sample.saliency.lgcoamix import (
    PasteDraws,
    SuperpixelPaste,
    attended_share,
    channels_first,
    contrast,
    cut,
)

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
PERM = np.array([3, 0, 5, 1, 2, 4])


def pictures(rows: int = 6, size: tuple[int, int] = (24, 40)) -> Tensor:
    """Smooth in part, so that superpixels are compact."""
    coarse = torch.rand(rows, 3, 4, 5)
    return PIXELS.normalise(F.interpolate(coarse, size, mode="bicubic").clamp(0, 1))


def regions(rows: int = 6, size: tuple[int, int] = (24, 40), labels: int = 15) -> Tensor:
    return torch.randint(0, labels, (rows, *size))


def always(text: str) -> str:
    return f"lgcoamix({', '.join(filter(None, ('prob=1', text)))})"


def mix_of(text: str, images: Tensor, segments: Tensor | None = None, draws: PasteDraws | None = None):
    """A mix, everyone's partner given by PERM, and the recipe's only option."""
    (option,) = mixwell.create(always(text), pixels=PIXELS).options
    extras = {} if segments is None else {"superpixels": segments}
    batch = mixwell.Batch(images, torch.arange(len(images)), PIXELS, extras=extras)
    drawn = option.draw(len(images), Streams(0), 0).of
    changes = {option.pairing: PERM, **({} if draws is None else {option.blend: draws})}
    return option.mix(images, mixwell.Scene(batch, mixwell.Draws({**drawn, **changes})))


@pytest.fixture
def made(cnn):
    """`made("rule=attention")`: a step of a recipe that is bound to a network, its option and targets."""

    def make(text: str = "", labels: Tensor | None = None):
        torch.manual_seed(0)
        images, net = pictures(6, (32, 32)), cnn()
        recipe = mixwell.create(always(text), 7, pixels=PIXELS).bind(net, images)
        (option,) = recipe.options
        for parameter in option.label.attention.parameters():
            nn.init.normal_(parameter, std=0.1)  # a fresh LayerNorm gives all superpixels one weight
        batch = mixwell.Batch(images, torch.arange(6) % 3 if labels is None else labels, PIXELS)
        scene = mixwell.Scene(batch, option.draw(len(images), Streams(0), 0))
        mix = option.mix(images, scene)
        step = mixwell.Step(scene, mix, mixwell.Probe(net).run(mix.images, wants=option.wants))
        return option, step, option.targets(step)

    return make


# The mix


@pytest.mark.parametrize("given", [False, True], ids=["slic", "maps"])
def test_superpixels_of_the_partner_are_shown_as_a_whole_or_not_at_all(given):
    images, counts = pictures(), np.array([30, 35, 31, 34, 30, 33])
    coins = np.random.default_rng(0).random((6, 70))
    segments = regions() if given else cut(PIXELS.raw(images), counts, 8.0)[0]
    mix = mix_of("", images, segments if given else None, PasteDraws(counts, coins))
    for row in range(6):
        theirs = segments[PERM[row]]
        for label in theirs.unique().tolist():
            inside = theirs == label
            shown = PERM[row] if coins[row, label] >= 0.5 else row
            assert torch.equal(mix.images[row][:, inside], images[shown][:, inside])


def test_regions_tell_whose_superpixel_each_pixel_is():
    images, segments = pictures(), regions()
    mix = mix_of("", images, segments)
    own = mix.regions < mix.count
    assert torch.equal(own.float(), mix.masks[:, 0])
    assert torch.equal(mix.regions[own], segments[own])
    assert torch.equal(mix.regions[~own] - mix.count, segments[PERM][~own])
    assert max(len(one.unique()) for one in mix.regions) <= mix.most
    torch.testing.assert_close(mix.weights[:, 0], own.float().mean((1, 2)))


@pytest.mark.parametrize(("p", "shown"), [(1, 0), (0, 1)])
def test_nothing_or_everything_is_pasted(p, shown):
    images = pictures()
    mix = mix_of(f"p={p}", images)
    assert torch.equal(mix.images, images[PERM] if shown else images)
    assert mix.weights.tolist() == [[1 - shown, shown]] * 6


def test_superpixels_are_wanted_and_chosen_as_in_the_paper():
    blend = SuperpixelPaste()
    draws = blend.draw(4000, np.random.default_rng(1))
    assert stats.chisquare(np.bincount(draws.counts, minlength=36)[30:]).pvalue > 1e-4
    assert draws.counts.min() == 30
    assert draws.counts.max() == 35
    segments = torch.arange(20).view(1, 4, 5).expand(4000, -1, -1)
    partners = mixwell.Partners.at(torch.arange(4000)[:, None], torch.arange(4000))
    blend.p = 0.7
    shown = blend.paste(torch.zeros(4000, 1, 4, 5), partners, (segments, segments), 20, draws.coins).masks[:, 1]
    counts = shown.flatten(1).sum(0).int().tolist()
    assert min(stats.binomtest(count, 4000, 0.3).pvalue for count in counts) > 1e-5
    assert abs(np.corrcoef(shown[:, 0, 0], shown[:, 0, 1])[0, 1]) < 0.07


def test_coins_are_taken_from_the_start_again():
    segments = torch.arange(6).view(1, 2, 3)
    partners = mixwell.Partners.at(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1))
    mix = SuperpixelPaste().paste(torch.zeros(1, 1, 2, 3), partners, (segments, segments), 6, np.array([[0.1, 0.6]]))
    assert mix.masks[0, 1].flatten().tolist() == [0, 1, 0, 1, 0, 1]


# Superpixels


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 5), (64, 8), (30, 37)], ids=str)
@pytest.mark.parametrize("count", [1, 20, 30, 35])
def test_seeds_are_those_of_slic(size, count):
    """Without blur and of one colour, every seed keeps its cell."""
    labels = superpixels(torch.full((1, 3, *size), 0.5), count, 0.0, 10.0)
    assert seed_grid(count, size)[2] == len(labels.unique())


def test_images_cut_together_are_cut_as_alone():
    raw, counts = PIXELS.raw(pictures()), np.array([30, 35, 31, 34, 30, 60])
    together, most = cut(raw, counts, 8.0)
    assert together.max() < most
    for row, count in enumerate(counts):
        assert torch.equal(together[row], superpixels(raw[row : row + 1], int(count), 0.0, 8.0)[0])
    assert len({seed_grid(int(count), (24, 40)) for count in counts}) > 1


def test_the_code_reads_channels_first_memory_as_channels_last():
    images = torch.randn(2, 3, 4, 5)
    read = images.numpy().reshape(2, 4, 5, 3).transpose(0, 3, 1, 2)
    assert np.array_equal(channels_first(images, "reshape").numpy(), read)
    assert channels_first(images, "permute") is images
    meant, scrambled = (mix_of(f"layout={layout}", pictures()).regions for layout in ("permute", "reshape"))
    assert not torch.equal(meant, scrambled)


def test_maps_of_ones_own_must_fit():
    with pytest.raises(mixwell.BatchError, match=r"shape \(6, 24, 40\), got torch.int64 of shape \(6, 24, 39\)"):
        mix_of("", pictures(), regions(size=(24, 39)))
    with pytest.raises(mixwell.BatchError, match=r"integer labels .* got torch.float32"):
        mix_of("", pictures(), regions().float())


# Attention


def test_equal_weights_label_by_area():
    pixels = torch.randint(0, 30, (5, 12)).float()
    area = pixels[:, :5].sum(1) / pixels.sum(1)
    torch.testing.assert_close(attended_share(torch.full((5, 12), 0.3), pixels, area, 5), area)
    assert torch.equal(attended_share(torch.zeros(5, 12), pixels, area, 5), area)


def test_attention_labels_by_weight_times_pixels(made):
    _, step, targets = made("rule=attention")
    found, count = targets.attended, step.mix.count
    for row in range(6):
        total = torch.zeros(2)
        for label, pixels in zip(*step.mix.regions[row].unique(return_counts=True), strict=True):
            total[int(label >= count)] += found.weights[row, label] * pixels
            assert found.pixels[row, label] == pixels
        torch.testing.assert_close(targets.weights[row], total / total.sum())
    assert not torch.allclose(targets.weights, step.mix.weights, atol=1e-3)


def test_the_average_is_of_attention_and_area(made):
    option, step, average = made()
    option.label.rule = "attention"
    by_attention = option.label.targets(step)
    torch.testing.assert_close(average.weights, (by_attention.weights + step.mix.weights) / 2)


def test_salient_superpixels_are_those_of_the_largest_weights(made):
    _, step, targets = made()
    found = targets.attended
    for row in range(6):
        there = step.mix.regions[row].unique()
        number = int(0.7 * len(there))
        assert found.valid[row].sum() == number
        assert found.valid[row, :number].all()
        best = there[found.weights[row, there].argsort(descending=True)[:number]]
        assert torch.equal(found.top[row, :number], best)


def test_one_superpixel_at_least(made):
    option, step, _ = made("top=0")
    targets = option.targets(step)
    assert targets.attended.valid.sum(1).tolist() == [1] * 6
    option, step, targets = made("n_segments=(1, 1), p=0")
    assert targets.attended.valid.sum(1).tolist() == [1] * 6
    torch.testing.assert_close(targets.weights, torch.tensor([[0.0, 1.0]]).expand(6, 2))


def test_features_are_pooled_as_meant_or_as_in_the_code(made):
    option, step, _ = made()
    size = step.mix.regions.shape[1:]
    features = torch.randn(6, 64, *size)
    bounds = (step.mix.regions, 2 * step.mix.count, step.mix.most)
    meant = option.label.attend(features, *bounds)
    option.label.layout = "reshape"
    scrambled = option.label.attend(features, *bounds)
    assert not torch.allclose(meant.weights, scrambled.weights)
    unscrambled = option.label.attend(features.permute(0, 2, 3, 1).reshape(features.shape), *bounds)
    torch.testing.assert_close(unscrambled.weights, meant.weights)


def test_no_gradient_passes_through_the_label(made):
    option, step, targets = made("rule=attention")
    option.criterion(step.outputs.logits, targets).backward()
    assert all(parameter.grad is None for parameter in option.label.parameters())


# Losses


def test_local_loss_is_a_sum_over_superpixels_and_a_mean_over_images(made):
    option, step, targets = made("local_weight=1")
    found, total = targets.attended, 0.0
    for row in range(6):
        for place in range(int(found.valid[row].sum())):
            source = row if found.top[row, place] < step.mix.count else step.mix.sources[row, 1]
            total += F.cross_entropy(found.logits[row, place], targets.pool[source])
    torch.testing.assert_close(option.terms[0].value(step, targets, option.criterion), total / 6)


def test_contrast_is_the_formula():
    logits, kinds, tau = torch.randn(9, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3, 1, 0]), 0.7
    valid = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1, 0]).bool()
    unit = F.normalize(logits[valid])
    exp = (unit @ unit.T / tau).exp()
    same = kinds[valid][:, None] == kinds[valid]
    negatives = (exp * ~same).sum(1, keepdim=True)
    rows = -((exp / (exp + negatives)).log() * same).sum(1) / same.sum(1)
    alike = (kinds[:, None] == kinds).float()
    found = contrast(logits, alike, valid.float(), tau)
    torch.testing.assert_close(found, 10 * rows.mean())
    order = torch.randperm(9)
    moved = contrast(logits[order], alike[order][:, order], valid[order].float(), tau)
    torch.testing.assert_close(moved, found)
    torch.testing.assert_close(
        contrast(logits, torch.ones(9, 9), torch.ones(9), tau), torch.tensor(0.0), atol=1e-5, rtol=0
    )
    assert contrast(logits, alike, torch.zeros(9), tau) == 0


@pytest.mark.parametrize("temperature", [0.03, 0.7, 50])
def test_contrast_stays_finite(temperature):
    logits = torch.cat((torch.eye(4), -torch.eye(4), torch.zeros(1, 4))).requires_grad_()
    alike = torch.eye(9)
    loss = contrast(logits, alike, torch.ones(9), temperature)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_contrast_is_among_the_salient_superpixels_of_the_batch(made):
    option, step, targets = made("contrast_weight=1")
    found = targets.attended
    own = found.top < step.mix.count
    source = torch.where(own, step.mix.sources[:, :1], step.mix.sources[:, 1:])
    kinds = targets.pool[source][found.valid]
    alike = (kinds[:, None] == kinds).float()
    expected = contrast(found.logits[found.valid], alike, torch.ones(len(kinds)), 0.7)
    torch.testing.assert_close(option.terms[1].value(step, targets, option.criterion), expected)


def test_one_hot_rows_are_class_ids(made):
    ids = torch.arange(6) % 3
    values = []
    for labels in (ids, F.one_hot(ids, 7).float()):
        option, step, targets = made(labels=labels)
        targets.num_classes = 7
        values.append([term.value(step, targets, option.criterion) for term in option.terms])
    torch.testing.assert_close(values[0], values[1])


# In a training


class Unnamed(nn.Module):
    """Stages that only a pass can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def networks(cnn, vit):
    yield Unnamed(), 32
    yield cnn(), 32
    yield vit(), 32
    yield timm.create_model("resnet18", num_classes=7), 64
    yield CNNS(7), 32


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_trains_network_and_decoder_together(cnn, vit, autocast):
    for net, side in networks(cnn, vit):
        images = pictures(5, (side, side))
        recipe = mixwell.create("lgcoamix(prob=1, width=16)", 7, pixels=PIXELS).bind(net, images)
        label = recipe.options[0].label
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (turn,) = recipe.turns(net, images, torch.arange(5))
        turn.loss.backward()
        assert set(turn.parts) == {"criterion", "lgcoamix/LocalLoss", "lgcoamix/ContrastiveLoss"}
        assert turn.loss.isfinite()
        owned = {parameter for group in recipe.parameter_groups(net) for parameter in group["params"]}
        for name, parameter in [*label.named_parameters(), *net.named_parameters()]:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter in owned, name
        assert label.local.weight.grad.abs().sum() > 0
        assert next(label.decoder.parameters()).grad.abs().sum() > 0
        assert recipe.predictor(net) is net


def test_half_of_the_batches_are_plain(cnn):
    """Without decoder and local losses."""
    recipe = mixwell.create("lgcoamix", 7, pixels=PIXELS).bind(cnn(), pictures())
    assert recipe.weights == [0.5, 0.5]
    mixed, plain = recipe.options
    assert len(mixed.terms) == 2
    assert not plain.terms
    assert plain.blend is None
    assert not plain.wants
    assert len(list(recipe.parameters())) == len(list(mixed.label.parameters()))


def test_what_it_needs():
    with pytest.raises(mixwell.IncompatibleRecipe, match="example=images"):
        mixwell.create("lgcoamix", 7, pixels=PIXELS).bind(timm.create_model("resnet18", num_classes=7))
    with pytest.raises(mixwell.IncompatibleRecipe, match="mix_batch"):
        mixwell.create("lgcoamix", 7, pixels=PIXELS).mix_batch(pictures(), torch.arange(6))
    with pytest.raises(mixwell.IncompatibleRecipe):
        mixwell.create("manifold_mixup + lgcoamix", 7)


@pytest.mark.parametrize(
    "text", ["n_segments=(5, 3)", "n_segments=(0, 3)", "compactness=0", "p=2", "top=1.5", "temperature=0.01", "width=0"]
)
def test_parameters_out_of_range(text):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"lgcoamix({text})")
