"""Scores, figures and sets of unknown images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import mannwhitneyu
from sklearn.datasets import load_digits

from mixwell.evaluate import NOISES, SCORES, Subject, auroc, detected, fpr95, outside, shuffled_patches


def test_figures_against_ranks_and_a_count_by_hand() -> None:
    known, unknown = torch.randn(400).round(decimals=1) + 1, torch.randn(300).round(decimals=1)
    ranks = mannwhitneyu(known.numpy(), unknown.numpy()).statistic / (400 * 300)
    assert auroc(known, unknown) == pytest.approx(ranks, abs=1e-12)
    threshold = max(value for value in known.tolist() if np.mean(known.numpy() >= value) >= 0.95)
    assert fpr95(known, unknown) == pytest.approx(float((unknown >= threshold).double().mean()), abs=1e-12)


def test_known_images_are_the_positive_class() -> None:
    high, low = torch.linspace(1, 2, 100), torch.linspace(-2, -1, 50)
    assert auroc(high, low) == 1
    assert auroc(low, high) == 0
    assert fpr95(high, low) == 0
    assert fpr95(low, high) == 1


def test_scores() -> None:
    logits = torch.randn(9, 5)
    np.testing.assert_allclose(SCORES["msp"](logits), softmax(logits.double().numpy(), axis=1).max(1), rtol=1e-12)
    np.testing.assert_allclose(SCORES["energy"](logits), logsumexp(logits.double().numpy(), axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", NOISES)
def test_noise(subject_of: Callable[..., Subject], name: str) -> None:
    make = outside(subject_of(), images=300, seed=1)[name]
    found = make()
    assert (found.shape, found.dtype) == ((300, 1, 16, 16), torch.uint8)
    assert torch.equal(found, make())
    assert not torch.equal(found, outside(subject_of(), images=300, seed=2)[name]())
    assert len(found.flatten(1).unique(dim=0)) == 300
    levels = found.double() / 255
    mean, deviation = float(levels.mean()), float(levels.std())
    moments = {"gaussian": (0.5, 0.24), "uniform": (0.5, 12**-0.5), "rademacher": (0.5, 0.5)}
    # The blurred coins are about normal, of mean 0.7 and variance 0.21 / (4π 1.5²), more at the border.
    moments["blobs"] = (0.235, 0.365)
    assert (mean, deviation) == pytest.approx(moments[name], abs=0.03)
    neighbours = float(torch.corrcoef(torch.stack((levels[..., 1:].flatten(), levels[..., :-1].flatten())))[0, 1])
    assert neighbours > 0.5 if name == "blobs" else abs(neighbours) < 0.02


@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_shuffled_patches(size: tuple[int, int]) -> None:
    images = torch.randint(256, (5, 2, *size), dtype=torch.uint8)
    order = np.random.default_rng(0).random((5, 16))
    found = shuffled_patches(images, order)
    assert found.shape == images.shape
    assert torch.equal(shuffled_patches(images, np.arange(16.0)[None].repeat(5, 0)), images)
    if size == (16, 16):
        for row in range(5):
            tiles = [images[row, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] for y in range(4) for x in range(4)]
            for place, tile in enumerate(np.argsort(order[row])):
                y, x = divmod(place, 4)
                assert torch.equal(found[row, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4], tiles[tile])


def test_natural_sets_are_those_that_the_run_did_not_learn(subject_of: Callable[..., Subject]) -> None:
    sets = outside(subject_of(), images=20)
    assert list(sets) == ["fashion", *NOISES, "patches"]
    assert sets["fashion"]().shape == (20, 1, 16, 16)
    assert len(sets["fashion"]().flatten(1).unique(dim=0)) == 20


def test_sets_have_the_shape_of_larger_test_images(larger: Subject) -> None:
    sets = outside(larger, images=20)
    assert {tuple(make().shape) for make in sets.values()} == {(20, 1, 24, 24)}


def test_digits_are_those_of_scikit_learn() -> None:
    from mixwell.evaluate.ood import _digits

    found = _digits((3, 8, 8), 30)
    np.testing.assert_array_equal(found[:, 0], np.round(load_digits().images[:30] / 16 * 255))
    assert (found == found[:, :1]).all()


def test_a_trained_network_is_less_sure_of_other_images(subject_of: Callable[..., Subject]) -> None:
    subject = subject_of()
    found = detected(subject, images=200, seed=0)
    known = SCORES["msp"](subject.test[0])
    unknown = SCORES["msp"](subject.over_levels(outside(subject, images=200)["fashion"]()))
    assert found["fashion"]["msp"] == {"auroc": auroc(known, unknown), "fpr95": fpr95(known, unknown)}
    sets = [each for name, each in found.items() if name != "mean"]
    assert len(sets) == 6
    assert found["mean"]["energy"]["auroc"] == pytest.approx(np.mean([each["energy"]["auroc"] for each in sets]))
    assert found["mean"]["msp"]["auroc"] > 0.5
