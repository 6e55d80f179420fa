"""Saliency Grafting: which regions are grafted, and the share of the saliency that is left of each image."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from torch import nn

import mixwell
from mixwell.core.axes import Scene, Step
from mixwell.core.batch import Batch
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.core.saliency import Saliency, saliency_of
from mixwell.label.saliency.saliency_grafting import (
    CalibratedShares,
    Grafted,
    GridActivation,
    Pooled,
    importance,
    relative,
    salient_regions,
    tempered,
)
from mixwell.ops.noise import uniform_noise
from mixwell.probe import Anatomy
from mixwell.sample.cutting.cutmix import Box

ROWS, SIZE = 6, (32, 48)
NEXT = torch.arange(ROWS).roll(-1)


class Given(Saliency):
    """A source that knows the maps."""

    def __init__(self, maps):
        super().__init__()
        self.known = maps

    def maps(self, scene):
        return self.known


def saliency(rows=ROWS, size=(4, 6)):
    """A few peaks, on another scale in each row."""
    return torch.rand(rows, *size) ** 3 * 10 ** torch.arange(-2.0, rows - 2)[:, None, None]


def mix_of(maps, p=0.5, images=None, key=7, blend=None):
    """One mix and its labels; everyone's partner is the next row."""
    images = torch.randn(len(maps), 3, *SIZE) if images is None else images
    source = Given(maps)
    scene = Scene(Batch(images, torch.arange(len(images))))
    partners = Partners.at(torch.arange(len(images)).roll(-1)[:, None], scene.batch.labels)
    lam = torch.as_tensor(np.atleast_1d(p), dtype=torch.float64)
    if blend is None:
        mix = Grafted(source).mix(images, partners, lam, key, scene)
    else:
        mix = blend.mix(images, partners, lam, np.full((len(images), 2), 0.4), scene)
    return mix, CalibratedShares(source).targets(Step(scene, mix, None)).weights


# Regions


def test_regions_are_those_above_the_mean():
    maps = relative(saliency())
    spread = tempered(maps, 0.2)
    torch.testing.assert_close(spread.sum((1, 2)), torch.ones(ROWS))
    expected = (maps / 0.2).exp() > (maps / 0.2).exp().mean((1, 2), keepdim=True)
    regions = salient_regions(spread)
    assert torch.equal(regions, expected)
    assert regions.flatten(1).any(1).all()
    assert not regions.flatten(1).all(1).any()


@pytest.mark.parametrize("level", [0.0, 0.3, 7.0])
@pytest.mark.parametrize("size", [(4, 4), (7, 7), (5, 9)])
def test_of_a_constant_map_every_region_is_salient(level, size):
    assert salient_regions(tempered(relative(torch.full((2, *size), level)), 0.2)).all()


