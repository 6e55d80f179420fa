"""Patches that are dropped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mixwell.evaluate import Subject, occluded, patch_drop
from mixwell.evaluate.metrics import accuracy
from mixwell.evaluate.occlusion import patch_of


@pytest.mark.parametrize(("size", "ratio"), [((16, 16), 0.3), ((10, 18), 0.5), ((16, 16), 0.0), ((16, 16), 1.0)])
def test_whole_patches_are_dropped_as_many_as_the_ratio_says(size: tuple[int, int], ratio: float) -> None:
    images = torch.rand(4, 2, *size) + 1
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    order = torch.rand(4, rows * columns)
    found = patch_drop(images, order, ratio, 4)
    for image, changed, ranks in zip(images, found, order, strict=True):
        gone = set(ranks.argsort()[: round(rows * columns * ratio)].tolist())
        for place in range(rows * columns):
            y, x = divmod(place, columns)
            tile = (slice(None), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
            assert torch.equal(changed[tile], 0 * image[tile] if place in gone else image[tile])


def test_what_is_hidden_stays_hidden_at_a_larger_ratio() -> None:
    images, order = torch.ones(3, 1, 32, 32), torch.rand(3, 64)
    hidden = [patch_drop(images, order, ratio, 4) == 0 for ratio in (0.2, 0.5, 0.9)]
    assert (hidden[0] <= hidden[1]).all()
    assert (hidden[1] <= hidden[2]).all()


def test_patches_grow_with_the_image() -> None:
    assert [patch_of(size) for size in ((32, 32), (64, 64), (65, 20), (224, 224))] == [4, 4, 16, 16]


def test_nothing_hidden_is_clean_accuracy_and_everything_hidden_one_class(subject_of: Callable[..., Subject]) -> None:
    subject = subject_of()
    found = occluded(subject, draws=2)
    labels = subject.test[1]
    assert found["accuracies"][0] == accuracy(*subject.test)
    blank = int(subject.logits(torch.zeros(1, 1, 16, 16)).argmax())
    assert found["accuracies"][-1] == pytest.approx(float((labels == blank).double().mean()))
    assert found["mean"] == pytest.approx(np.mean(found["accuracies"]))
    assert found["accuracies"][0] > found["accuracies"][3] > found["accuracies"][8]
    assert found["ratios"] == pytest.approx(np.linspace(0, 1, 11))


def test_test_images_may_be_larger_than_those_of_the_training(larger: Subject) -> None:
    assert larger.shape == (1, 24, 24)
    assert larger.trained.data.shape == (1, 16, 16)
    found = occluded(larger, ratios=(0.0, 0.5, 1.0), draws=1)
    assert found["accuracies"][0] == accuracy(*larger.test)
    blank = int(larger.logits(torch.zeros(1, *larger.shape)).argmax())
    assert found["accuracies"][2] == pytest.approx(float((larger.test[1] == blank).double().mean()))


def test_draws_do_not_depend_on_the_batch_size(subject_of: Callable[..., Subject]) -> None:
    found = [occluded(subject_of(batch_size=size), ratios=(0.4,), images=60, seed=2) for size in (9, 60)]
    assert found[0]["mean"] == pytest.approx(found[1]["mean"], abs=1.5 / 60)  # rounding may turn an image
    seen = {occluded(subject_of(), ratios=(0.4,), images=60, seed=seed)["mean"] for seed in range(4)}
    assert len(seen) > 1
