"""TokenMix: masks of several blocks, and labels by what a teacher sees in what is left of each image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, stats
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Need
from mixwell.core.criteria import BinaryCrossEntropy
from mixwell.core.rng import Streams
from mixwell.label.attention.tokenmix import (
    RowCrossEntropy,
    TokenMask,
    activation_shares,
    block_masks,
    partner_tokens,
    random_masks,
    smoothed_by_halves,
)
from mixwell.nets.label_maps import Annotator

ROWS = 6


def uniforms(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 64, 4))


def one_block_after_another(draws: np.ndarray, wanted: int, size: tuple[int, int]) -> np.ndarray:
    """A mask as the paper's algorithm builds it: one block, one attempt at a time."""
    mask, count, misses = np.zeros(size, bool), 0, 0
    for area, ratio, row, column in draws:
        if count == wanted or misses == 10:
            break
        target = 1 + area * (wanted - count - 1)
        stretch = math.exp(math.log(0.3) + ratio * 2 * math.log(1 / 0.3))
        height, width = round(math.sqrt(target * stretch)), round(math.sqrt(target / stretch))
        misses += 1
        if height < size[0] and width < size[1]:
            top, left = int(row * (size[0] - height + 1)), int(column * (size[1] - width + 1))
            block = mask[top : top + height, left : left + width]
            new = block.size - block.sum()
            if 0 < new <= wanted - count:
                block[:] = True
                count, misses = count + new, 0
    return mask


# Masks


@pytest.mark.parametrize(
    ("size", "wanted"), [((14, 14), 98), ((14, 14), 112), ((8, 8), 32), ((7, 12), 30), ((4, 4), 15)]
)
def test_masks_are_those_of_the_plain_algorithm(size, wanted):
    draws = uniforms(60)
    masks = block_masks(draws, np.array([wanted]), size)
    for mask, drawn in zip(masks, draws, strict=True):
        assert np.array_equal(mask, one_block_after_another(drawn, wanted, size))


def test_masks_of_a_batch_are_masks_of_their_own():
    draws, wanted = uniforms(20), np.arange(20) * 5
    masks = block_masks(draws, wanted, (10, 10))
    for row in range(20):
        assert np.array_equal(masks[row], block_masks(draws[row : row + 1], wanted[row : row + 1], (10, 10))[0])
    assert (masks.sum((1, 2)) <= wanted).all()
    assert not masks[0].any()


def test_masks_have_the_size_and_number_of_pieces_of_the_codes():
    masks = block_masks(uniforms(2000), np.array([112]), (14, 14))
    count = masks.sum((1, 2))
    assert (count <= 112).all()
    assert (count == 112).mean() > 0.97
    pieces = [ndimage.label(mask)[1] for mask in masks]
    assert 2.3 < np.mean(pieces) < 2.7


def test_random_tokens_are_as_many_as_wanted_and_each_as_often_as_others():
    masks = random_masks(np.random.default_rng(0).random((4000, 24)), np.array([9]), (4, 6))
    assert (masks.sum((1, 2)) == 9).all()
    assert stats.chisquare(masks.sum(0).ravel()).pvalue > 1e-4


def test_the_code_shows_14_tokens_more_of_the_partner():
    half = np.array([0.5])
    assert partner_tokens(half, 196).tolist() == [98]
    assert partner_tokens(half, 196, "code").tolist() == [112]
    assert partner_tokens(np.array([0.01]), 196, "code").tolist() == [196]
    assert partner_tokens(np.array([1.0, 0.0]), 64).tolist() == [0, 64]


