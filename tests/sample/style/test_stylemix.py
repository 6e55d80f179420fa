"""StyleMix and StyleCutMix: weights of contents and styles, boxes, class distances, and the networks behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Mix, Partners
from mixwell.nets.style import style_networks, vgg_networks
from mixwell.ops.boxes import area_of, boxes_around
from mixwell.ops.moments import adain, moments
from mixwell.sample.style.stylemix import (
    BoxDraws,
    MapDraws,
    mixed_maps,
    strength,
    style_distances,
    style_vectors,
)

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
VARIANTS = ["stylemix", "stylecutmix", "auto"]
BATCHES = "channels=4, epochs=1"


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MIXWELL_CACHE", str(folder))
    return folder


def maps_of(images: Tensor) -> Tensor:
    """An encoder that can be undone."""
    return 2 * images + 1


def images_of_maps(maps: Tensor) -> Tensor:
    return (maps - 1) / 2


def recipe_of(variant: str, parameters: str = "", rows: int = 7, networks: Any = None) -> mixwell.Recipe:
    text = ", ".join(filter(None, (f"variant={variant}", "prob=1", parameters)))
    recipe = mixwell.create(f"stylemix({text})", num_classes=7, pixels=PIXELS)
    recipe.options[0].blend.use(*(networks or (maps_of, images_of_maps)))
    return recipe.prepare(lambda: [mixwell.Batch(torch.randn(rows, 3, 12, 16), torch.arange(rows))], "noise")


def mix_of(recipe: mixwell.Recipe, images: Tensor, lam: np.ndarray, draws: Any, labels: Tensor | None = None) -> Mix:
    labels = torch.arange(len(images)) if labels is None else labels
    batch = mixwell.Batch(images, labels, PIXELS)
    partners = Partners.at(torch.arange(len(images)).roll(1)[:, None], labels)
    return recipe.options[0].blend.mix(images, partners, torch.from_numpy(lam), draws, Scene(batch))


def full(*values: float) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value]) for value in values)


def box_draws(style: float, gamma: float | None, rows: int = 1, middle: float = 0.5) -> BoxDraws:
    return BoxDraws(np.full(rows, style), None if gamma is None else np.full(rows, gamma), np.full((rows, 2), middle))


# Maps


def test_mixed_maps_are_the_sum_of_maps_and_transfers():
    own, other = torch.rand(5, 4, 6, 7, dtype=torch.float64), torch.rand(5, 4, 6, 7, dtype=torch.float64) ** 2
    content, style = torch.rand(2, 5, dtype=torch.float64)
    both = (torch.maximum(content + style - 1, torch.zeros(5)) + torch.minimum(content, style)) / 2
    weights = [w.view(5, 1, 1, 1) for w in (both, 1 - content - style + both, content - both, style - both)]
    parts = (own, other, adain(own, other), adain(other, own))
    wanted = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(mixed_maps(own, other, content, style, both), wanted)


def test_maps_mixed_with_themselves_and_kept_whole_stay_as_they_are():
    own, other, one = torch.rand(3, 4, 6, 6), torch.rand(3, 4, 6, 6), torch.ones(1)
    torch.testing.assert_close(mixed_maps(own, own, torch.rand(3), torch.rand(3), torch.rand(3)), own)
    torch.testing.assert_close(mixed_maps(own, other, one, one, one), own)
    torch.testing.assert_close(mixed_maps(own, other, 0 * one, 0 * one, 0 * one), other)


def test_own_content_in_the_partners_style_has_the_partners_moments():
    images = torch.randn(6, 3, 12, 16) * torch.arange(1, 7).view(-1, 1, 1, 1)
    mix = mix_of(recipe_of("stylemix"), images, np.ones(1), MapDraws(*full(0, 0.5)))
    for got, wanted in zip(moments(mix.images, (2, 3)), moments(images.roll(1, 0), (2, 3)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (mix.images - images.roll(1, 0)).abs().mean() > 0.5
    torch.testing.assert_close(mix.weights[:, 0], torch.full((6,), 0.7))


def test_what_is_shown_is_the_decoders_rendering_also_where_nothing_is_mixed():
    networks = tuple(net.requires_grad_(False) for net in style_networks(3, (4, 8)))
    images = torch.randn(4, 3, 12, 16)
    mix = mix_of(recipe_of("stylemix", networks=networks), images, np.ones(1), MapDraws(*full(1, 0.5)))
    torch.testing.assert_close(mix.images, networks[1](networks[0](images)[-1]))
    torch.testing.assert_close(mix.weights[:, 0], torch.ones(4))


@pytest.mark.parametrize("r", [0.0, 0.7, 1.0])
def test_labels_weigh_content_and_style(r: float):
    draws = MapDraws(*full(0.4, 0.3))
    mix = mix_of(recipe_of("stylemix", f"r={r}"), torch.randn(4, 3, 12, 16), np.full(1, 0.9), draws)
    torch.testing.assert_close(mix.weights[:, 0], torch.full((4,), r * 0.9 + (1 - r) * 0.4))


# Boxes


def test_the_box_belongs_to_the_image():
    images = torch.randn(5, 3, 12, 16)
    lam, centres = np.linspace(0, 1, 5), np.random.default_rng(0).random((5, 2))
    draws = BoxDraws(np.full(5, 0.3), np.ones(5), centres)
    mix = mix_of(recipe_of("stylecutmix"), images, lam, draws)
    boxes = boxes_around(np.sqrt(lam), centres, (12, 16))
    for row, (top, bottom, left, right) in enumerate(boxes):
        wanted = images[row - 1].clone()
        wanted[:, top:bottom, left:right] = images[row, :, top:bottom, left:right]
        assert torch.equal(mix.images[row], wanted), "with γ = 1 it is a CutMix"
    torch.testing.assert_close(mix.weights[:, 0], torch.from_numpy(area_of(boxes, (12, 16))).float())


def test_pixels_follow_the_four_masks():
    images, (style, gamma) = torch.randn(5, 3, 12, 16), (0.6, 0.25)
    mix = mix_of(recipe_of("stylecutmix", "r=0"), images, np.full(1, 0.5), box_draws(style, gamma))
    (box,) = boxes_around(np.sqrt(full(0.5)[0]), np.full((1, 2), 0.5), (12, 16))
    content = torch.zeros(12, 16)
    content[box[0] : box[1], box[2] : box[3]] = 1
    both = (content + style - 1).clamp_min(0)
    other = images.roll(1, 0)
    first = gamma * images + (1 - gamma) * images_of_maps(adain(maps_of(images), maps_of(other)))
    second = gamma * other + (1 - gamma) * images_of_maps(adain(maps_of(other), maps_of(images)))
    wanted = both * images + (1 - content - style + both) * other + (content - both) * first + (style - both) * second
    torch.testing.assert_close(mix.images, wanted)
    share = content.mean()
    torch.testing.assert_close(mix.weights[:, 0], (gamma * share + (1 - gamma) * style).expand(5))


def test_other_tensors_are_cut_alike():
    mix = mix_of(recipe_of("stylecutmix"), torch.randn(4, 3, 12, 16), np.full(1, 0.5), box_draws(0.5, 0.5))
    shown = mix.apply(torch.eye(4)[:, :, None, None].repeat(1, 1, 6, 8))
    own = torch.eye(4).bool()
    (box,) = boxes_around(np.sqrt(full(0.5)[0]), np.full((1, 2), 0.5), (6, 8))
    assert shown[own].unique().tolist() == [0, 1]
    torch.testing.assert_close(shown[own].mean((1, 2)), torch.full((4,), area_of(box[None], (6, 8))[0]).float())


def test_other_tensors_are_mixed_by_the_contents_ratio():
    mix = mix_of(recipe_of("stylemix"), torch.randn(4, 3, 12, 16), np.full(1, 0.25), MapDraws(*full(0.9, 0.5)))
    rows = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 6, 8)
    torch.testing.assert_close(mix.apply(rows), 0.25 * rows + 0.75 * rows.roll(1, 0))


# Class distances


def test_class_styles_are_means_over_all_of_a_class():
    """The authors' code counts one image per class and batch."""
    styles, labels = torch.randn(9, 5), torch.tensor([0, 2, 2, 2, 0, 4, 4, 0, 2])
    vectors = style_vectors([(styles[:4], labels[:4]), (styles[4:], labels[4:])], num_classes=6)
    assert vectors.shape == (6, 5)
    for number in (0, 2, 4):
        torch.testing.assert_close(vectors[number].float(), styles[labels == number].mean(0))
    assert (vectors[[1, 3, 5]] == 0).all()
    rows = F.one_hot(labels, 6).float()
    torch.testing.assert_close(style_vectors([(styles[:4], rows[:4]), (styles[4:], rows[4:])]), vectors)


