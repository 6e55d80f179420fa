"""The labels are those of lowest energy, found out by trying all."""

import itertools

import numpy as np
import pytest

from mixwell.core.errors import ParameterError
from mixwell.ops.graphcut import best_labels, labelling_energy, squared_steps

GRIDS = [(1, 1), (1, 4), (3, 1), (2, 2), (2, 3)]


def problem(rng, rows, grid, labels, strength=2.0):
    h, w = grid
    unary = rng.normal(size=(rows, h, w, labels))
    return unary, strength * rng.random((rows, h - 1, w)), strength * rng.random((rows, h, w - 1))


def lowest(unary, down, right, steps):
    rows, h, w, labels = unary.shape
    every = (np.array(one).reshape(1, h, w) for one in itertools.product(range(labels), repeat=h * w))
    return np.min(
        [labelling_energy(unary, down, right, steps, np.broadcast_to(one, (rows, h, w))) for one in every], axis=0
    )


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_labelling_has_less_energy(grid, labels):
    unary, down, right = problem(np.random.default_rng(labels), 5, grid, labels)
    steps = squared_steps(labels)
    found = best_labels(unary, down, right)
    assert found.shape == (5, *grid)
    assert set(np.unique(found)) <= set(range(labels))
    np.testing.assert_allclose(labelling_energy(unary, down, right, steps, found), lowest(unary, down, right, steps))


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [0, 0, 1, 5], [0, 11, 44, 100]], ids=str)
def test_any_convex_steps(steps):
    unary, down, right = problem(np.random.default_rng(0), 5, (2, 3), 4, strength=0.5)
    steps = np.array(steps)
    found = best_labels(unary, down, right, steps)
    np.testing.assert_allclose(labelling_energy(unary, down, right, steps, found), lowest(unary, down, right, steps))


def test_the_grids_of_a_batch_do_not_meet():
    unary, down, right = problem(np.random.default_rng(1), 7, (4, 5), 3)
    alone = [best_labels(unary[[i]], down[[i]], right[[i]])[0] for i in range(7)]
    np.testing.assert_array_equal(best_labels(unary, down, right), np.stack(alone))
    assert len({labels.tobytes() for labels in alone}) > 1


def test_energy_by_hand():
    unary = np.array([[[[0, 10, 20], [1, 2, 3]]]])
    energy = labelling_energy(unary, np.zeros((1, 0, 2)), np.array([[[8.0]]]), squared_steps(3), np.array([[[1, 0]]]))
    assert energy == [10 + 1 + 8 * 0.25]


def test_strong_edges_make_one_label():
    unary, down, right = problem(np.random.default_rng(2), 6, (4, 4), 3)
    found = best_labels(unary, down + 1e6, right + 1e6)
    np.testing.assert_array_equal(found, np.broadcast_to(unary.sum((1, 2)).argmin(1)[:, None, None], found.shape))


def test_what_no_cut_can_express_is_refused():
    unary, down, right = problem(np.random.default_rng(3), 1, (2, 2), 3)
    with pytest.raises(ParameterError, match="edge weights must be ≥ 0"):
        best_labels(unary, -down, right)
    with pytest.raises(ParameterError, match=r"must be convex and start at 0, got \[0 4 5\]"):
        best_labels(unary, down, right, np.array([0, 4, 5]))
