"""Labellings of grids: beside every possible one where there are few, and under changes that must not matter."""

from itertools import product

import numpy as np
import pytest

from mixwell.core.errors import ParameterError
from mixwell.ops import labelling
from mixwell.ops.labelling import least_labels, table_energy


def instance(rng, grids=5, size=(4, 4), labels=7, weight=0.05):
    """Grids whose labels cost about as much as edges do; the last two labels are halves of the first three."""
    unary = rng.normal(0, 1.5 * weight, (grids, *size, labels))
    table = np.tile(1 - np.eye(labels), (grids, 1, 1))
    if labels > 4:
        for half, one in ((-2, 0), (-2, 1), (-1, 1), (-1, 2)):
            table[:, half, one] = table[:, one, half] = 0.25
    return unary, table, weight


def every_labelling(size, labels):
    return np.array(list(product(range(labels), repeat=size[0] * size[1]))).reshape(-1, *size)


@pytest.mark.parametrize(
    ("size", "labels"), [((2, 3), 5), ((3, 2), 5), ((1, 5), 5), ((6, 1), 5), ((1, 1), 3), ((3, 3), 3)]
)
def test_no_labelling_costs_less(size, labels):
    unary, table, weight = instance(np.random.default_rng(0), 8, size, labels)
    found = table_energy(unary, table, weight, least_labels(unary, table, weight))
    every = every_labelling(size, labels)
    for grid in range(8):
        one = np.repeat(unary[grid : grid + 1], len(every), 0), np.repeat(table[grid : grid + 1], len(every), 0)
        assert found[grid] == pytest.approx(table_energy(*one, weight, every).min(), abs=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (6, 3)], ids=str)
@pytest.mark.parametrize("labels", [4, 6])
def test_bounds_do_not_change_the_least_energy(size, labels, monkeypatch):
    """Beside dynamic programming over all labels."""
    unary, table, weight = instance(np.random.default_rng(8), 12, size, labels)
    monkeypatch.setattr(labelling, "_FEW_STATES", 0)
    bounded = table_energy(unary, table, weight, least_labels(unary, table, weight))
    monkeypatch.setattr(labelling, "_FEW_STATES", np.inf)
    every = table_energy(unary, table, weight, least_labels(unary, table, weight))
    np.testing.assert_allclose(bounded, every, atol=1e-6)


def test_the_energy_is_what_it_says():
    unary, table, labels = (
        np.zeros((1, 2, 2, 3)),
        np.array([[[0, 1, 0.25], [1, 0, 0.5], [0.25, 0.5, 0]]]),
        [[0, 1], [2, 0]],
    )
    unary[0, 0, 1, 1] = 7
    edges = table[0, 0, 1] + table[0, 2, 0] + table[0, 0, 2] + table[0, 1, 0]
    np.testing.assert_allclose(table_energy(unary, table, 10.0, np.array([labels])), 7 + 10 * edges)


@pytest.mark.parametrize("size", [(4, 4), (4, 9), (8, 8), (16, 16)], ids=str)
def test_no_block_could_have_a_better_label(size):
    unary, table, weight = instance(np.random.default_rng(1), 3, size)
    labels = least_labels(unary, table, weight)
    least = table_energy(unary, table, weight, labels)
    for place, label in product(np.ndindex(*size), range(unary.shape[3])):
        changed = labels.copy()
        changed[:, *place] = label
        assert (table_energy(unary, table, weight, changed) >= least - 1e-6).all()


def test_wide_grids_have_the_least_energy_of_planted_ones():
    """Cells of one label that cost far less than all others, with noise that edges outweigh."""
    rng = np.random.default_rng(2)
    planted = np.kron(rng.integers(0, 5, (3, 4, 4)), np.ones((1, 4, 4), int))
    unary = rng.normal(0, 0.01, (3, 16, 16, 5))
    np.put_along_axis(unary, planted[..., None], -1.0, 3)
    assert (least_labels(unary, np.tile(1 - np.eye(5), (3, 1, 1)), 0.1) == planted).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (8, 8)], ids=str)
def test_grids_do_not_touch_and_may_be_turned(size):
    unary, table, weight = instance(np.random.default_rng(3), 6, size)
    together = least_labels(unary, table, weight)
    for grid in range(6):
        alone = least_labels(unary[grid : grid + 1], table[grid : grid + 1], weight)
        np.testing.assert_array_equal(alone[0], together[grid])
    turned = least_labels(unary.swapaxes(1, 2), table, weight)
    np.testing.assert_array_equal(turned.swapaxes(1, 2), together)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_units_do_not_matter(scale):
    unary, table, weight = instance(np.random.default_rng(4))
    found = least_labels(scale * unary + scale, table, scale * weight)
    np.testing.assert_array_equal(found, least_labels(unary, table, weight))


def test_without_edges_each_block_has_its_cheapest():
    unary, table, _ = instance(np.random.default_rng(5))
    np.testing.assert_array_equal(least_labels(unary, table, 0.0), unary.argmin(3))


@pytest.mark.parametrize("size", [(4, 4), (16, 16)], ids=str)
def test_strong_edges_leave_one_label(size):
    unary, table, _ = instance(np.random.default_rng(6), size=size)
    labels = least_labels(unary, table, 10.0)
    np.testing.assert_array_equal(labels, np.broadcast_to(unary.sum((1, 2)).argmin(1)[:, None, None], labels.shape))


@pytest.mark.parametrize("size", [(4, 4), (16, 16)], ids=str)
def test_grids_without_contrast_have_one_label(size):
    """Twenty labels that cost the same everywhere, but for the fourth, which costs a little less."""
    unary = np.zeros((3, *size, 20))
    unary[..., 3] = -1e-3
    assert (least_labels(unary, np.tile(1 - np.eye(20), (3, 1, 1)), 0.02) == 3).all()
    flat = np.zeros((3, *size, 20))
    assert (np.ptp(least_labels(flat, np.tile(1 - np.eye(20), (3, 1, 1)), 0.02), (1, 2)) == 0).all()


def test_a_negative_weight_is_refused():
    unary, table, _ = instance(np.random.default_rng(7))
    with pytest.raises(ParameterError, match=r"weight must be ≥ 0, got -1"):
        least_labels(unary, table, -1.0)