def test_distances_are_symmetric_with_2_on_the_diagonal():
    vectors = torch.randn(4, 6)
    distances = style_distances(vectors)
    assert torch.equal(distances, distances.T)
    assert (distances.diagonal() == 2).all()
    torch.testing.assert_close(distances[0, 3], (vectors[0] - vectors[3]).square().mean())


def test_distant_styles_are_transferred_less():
    distances = style_distances(torch.tensor([[0.0], [1.0], [3.0]]))
    own, other = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 1, 0])
    gamma = strength(distances, own, other, 3.0)
    torch.testing.assert_close(gamma, torch.tanh(torch.tensor([1.0, 9, 2, 9]) / 3))
    rows = [F.one_hot(ids, 3).float() for ids in (own, other)]
    torch.testing.assert_close(strength(distances, *rows, 3.0), gamma)
    torch.testing.assert_close(strength(distances, 2 * rows[0], rows[1], 3.0), gamma)


@pytest.mark.parametrize("soft", [False, True])
def test_auto_is_a_stylecutmix_with_the_classes_gamma(soft: bool):
    recipe, images = recipe_of("auto", "delta=0.1, r=0.5"), torch.randn(7, 3, 12, 16)
    ids = torch.tensor([0, 3, 6, 6, 1, 2, 2])
    labels = F.one_hot(ids, 7).float() if soft else ids
    lam = np.random.default_rng(0).random(7)
    mix = mix_of(recipe, images, lam, box_draws(0.3, None, 7), labels)
    gamma = strength(recipe.options[0].blend.distances, ids, ids.roll(1), 0.1)
    drawn = BoxDraws(np.full(7, 0.3), gamma.numpy(), np.full((7, 2), 0.5))
    wanted = mix_of(recipe_of("stylecutmix", "r=0.5"), images, lam, drawn)
    torch.testing.assert_close(mix.images, wanted.images)
    torch.testing.assert_close(mix.weights, wanted.weights)
    assert gamma.unique().numel() > 2