def mix_of(text: str, images: Tensor, seed: int = 0) -> mixwell.Mix:
    (option,) = mixwell.create(text, ROWS).options
    batch = mixwell.Batch(images, torch.arange(len(images)))
    return option.mix(images, mixwell.Scene(batch, option.draw(len(images), Streams(seed), 0)))


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (42, 70)])
@pytest.mark.parametrize("variant", ["blocks", "random"])
def test_every_token_shows_one_image_in_its_own_place(size, variant):
    images = torch.randn(ROWS, 3, *size)
    mix = mix_of(f"tokenmix(variant={variant}, switch_prob=1)", images)
    own = mix.masks[:, :1].bool()
    assert torch.equal(mix.images, torch.where(own, images, images[mix.sources[:, 1]]))
    rows, columns = (torch.arange(side) * 14 // side for side in size)
    cells = torch.stack(
        [own[:, 0][:, rows == r][:, :, columns == c].float().mean((1, 2)) for r in range(14) for c in range(14)]
    )
    assert set(cells.unique().tolist()) == {0, 1}
    torch.testing.assert_close(mix.weights[:, 0], own.float().mean((1, 2, 3)))
    if 28 in size:
        assert ((1 - cells).sum(0) <= 98).all()
        assert ((1 - cells).sum(0) >= 90).all()


def test_tokens_are_the_networks_patches_or_those_that_were_asked_for(vit, cnn):
    def grid(text: str, model: nn.Module, size: tuple[int, int] = (32, 32)) -> tuple[int, int]:
        recipe = mixwell.create(text, 7).bind(model, torch.randn(2, 3, *size))
        assert recipe.options[0].blend.cells is recipe.options[0].label.cells
        return recipe.options[0].blend.cells.size

    assert grid("tokenmix", vit()) == (4, 4)
    assert grid("tokenmix", vit(size=(32, 48)), (32, 48)) == (4, 6)
    assert grid("tokenmix", cnn()) == (14, 14)
    assert grid("tokenmix(grid=7)", vit()) == (7, 7)


# Labels


def pair(order: list[int] | None = None) -> Tensor:
    return torch.stack((torch.arange(ROWS), torch.tensor(order or list(range(ROWS))[::-1])), 1)


def test_even_maps_say_what_areas_say():
    masks = torch.rand(ROWS, 1, 14, 14).round()
    origins = torch.cat((masks, 1 - masks), 1)
    shares = activation_shares(torch.rand(ROWS, 1, 1).expand(-1, 14, 14) + 1, origins, pair())
    torch.testing.assert_close(shares, origins.mean((2, 3)))


def test_nothing_of_the_partner_is_all_of_the_image():
    whole = torch.ones(ROWS, 1, 6, 6)
    shares = activation_shares(torch.rand(ROWS, 6, 6), torch.cat((whole, 1 - whole), 1), pair())
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.0]]).expand(ROWS, 2))


def test_each_image_counts_as_much_as_is_seen_of_its_object():
    """Objects in corners, halves of images: both, one or neither object can be seen."""
    maps = torch.zeros(4, 8, 8)
    maps[0, :2, :2], maps[1, :2, 6:], maps[2, 6:, :2], maps[3, 3:5, 3:5] = 3, 0.5, 8, 1
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    sources = torch.tensor([[0, 1], [1, 0], [2, 1], [3, 2]])
    shares = activation_shares(maps, torch.cat((left, 1 - left), 1), sources)
    torch.testing.assert_close(shares, torch.tensor([[1.0, 1], [0, 0], [1, 1], [0.5, 0]]))


def test_pixels_count_by_the_cells_in_which_they_lie():
    masks = torch.rand(3, 2, 12, 12).round()
    maps = torch.rand(3, 4, 4)
    cells = masks.unflatten(3, (4, 3)).unflatten(2, (4, 3)).mean((3, 5))
    sources = torch.tensor([[0, 1], [1, 2], [2, 0]])
    torch.testing.assert_close(activation_shares(maps, masks, sources), activation_shares(maps, cells, sources))


def test_a_map_without_its_class_leaves_it_to_the_area_but_counts_nothing_in_the_code():
    maps = torch.rand(3, 4, 4) + 0.1
    maps[1] = 0
    origins, areas = torch.full((3, 2, 4, 4), 0.25), torch.rand(3, 2)
    sources = torch.tensor([[0, 1], [1, 2], [2, 5]])  # the last one is no row of the batch
    paper = activation_shares(maps, origins, sources, areas)
    code = activation_shares(maps, origins, sources)
    expected = torch.full((3, 2), 0.25)
    for row, column in ((0, 1), (1, 0), (2, 1)):
        assert paper[row, column] == areas[row, column]
        assert code[row, column] == 0
        expected[row, column] = code[row, column] = paper[row, column] = 0
    torch.testing.assert_close(paper, expected)
    torch.testing.assert_close(code, expected)


