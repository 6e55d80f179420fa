"""What is drawn follows the distributions of the papers. Seeds are fixed, bounds are tests at p > 1e-4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.core.plain import Permutation
from mixwell.core.registry import method_of

DRAWN = 4000


def is_plausible(pvalue):
    return pvalue > 1e-4


def branch_rate(recipe, steps=DRAWN):
    """How often the first option of a switch is taken."""
    return sum(recipe._option(mixwell.Clock(step)) is recipe.options[0] for step in range(steps))


@pytest.mark.parametrize("slug", [slug for slug in mixwell.methods() if method_of(slug).gate])
@pytest.mark.parametrize("prob", [0.3, 0.8])
def test_rate_of_the_gate(slug, prob):
    recipe = mixwell.create(f"{slug}({method_of(slug).gate}={prob})", seed=1)
    assert recipe.weights[0] == pytest.approx(prob)
    assert sum(recipe.weights) == pytest.approx(1)
    assert is_plausible(stats.binomtest(branch_rate(recipe), DRAWN, prob).pvalue)


def test_transmix_cuts_four_batches_in_five():
    recipe = mixwell.create("transmix", seed=2)
    assert [type(option.blend).__name__ for option in recipe.options] == ["Box", "Linear"]
    assert is_plausible(stats.binomtest(branch_rate(recipe), DRAWN, 0.8).pvalue)


def test_prob_is_applied_once():
    recipe = mixwell.create("mixup(prob=0.3)", seed=3)
    images, labels = torch.randn(2, 1, 2, 2), torch.arange(2)
    mixed = sum(recipe.mix_batch(images, labels)[1].sources.shape[1] == 2 for _ in range(DRAWN))
    assert is_plausible(stats.binomtest(mixed, DRAWN, 0.3).pvalue)


def test_a_switch_of_three():
    recipe = mixwell.create("0.2*mixup | 0.5*cutmix | 0.3*none", seed=4)
    taken = [
        next(i for i, o in enumerate(recipe.options) if o is recipe._option(mixwell.Clock(t))) for t in range(DRAWN)
    ]
    assert is_plausible(stats.chisquare(np.bincount(taken, minlength=3), np.array([0.2, 0.5, 0.3]) * DRAWN).pvalue)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
@pytest.mark.parametrize("slug", ["mixup", "cutmix", "manifold_mixup"])
def test_lambda_is_beta(act, slug, alpha):
    policy = act(slug, alpha=alpha)
    lam = policy.draws(DRAWN).of[policy.ratio]
    assert lam.shape == (DRAWN,)
    assert is_plausible(stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue)


def test_transmix_draws_each_branch_from_its_own_beta(act):
    for which, alpha in ((0, 0.7), (1, 0.4)):
        policy = act("transmix", which, cutmix_alpha=0.7, mixup_alpha=0.4)
        assert is_plausible(stats.kstest(policy.draws(DRAWN).of[policy.ratio], stats.beta(alpha, alpha).cdf).pvalue)


def test_lambda_and_box_are_drawn_independently(act):
    policy = act("cutmix")
    draws = policy.draws(DRAWN)
    lam, centres = draws.of[policy.ratio], draws.of[policy.blend]
    for one, other in ((lam, centres[:, 0]), (lam, centres[:, 1]), (centres[:, 0], centres[:, 1])):
        assert is_plausible(stats.pearsonr(one, other).pvalue)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_boxes_are_those_of_the_papers_algorithm(act, size):
    """The pasted area against a simulation of the authors' algorithm, one pair at a time."""
    mix = act("cutmix").mix(torch.zeros(DRAWN, 1, *size))
    pasted = mix.weights[:, 1].double().numpy().round(6)

    rng = np.random.default_rng(0)
    simulated = np.empty(DRAWN)
    for i, lam in enumerate(rng.beta(1, 1, DRAWN)):
        area = 1
        for side in size:
            half, centre = int(side * np.sqrt(1 - lam)) // 2, rng.integers(side)
            area *= np.clip(centre + half, 0, side) - np.clip(centre - half, 0, side)
        simulated[i] = round(area / (size[0] * size[1]), 6)
    assert is_plausible(stats.ks_2samp(pasted, simulated).pvalue)
    assert is_plausible(stats.ttest_ind(pasted, simulated).pvalue)


