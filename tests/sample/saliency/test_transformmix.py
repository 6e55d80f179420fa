"""TransformMix: moved and masked mixes, the search of the module, and modules that go from one data set to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Mix, Partners
from mixwell.nets import create_net
from mixwell.nets.transform_mixer import TransformMixer
from mixwell.ops.affine import warped
from mixwell.sample.saliency.transformmix import LearnedTransform, search, shown, unit_range, visible

SMALL = "width=8, epochs=2, teacher_epochs=1"
STILL = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(5, 2, 2, 3)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


pytestmark = pytest.mark.usefixtures("one_thread")


def batches_of(classes: int = 4, rows: int = 32, count: int = 2, seed: int = 0) -> list[mixwell.Batch]:
    """Classes that a small network tells apart: each has a bright square in a place of its own."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        images, labels = torch.randn(rows, 3, 16, 16, generator=rng) / 2, torch.arange(rows) % classes
        for row, label in enumerate(labels.tolist()):
            top, left = divmod(label, 3)
            images[row, label % 3, 5 * top : 5 * top + 5, 5 * left : 5 * left + 5] += 2
        made.append(mixwell.Batch(images, labels))
    return made


def recipe_of(parameters: str = SMALL, classes: int = 4, batches: list[mixwell.Batch] | None = None, data: str = "a"):
    recipe = mixwell.create(f"transformmix({parameters})", num_classes=classes)
    return recipe.prepare(lambda: batches_of(classes) if batches is None else batches, data)


def given(theta: Tensor, logits: Tensor) -> mixwell.Recipe:
    """A recipe whose module has an answer of its own."""
    recipe = mixwell.create("transformmix", num_classes=5)
    recipe.options[0].blend.teacher.use(create_net("cnn-s", 5))
    recipe.options[0].blend.use(lambda maps, partner, lam: (theta, logits))
    return recipe


def mix_of(recipe: mixwell.Recipe, images: Tensor, lam: Tensor, partner: Tensor, labels: Tensor | None = None) -> Mix:
    labels = torch.arange(len(images)) if labels is None else labels
    scene = Scene(mixwell.Batch(images, labels))
    return recipe.options[0].blend.mix(images, Partners.at(partner[:, None], labels), lam, None, scene)


ROLLED = torch.tensor([1, 2, 3, 4, 0])


# What is shown


def test_without_a_move_and_under_a_full_mask_it_is_the_image():
    images = torch.randn(5, 3, 12, 20)
    mix = mix_of(given(STILL, torch.full((5, 1, 3, 5), 40.0)), images, torch.rand(5), ROLLED)
    torch.testing.assert_close(mix.images, images, atol=1e-5, rtol=1e-5)
    other = mix_of(given(STILL, torch.full((5, 1, 3, 5), -40.0)), images, torch.rand(5), ROLLED)
    torch.testing.assert_close(other.images, images[ROLLED], atol=1e-5, rtol=1e-5)


def test_both_images_are_moved_each_by_its_own_map():
    images, theta = torch.randn(5, 3, 12, 20), STILL + 0.3 * torch.randn(5, 2, 2, 3)
    mask = torch.rand(5, 1, 12, 20)
    expected = mask * warped(images, theta[:, 0]) + (1 - mask) * warped(images[ROLLED], theta[:, 1])
    torch.testing.assert_close(shown(images, ROLLED, theta, mask), expected)


def test_exchanging_the_images_the_maps_and_the_mask_changes_nothing():
    images, theta, logits = torch.randn(5, 3, 12, 20), STILL + 0.3 * torch.randn(5, 2, 2, 3), torch.randn(5, 1, 3, 5)
    lam, back = torch.rand(5), ROLLED.argsort()
    one = mix_of(given(theta, logits), images, lam, ROLLED)
    swapped = given(theta.flip(1)[back], -logits[back])
    other = mix_of(swapped, images, (1 - lam)[back], back)
    torch.testing.assert_close(other.images, one.images[back], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.targets().dense(5), one.targets().dense(5)[back])


def test_labels_have_the_drawn_shares_whatever_is_shown():
    lam = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    mix = mix_of(given(STILL, torch.full((5, 1, 3, 5), 3.0)), torch.randn(5, 3, 12, 20), lam, ROLLED)
    torch.testing.assert_close(mix.targets().weights, torch.stack((lam, 1 - lam), 1).float())
    torch.testing.assert_close(mix.area, torch.full((5,), 3.0).sigmoid())