def test_auto_refuses_classes_that_it_has_not_seen():
    recipe = recipe_of("auto", rows=3)
    with pytest.raises(mixwell.BatchError, match="prepared on 3 classes"):
        mix_of(recipe, torch.randn(4, 3, 12, 16), np.full(1, 0.5), box_draws(0.3, None))


# Draws


@pytest.mark.parametrize("variant", VARIANTS)
def test_ratios_are_beta(variant: str):
    option = recipe_of(variant).options[0]
    alpha = 0.5 if variant == "stylemix" else 1.0
    rng = np.random.default_rng(0)
    found, content = option.blend.draw(20000, rng), option.ratio.draw(20000, rng)
    drawn = [(found.style, alpha), (content, alpha)]
    if variant == "stylecutmix":
        drawn.append((found.gamma, 0.8))
    for values, a in drawn:
        assert values.mean() == pytest.approx(0.5, abs=0.01)
        assert values.var() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.03)
    assert abs(np.corrcoef(found.style, content)[0, 1]) < 0.03
    once = recipe_of(variant, "per=batch").options[0].blend.draw(9, rng)
    assert all(len(value) == 1 for value in once if value is not None)


@pytest.mark.parametrize(("variant", "prob"), [("stylemix", 0.2), ("stylecutmix", 0.5), ("auto", 0.5)])
def test_the_papers_share_of_mixed_batches(variant: str, prob: float):
    assert mixwell.create(f"stylemix(variant={variant})").weights[0] == pytest.approx(prob)
    assert mixwell.create(f"stylemix(variant={variant}, prob=0.9)").weights[0] == pytest.approx(0.9)


