"""GridMix's cells, their local labels and loss; and GridMixup, which is another method."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mixwell
from mixwell.core.plain import Uniform
from mixwell.sample.cutting.gridmix import (
    GridCells,
    HoleDraws,
    LocalGrid,
    PeriodicHoles,
    cell_area,
    cell_mask,
    hole_lines,
    local_targets,
)

SIZES = [(32, 32), (24, 40), (30, 37), (9, 5)]
PERM = np.array([3, 0, 5, 1, 2, 4])


def pictures(rows: int = 6, size: tuple[int, int] = (24, 40)) -> torch.Tensor:
    return torch.randn(rows, 3, *size)


def mix_of(text: str, images: torch.Tensor, **draws: object) -> mixwell.Mix:
    (option,) = mixwell.create(text).options
    given = option.draw(len(images), mixwell.core.rng.Streams(0), 0).of
    given = {**given, **{getattr(option, slot): drawn for slot, drawn in draws.items()}}
    batch = mixwell.Batch(images, torch.arange(len(images)))
    return option.mix(images, mixwell.Scene(batch, mixwell.Draws(given)))


# Cells


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("grid", [1, 3, 4])
def test_a_pixel_belongs_to_the_cell_of_its_floor(size, grid):
    cells = np.random.default_rng(0).random((5, grid, grid)) < 0.5
    mask = cell_mask(cells, size, torch.zeros(()))
    for row, i, j in np.ndindex(5, *size):
        assert mask[row, 0, i, j] == cells[row, i * grid // size[0], j * grid // size[1]]
    np.testing.assert_allclose(cell_area(cells, size), mask.double().mean((1, 2, 3)), atol=1e-12)


def test_every_cell_is_one_images_and_the_label_is_the_area():
    images = pictures(size=(32, 48))
    mix = mix_of("gridmix(grid=4)", images, pairing=PERM)
    for row, i, j in np.ndindex(6, 4, 4):
        here = (row, slice(None), slice(8 * i, 8 * i + 8), slice(12 * j, 12 * j + 12))
        source = row if mix.cells[row, i, j] else PERM[row]
        assert torch.equal(mix.images[here], images[source, *here[1:]])
    shares = 16 * mix.weights[:, 0]
    assert torch.equal(shares, torch.from_numpy(mix.cells.sum((1, 2))).float())


def test_area_is_by_pixels_and_local_labels_are_by_cells():
    """On sides that n does not divide the two shares differ."""
    draws = np.ones((6, 4, 4))
    draws[:, 0, 0] = 0
    mix = mix_of("gridmix", pictures(size=(30, 37)), pairing=PERM, blend=draws)
    torch.testing.assert_close(mix.area, torch.full((6,), 8 * 10 / (30 * 37), dtype=torch.float64))
    assert local_targets(mix).weights[:, 0].view(6, 16).mean(1).tolist() == [1 / 16] * 6


def test_all_cells_of_the_image_give_the_image():
    images = pictures()
    mix = mix_of("gridmix", images, pairing=PERM, blend=np.zeros((6, 4, 4)))
    assert torch.equal(mix.images, images)
    assert mix.weights.tolist() == [[1, 0]] * 6


def test_bernoulli_cells_are_independent_fair_coins():
    blend = GridCells()
    cells = blend.kept(blend.draw(4000, np.random.default_rng(0)), torch.full((1,), torch.nan))
    rates = [stats.binomtest(int(count), 4000, 0.5).pvalue for count in cells.sum(0).ravel()]
    assert min(rates) > 1e-4
    counts = np.bincount(cells.sum((1, 2)), minlength=17)
    expected = 4000 * stats.binom(16, 0.5).pmf(np.arange(17))
    middle = expected > 5
    pooled = [np.append(values[middle], values[~middle].sum()) for values in (counts, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-4


def test_p_is_the_images_share():
    blend = GridCells(p=0.2)
    cells = blend.kept(blend.draw(1000, np.random.default_rng(1)), torch.full((1,), torch.nan))
    assert stats.binomtest(int(cells.sum()), cells.size, 0.2).pvalue > 1e-4


def test_beta_keeps_the_rounded_number_of_cells_anywhere():
    blend, lam = GridCells(cells="beta"), torch.rand(3000, dtype=torch.float64)
    lam[:3] = torch.tensor([0.0, 0.5, 1.0])
    cells = blend.kept(blend.draw(3000, np.random.default_rng(2)), lam)
    assert cells.sum((1, 2)).tolist() == (16 * lam).round().int().tolist()
    assert stats.chisquare(cells.sum(0).ravel()).pvalue > 1e-4
    one = mixwell.create("gridmix(cells=beta, alpha=0.3)").options[0].ratio
    assert (one.alpha, one.beta) == (0.3, 0.3)
    assert mixwell.create("gridmix").options[0].ratio is None, "fair coins take no λ"


def test_one_choice_of_cells_for_the_batch():
    for cells in ("bernoulli", "beta"):
        mix = mix_of(f"gridmix(cells={cells}, per=batch)", pictures())
        assert mix.cells.shape == (1, 4, 4)
        assert len(local_targets(mix)) == 6 * 16
        assert len(mix.weights.unique(dim=0)) == 1


# Local labels and their loss


def test_local_labels_are_those_of_the_image_in_the_cell():
    mix = mix_of("gridmix(grid=3)", pictures(), pairing=PERM)
    wanted = local_targets(mix).dense(6).view(6, 9, 6)
    for row, cell in np.ndindex(6, 9):
        label = row if mix.cells[row].ravel()[cell] else PERM[row]
        assert wanted[row, cell].tolist() == np.eye(6)[label].tolist()


def bound(text: str, model: nn.Module, size: tuple[int, int] = (32, 32), classes: int = 7) -> mixwell.Recipe:
    return mixwell.create(text, classes).bind(model, torch.randn(2, 3, *size))


def local_of(recipe: mixwell.Recipe) -> LocalGrid:
    (term,) = recipe.options[0].terms
    return term


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_the_loss_is_the_sum_over_cells_of_the_mean_over_the_batch(cnn, size):
    model, images = cnn().eval(), pictures(size=size)
    recipe = bound("gridmix(grid=3, local_weight=0.15)", model, size)
    (option,) = recipe.options
    draws = {option.pairing: PERM, option.blend: np.random.default_rng(0).random((6, 3, 3))}
    (turn,) = recipe.turns(model, images, torch.arange(6), draws=mixwell.Draws(draws))

    cells = draws[option.blend] < 0.5
    mixed = mix_of("gridmix(grid=3)", images, pairing=PERM, blend=draws[option.blend]).images
    pooled = F.adaptive_avg_pool2d(model.layer3(model.layer2(model.layer1(mixed))), 3)
    total = torch.zeros(())
    for i, j in np.ndindex(3, 3):
        labels = torch.from_numpy(np.where(cells[:, i, j], np.arange(6), PERM))
        total = total + F.cross_entropy(local_of(recipe).head(pooled[:, :, i, j]), labels)
    torch.testing.assert_close(turn.parts["gridmix"], 0.15 * total)
    torch.testing.assert_close(turn.loss, turn.parts["criterion"] + turn.parts["gridmix"])


@pytest.mark.parametrize(("text", "expected"), [("", 1), (", local_weight=1", 9), (", local_weight=0", 0)])
def test_a_head_that_knows_nothing_pays_n_squared_log_c(cnn, text, expected):
    model = cnn()
    recipe = bound(f"gridmix(grid=3{text})", model)
    for parameter in local_of(recipe).head.parameters():
        nn.init.zeros_(parameter)
    (turn,) = recipe.turns(model, pictures(), torch.arange(6))
    torch.testing.assert_close(turn.parts["gridmix"], torch.tensor(expected * math.log(7)))


def test_the_local_classifier_is_trained_and_is_no_part_of_the_network(cnn):
    model = cnn()
    names = set(model.state_dict())
    recipe = bound("gridmix", model)
    head, before = local_of(recipe).head, local_of(recipe).head.weight.clone()
    optimiser = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    loss = recipe(model, pictures(), torch.arange(6))
    loss.backward()
    optimiser.step()
    recipe.after_step(model)
    assert loss.isfinite()
    assert not torch.equal(head.weight, before)
    assert all(parameter.grad.isfinite().all() for parameter in (*model.parameters(), *head.parameters()))
    assert recipe.predictor(model) is model
    assert set(model.state_dict()) == names


def test_the_local_loss_reaches_the_trunk(cnn):
    """And nothing after the map that it reads."""
    model = cnn()
    recipe = bound("gridmix(local_weight=1)", model)
    step = next(recipe.turns(model, pictures(), torch.arange(6)))
    (option,) = recipe.options
    assert step.parts["gridmix"] > 0
    seen: list[torch.Tensor] = []
    criterion = type(option.criterion).forward
    option.criterion.forward = lambda *args: seen.append(criterion(option.criterion, *args)) or seen[-1]
    recipe(model, pictures(), torch.arange(6))
    local = torch.autograd.grad(seen[1], list(model.parameters()), allow_unused=True)
    reached = {
        name for (name, _), gradient in zip(model.named_parameters(), local, strict=True) if gradient is not None
    }
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("layer")}


def test_the_last_map_with_a_place_for_every_cell_is_read(cnn):
    for size, grid, channels in (((32, 32), 4, 16), ((32, 32), 8, 16), ((32, 32), 9, 12), ((32, 24), 7, 12)):
        recipe = bound(f"gridmix(grid={grid})", cnn(), size)
        assert local_of(recipe).head.in_features == channels
    assert local_of(bound("gridmix(stage=1)", cnn())).head.in_features == 8
    assert local_of(bound("gridmix(stage=layer2)", cnn())).head.in_features == 12


def test_patch_tokens_are_read_as_a_grid(vit):
    model = vit(size=(32, 64))
    recipe = bound("gridmix", model, (32, 64))
    loss = recipe(model, pictures(size=(32, 64)), torch.arange(6))
    loss.backward()
    assert local_of(recipe).head.in_features == 32
    assert loss.isfinite()


def test_networks_without_such_a_map(cnn):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"gridmix: .*at least 4×4 places; layer3 has 2×3"):
        bound("gridmix(stage=3)", cnn(), (8, 12))
    with pytest.raises(mixwell.IncompatibleRecipe, match="no stages were found"):
        bound("gridmix", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)))
    with pytest.raises(mixwell.IncompatibleRecipe, match="example=images"):
        mixwell.create("gridmix", 7).bind(cnn())


# GridMixup, which is another method


def test_gridmix_is_not_gridmixup(cnn):
    """Code that goes by the name of GridMix shows periodic holes, and lacks the local loss that the paper is about."""
    paper, other = bound("gridmix", cnn()), bound("gridmix(variant=gridmixup, holes=(5, 5), per=batch)", cnn())
    assert isinstance(paper.options[0].blend, GridCells)
    assert isinstance(local_of(paper), LocalGrid)
    assert paper.owns
    assert isinstance(other.options[0].blend, PeriodicHoles)
    assert len(other.options[0].terms) == 0
    assert not other.owns
    mixed, targets = other.mix_batch(pictures(size=(40, 40)), torch.arange(6))
    assert mixed.shape == (6, 3, 40, 40)
    assert targets.sources.shape == (6, 2)
    with pytest.raises(mixwell.IncompatibleRecipe, match="gridmix"):
        paper.mix_batch(pictures(), torch.arange(6))


def drawn(holes=4, hole_aspect=1.0, crop_area=1.0, crop_aspect=1.0, row=0.0, column=0.0) -> HoleDraws:
    return HoleDraws(*(np.array([value]) for value in (holes, hole_aspect, crop_area, crop_aspect, row, column)))


def test_holes_are_periodic_and_as_large_as_lambda_says():
    rows, columns = hole_lines(np.array([0.75]), drawn(4), (40, 40))
    assert rows[0].tolist() == columns[0].tolist() == ([1.0] * 5 + [0.0] * 5) * 4
    mix = mix_of(
        "gridmix(variant=gridmixup, per=batch)", pictures(size=(40, 40)), ratio=np.array([0.75]), blend=drawn(4)
    )
    assert mix.area.tolist() == [0.75]


def test_holes_have_at_least_a_pixel_and_leave_at_least_one():
    assert hole_lines(np.array([1.0]), drawn(4), (40, 40))[0].sum() == 4
    assert hole_lines(np.array([0.0]), drawn(4), (40, 40))[0].sum() == 36


def test_crops_and_holes_that_do_not_fit_are_clipped():
    """There the authors' code wraps around the border, or fails."""
    for size, draws in (
        ((10, 40), drawn(4, crop_area=0.9)),
        ((40, 10), drawn(2, crop_aspect=3.0, row=0.9)),
        ((12, 12), drawn(20, column=0.99)),
        ((1, 7), drawn(3, hole_aspect=0.1)),
    ):
        for line, side in zip(hole_lines(np.array([0.5]), draws, size), size, strict=True):
            assert line.shape == (1, side)
            assert 0 <= line.mean() < 1 or side == 1
    rows, columns = hole_lines(np.array([0.5]), drawn(4, crop_area=0.9), (10, 40))
    assert rows.sum() > 0
    assert columns[0, 18:].sum() == 0, "the crop is 18 pixels wide"