def test_from_beyond_the_border_comes_the_normalised_zero():
    away = STILL.clone()
    away[..., 0, 2] = 1.0  # half of both images is moved out to the left
    images = torch.randn(5, 3, 12, 20) + 9
    mix = mix_of(given(away, torch.zeros(5, 1, 3, 5)), images, torch.rand(5), ROLLED)
    assert (mix.images[..., 10:] == 0).all()
    assert (mix.images[..., :10] > 1).all()


def test_masks_and_origins_of_moved_images():
    away = STILL.clone()
    away[:, 0, 0, 2] = 1.0  # shows the right half of the image, on the left
    logits = torch.randn(5, 1, 12, 20)
    mix = mix_of(given(away, logits), torch.randn(5, 3, 12, 20), torch.rand(5), ROLLED)
    mask = logits.sigmoid()[:, 0]
    torch.testing.assert_close(mix.masks[:, 0, :, :10], mask[..., :10])
    torch.testing.assert_close(mix.masks[:, 0, :, 10:], torch.zeros(5, 12, 10))
    torch.testing.assert_close(mix.masks.sum(1), torch.ones(5, 12, 20))
    torch.testing.assert_close(mix.origins[:, 0, :, 10:], mask[..., :10], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mix.origins[:, 0, :, :10], torch.zeros(5, 12, 10))
    torch.testing.assert_close(mix.origins[:, 1], 1 - mask, atol=1e-5, rtol=1e-4)


def test_where_nothing_is_shown_masks_are_still_shares():
    nowhere = STILL.clone()
    nowhere[..., 2] = 5.0
    mask = torch.rand(5, 1, 12, 20)
    torch.testing.assert_close(visible(mask, nowhere), torch.cat((mask, 1 - mask), 1))


def test_the_module_sees_rectified_maps_from_0_to_1_and_the_features():
    recipe, images = recipe_of(), torch.randn(5, 3, 16, 16)
    seen = recipe.options[0].blend.seen(images, torch.arange(5) % 4, None)
    features, maps = recipe.options[0].blend.teacher.activation(images, torch.arange(5) % 4)
    torch.testing.assert_close(seen[:, 1:], features)
    assert seen[:, 0].amin() >= 0
    assert seen[:, 0].amax() <= 1
    low = maps.relu().amin((1, 2), keepdim=True)
    torch.testing.assert_close(seen[:, 0] * (maps.relu() - low).amax((1, 2), keepdim=True), maps.relu() - low)


def test_a_map_without_evidence_is_nothing():
    assert (unit_range(-torch.rand(2, 4, 5)) == 0).all()
    assert (unit_range(torch.full((2, 4, 5), 3.0)) == 0).all()


def test_other_resolutions_are_mixed_alike():
    """Small maps of a linear gradient, enlarged, are the large map."""
    mix = mix_of(recipe_of(classes=5), torch.randn(5, 3, 16, 16), torch.rand(5), ROLLED)
    constant = torch.arange(5.0).view(5, 1, 1, 1)
    small, large = (
        mix.apply(constant.expand(5, 1, 8, 8).contiguous()),
        mix.apply(constant.expand(5, 1, 32, 32).contiguous()),
    )
    torch.testing.assert_close(F.avg_pool2d(large, 4)[..., 1:-1, 1:-1], small[..., 1:-1, 1:-1], atol=0.05, rtol=0.05)


def test_lambda_is_beta():
    option = mixwell.create("transformmix(alpha=0.5)", 4).options[0]
    lam = option.ratio.draw(20000, np.random.default_rng(0))
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    assert lam.var() == pytest.approx(1 / 8, rel=0.03)


# The search


def searched(epochs: int = 12, **options: float) -> tuple[TransformMixer, nn.Module, Tensor]:
    """A module, the teacher that it was searched with, and the search's losses."""
    torch.manual_seed(0)
    batches, teacher = batches_of(rows=32), create_net("cnn-s", 4, width=8)
    optimiser = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        sum(F.cross_entropy(teacher(batch.images), batch.labels) for batch in batches).backward()
        optimiser.step()
    optimiser.zero_grad()
    recipe = mixwell.create("transformmix", 4)
    blend: LearnedTransform = recipe.options[0].blend
    blend.teacher.use(teacher)
    mixer = TransformMixer(32, width=16)
    with torch.random.fork_rng([]):
        losses = search(
            mixer,
            lambda images, labels: blend.seen(images, labels, None).detach(),
            blend.teacher.logits,
            lambda: ((batch.images, batch.labels) for batch in batches),
            np.random.default_rng(0),
            epochs=epochs,
            **options,
        )
    return mixer, teacher, losses


