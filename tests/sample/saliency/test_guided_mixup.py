"""GuidedMixup: the cycle of partners, the ratio of pixels, and that saliency is computed once."""

from __future__ import annotations

import pickle
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch, Pixels
from mixwell.core.criteria import SoftCrossEntropy, SoftmaxBinaryCrossEntropy
from mixwell.core.errors import BatchError, IncompatibleRecipe
from mixwell.core.plain import Permutation
from mixwell.core.saliency import InputGradient, Source, SpectralResidual
from mixwell.sample.saliency.guided_mixup import distances, greedy_cycle, pixel_shares, ratio_map

PIXELS = Pixels((0.5,), (0.25,))
ROWS = 6


def pictures(rows=ROWS, channels=3, size=(24, 40)):
    small = torch.randn(rows, channels, 6, 6)
    return F.interpolate(small, size=size, mode="bilinear")


def maps(rows=ROWS, size=(24, 40)):
    return F.interpolate(torch.rand(rows, 1, 6, 6) ** 4, size=size)[:, 0]


def mix_of(text, images, labels=None):
    recipe = mixwell.create(text, pixels=PIXELS)
    option = recipe.options[0]
    return option.mix(images, Scene(Batch(images, torch.arange(len(images)) if labels is None else labels, PIXELS)))


# Who meets whom


def walked(partner):
    """The rows in the order in which one comes to them, from row 0."""
    order = [0]
    while partner[order[-1]] != 0 and len(order) <= len(partner):
        order.append(int(partner[order[-1]]))
    return order


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("kind", ["random", "all alike", "some alike"])
def test_partners_make_one_cycle(rows, kind):
    points = {"random": np.random.rand(rows, 2), "all alike": np.zeros((rows, 2))}.get(kind)  # noqa: NPY002
    if points is None:
        points = np.repeat(np.random.rand(rows, 2), 2, 0)[:rows]  # noqa: NPY002
    apart = np.linalg.norm(points[:, None] - points, axis=2).astype(np.float32)
    assert sorted(walked(greedy_cycle(apart))) == list(range(rows))
    assert len(walked(greedy_cycle(apart))) == rows


def test_the_walk_goes_to_the_farthest_that_is_left():
    places = np.array([0.0, 10.0, 4.0, 9.0, 1.0], np.float32)
    assert greedy_cycle(np.abs(places[:, None] - places)).tolist() == [1, 4, 0, 2, 3]


def test_distances_that_are_given_are_not_changed():
    apart = np.random.rand(5, 5).astype(np.float32)  # noqa: NPY002
    before = apart.copy()
    greedy_cycle(apart)
    assert np.array_equal(apart, before)


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_distances_are_those_of_the_maps(distance):
    shares = pixel_shares(maps(size=(8, 9)))
    rows = shares.flatten(1).double()
    by_hand = {
        "l2": lambda a, b: (a - b).square().sum().sqrt(),
        "l1": lambda a, b: (a - b).abs().sum(),
        "cosine": lambda a, b: 1 - (a @ b) / (a.norm() * b.norm()),
    }[distance]
    expected = torch.stack([torch.stack([by_hand(a, b) for b in rows]) for a in rows]).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = distances(shares, distance)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_small_differences_between_large_maps_are_exact():
    shares = 1 + 1e-4 * torch.rand(ROWS, 32, 32, dtype=torch.float64)
    expected = torch.cdist(shares.flatten(1), shares.flatten(1)).float()
    torch.testing.assert_close(distances(shares.float()), expected, rtol=2e-3, atol=1e-6)


def test_the_code_pairs_at_random():
    greedy, random = (mixwell.create(f"guided_mixup(pairing={how})").options[0] for how in ("greedy", "random"))
    assert isinstance(random.pairing, Permutation)
    images, labels = pictures(), torch.arange(ROWS)
    given = Scene(Batch(images, labels), mixwell.Draws({random.pairing: np.arange(ROWS)}))
    assert torch.equal(random.mix(images, given).sources[:, 1], torch.arange(ROWS))
    assert (greedy.mix(images, Scene(Batch(images, labels))).sources[:, 1] != torch.arange(ROWS)).all()