def test_the_defaults_of_gridmixups_code():
    (option,) = mixwell.create("gridmix(variant=gridmixup)").options
    assert isinstance(option.ratio, Uniform)
    lam = option.ratio.draw(4000, np.random.default_rng(0))
    assert stats.kstest(lam, stats.uniform(0.1, 0.8).cdf).pvalue > 1e-4
    draws = option.blend.draw(50, np.random.default_rng(1))
    assert set(draws.holes) == {20}
    assert [set(values) for values in draws[1:4]] == [{1.0}] * 3
    (own,) = mixwell.create("gridmix(variant=gridmixup, alpha=0.7)").options
    assert own.ratio.alpha == 0.7


def test_holes_are_drawn_from_their_ranges():
    draws = PeriodicHoles((2, 6), (0.5, 2.0), (0.5, 1.0), (0.7, 1.4)).draw(4000, np.random.default_rng(2))
    assert stats.chisquare(np.bincount(draws.holes, minlength=7)[2:]).pvalue > 1e-4
    for values, (low, high) in zip(draws[1:], [(0.5, 2), (0.5, 1), (0.7, 1.4), (0, 1), (0, 1)], strict=True):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    "text",
    [
        "grid=0",
        "p=1.5",
        "local_weight=-1",
        "alpha=0",
        "variant=gridmixup, holes=(3, 2)",
        "variant=gridmixup, holes=(0, 2)",
        "variant=gridmixup, crop_area=(0.5, 1.2)",
        "variant=gridmixup, hole_aspect=(0.0, 1.0)",
        "variant=gridmixup, crop_aspect=(1.0, 1.0, 1.0)",
    ],
)
def test_parameters_out_of_range(text):
    with pytest.raises(mixwell.ParameterError, match=text.rpartition("=")[0].rpartition(" ")[2]):
        mixwell.create(f"gridmix({text})")