def test_the_loss_falls_and_images_are_moved():
    mixer, _, losses = searched(epochs=20, lr=3e-3)
    assert losses.shape == (20,)
    assert losses[-5:].mean() < 0.85 * losses[:2].mean()
    maps = torch.rand(6, 33, 2, 2)
    theta, _ = mixer.eval()(maps, torch.arange(6).roll(1), torch.rand(6))
    assert (theta - torch.tensor([[1.0, 0, 0], [0, 1, 0]])).abs().max() > 1e-3


def test_a_search_leaves_the_teacher_as_it_was():
    _, teacher, _ = searched(epochs=1)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    recipe = mixwell.create(f"transformmix({SMALL})", 4)
    recipe.options[0].blend.teacher.use(teacher)
    recipe.prepare(batches_of, "a")
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_weighted_area_brings_masks_to_lambda():
    maps, labels, lam = torch.rand(32, 5, 4, 4), torch.arange(32) % 4, torch.linspace(0, 1, 32)

    def distance(gamma: float) -> Tensor:
        mixer = TransformMixer(4, width=16)
        search(
            mixer,
            lambda images, labels: images,
            lambda images: images.mean((2, 3)),
            lambda: [(maps, labels)] * 20,
            np.random.default_rng(0),
            epochs=4,
            lr=1e-2,
            gamma=gamma,
        )
        _, logits = mixer.eval()(maps, torch.arange(32).roll(1), lam)
        return (logits.sigmoid().mean((1, 2, 3)) - lam).abs().mean()

    assert distance(10.0) < 0.1
    assert distance(0.0) > 0.15


def test_a_loss_that_is_not_finite_is_told():
    batch = batches_of()[0]
    with pytest.raises(mixwell.MixwellError, match="mixer's loss is not finite after 1 epochs"):
        search(
            TransformMixer(2),
            lambda images, labels: images,
            lambda images: images.mean((2, 3)) * torch.nan,
            lambda: [(batch.images, batch.labels % 3)],
            np.random.default_rng(0),
        )


def test_it_is_searched_once_whatever_the_seed(own_cache: Path):
    told, states = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        recipe = mixwell.create(f"transformmix({SMALL})", num_classes=4, seed=seed)
        recipe.prepare(batches_of, "a", progress=lambda *words: told.append(words))
        states.append(recipe.options[0].blend.state_dict())
        assert recipe.options[0].blend.losses.shape == (2,)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert told == [*(("teacher", i, 1) for i in range(2)), *(("transform mixer", i, 2) for i in range(3))]
    assert sorted(path.name.rpartition("-")[0] for path in own_cache.iterdir()) == ["teacher", "transform-mixer"]
    for change in ("tau=2.0", "transform='scale-translate'", "alpha=0.5", "gamma=1.0"):
        recipe_of(f"{SMALL}, {change}")
    assert len(list(own_cache.iterdir())) == 6


@pytest.mark.parametrize("labels", ["rows", "single"])
def test_soft_labels_and_batches_of_one(labels: str):
    batches = batches_of()
    if labels == "rows":
        batches = [mixwell.Batch(batch.images, F.one_hot(batch.labels, 4).float()) for batch in batches]
    else:
        batches = [mixwell.Batch(batches[0].images[:1], batches[0].labels[:1])]
    assert torch.isfinite(recipe_of(batches=batches).options[0].blend.losses).all()


def test_training_leaves_the_module_as_it_is(cnn: Callable[..., nn.Module]):
    recipe, model, (batch, _) = recipe_of(), cnn(4), batches_of()
    mixer = recipe.options[0].blend.mixer
    before = {name: value.clone() for name, value in mixer.state_dict().items()}
    recipe.bind(model, batch.images)
    assert not recipe.owns
    optimiser = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    recipe.train()
    for _ in range(3):
        recipe(model, batch).backward()
        optimiser.step()
        recipe.after_step(model)
    assert not any(module.training for module in mixer.modules())
    assert all(parameter.grad is None for parameter in mixer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in mixer.state_dict().items())


# From one data set to another


def test_a_module_and_its_small_teacher_go_to_data_of_other_classes(tmp_path: Path):
    first = recipe_of(f"{SMALL}, tau=0.5")
    first.options[0].blend.save(tmp_path / "mixer.pt")
    second = recipe_of(f"mixer={str(tmp_path / 'mixer.pt')!r}", classes=9, data="b")
    blend, images = second.options[0].blend, torch.randn(5, 3, 16, 16)
    assert (blend.cam, blend.tau) == ("predicted", 0.5)
    predicted = first.options[0].blend.teacher.logits(images).argmax(1)
    there = mix_of(first, images, torch.full((5,), 0.3), ROLLED, predicted)
    here = mix_of(second, images, torch.full((5,), 0.3), ROLLED, torch.tensor([8, 7, 6, 5, 4]))
    assert torch.equal(here.images, there.images)
    assert torch.equal(blend.losses, first.options[0].blend.losses)


