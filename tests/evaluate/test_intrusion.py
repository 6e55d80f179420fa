"""Mixes that resemble a class that is not mixed in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.utils.data import TensorDataset

from mixwell.core.batch import Pixels
from mixwell.core.errors import MixwellError
from mixwell.data import from_datasets
from mixwell.evaluate import Subject, intrusion_rates, mixes_of, nearest_labels
from mixwell.evaluate.intrusion import Mixed, learns_to_mix, rates
from mixwell.evaluate.rehearse import bound_recipe
from mixwell.train import Run, TrainConfig


def test_the_nearest_of_all_batches() -> None:
    points, others, labels = torch.randn(40, 2, 5), torch.randn(90, 2, 5) + 3, torch.arange(90)
    found = nearest_labels(points + 3, zip(others.split(13), labels.split(13), strict=True))
    wanted = cdist((points + 3).flatten(1).numpy(), others.flatten(1).numpy()).argmin(1)
    np.testing.assert_array_equal(found, wanted)


def test_of_equally_near_ones_the_first() -> None:
    batches = [(torch.tensor([[1.0], [1.0]]), torch.tensor([5, 6])), (torch.tensor([[-1.0]]), torch.tensor([7]))]
    assert nearest_labels(torch.tensor([[0.0]]), batches).tolist() == [5]


def test_rates_by_share() -> None:
    found = rates(np.array([0.05, 0.1, 0.55, 0.59, 0.55]), np.array([True, False, True, True, False]), bins=10)
    assert found["rate"] == pytest.approx(3 / 5)
    assert [each["count"] for each in found["by_lam"]] == [1, 1, 0, 0, 0, 3, 0, 0, 0, 0]
    assert [each["rate"] for each in found["by_lam"]] == [1, 0, None, None, None, pytest.approx(2 / 3), *4 * [None]]
    assert [(each["low"], each["high"]) for each in found["by_lam"]][5] == (0.5, 0.6)


@pytest.fixture
def on_a_line(subject_of: Callable[..., Subject], run_of: Callable[..., Run]):
    """The classes 0, 1 and 2 as images of one grey each, in this order: the mean of 0 and 2 is 1."""

    def make(recipe: str) -> tuple[Subject, TrainConfig]:
        labels = torch.arange(60) % 3
        images = (labels.float() / 2)[:, None, None, None].expand(-1, 1, 16, 16).contiguous()
        parts = TensorDataset(images, labels), TensorDataset(images[:6], labels[:6])
        data = from_datasets(*parts, num_classes=3, pixels=Pixels((0.4,), (0.5,)))
        subject = subject_of("mixup")
        config = replace(TrainConfig(**run_of("mixup").facts["config"]), recipe=recipe, batch_size=20)
        made = replace(subject.trained, data=data)
        return replace(subject, trained=made), config

    return make


def test_the_mean_of_two_outer_classes_is_the_class_between(on_a_line) -> None:
    subject, config = on_a_line("mixup")
    found = intrusion_rates(subject, config, mixes=400, bins=4)
    recipe = bound_recipe(config, subject.trained.data, None, subject.trained.model)
    rows = mixes_of(recipe, subject, config, count=400, seed=0)
    lam = torch.cat([each.lam for each in rows])
    outer = torch.cat([each.classes[:, [0, 2]].all(1) for each in rows])
    wanted = outer & (lam - 0.5).abs().lt(0.25)  # nearer to 1 than to either end
    assert found["rate"] == pytest.approx(float(wanted.double().mean()), abs=1e-9)
    assert found["rate"] > 0.05
    assert found["by_lam"][0]["rate"] == found["by_lam"][3]["rate"] == 0
    assert found["by_lam"][1]["rate"] > 0.1


def test_rows_that_show_only_themselves_are_no_mixes() -> None:
    from mixwell.core.mix import Mix

    mix = Mix(
        images=torch.rand(4, 1, 2, 2),
        sources=torch.tensor([[0, 1], [1, 1], [2, 3], [3, 0]]),
        weights=torch.tensor([[0.7, 0.3], [0.4, 0.6], [1.0, 0.0], [0.0, 1.0]]),
        pool=torch.tensor([2, 1, 0, 0]),
        apply=lambda x: x,
    )
    found = Mixed.of(mix, 3)
    torch.testing.assert_close(found.lam, torch.tensor([0.7, 0.0]))
    assert found.classes.tolist() == [[False, True, True], [False, False, True]]
    assert torch.equal(found.images, mix.images[[0, 3]])


@pytest.mark.parametrize("recipe", ["none", "manifold_mixup(sites=(1, 2))", "augmix", "stackmix"])
def test_recipes_that_mix_no_two_images_of_this_size_have_none(on_a_line, recipe: str) -> None:
    try:
        subject, config = on_a_line(recipe)
        from mixwell.core.recipe import create

        made = create(recipe, 3, pixels=subject.trained.data.pixels)
    except MixwellError as error:
        pytest.fail(f"{recipe} is no recipe: {error}")
    subject = replace(subject, trained=replace(subject.trained, recipe=made))
    assert intrusion_rates(subject, config, mixes=40) is None


def test_batches_that_are_not_mixed_are_passed_over(on_a_line) -> None:
    subject, config = on_a_line("0.7*none | 0.3*mixup")
    recipe = bound_recipe(config, subject.trained.data, None, subject.trained.model)
    rows = sum(len(each.lam) for each in mixes_of(recipe, subject, config, count=2000, seed=0))
    assert 1800 < rows <= 2000  # but for rows that are their own partners
    assert not learns_to_mix(recipe)


def test_nothing_of_what_a_mixer_learnt_is_lost(run_of: Callable[..., Run], subject_of: Callable[..., Subject]) -> None:
    """AutoMix's mixer comes from the run's folder."""
    run, subject = run_of("automix", epochs=1), subject_of("automix", epochs=1)
    assert "recipe.safetensors" in run.facts["files"]
    assert learns_to_mix(subject.trained.recipe)
    config = TrainConfig(**run.facts["config"])
    fresh = bound_recipe(config, subject.trained.data, None, subject.trained.model)
    learnt = subject.trained.recipe.state_dict()
    assert any(not torch.equal(value, learnt[name]) for name, value in fresh.named_parameters())
    found = intrusion_rates(subject, config, mixes=100)
    assert found is not None
    assert 0 <= found["rate"] <= 1
