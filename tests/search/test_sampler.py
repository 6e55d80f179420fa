from __future__ import annotations

import math

import numpy as np
import pytest

from mixwell.search.ranges import template
from mixwell.search.sampler import propose


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_values_are_within_their_ranges_and_differ(sampler):
    family = template("k_mixup(k=2..6, alpha=0.1..2.0, per=[batch, sample])")
    found = [propose(family, [], sampler, largest=True, seed=0, number=number) for number in range(40)]
    for k, alpha, per in found:
        assert int(k) in range(2, 7)
        assert 0.1 <= float(alpha) <= 2.0
        assert per in ("batch", "sample")
    assert len(set(found)) == 40
    assert {k for k, _, _ in found} == {"2", "3", "4", "5", "6"}
    assert {per for _, _, per in found} == {"batch", "sample"}


def test_a_proposal_depends_on_seed_and_number_alone():
    family, seen = template("mixup(alpha=0.1..2.0)"), [((str(alpha),), alpha) for alpha in (0.2, 0.5, 1.0, 1.5)]

    def ask(seed, number):
        return propose(family, seen, "tpe", largest=True, seed=seed, number=number)

    assert ask(0, 4) == ask(0, 4)
    assert len({ask(0, 4), ask(0, 5), ask(1, 4)}) == 3


def test_wide_ranges_are_drawn_by_orders_of_magnitude():
    family = template("mixup(alpha=0.01..1.0)")
    found = [float(*propose(family, [], "random", largest=True, seed=0, number=number)) for number in range(60)]
    # Half of them below the geometric mean; with an even density it would be a tenth of them.
    assert 0.25 < np.mean(np.array(found) < 0.1) < 0.75


@pytest.mark.parametrize("largest", [True, False])
def test_tpe_stays_near_what_was_good(largest):
    """A metric with its peak at 0.3 (by orders of magnitude): the later proposals are closer to it than random ones."""
    family, sign = template("mixup(alpha=0.01..10.0)"), 1.0 if largest else -1.0

    def mean_distance(sampler):
        late = []
        for seed in range(3):
            seen = []
            for number in range(24):
                values = propose(family, seen, sampler, largest=largest, seed=seed, number=number)
                distance = abs(math.log10(float(values[0]) / 0.3))
                seen.append((values, -sign * distance))
                late += [distance] if number >= 12 else []
        return np.mean(late)

    assert mean_distance("tpe") < 0.75 * mean_distance("random")