def test_boxes_that_are_not_clipped_have_area_1_minus_lambda(act):
    """Centres in the middle: the sides are even numbers of pixels, so the area is short by at most 2 pixels a side."""
    policy, rows, side = act("cutmix"), 500, 256
    draws = policy.with_draws(rows, {policy.blend: np.full((rows, 2), 0.5)})
    mix = policy.mix(torch.zeros(rows, 1, side, side), draws=draws)
    wanted, pasted = 1 - mix.lam.numpy(), mix.weights[:, 1].double().numpy()
    assert (pasted <= wanted + 1e-6).all()
    assert (np.sqrt(wanted) - np.sqrt(pasted) < 2 / side + 1e-6).all()
    assert abs(pasted.mean() - (wanted.mean() - 2 * 2 / 3 / side)) < 0.005


def test_boxes_of_a_batch_are_independent(act):
    """Neighbouring rows' boxes are uncorrelated in place and area; one box per batch would make them equal."""
    mix = act("cutmix").mix(torch.zeros(DRAWN, 1, 32, 32))
    inside = mix.masks[:, 1]
    total = inside.sum((1, 2)).clamp_min(1)
    line = torch.arange(32.0)
    measures = [inside.mean((1, 2)), (inside.sum(2) * line).sum(1) / total, (inside.sum(1) * line).sum(1) / total]
    for measure in measures:
        assert measure.std() > 0
        assert is_plausible(stats.pearsonr(measure[:-1].numpy(), measure[1:].numpy()).pvalue)


def test_partners_are_uniform(act, slug):
    policy, rows, steps = act(slug), 5, 2000
    if not isinstance(policy.option.pairing, Permutation):
        pytest.skip("partners are not drawn")
    counts = np.zeros((rows, rows))
    for step in range(steps):
        partner = np.atleast_2d(policy.draws(rows, step=step).of[policy.option.pairing])[-1]
        assert sorted(partner) == list(range(rows))
        counts[np.arange(rows), partner] += 1
    for row in counts:
        assert is_plausible(stats.chisquare(row).pvalue)


@pytest.mark.parametrize("sites", [(0, 1, 2), (1, 3)])
def test_sites_are_uniform(act, sites):
    policy = act("manifold_mixup", sites=sites)
    taken = [policy.draws(2, step=step).of[policy.option.place] for step in range(DRAWN)]
    assert is_plausible(stats.chisquare(np.bincount(taken, minlength=len(sites))).pvalue)


def test_branch_and_site_do_not_follow_each_other(act):
    recipe = mixwell.create("0.5*manifold_mixup(sites=(0, 1)) | 0.5*mixup", seed=5)
    option, streams = recipe.options[0], recipe._streams
    taken = [recipe._option(mixwell.Clock(step)) is option for step in range(DRAWN)]
    sites = [option.draw(2, streams, step).of[option.place] for step in range(DRAWN)]
    assert is_plausible(stats.chi2_contingency(stats.contingency.crosstab(taken, sites)[1]).pvalue)


def test_consecutive_steps_are_independent(act):
    policy = act("mixup", per="batch")
    lam = np.array([policy.draws(2, step=step).of[policy.ratio][0] for step in range(DRAWN)])
    assert is_plausible(stats.kstest(lam, stats.beta(1, 1).cdf).pvalue)
    assert is_plausible(stats.pearsonr(lam[:-1], lam[1:]).pvalue)


def test_ranks_take_the_same_branch_and_mix_differently(monkeypatch):
    images, labels = torch.randn(8, 1, 4, 4), torch.arange(8)
    branches, mixes = [], []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        recipe = mixwell.create("0.5*mixup | 0.5*none", seed=6)
        out = [recipe.mix_batch(images, labels) for _ in range(40)]
        branches.append([targets.sources.shape[1] for _, targets in out])
        mixes.append([mixed for mixed, targets in out if targets.sources.shape[1] == 2])
    assert branches[0] == branches[1]
    assert len(set(branches[0])) == 2
    assert not any(torch.equal(one, other) for one, other in zip(*mixes, strict=True))
