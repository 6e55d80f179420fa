from __future__ import annotations

import pytest

from mixwell import ParameterError
from mixwell.search.plan import Plan, largest, plan, rungs, shares


@pytest.mark.parametrize(
    ("first", "longest", "eta", "found"),
    [
        (1, 9, 3, (1, 3, 9)),
        (1, 15, 3, (1, 5, 15)),
        (2, 15, 3, (5, 15)),
        (1, 1, 3, (1,)),
        (1, 2, 3, (2,)),
        (1, 8, 2, (1, 2, 4, 8)),
        (1, 100, 4, (1, 6, 25, 100)),
    ],
)
def test_rungs_are_divided_from_the_longest_down(first, longest, eta, found):
    assert rungs(first, longest, eta) == found


@pytest.mark.parametrize(("first", "longest", "eta"), [(0, 9, 3), (10, 9, 3), (1, 9, 1)])
def test_rungs_that_cannot_be(first, longest, eta):
    with pytest.raises(ParameterError):
        rungs(first, longest, eta)


def test_one_in_eta_goes_on_and_the_reference_always():
    assert plan(9, (1, 3, 9), 3) == Plan((1, 3, 9), (9, 3, 1), 10 * 1 + 4 * 2 + 2 * 6)
    assert plan(2, (1, 3, 9), 3).counts == (2, 1, 1)


@pytest.mark.parametrize("epochs", [18, 19, 25, 30, 100])
def test_the_largest_plan_fits_and_one_more_would_not(epochs):
    found = largest(1000, (1, 3, 9), 3, epochs)
    assert found.epochs <= epochs < plan(found.counts[0] + 1, (1, 3, 9), 3).epochs
    assert largest(2, (1, 3, 9), 3, epochs).counts[0] <= 2


def test_a_budget_without_a_comparison_is_refused():
    with pytest.raises(ParameterError, match="take 18 epochs, 9 each"):
        largest(5, (1, 3, 9), 3, 17)


def test_shares_of_the_time_rise_to_all_of_it():
    assert shares((1, 3, 9), 3) == pytest.approx((3 / 7, 5 / 7, 1))
    assert shares((5,), 3) == (1.0,)