def test_the_lower_the_temperature_the_fewer_regions():
    maps = relative(saliency(100, (8, 8)))
    counts = [salient_regions(tempered(maps, t)).float().mean().item() for t in (0.05, 0.2, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_grafts_are_salient_regions_drawn_with_probability_p():
    maps = torch.rand(200, 16, 16)
    regions = salient_regions(tempered(relative(maps), 0.2))
    p = np.repeat([0.2, 0.7], 100)
    mix, _ = mix_of(maps, p, images=torch.zeros(200, 1, 16, 16))
    grafts = mix.grafts.bool()
    assert not (grafts & ~regions).any()
    for half, rate in ((slice(0, 100), 0.2), (slice(100, 200), 0.7)):
        drawn, possible = int(grafts[half].sum()), int(regions[half].sum())
        assert stats.binomtest(drawn, possible, rate).pvalue > 1e-4
    assert len(grafts.unique(dim=0)) == 200


def test_p_is_beta_2_2_for_each_pair_or_for_the_batch():
    for per, count in (("sample", 4000), ("batch", 1)):
        (option,) = mixwell.create(f"saliency_grafting(per={per})").options
        p = option.draw(4000, Streams(0), 0).of[option.ratio]
        assert p.shape == (count,)
    (option,) = mixwell.create("saliency_grafting").options
    p = option.draw(4000, Streams(0), 0).of[option.ratio]
    assert stats.kstest(p, stats.beta(2, 2).cdf).pvalue > 1e-4


def test_noise_depends_on_the_key_alone():
    first, again, other = (uniform_noise(key, (3, 4), torch.device("cpu")) for key in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_p_1_takes_every_salient_region_and_p_0_none():
    maps, images = saliency(), torch.randn(ROWS, 3, *SIZE)
    regions = salient_regions(tempered(relative(maps), 0.2))
    whole, _ = mix_of(maps, 1.0)
    assert torch.equal(whole.grafts.bool(), regions)
    none, shares = mix_of(maps, 0.0, images)
    assert torch.equal(none.images, images[NEXT])
    assert shares.tolist() == [[0.0, 1.0]] * ROWS


def test_every_pixel_is_one_of_both_images():
    images = torch.randn(ROWS, 3, 30, 50)  # no multiple of the grid
    mix, _ = mix_of(saliency(), 0.6, images)
    own, other = mix.images == images, mix.images == images[NEXT]
    assert (own | other).all()
    assert torch.equal(own.all(1), mix.masks[:, 0] == 1)
    torch.testing.assert_close(mix.weights, mix.masks.mean((2, 3)))


# Labels


def test_importance_by_hand():
    maps = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    regions = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    assert importance(maps, regions).tolist() == [[pytest.approx(0.6), 0.0]]


def test_shares_by_hand():
    """The own graft shows 3 of (3, 4): 0.6; the partner's upper left cell is hidden, which leaves √(1-(2/3)²)."""
    maps = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[2.0, 1.0], [2.0, 0.0]]])
    mix, _ = mix_of(maps, 0.5)
    mix.grafts = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).expand(2, 2, 2)
    scene = Scene(Batch(torch.zeros(2, 3, *SIZE), torch.arange(2)))
    weights = CalibratedShares(Given(maps)).targets(Step(scene, mix, None)).weights
    left = 5**0.5 / 3
    torch.testing.assert_close(weights[0], torch.tensor([0.6 / (0.6 + left), left / (0.6 + left)]))


def test_shares_follow_the_saliency_that_is_left():
    maps = saliency()
    mix, shares = mix_of(maps, 0.6)
    for row in range(ROWS):
        other, graft = maps[NEXT[row]], mix.grafts[row]
        left = torch.stack(((maps[row] * graft).norm() / maps[row].norm(), (other * (1 - graft)).norm() / other.norm()))
        torch.testing.assert_close(shares[row], left / left.sum())
    assert not torch.allclose(shares, mix.weights, atol=0.05)


def test_the_scale_of_the_saliency_does_not_matter():
    maps = saliency()
    first, second = (
        mix_of(maps, 0.6, key=3),
        mix_of(maps * torch.tensor([1e-18, 1, 1e18] * 2)[:, None, None], 0.6, key=3),
    )
    assert torch.equal(first[0].grafts, second[0].grafts)
    torch.testing.assert_close(first[1], second[1])


def test_without_any_saliency_the_label_follows_the_area():
    mix, shares = mix_of(torch.zeros(ROWS, 4, 6), 0.5)
    torch.testing.assert_close(shares, mix.weights)
    torch.testing.assert_close(shares[:, 0], mix.grafts.mean((1, 2)))


def test_on_another_mix_masks_are_averaged_over_cells():
    maps = saliency()
    mix, shares = mix_of(maps, np.full(ROWS, 0.5), blend=Box())
    cells = mix.masks.unflatten(2, (4, 8)).unflatten(4, (6, 8)).mean((3, 5))
    left = importance(relative(maps)[mix.sources], cells)
    torch.testing.assert_close(shares, left / left.sum(1, keepdim=True))


def test_of_equal_maps_the_visible_half_decides():
    """Box of whole cells, even saliency: I is the root of the area."""
    mix, shares = mix_of(torch.ones(ROWS, *SIZE), np.full(ROWS, 0.5), blend=Box())
    torch.testing.assert_close(shares[:, 0], mix.weights[:, 0].sqrt() / mix.weights.sqrt().sum(1))


@pytest.mark.parametrize("label", ["saliency", "area"])
def test_label_by_area_or_saliency(cnn, label):
    model, images, labels = cnn().eval(), torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    (turn,) = mixwell.create(f"saliency_grafting(label={label})", 7, seed=1).turns(model, images, labels)
    (area,) = mixwell.create("saliency_grafting(label=area)", 7, seed=1).turns(model, images, labels)
    assert torch.equal(turn.logits, area.logits)
    assert torch.equal(turn.targets.weights, area.targets.weights) == (label == "area")


