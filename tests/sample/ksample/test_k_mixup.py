"""k-Mixup: matching within groups, by exhaustive search and by identities."""

from itertools import permutations

import pytest
import torch

import mixwell
from mixwell.core.axes import Scene
from mixwell.sample.ksample.k_mixup import TransportGroups, group_costs, matched


def cost_of(x: torch.Tensor, partner: torch.Tensor) -> float:
    return float((x - x[partner]).flatten(1).square().sum())


def test_matching_is_the_best_of_all_within_every_group():
    x = torch.randn(8, 3, 5, 7, dtype=torch.float64)
    index = torch.tensor([7, 0, 3, 4, 1, 5, 2, 6])
    partner = matched(x, index, k=4)
    for start in (0, 4):
        rows = torch.arange(start, start + 4)
        best = min(
            float((x[rows] - x[index[rows][list(order)]]).flatten(1).square().sum()) for order in permutations(range(4))
        )
        assert float((x[rows] - x[partner[rows]]).flatten(1).square().sum()) == pytest.approx(best)
        assert set(partner[rows].tolist()) == set(index[rows].tolist())


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 23])
def test_partner_is_a_permutation_no_dearer_than_the_drawn_one(rows: int):
    x = torch.randn(rows, 3, 4, 4)
    index = torch.randperm(rows)
    partner = matched(x, index, k=5)
    assert sorted(partner.tolist()) == list(range(rows))
    assert cost_of(x, partner) <= cost_of(x, index) + 1e-3


def test_one_row_per_group_is_mixup():
    x, index = torch.randn(6, 2), torch.randperm(6)
    assert torch.equal(matched(x, index, k=1), index)


def test_distance_and_squared_distance_match_differently():
    """The paper squares the distance, the authors' code does not; on these points the matchings differ."""
    own = torch.tensor([[[0.0, 0.0], [4.0, 0.0]]])
    other = torch.tensor([[[4.0, 0.0], [6.9, 0.0]]])
    squared, euclidean = group_costs(own, other), group_costs(own, other, "euclidean")
    torch.testing.assert_close(euclidean.square(), squared)
    assert squared[0].diagonal().sum() < squared[0].flip(1).diagonal().sum()
    assert float(euclidean[0].diagonal().sum()) == pytest.approx(float(euclidean[0].flip(1).diagonal().sum()), abs=1e-4)


def test_a_batch_of_at_most_k_rows_is_still_mixed():
    """Were it one group, every row would meet itself."""
    piece = TransportGroups(16)
    batch = mixwell.Batch(torch.randn(8, 3, 4, 4), torch.arange(8))
    partner = piece.partners(torch.arange(8).roll(3).numpy(), Scene(batch)).index[:, 0]
    assert (partner != torch.arange(8)).any()


def test_tabular_rows_and_half_precision():
    recipe = mixwell.create("k_mixup(k=4)", num_classes=9)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        mixed, targets = recipe.mix_batch(torch.randn(9, 12).to(dtype), torch.arange(9))
        assert mixed.dtype == dtype
        torch.testing.assert_close(targets.dense().sum(1), torch.ones(9))


def test_bad_group_sizes():
    with pytest.raises(mixwell.ParameterError, match="k must be a whole number ≥ 1, got 0"):
        mixwell.create("k_mixup(k=0)")