def test_random_pairing_leaves_the_pairing_to_others():
    images, labels = pictures(8), torch.arange(8)
    mixed, _ = mixwell.create("k_mixup(k=2) + guided_mixup(pairing=random, prob=1.0)").mix_batch(images, labels)
    assert torch.isfinite(mixed).all()
    with pytest.raises(IncompatibleRecipe, match="both decide the pairing"):
        mixwell.create("k_mixup + guided_mixup")


# How pixels are mixed


def test_shares_sum_to_1_on_any_scale():
    found = maps()
    shares = pixel_shares(found)
    torch.testing.assert_close(shares.sum((1, 2)), torch.ones(ROWS))
    scaled = pixel_shares(found * torch.logspace(-12, 12, ROWS)[:, None, None])
    torch.testing.assert_close(scaled, shares)


def test_without_saliency_all_pixels_are_alike():
    found = maps()
    found[2] = 0
    shares = pixel_shares(found)
    torch.testing.assert_close(shares[2], torch.full((24, 40), 1 / 960))


def test_pixels_without_saliency_in_both_images_are_mixed_by_halves():
    one, other = torch.zeros(2, 1, 24, 40)
    one[0, 0, 0], other[0, -1, 0] = 3.0, 1e-9
    ratio = ratio_map(pixel_shares(one), pixel_shares(other))
    assert (ratio[0, :4, :4] == 1).all()
    assert (ratio[0, -4:, :4] < 1e-30).all()
    assert (ratio[0, :, 8:] == 0.5).all()


def test_ratios_complement_each_other():
    own, other = pixel_shares(maps()), pixel_shares(maps())
    ratio = ratio_map(own, other)
    assert ((ratio >= 0) & (ratio <= 1)).all()
    torch.testing.assert_close(ratio + ratio_map(other, own), torch.ones_like(ratio))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_more_salient_image_shows(channels):
    images = pictures(channels=channels)
    mix = mix_of("guided_mixup", images)
    shares = pixel_shares(SpectralResidual().maps(Scene(Batch(images, torch.arange(ROWS)))))
    partner = mix.sources[:, 1]
    ratio = (shares / (shares + shares[partner]))[:, None]
    torch.testing.assert_close(mix.images, ratio * images + (1 - ratio) * images[partner])
    torch.testing.assert_close(mix.weights[:, 0], ratio.mean((1, 2, 3)))
    assert partner.tolist() == greedy_cycle(distances(shares).numpy()).tolist()
    assert ratio.std() > 0.01, "the images are alike, so the test saw nothing"


def test_nothing_is_drawn():
    images, labels = pictures(), torch.arange(ROWS)
    mixed = [mixwell.create("guided_mixup(prob=1.0)", seed=seed).mix_batch(images, labels) for seed in (0, 1)]
    assert torch.equal(mixed[0][0], mixed[1][0])
    assert torch.equal(mixed[0][1].weights, mixed[1][1].weights)


def test_small_and_single_images():
    for shape in ((1, 3, 24, 40), (2, 3, 3, 2), (2, 1, 1, 1)):
        mix = mix_of("guided_mixup", torch.randn(shape))
        assert torch.isfinite(mix.images).all()
        torch.testing.assert_close(mix.weights.sum(1), torch.ones(shape[0]))
    assert mix_of("guided_mixup", torch.randn(1, 3, 24, 40)).sources.tolist() == [[0, 0]]


def test_hidden_maps_are_mixed_by_the_same_ratios(cnn):
    images = pictures(size=(32, 32))
    mix = mix_of("guided_mixup", images)
    small = torch.rand(ROWS, 5, 8, 8)
    ratio = F.avg_pool2d(mix.masks[:, :1], 4)
    torch.testing.assert_close(mix.apply(small), ratio * small + (1 - ratio) * small[mix.sources[:, 1]])
    recipe = mixwell.create("manifold_mixup(sites=(1, 2)) + guided_mixup(prob=1.0)", 7)
    for _ in range(3):
        assert torch.isfinite(recipe(cnn(), images, torch.arange(ROWS)))