# Where saliency comes from


def test_the_last_stage_with_enough_places(cnn, vit):
    for model, size, number in ((cnn(), 32, 3), (cnn(), 14, 3), (cnn(), 12, 2), (cnn(), 6, 1), (vit(), 32, 2)):
        source = GridActivation()
        source.build(Anatomy(model, torch.randn(2, 3, size, size)), 7)
        assert source.site == number, size
    resnet = GridActivation()
    resnet.build(Anatomy(timm.create_model("resnet10t", num_classes=7), torch.randn(2, 3, 64, 64)), 7)
    assert resnet.site == 3


def test_a_stage_of_ones_own(cnn):
    recipe = mixwell.create("saliency_grafting(site=1)", 7).bind(cnn(), torch.randn(2, 3, 32, 32))
    assert recipe.options[0].blend.saliency.site == 1
    with pytest.raises(mixwell.IncompatibleRecipe, match="Stage 9 does not exist"):
        mixwell.create("saliency_grafting(site=9)", 7).bind(cnn(), torch.randn(2, 3, 32, 32))
    with pytest.raises(mixwell.ParameterError, match="Leave site out"):
        mixwell.create("saliency_grafting(saliency=gradient, site=1)")


def test_without_images_the_grid_is_not_known(cnn):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"saliency_grafting: The grid .* with some images"):
        mixwell.create("saliency_grafting", 7).bind(cnn())


def test_maps_of_pixels_are_averaged_over_cells():
    images = torch.rand(2, 3, 32, 48)
    pixels = mixwell.Pixels((0.0,), (1.0,))
    fine = saliency_of("fine_grained")
    scene = Scene(Batch(images, torch.arange(2), pixels))
    maps = Pooled(fine).maps(scene)
    torch.testing.assert_close(maps, fine.maps(scene).unflatten(1, (8, 4)).unflatten(3, (12, 4)).mean((2, 4)))


def test_blend_and_label_share_one_source(cnn):
    recipe = mixwell.create("saliency_grafting", 7)
    (option,) = recipe.options
    assert option.blend.saliency is option.label.saliency
    model, passes = cnn(), []
    recipe.bind(model, torch.randn(2, 3, 32, 32))
    model.layer3.register_forward_hook(lambda *_: passes.append(model.training))
    list(recipe.turns(model, torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)))
    assert passes == [False, True]


# Networks


@pytest.mark.parametrize(
    "text",
    [
        *("saliency_grafting", "saliency_grafting(per=batch)", "cutmix + saliency_grafting"),
        *("manifold_mixup + saliency_grafting", "resizemix + saliency_grafting", "recursive_mix + saliency_grafting"),
        *(f"saliency_grafting(saliency={name})" for name in ("gradient", "cam", "spectral", "fine_grained")),
    ],
)
def test_two_steps(text, cnn):
    model: nn.Module = cnn()
    recipe = mixwell.create(text, 7, pixels=mixwell.Pixels((0.5,), (0.25,)))
    for _ in range(2):
        (turn,) = recipe.turns(model, torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS))
        turn.loss.backward()
        assert torch.isfinite(turn.loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        torch.testing.assert_close(turn.targets.total, torch.ones(ROWS))


@pytest.mark.parametrize("source", ["activation", "attention", "cam"])
def test_transformers(source, vit):
    model = vit()
    (turn,) = mixwell.create(f"saliency_grafting(saliency={source})", 7).turns(
        model, torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    )
    turn.loss.backward()
    assert torch.isfinite(turn.loss)
    assert ((turn.targets.weights > 0) & (turn.targets.weights < 1)).any()


def test_under_autocast(cnn):
    with torch.autocast("cpu", torch.bfloat16):
        (turn,) = mixwell.create("saliency_grafting", 7).turns(cnn(), torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS))
    turn.loss.backward()
    assert turn.targets.weights.dtype == torch.float32
    assert torch.isfinite(turn.loss)


def test_sources_that_need_no_network_mix_in_the_loader():
    images, targets = mixwell.create("saliency_grafting(saliency=spectral)", 7).mix_batch(
        torch.rand(ROWS, 3, 32, 32), torch.arange(ROWS)
    )
    assert images.shape == (ROWS, 3, 32, 32)
    torch.testing.assert_close(targets.total, torch.ones(ROWS))