# Images and networks


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixes_keep_dtype_and_layout_and_leave_the_images_alone(
    variant: str, dtype: torch.dtype, layout: torch.memory_format
):
    images = torch.randn(5, 3, 9, 5).to(dtype).contiguous(memory_format=layout)
    kept = images.clone()
    recipe = recipe_of(variant, networks=style_networks(3, (4, 8)))
    draws = recipe.options[0].blend.draw(5, np.random.default_rng(0))
    plain = mix_of(recipe, images, np.full(1, 0.5), draws).images
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mix_of(recipe, images, np.full(1, 0.5), draws).images
    assert torch.equal(mixed, plain)
    assert mixed.dtype == dtype
    assert mixed.shape == images.shape
    assert mixed.is_contiguous(memory_format=layout)
    assert torch.isfinite(mixed).all()
    assert torch.equal(images, kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_mixed_each_for_itself(variant: str):
    recipe, images = recipe_of(variant), torch.randn(6, 3, 12, 16)
    blend, rng = recipe.options[0].blend, np.random.default_rng(0)
    lam, draws = rng.random(6), blend.draw(6, rng)
    whole = mix_of(recipe, images, lam, draws)
    for row in (0, 3):
        pair = torch.tensor([row, row - 1])
        one = type(draws)(*(None if value is None else value[[row, row]] for value in draws))
        alone = mix_of(recipe, images[pair], lam[[row, row]], one, pair % 6)
        torch.testing.assert_close(alone.images[0], whole.images[row])
        torch.testing.assert_close(alone.weights[0], whole.weights[row])


@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_may_see_larger_images(variant: str):
    seen: list[tuple[int, ...]] = []
    recipe = recipe_of(variant, "size=24", networks=(lambda x: seen.append(tuple(x.shape)) or x, lambda x: x))
    mixed, _ = recipe.mix_batch(torch.randn(5, 3, 8, 10), torch.arange(5))
    assert seen[-1] == (5, 3, 24, 30)
    assert mixed.shape == (5, 3, 8, 10)


def test_the_boxs_share_is_that_of_the_larger_image():
    centres = np.array([[0.1, 0.7]])
    draws = BoxDraws(*full(0.5, 1), centres)
    mix = mix_of(recipe_of("stylecutmix", "size=24, r=1"), torch.randn(4, 3, 8, 8), np.full(1, 0.3), draws)
    share = area_of(boxes_around(np.sqrt(full(0.3)[0]), centres, (24, 24)), (24, 24))
    torch.testing.assert_close(mix.weights[:, 0], torch.from_numpy(share).float().expand(4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_finite_and_leaves_the_networks_alone(cnn: Callable[..., nn.Module], variant: str):
    networks = (nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5)), nn.Conv2d(6, 3, 1))
    recipe, model = recipe_of(variant, networks=networks), cnn()
    assert not recipe.owns
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    optimiser = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    recipe.train()
    recipe(model, torch.randn(5, 3, 12, 16), torch.arange(5)).backward()
    optimiser.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad is None for net in networks for parameter in net.parameters())
    assert not any(module.training for net in networks for module in net.modules())
    after = recipe.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if not name.endswith("extra_state"))


