"""DJMix: views between an image and its reconstruction, a frozen auto-encoder, and what the task's loss sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Need, Scene
from mixwell.nets.vq import vq_autoencoder
from mixwell.sample.linear.djmix import VQReconstruction

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SMALL = "channels=4, codes=8, dim=4, epochs=1"


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    return tmp_path


def images_of(rows: int, height: int = 20, width: int = 28) -> Tensor:
    return PIXELS.normalise(torch.rand(rows, 3, height, width))


def mirrored(images: Tensor) -> Tensor:
    return images.flip(3)


def recipe_of(parameters: str = "", autoencoder: Callable[[Tensor], Tensor] = mirrored, **options) -> mixwell.Recipe:
    recipe = mixwell.create(f"djmix({parameters})", num_classes=7, pixels=PIXELS, **options)
    recipe.options[0].alone.use(autoencoder)
    return recipe


def views_of(recipe: mixwell.Recipe, images: Tensor, lam: np.ndarray) -> tuple[Tensor, ...]:
    piece = recipe.options[0].alone
    batch = mixwell.Batch(images, torch.arange(len(images)), PIXELS)
    return piece.images(lam, Scene(batch))


def test_lambda_1_is_the_image_and_lambda_0_its_reconstruction():
    images, recipe = images_of(6), recipe_of()
    clean, mixed = views_of(recipe, images, np.array([1, 0, 1, 0, 0.5, 0.25]))
    assert torch.equal(clean, images)
    assert torch.equal(mixed[[0, 2]], images[[0, 2]])
    torch.testing.assert_close(mixed[[1, 3]], mirrored(images[[1, 3]]))
    torch.testing.assert_close(mixed[5], 0.25 * images[5] + 0.75 * mirrored(images[5:])[0])


def test_the_mix_lies_between_the_image_and_its_reconstruction():
    images = images_of(5)
    _, mixed = views_of(recipe_of(), images, np.linspace(0, 1, 5))
    low, high = torch.minimum(images, mirrored(images)), torch.maximum(images, mirrored(images))
    assert ((mixed >= low - 1e-5) & (mixed <= high + 1e-5)).all()


def test_the_auto_encoder_sees_raw_pixels():
    seen = []
    recipe = recipe_of(autoencoder=lambda pixels: seen.append(pixels) or pixels)
    images = images_of(4)
    _, mixed = views_of(recipe, images, np.zeros(4))
    torch.testing.assert_close(seen[0], PIXELS.raw(images))
    torch.testing.assert_close(mixed, images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_views_keep_dtype_and_layout_and_leave_the_images_alone(dtype: torch.dtype, layout: torch.memory_format):
    images = images_of(5, 9, 5).to(dtype).contiguous(memory_format=layout)
    kept = images.clone()
    recipe = recipe_of(autoencoder=vq_autoencoder(3, channels=4, codes=8, dim=4))
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed = views_of(recipe, images, np.full(1, 0.3))
    assert mixed.dtype == dtype
    assert mixed.shape == images.shape
    assert mixed.is_contiguous(memory_format=layout)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_lambda_is_beta(alpha: float):
    lam = VQReconstruction(alpha).draw(20000, np.random.default_rng(0))
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert VQReconstruction(alpha, per="batch").draw(9, np.random.default_rng(0)).shape == (1,)


def test_lambda_may_be_fixed():
    assert (VQReconstruction(lam=0.5).draw(3, np.random.default_rng(0)) == 0.5).all()


@pytest.mark.parametrize(("task", "views"), [("clean", (1, 0)), ("mixed", (0, 1)), ("both", (0.5, 0.5))])
def test_the_tasks_loss_sees_the_view_it_is_told_to(cnn, task: str, views: tuple[float, float]):
    model, images, labels = cnn().eval(), images_of(6), torch.arange(6)
    (turn,) = recipe_of(f"task={task}, lam=0.25, weight=2").turns(model, images, labels)
    mixed = 0.25 * images + 0.75 * mirrored(images)
    losses = [F.cross_entropy(model(view), labels) for view in (images, mixed)]
    p, q = (model(view).softmax(1) for view in (images, mixed))
    halfway = (p + q) / 2
    divergence = sum((view * (view / halfway).log()).sum(1).mean() for view in (p, q)) / 2
    task_loss = sum(share * loss for share, loss in zip(views, losses, strict=True))
    torch.testing.assert_close(turn.loss, task_loss + 2 * divergence)


def test_the_divergence_is_nothing_without_a_difference_and_at_most_log_2(cnn):
    images, labels = images_of(6), torch.arange(6)
    (same,) = recipe_of(autoencoder=lambda pixels: pixels).turns(cnn().eval(), images, labels)
    assert same.parts["djmix"] == pytest.approx(0, abs=1e-6)
    (other,) = recipe_of("lam=0").turns(nn.Sequential(nn.Flatten(), nn.Linear(1680, 7)), 100 * images, labels)
    assert 0.1 < other.parts["djmix"] <= math.log(2) + 1e-6


def test_no_gradient_reaches_the_auto_encoder_and_it_stays_in_evaluation_mode(cnn):
    autoencoder = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    recipe, model = recipe_of(autoencoder=autoencoder), cnn()
    assert not recipe.owns
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    recipe.train()
    recipe(model, images_of(4), torch.arange(4)).backward()
    assert not any(module.training for module in autoencoder.modules())
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.state_dict().items())
    assert {id(p) for group in recipe.parameter_groups(model) for p in group["params"]} == {
        id(p) for p in model.parameters()
    }


def test_the_auto_encoder_moves_with_the_recipe():
    recipe = recipe_of(autoencoder=vq_autoencoder(3, channels=4, codes=8, dim=4)).to("meta")
    assert all(parameter.is_meta for parameter in recipe.parameters())


def test_a_function_that_changes_the_shape_is_told():
    with pytest.raises(mixwell.BatchError, match=r"expected \(2, 3, 8, 8\), got \(2, 1, 8, 8\)"):
        views_of(recipe_of(autoencoder=lambda pixels: pixels[:, :1]), images_of(2, 8, 8), np.zeros(2))


def test_it_is_made_once_of_raw_pixels_and_loaded_after(own_cache: Path, cnn):
    batches = [mixwell.Batch(images_of(8, 16, 16), torch.arange(8)) for _ in range(3)]
    states, told = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        recipe = mixwell.create(f"djmix({SMALL})", num_classes=8, pixels=PIXELS, seed=seed)
        recipe.prepare(lambda: batches, "noise", progress=lambda *words: told.append(words))
        states.append(recipe.options[0].alone.state_dict())
        recipe(cnn(8), batches[0]).backward()
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert told == [("VQ auto-encoder", 0, 1), ("VQ auto-encoder", 1, 1)]
    assert len(list(own_cache.iterdir())) == 1
    mixwell.create(f"djmix({SMALL.replace('dim=4', 'dim=5')})", pixels=PIXELS).prepare(lambda: batches, "noise")
    assert len(list(own_cache.iterdir())) == 2


def test_one_of_ones_own_is_not_replaced(own_cache: Path):
    recipe = recipe_of()
    recipe.prepare(lambda: [mixwell.Batch(images_of(4), torch.arange(4))], "noise")
    assert not list(own_cache.iterdir())
    _, mixed = views_of(recipe, images := images_of(2), np.zeros(1))
    torch.testing.assert_close(mixed, mirrored(images))


def test_without_an_auto_encoder_it_says_what_to_do(cnn):
    recipe = mixwell.create("djmix", num_classes=7, pixels=PIXELS)
    with pytest.raises(mixwell.MixwellError, match=r"recipe\.prepare\(batches, data\)"):
        recipe(cnn(), images_of(4), torch.arange(4))


@pytest.mark.parametrize("text", ["task=both", "task=mixed", "per=batch"])
def test_a_step_trains_a_network_beside_a_mix(cnn, text: str):
    recipe = mixwell.create(f"djmix({text}) + cutmix", num_classes=7, pixels=PIXELS)
    recipe.options[0].alone.use(mirrored)
    model = cnn()
    optimizer = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    (turn,) = recipe.turns(model, images_of(5), torch.arange(5))
    assert turn.logits.shape == (5, 7)
    assert turn.targets.sources.shape == (5, 2)
    turn.loss.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_views_are_given():
    assert Need.VIEWS in VQReconstruction().gives


@pytest.mark.parametrize("text", ["alpha=0", "lam=1.5", "weight=-1", "task=dirty", "stride=6", "codes=0", "epochs=0"])
def test_parameters_out_of_range(text: str):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"djmix({text})")


def test_batches_it_cannot_reconstruct():
    recipe = recipe_of(autoencoder=vq_autoencoder(3, channels=4, codes=8, dim=4))
    with pytest.raises(mixwell.BatchError, match=r"\(B, C, H, W\)"):
        views_of(recipe, torch.randn(2, 3), np.zeros(2))
    grey = mixwell.Batch(torch.rand(2, 1, 8, 8), torch.arange(2), mixwell.Pixels((0.5,), (1.0,)))
    with pytest.raises(mixwell.BatchError, match=r"\(B, 3, H, W\), got \(2, 1, 8, 8\)"):
        recipe.options[0].alone.images(np.zeros(2), Scene(grey))
