"""ScoreMix: how large the windows are, where they are drawn, and what is pasted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch, Pixels
from mixwell.core.mix import Partners
from mixwell.core.saliency import Saliency
from mixwell.ops.windows import window_sums
from mixwell.sample.attention.scoremix import (
    AttentionBox,
    WindowDraws,
    drawn_places,
    position_chances,
    window_sides,
)

PIXELS = Pixels((0.5,), (0.25,))
ROWS, SIZE, GRID = 6, (24, 40), (4, 5)
NEXT = torch.arange(ROWS).roll(-1)


class Given(Saliency):
    """A given map of each image of the batch."""

    network = True

    def __init__(self, found):
        super().__init__()
        self.found = found

    def maps(self, scene):
        return self.found


def pictures(rows=ROWS, size=SIZE):
    return torch.randn(rows, 3, *size)


def draws_of(rows=ROWS, per="sample", seed=0):
    return AttentionBox(Given(torch.zeros(1)), per=per).draw(rows, np.random.default_rng(seed))


def mix_of(maps, images, lam, draws=None, partner=NEXT, site=None, batch_images=None, **options):
    rows = len(images)
    labels = torch.arange(rows)
    scene = Scene(Batch(images if batch_images is None else batch_images, labels, PIXELS), site=site)
    per = options.get("per", "sample")
    lam = torch.as_tensor(lam, dtype=torch.float64).expand(1 if per == "batch" else rows)
    blend = AttentionBox(Given(maps), **options)
    drawn = draws_of(rows, per) if draws is None else draws
    return blend.mix(images, Partners.at(partner[:, None], labels), lam, drawn, scene)


def test_sides_follow_the_authors():
    """h is uniform on 1 … ⌈√m⌉ - 1, and w what m cells then need."""
    points = (np.arange(4000) + 0.5) / 4000
    for cells in range(1, 65):
        sides = window_sides(points, np.array([cells / 64]), (8, 8))
        most = max(1, int(np.ceil(np.sqrt(cells))) - 1)
        heights, counts = np.unique(sides[:, 0], return_counts=True)
        assert heights.tolist() == list(range(1, most + 1))
        assert counts.max() - counts.min() <= 1
        assert (sides[:, 1] == np.minimum(-(-cells // sides[:, 0]), 8)).all()


@pytest.mark.parametrize("grid", [(4, 5), (8, 8), (1, 7), (7, 1), (1, 1), (14, 14)])
def test_sides_stay_in_the_grid_and_are_0_where_nothing_is_pasted(grid):
    rng = np.random.default_rng(0)
    sides = window_sides(rng.random(2000), rng.random(2000), grid)
    assert (sides >= 1).all()
    assert (sides <= grid).all()
    assert window_sides(np.array([0.3]), np.array([0.0]), grid).tolist() == [[0, 0]]
    assert window_sides(np.array([0.3]), np.array([1e-8]), grid).tolist() == [[1, 1]]


def test_lambda_loses_no_cell_to_rounding():
    kept = np.arange(100) / 100
    sides = window_sides(np.zeros(100), 1 - kept, (1, 100))
    assert sides[:, 1].tolist() == list(range(100, 0, -1))


def test_chances_grow_with_the_sum_and_fall_with_its_negative():
    sums = torch.tensor([[[1.0, 4.0, torch.nan], [2.0, 1.0, torch.nan]]], dtype=torch.float64)
    assert position_chances(sums).tolist() == [[[0.0, 0.75, 0.0], [0.25, 0.0, 0.0]]]
    torch.testing.assert_close(position_chances(-sums)[0, :, :2], sums.new_tensor([[3, 0], [2, 3]]) / 8)


def test_each_constant_map_has_equal_chances_and_the_others_do_not():
    maps = torch.stack((torch.full(GRID, 0.1), torch.rand(GRID)))
    for sign in (1, -1):
        chances = position_chances(sign * window_sums(maps, torch.tensor([[2, 3]])))
        torch.testing.assert_close(chances[0, :3, :3], torch.full((3, 3), 1 / 9, dtype=torch.float64))
        assert chances[:, 3:].sum() == chances[:, :, 3:].sum() == 0
        assert len(chances[1, :3, :3].unique()) == 9


def test_a_whole_window_has_one_place():
    chances = position_chances(window_sums(torch.rand(1, *GRID), torch.tensor([[4, 5]])))
    assert chances[0, 0, 0] == chances.sum() == 1


def test_scale_and_offset_of_the_map_do_not_matter():
    maps, sides = torch.rand(3, *GRID), torch.tensor([[2, 2]])
    for other in (maps * 1e-4, maps + 5, maps * 30 + 1):
        for sign in (1, -1):
            expected = position_chances(sign * window_sums(maps, sides))
            torch.testing.assert_close(position_chances(sign * window_sums(other, sides)), expected, atol=2e-4, rtol=0)


def test_places_are_drawn_by_their_chances():
    chances = torch.tensor([[[0.1, 0.0, 0.25], [0.0, 0.6, 0.05]]], dtype=torch.float64)
    count = 4000
    points = torch.from_numpy(np.random.default_rng(0).random(count))
    places = drawn_places(chances.expand(count, -1, -1), points)
    times = np.bincount((places[:, 0] * 3 + places[:, 1]).numpy(), minlength=6)
    assert times[[1, 3]].tolist() == [0, 0]
    kept = [0, 2, 4, 5]
    assert stats.chisquare(times[kept], chances.flatten().numpy()[kept] * count).pvalue > 1e-4


@pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2**-53])
def test_places_without_chance_are_never_drawn(point):
    """Also not at the very ends, where the first and the last places have none."""
    chances = torch.tensor([[[0.0, 0.3, 0.0], [0.7, 0.0, 0.0]]])
    place = drawn_places(chances, torch.tensor([point], dtype=torch.float64))
    assert place.tolist() in ([[0, 1]], [[1, 0]])


def test_a_network_that_has_diverged_still_gives_places():
    places = drawn_places(torch.full((2, *GRID), torch.nan), torch.tensor([0.2, 0.9]))
    assert (places >= 0).all()
    assert (places < torch.tensor(GRID)).all()


def test_uniforms_are_drawn_for_each_row():
    draws = draws_of(4000)
    for one, other in ((draws.height, draws.source), (draws.height, draws.target), (draws.source, draws.target)):
        assert stats.kstest(one, "uniform").pvalue > 1e-4
        assert stats.kstest(other, "uniform").pvalue > 1e-4
        assert stats.pearsonr(one, other).pvalue > 1e-4
    batch = draws_of(per="batch")
    assert [drawn.shape for drawn in batch] == [(1,), (ROWS,), (ROWS,)]


def pasted_by_hand(images, maps, lam, draws, rule):
    """The method in loops: each row's windows, places and pixels."""
    expected, shares = images.clone(), []
    cell = [side // count for side, count in zip(SIZE, GRID, strict=True)]
    for row in range(ROWS):
        m = int(np.ceil(round((1 - lam[row]) * 20, 9)))
        h = min(1 + int(draws.height[row] * max(int(np.ceil(np.sqrt(m))) - 1, 1)), GRID[0])
        w = min(-(-m // h), GRID[1])
        looked = {"target": maps[row], "source": maps[NEXT[row] if rule == "paper" else row]}
        corner = {}
        for name, seen in looked.items():
            tops, lefts = GRID[0] - h + 1, GRID[1] - w + 1
            sums = np.array([[float(seen[t : t + h, c : c + w].sum()) for c in range(lefts)] for t in range(tops)])
            weights = (sums - sums.min() if name == "source" else sums.max() - sums).ravel()
            weights = weights if tops * lefts > 1 else np.ones(1)
            place = int(np.argmax(weights.cumsum() > getattr(draws, name)[row] * weights.sum()))
            corner[name] = place // lefts * cell[0], place % lefts * cell[1]
        (to, across), (top, left) = corner["target"], corner["source"]
        high, wide = h * cell[0], w * cell[1]
        piece = images[NEXT[row], :, top : top + high, left : left + wide]
        expected[row, :, to : to + high, across : across + wide] = piece
        shares.append(1 - h * w / 20)
    return expected, torch.tensor(shares)


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_method_by_hand(rule, seed):
    """Windows of another size in every row."""
    rng = np.random.default_rng(seed)
    images, maps, lam = pictures(), torch.from_numpy(rng.random((ROWS, *GRID))).float(), rng.random(ROWS)
    draws = WindowDraws(rng.random(ROWS), rng.random(ROWS), rng.random(ROWS))
    mix = mix_of(maps, images, lam, draws, rule=rule)
    expected, shares = pasted_by_hand(images, maps, lam, draws, rule)
    assert torch.equal(mix.images, expected)
    torch.testing.assert_close(mix.weights, torch.stack((shares, 1 - shares), 1))


def test_the_code_looks_at_the_images_own_map_for_the_partners_window():
    """The partner is salient in one corner, the image in another."""
    maps = torch.zeros(ROWS, *GRID)
    maps[0::2, 0, 0] = maps[1::2, 3, 4] = 1
    draws = draws_of()
    numbers = torch.arange(20.0).view(1, 1, *GRID).expand(ROWS, 1, *GRID).contiguous()
    for rule, corner in (("paper", (19, 0)), ("code", (0, 19))):
        shown = mix_of(maps, numbers, 19 / 20, draws, rule=rule)
        inside = (shown.apply(numbers) * shown.masks[:, 1:]).sum((1, 2, 3))
        assert inside[0::2].tolist() == [corner[0]] * 3
        assert inside[1::2].tolist() == [corner[1]] * 3


def test_the_most_salient_place_is_never_hidden_and_the_least_never_shown():
    maps = torch.rand(2000, *GRID)
    draws = draws_of(2000)
    partner = torch.arange(2000).roll(1)
    images = torch.arange(20.0).view(1, 1, *GRID).expand(2000, 1, *GRID).contiguous()
    mix = mix_of(maps, images, 19 / 20, draws, partner)
    into = mix.masks[:, 1].flatten(1).argmax(1)
    shown = mix.images.flatten(1).gather(1, into[:, None])[:, 0].long()
    assert (into != maps.flatten(1).argmax(1)).all()
    assert (shown != maps[partner].flatten(1).argmin(1)).all()
    # What is shown is more salient than the mean, what is hidden less.
    at = torch.arange(2000)
    assert maps[partner].flatten(1)[at, shown].mean() > 0.6
    assert maps.flatten(1)[at, into].mean() < 0.4


def test_paired_with_itself_at_equal_places_nothing_changes():
    """With constant maps equal points are equal places."""
    images, points = pictures(), np.random.default_rng(0).random(ROWS)
    draws = WindowDraws(points, points, points)
    mix = mix_of(torch.ones(ROWS, *GRID), images, 0.4, draws, torch.arange(ROWS))
    assert torch.equal(mix.images, images)


def test_a_batch_has_one_size_of_windows_and_places_for_each_image():
    mix = mix_of(torch.rand(ROWS, *GRID), pictures(), 0.6, per="batch")
    assert len(mix.weights.unique(dim=0)) == 1
    assert len(mix.masks.unique(dim=0)) > 1
    assert len(mix.masks[:, 1].sum((1, 2)).unique()) == 1


def test_at_lambda_1_nothing_is_pasted():
    images = pictures()
    mix = mix_of(torch.rand(ROWS, *GRID), images, 1.0)
    assert torch.equal(mix.images, images)
    assert torch.equal(mix.weights, torch.tensor([[1.0, 0.0]]).expand(ROWS, 2))
    assert torch.equal(mix.origins, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(ROWS, 2, *SIZE))


@pytest.mark.parametrize("size", [(32, 32), (9, 5), (25, 33)])
def test_images_that_the_grid_does_not_divide_are_labelled_by_their_pixels(size):
    images = torch.arange(float(ROWS)).view(ROWS, 1, 1, 1).expand(ROWS, 1, *size).contiguous()
    for seed in range(10):
        mix = mix_of(torch.rand(ROWS, 7, 7), images, np.random.default_rng(seed).random(ROWS), draws_of(seed=seed))
        own = (mix.images == images).float().mean((1, 2, 3))
        torch.testing.assert_close(mix.weights[:, 0], own)
        torch.testing.assert_close(mix.area.float(), own)


def test_a_grid_of_its_own():
    mix = mix_of(torch.rand(ROWS, 24, 40), pictures(), 1 - 6 / 25, grid=5)
    torch.testing.assert_close(mix.weights[:, 0] * 960, (mix.weights[:, 0] * 960).round())
    sides = {(int(mask.amax(1).sum()), int(mask.amax(0).sum())) for mask in mix.masks[:, 1]}
    assert sides <= {(4, 40), (9, 24)}  # 1 × 6 of 5 columns, or 2 × 3: ⌊24/5⌋ and ⌊48/5⌋ rows


def test_hidden_maps_have_the_windows_of_the_image():
    maps, images, hidden = torch.rand(ROWS, *GRID), pictures(), torch.randn(ROWS, 8, *GRID)
    there = mix_of(maps, hidden, 0.5, site="layer2", batch_images=images)
    here = mix_of(maps, images, 0.5)
    assert torch.equal(here.apply(hidden), there.images)
    torch.testing.assert_close(here.weights, there.weights)
    large = hidden.repeat_interleave(6, 2).repeat_interleave(8, 3)
    assert torch.equal(here.apply(large)[:, :, ::6, ::8], there.images)


@pytest.mark.parametrize("saliency", ["attention", "cam", "gradient", "activation", "spectral", "fine_grained"])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_every_source_trains(saliency, per, cnn, vit):
    model, images = vit() if saliency == "attention" else cnn(), torch.randn(ROWS, 3, 32, 32)
    recipe = mixwell.create(f"scoremix(saliency={saliency}, per={per}, prob=1)", 7, pixels=PIXELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = recipe(model, images, torch.arange(ROWS))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_it_sees_the_networks_attention_on_its_grid(vit, size):
    """Windows consist of patches, and the recipe's maps are those of the class token."""
    model, images = vit(size=size), torch.randn(ROWS, 3, *size)
    recipe = mixwell.create("scoremix(prob=1)", 7).bind(model, images)
    (option,) = recipe.options
    views = mixwell.Views(mixwell.Probe(model, images), Batch(images, torch.arange(ROWS)), option.view_wants)
    scene = Scene(Batch(images, torch.arange(ROWS)), option.draw(ROWS, mixwell.core.rng.Streams(0), 0), views)
    grid = (size[0] // 8, size[1] // 8)
    maps = option.blend.saliency.maps(scene)
    assert maps.shape == (ROWS, *grid)
    torch.testing.assert_close(maps.flatten(1), views.class_attention())
    mask = option.mix(images, scene).masks[:, 0].unflatten(2, (grid[1], 8)).unflatten(1, (grid[0], 8))
    assert (mask == mask[:, :, :1, :, :1]).all()


def test_it_serves_other_methods(cnn, vit):
    images, labels = torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    texts = {
        "manifold_mixup(sites=(1, 2)) + scoremix(saliency=cam)": cnn(),
        "scoremix + transmix": vit(),
        "scoremix(saliency=activation) + snapmix": cnn(),
        "k_mixup(k=2) + scoremix": vit(),
    }
    for text, model in texts.items():
        recipe = mixwell.create(text, 7, pixels=PIXELS)
        for _ in range(3):
            assert torch.isfinite(recipe(model, images, labels))


def test_what_it_refuses(cnn):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"scoremix: .*has no self-attention"):
        mixwell.create("scoremix", 7).bind(cnn())
    with pytest.raises(mixwell.ParameterError, match="grid must be a whole number ≥ 1, or 'own'"):
        mixwell.create("scoremix(grid=0)")
    with pytest.raises(mixwell.BatchError, match="read from the network"):
        mixwell.create("scoremix(saliency=cam, prob=1)", 7).options[0].blend.saliency.maps(
            Scene(Batch(pictures(), torch.arange(ROWS)))
        )