def test_networks_and_distances_move_with_the_recipe():
    recipe = recipe_of("auto", networks=style_networks(3, (4, 8))).to("meta")
    assert all(tensor.is_meta for tensor in (*recipe.parameters(), *recipe.buffers()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_are_made_once_and_loaded_after(own_cache: Path, variant: str):
    batches = [mixwell.Batch(torch.randn(8, 3, 12, 12), torch.arange(8)) for _ in range(3)]
    states, told = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        recipe = mixwell.create(f"stylemix(variant={variant}, prob=1, {BATCHES})", num_classes=8, seed=seed)
        recipe.prepare(lambda: batches, "noise", progress=lambda *words: told.append(words))
        states.append(recipe.options[0].blend.state_dict())
        recipe.mix_batch(batches[0])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert told == [("style networks", 0, 1), ("style networks", 1, 1)]
    kinds = sorted(path.name.rpartition("-")[0] for path in own_cache.iterdir())
    assert kinds == ["class-styles"] * (variant == "auto") + ["style-networks"]


def test_networks_of_ones_own_are_not_replaced(own_cache: Path):
    recipe = recipe_of("stylemix")
    assert not own_cache.exists()
    mixed = mix_of(recipe, images := torch.randn(2, 3, 8, 8), np.ones(1), MapDraws(*full(1, 0.5))).images
    torch.testing.assert_close(mixed, images)


def test_weights_of_vgg_are_read_from_files(tmp_path: Path):
    nets, paths = vgg_networks(), [tmp_path / "vgg.pth", tmp_path / "decoder.pth"]
    for net, path in zip(nets, paths, strict=True):
        torch.save(net.state_dict(), path)
    recipe = mixwell.create(f"stylemix(prob=1, size=16, encoder='{paths[0]}', decoder='{paths[1]}')", num_classes=2)
    assert str(mixwell.create(str(recipe))) == str(recipe)
    images = torch.randn(2, 3, 8, 8)
    recipe.prepare(lambda: [mixwell.Batch(images, torch.arange(2))], "noise")
    transfer = recipe.options[0].blend.transfer
    canvas = F.interpolate(images, (16, 16), mode="bilinear")
    with torch.no_grad():
        wanted = nets[0](canvas)
    torch.testing.assert_close(transfer.maps(canvas), wanted)
    mixed, _ = recipe.mix_batch(images, torch.arange(2))
    assert mixed.shape == images.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_networks_it_says_what_to_do(variant: str):
    recipe = mixwell.create(f"stylemix(variant={variant}, prob=1)", num_classes=7)
    with pytest.raises(mixwell.MixwellError, match=r"recipe\.prepare\(batches, data\)"):
        recipe.mix_batch(torch.randn(4, 3, 8, 8), torch.arange(4))


def test_a_decoder_that_makes_smaller_images_is_told():
    recipe = recipe_of("stylemix", networks=(maps_of, lambda maps: maps[..., ::2, ::2]))
    with pytest.raises(mixwell.BatchError, match=r"expected \(4, 3, 8, 8\), got \(4, 3, 4, 4\)"):
        recipe.mix_batch(torch.randn(4, 3, 8, 8), torch.arange(4))


@pytest.mark.parametrize(
    "text",
    [
        "alpha=0",
        "r=1.5",
        "size=0",
        "channels=0",
        "epochs=0",
        "encoder='vgg.pth'",
        "gamma_alpha=0.5",
        "delta=1",
        "prob=2",
    ],
)
def test_parameters_out_of_range(text: str):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"stylemix({text})")


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_mixes_pixels_only(variant: str):
    with pytest.raises(mixwell.IncompatibleRecipe, match="works on pixels only"):
        mixwell.create(f"stylemix(variant={variant}) + manifold_mixup")
