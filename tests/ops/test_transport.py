"""Block transport beside the authors' rule written out, and what it keeps."""

import pytest
import torch
import torch.nn.functional as F

from mixwell.ops.transport import block_distances, block_plan, move_blocks, transport_costs


def written_out(costs, rounds):
    """The rule as the card gives it: dense plans, losers' costs rise by 1."""
    costs, n = costs.clone(), costs.shape[1]
    for _ in range(rounds):
        asked = F.one_hot(costs.argmin(2), n).to(costs.dtype)
        won = F.one_hot((asked * costs).argmin(1), n).transpose(1, 2) * asked
        costs += asked - won
    return torch.where(won.sum(1) > 0, won.argmax(1), -1)


def shares(rows, grid, peak):
    saliency = torch.rand(rows, *grid) ** peak + 1e-6
    return saliency / saliency.sum((1, 2), keepdim=True)


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (8, 8), (3, 5), (1, 6)], ids=str)
@pytest.mark.parametrize("eps", [0.8, 0.2, 0.05])
def test_shown_places_get_the_authors_blocks(grid, eps):
    moved = 0
    for peak in (0.5, 1, 3, 6):
        saliency, shown = shares(20, grid, peak), torch.rand(20, *grid) > torch.rand(20, 1, 1)
        plan = block_plan(saliency, shown, eps, max(grid))
        expected = written_out(transport_costs(saliency, shown, eps), max(grid))
        seen = shown.flatten(1)
        assert torch.equal(plan[seen], expected[seen])
        assert (plan[seen] >= 0).all(), "a shown place stayed empty"
        assert all(len(row[row >= 0]) == len(row[row >= 0].unique()) for row in plan), "a block went to two places"
        moved += int((plan[seen] != torch.arange(seen.shape[1]).expand_as(plan)[seen]).sum())
    assert moved, "nothing moved, so the test saw nothing"


def test_a_dear_move_moves_nothing():
    saliency, shown = shares(9, (4, 4), 3), torch.rand(9, 4, 4) > 0.5
    plan = block_plan(saliency, shown, 100.0, 4)
    stay = torch.arange(16).expand(9, 16)
    assert torch.equal(plan[shown.flatten(1)], stay[shown.flatten(1)])


def test_a_salient_block_moves_to_the_nearest_shown_place():
    saliency = torch.full((1, 1, 5), 0.01)
    saliency[0, 0, 1] = 0.96
    shown = torch.tensor([[[False, False, False, True, True]]])
    assert block_plan(saliency, shown, 0.5, 5).tolist() == [[0, -1, -1, 1, 4]]


def test_distances_are_1_along_the_longer_side():
    distances = block_distances((3, 5)).view(3, 5, 3, 5)
    assert distances[0, 0, 0, 4] == 1
    assert distances[0, 0, 2, 0] == (2 / 4) ** 2
    assert distances[1, 2, 1, 2] == 0
    assert block_distances((1, 1)).tolist() == [[0]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blocks_move_whole(layout):
    x = torch.randn(3, 2, 6, 8).contiguous(memory_format=layout)
    plan = torch.stack([torch.randperm(12) for _ in range(3)]).view(3, 3, 4)
    before = x.clone()
    moved = move_blocks(x, plan)
    assert torch.equal(x, before)
    assert moved.is_contiguous(memory_format=layout)
    blocks = [picture.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2) for picture in (x, moved)]
    for row in range(3):
        assert torch.equal(blocks[1][row], blocks[0][row][plan[row].flatten()])


def test_places_without_a_block_keep_their_own():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert move_blocks(x, torch.tensor([[[1, -1], [-1, 3]]])).flatten().tolist() == [1, 1, 2, 3]


def test_nothing_moved_is_the_same_tensor():
    x = torch.randn(2, 1, 4, 4)
    assert move_blocks(x, torch.arange(4).view(1, 2, 2).expand(2, 2, 2)) is x


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (9, 4)], ids=str)
def test_other_resolutions_take_the_nearest_pixels(size):
    """Every pixel comes from the block that the plan names, as far as the resolution shows that block."""
    plan = torch.randperm(4).view(1, 2, 2)
    row, column = (torch.arange(side) * 2 // side for side in size)
    numbers = (row[:, None] * 2 + column).float()[None, None]
    assert torch.equal(move_blocks(numbers, plan)[0, 0].long(), plan[0, row][:, column])