def test_the_file_in_the_cache_is_such_a_file(own_cache: Path):
    recipe = recipe_of()
    (file,) = own_cache.glob("transform-mixer-*.pt")
    again = recipe_of(f"mixer={str(file)!r}", data="b").options[0].blend
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in recipe.options[0].blend.state_dict().items())


def test_a_named_teacher_is_to_be_named_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mixwell.nets import pretrained

    monkeypatch.setattr(
        pretrained, "_of_timm", lambda name, size: (create_net("cnn-s", 4, width=int(name)), 3, None, None)
    )
    file = str(tmp_path / "mixer.pt")
    recipe_of(f"{SMALL}, teacher='8'").options[0].blend.save(file)
    assert not any(name.startswith("teacher") for name in torch.load(file, weights_only=True))
    with pytest.raises(mixwell.ModelError, match="Name that teacher as it was named then"):
        recipe_of(f"mixer={file!r}")
    with pytest.raises(mixwell.ModelError, match=r"for 32 channels .* this teacher has 64"):
        recipe_of(f"mixer={file!r}, teacher='16'")
    assert recipe_of(f"mixer={file!r}, teacher='8'").options[0].blend.cam is None
    with pytest.raises(mixwell.ModelError, match=r"tells 4 apart, and the recipe has 9.*cam='predicted'"):
        recipe_of(f"mixer={file!r}, teacher='8'", classes=9)
    recipe_of(f"mixer={file!r}, teacher='8', cam=predicted", classes=9)
    with pytest.raises(mixwell.ModelError, match=r"tells 4 apart, and the recipe has 9\. Give a teacher"):
        recipe_of("teacher='8'", classes=9)


def test_files_that_are_no_modules(tmp_path: Path):
    with pytest.raises(mixwell.ModelError, match="there is no file"):
        recipe_of(f"mixer={str(tmp_path / 'none.pt')!r}")
    (tmp_path / "text.pt").write_text("not tensors")
    with pytest.raises(mixwell.ModelError, match="cannot be read"):
        recipe_of(f"mixer={str(tmp_path / 'text.pt')!r}")
    torch.save(nn.Linear(2, 2), tmp_path / "object.pt")  # code that is not loaded
    with pytest.raises(mixwell.ModelError, match="cannot be read"):
        recipe_of(f"mixer={str(tmp_path / 'object.pt')!r}")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(mixwell.ModelError, match="holds no module of TransformMix"):
        recipe_of(f"mixer={str(tmp_path / 'other.pt')!r}")


def test_unprepared_it_says_what_to_do(cnn: Callable[..., nn.Module], tmp_path: Path):
    recipe = mixwell.create("transformmix", 4)
    with pytest.raises(mixwell.MixwellError, match=r"recipe\.prepare\(batches, data\)"):
        recipe(cnn(4), torch.randn(4, 3, 16, 16), torch.arange(4))
    with pytest.raises(mixwell.MixwellError, match=r"recipe\.prepare\(batches, data\)"):
        recipe.options[0].blend.save(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "parameters", ["alpha=0", "tau=0", "epochs=0", "lr=0", "gamma=-1", "width=0", "transform=turn", "cam=predicted"]
)
def test_parameters_out_of_range(parameters: str):
    with pytest.raises(mixwell.ParameterError, match=parameters.partition("=")[0]):
        mixwell.create(f"transformmix({parameters})")


# In recipes


@pytest.mark.parametrize(
    "recipe", [f"stackmix(transformmix({SMALL}))", f"yoco(transformmix({SMALL}))", f"transformmix({SMALL}) + k_mixup"]
)
def test_it_acts_inside_and_beside_other_methods(recipe: str, cnn: Callable[..., nn.Module]):
    made = mixwell.create(recipe, 4).prepare(batches_of, "a")
    loss = made(cnn(4), batches_of()[0])
    loss.backward()
    assert torch.isfinite(loss)


def test_a_transformer_is_trained_on_its_mixes_and_by_its_attention(vit: Callable[..., nn.Module]):
    for recipe in (f"transformmix({SMALL})", f"transformmix({SMALL}) + transmix"):
        made, model = mixwell.create(recipe, 4).prepare(batches_of, "a"), vit(4, size=16)
        (turn,) = made.bind(model, batches_of()[0].images).turns(model, batches_of()[0])
        turn.loss.backward()
        torch.testing.assert_close(turn.targets.total, torch.ones(32))


def test_it_mixes_images_only():
    with pytest.raises(mixwell.IncompatibleRecipe, match="works on pixels only"):
        mixwell.create("transformmix + manifold_mixup", 4)
