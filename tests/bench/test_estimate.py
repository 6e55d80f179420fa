"""How long the rest takes."""

from mixwell.bench import Cell, State
from mixwell.bench.estimate import Pace
from mixwell.train import TrainConfig


def cell(recipe, epochs=10, seed=0):
    return Cell(TrainConfig(recipe=recipe, epochs=epochs, seed=seed))


def test_nothing_is_said_before_anything_is_known():
    pace = Pace()
    pace.add(cell("none"), 0.0, 0)
    assert pace.left([(cell("none"), State())], 1) is None


def test_a_recipe_costs_what_it_cost_and_others_the_mean():
    pace = Pace()
    pace.add(cell("none"), 20.0, 10)
    pace.add(cell("none", seed=1), 40.0, 10)
    pace.add(cell("puzzlemix"), 70.0, 10)
    assert pace.left([(cell("none", seed=2), State())], 1) == 30.0
    assert pace.left([(cell("puzzlemix", seed=2), State())], 1) == 70.0
    assert pace.left([(cell("cutmix"), State())], 1) == 50.0
    assert pace.left([(cell("none", seed=2), State(epochs=4))], 1) == 18.0


def test_workers_share_but_no_cell_is_split():
    pace = Pace()
    pace.add(cell("none"), 10.0, 10)
    rest = [(cell("none", seed=seed), State()) for seed in range(6)]
    assert pace.left(rest, 2) == 30.0
    assert pace.left(rest[:1], 4) == 10.0