class Corners(nn.Module):
    """Says of each place how much of each channel there is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer1 = nn.AvgPool2d(4)
        self.fc = nn.Linear(classes, classes, bias=False)
        self.fc.weight = nn.Parameter(torch.eye(classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(images).mean((2, 3)))


def with_objects(places: list[tuple[int, int]], size: int = 32) -> Tensor:
    """Image i has something of channel i in one of 8 × 8 places, and nothing elsewhere."""
    images = torch.zeros(len(places), len(places), size, size)
    for row, (down, across) in enumerate(places):
        images[row, row, 4 * down : 4 * down + 4, 4 * across : 4 * across + 4] = 6
    return images


@pytest.mark.parametrize("host", ["", "cutmix + ", "fmix + "])
def test_labels_follow_what_the_teacher_recognises(host):
    images = with_objects([(0, 0), (7, 7), (3, 4), (0, 7), (5, 1), (2, 2)])
    recipe = mixwell.create(f"{host}tokenmix(switch_prob=1, grid=8)", ROWS)
    (maps,) = {module for module in recipe.modules() if isinstance(module, Annotator)}
    maps.teacher.use(Corners(ROWS))
    kinds = set()
    for _ in range(6):
        mixed, targets = recipe.mix_batch(images, torch.arange(ROWS))
        for row, (sources, weights) in enumerate(zip(targets.sources.tolist(), targets.weights.tolist(), strict=True)):
            for source, share in zip(sources, weights, strict=True):
                visible = mixed[row, source].sum() / images[source, source].sum()
                if sources[0] != sources[1]:
                    assert abs(share - visible) < 1e-4
                    kinds.add(round(share))
    assert kinds == {0, 1}


def test_an_image_that_is_pasted_whole_counts_fully():
    images = with_objects([(0, 0), (7, 7), (3, 4), (0, 7), (5, 1), (2, 2)])
    recipe = mixwell.create("resizemix + tokenmix(switch_prob=1, grid=8)", ROWS)
    (maps,) = {module for module in recipe.modules() if isinstance(module, Annotator)}
    maps.teacher.use(Corners(ROWS))
    _, targets = recipe.mix_batch(images, torch.arange(ROWS))
    torch.testing.assert_close(targets.weights[:, 1], torch.ones(ROWS))
    assert len(targets.weights[:, 0].unique()) > 1


def test_saliency_of_the_network_needs_no_teacher(vit, cnn):
    images, labels = torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    for saliency, model in (("attention", vit()), ("cam", cnn()), ("spectral", cnn())):
        recipe = mixwell.create(f"tokenmix(saliency={saliency}, switch_prob=1)", 7).bind(model, images)
        (turn,) = recipe.turns(model, images, labels)
        turn.loss.backward()
        assert not [module for module in recipe.modules() if isinstance(module, Annotator)]
        area = mix_of("tokenmix(switch_prob=1)", images).weights
        assert not torch.allclose(turn.targets.weights, area)
        assert (turn.targets.weights >= 0).all()
        assert (turn.targets.weights <= 1 + 1e-5).all()


def test_crops_show_the_map_where_they_lie_and_swapped_in_the_code():
    images = with_objects([(1, 6)] * ROWS)
    maps = F.avg_pool2d(images, 4)
    scores = torch.zeros(ROWS, 2, 1, 8, 8)
    scores[:, 0, 0], scores[:, 1, 0] = (
        maps[torch.arange(ROWS), torch.arange(ROWS)],
        torch.arange(ROWS)[:, None, None].float(),
    )
    crops = torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.0]]).expand(ROWS, 5)  # the quarter at the top right
    batch = mixwell.Batch(images, torch.arange(ROWS), extras={"label_map": scores, "crop": crops})
    for rule, place in (("paper", (2, 5)), ("code", None)):
        (option,) = mixwell.create(f"tokenmix(rule={rule}, switch_prob=1, grid=8)", ROWS).options
        active = option.label.activation(mixwell.Scene(batch))[0]
        found = None if active.amax() < 0.1 else divmod(int(active.argmax()), 8)
        assert found == place or (place and abs(found[0] - place[0]) <= 1 and abs(found[1] - place[1]) <= 1)
    mirrored = crops.clone()
    mirrored[:, 4] = 1
    (option,) = mixwell.create("tokenmix(switch_prob=1, grid=8)", ROWS).options
    active = option.label.activation(mixwell.Scene(batch))
    batch.extras["crop"] = mirrored
    assert torch.equal(option.label.activation(mixwell.Scene(batch)), active.flip(2))


# Loss and switch


def test_label_rows_are_smoothed_by_halves_in_the_code_only():
    shares, classes = torch.tensor([[0.7, 0.4], [0.02, 1.0], [0.5, 0.25]]), torch.tensor([[0, 2], [1, 3], [2, 2]])
    rows = smoothed_by_halves(shares, classes, 5, 0.1)
    torch.testing.assert_close(rows.sum(1), shares.sum(1))
    torch.testing.assert_close(rows[0], torch.tensor([0.67, 0.02, 0.37, 0.02, 0.02]))
    torch.testing.assert_close(rows[2, 2], torch.tensor(0.67))  # twice the same class
    assert rows[1, 1] < 0
    ours = mixwell.Targets(torch.arange(5), classes, shares, 5).dense(smoothing=0.1)
    torch.testing.assert_close(ours[0, 0], torch.tensor(0.7 * 0.9 + 1.1 * 0.02))
    assert not torch.allclose(ours, rows)


@pytest.mark.parametrize("halves", [False, True])
def test_the_loss_is_binary_cross_entropy_of_the_row(halves):
    logits, shares = torch.randn(ROWS, 7), torch.rand(ROWS, 2)
    targets = mixwell.Targets(torch.arange(7), pair(), shares, 7)
    criterion = RowCrossEntropy(halves=halves)
    plain = F.binary_cross_entropy_with_logits(logits, targets.dense())
    torch.testing.assert_close(criterion(logits, targets), plain)
    by_source = BinaryCrossEntropy()(logits, targets)  # counts what no image has once per source
    torch.testing.assert_close(by_source - plain, ((shares.sum(1) - 1)[:, None] * F.softplus(logits)).mean())
    criterion.smoothing = 0.1
    wanted = smoothed_by_halves(shares, pair(), 7, 0.1) if halves else targets.dense(smoothing=0.1)
    torch.testing.assert_close(criterion(logits, targets), F.binary_cross_entropy_with_logits(logits, wanted))
    criterion.class_weights = torch.rand(7)
    expected = F.binary_cross_entropy_with_logits(logits, wanted, weight=criterion.class_weights)
    torch.testing.assert_close(criterion(logits, targets), expected)


def test_half_of_the_batches_are_mixup_under_the_same_loss():
    recipe = mixwell.create("tokenmix", 7)
    assert recipe.weights == [0.5, 0.5]
    tokens, mixup = recipe.options
    assert (type(tokens.blend).__name__, type(mixup.blend).__name__) == ("TokenMask", "Linear")
    assert mixup.ratio.alpha == 0.8
    assert type(tokens.criterion) is type(mixup.criterion) is RowCrossEntropy
    assert Need.SIMPLEX in tokens.label.breaks


@pytest.mark.parametrize("options", ["lam=1.5", "grid=0", "mixup_alpha=0", "prob=2", "teacher_size=0", "rule='x'"])
def test_parameters_out_of_range_are_refused(options):
    with pytest.raises(mixwell.ParameterError, match=options.partition("=")[0]):
        mixwell.create(f"tokenmix({options.replace('prob', 'switch_prob')})")


def test_a_drawn_ratio_may_take_the_place_of_the_half():
    images = torch.arange(ROWS).float()[:, None, None, None].expand(-1, 1, 28, 28)
    (option,) = mixwell.create("tokenmix(switch_prob=1)", ROWS).options
    assert isinstance(option.blend, TokenMask)
    draws = option.draw(ROWS, Streams(0), 0)
    lam = torch.linspace(0, 1, ROWS, dtype=torch.float64)
    mix = option.mix(images, mixwell.Scene(mixwell.Batch(images, torch.arange(ROWS)), draws), lam=lam)
    assert (mix.weights[:, 0] >= lam - 1e-6).all()
    assert (mix.weights[:, 0] <= lam + 0.1).all()