def test_saliency_that_is_not_finite_is_refused():
    images = pictures()
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(BatchError, match="guided_mixup: the saliency of the clean batch is not finite"):
        mix_of("guided_mixup", images)


# What it costs


@pytest.mark.parametrize("variant", ["sr", "ap"])
def test_saliency_is_computed_once_per_step(variant, cnn, monkeypatch):
    recipe = mixwell.create(f"guided_mixup(variant={variant}, prob=1.0)", 7)
    source = recipe.options[0].blend.shares.source
    maps, asked = source.maps, []
    monkeypatch.setattr(source, "maps", lambda scene: asked.append(scene) or maps(scene))
    for _ in range(3):
        recipe(cnn(), pictures(size=(32, 32)), torch.arange(ROWS))
    assert len(asked) == len(set(asked)) == 3


def test_recipes_can_be_sent_to_workers():
    recipe, batch = mixwell.create("guided_mixup(prob=1.0)"), (pictures(), torch.arange(ROWS))
    sent = pickle.loads(pickle.dumps(recipe))
    assert torch.equal(sent.mix_batch(*batch)[0], recipe.mix_batch(*batch)[0])


# In a recipe


def test_variants_have_their_own_saliency_and_rate():
    for variant, source, rate in (("sr", SpectralResidual, 0.5), ("ap", InputGradient, 0.8)):
        recipe = mixwell.create(f"guided_mixup(variant={variant})")
        assert isinstance(recipe.options[0].blend.shares.source, source)
        assert recipe.weights == pytest.approx([rate, 1 - rate])
    assert mixwell.create("guided_mixup(variant=ap, prob=0.3)").weights == pytest.approx([0.3, 0.7])


def test_the_codes_criterion_is_an_option():
    kinds = {"cross_entropy": SoftCrossEntropy, "softmax_bce": SoftmaxBinaryCrossEntropy}
    for name, kind in kinds.items():
        assert type(mixwell.create(f"guided_mixup(criterion={name})").options[0].criterion) is kind


@pytest.mark.parametrize(("criterion", "factor"), [("softmax_bce", 2 / 7), ("cross_entropy", 1.0)])
def test_the_clean_loss_is_as_large_as_the_codes(cnn, criterion, factor):
    model, images, labels = cnn().eval(), pictures(size=(32, 32)), torch.arange(ROWS)
    text = f"guided_mixup(variant=ap, criterion={criterion}, prob=1.0, clean_lam="
    with_clean, without = (mixwell.create(f"{text}{weight})", 7)(model, images, labels) for weight in (0.5, 0.0))
    torch.testing.assert_close(with_clean - without, 0.5 * factor * F.cross_entropy(model(images), labels))


@pytest.mark.parametrize("saliency", get_args(Source))
def test_every_source_trains(saliency, cnn, vit):
    model, images = vit() if "attention" in saliency else cnn(), torch.randn(ROWS, 3, 32, 32)
    recipe = mixwell.create(f"guided_mixup(saliency={saliency}, prob=1.0, clean_lam=1.0)", 7, pixels=PIXELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = recipe(model, images, torch.arange(ROWS))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_the_gradient_is_the_clean_losss(cnn):
    """In evaluation mode, without a trace; a factor on the loss changes nothing."""
    model, images, labels = cnn().train(), pictures(size=(32, 32)), torch.arange(ROWS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    option = mixwell.create("guided_mixup(variant=ap, prob=1.0)", 7).options[0]
    batch = Batch(images, labels)

    def mixed(factor):
        views = mixwell.Views(
            mixwell.Probe(model, images), batch, option.view_wants, lambda z, y: factor * F.cross_entropy(z, y)
        )
        return option.mix(images, Scene(batch, views=views)).images

    torch.testing.assert_close(mixed(1e-4), mixed(1.0), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_others_take_its_masks(vit):
    recipe = mixwell.create("guided_mixup(prob=1.0) + transmix", 7)
    assert torch.isfinite(recipe(vit(), pictures(size=(32, 32)), torch.arange(ROWS)))
