"""Rows and columns of images, against indexing."""

from __future__ import annotations

import pytest
import torch

from mixwell.ops.gather import gathered

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("each", [True, False], ids=["each its own", "one for all"])
def test_it_is_indexing(layout, each):
    x = torch.randn(4, 3, 5, 7).contiguous(memory_format=layout)
    index = torch.tensor([2, 2, 0, 3, 1])
    count = 5 if each else 1
    rows, columns = torch.randint(0, 5, (count, 6)), torch.randint(0, 7, (count, 2))
    found = gathered(x, index, rows, columns)
    expected = torch.stack(
        [x[image][:, rows[i % count]][:, :, columns[i % count]] for i, image in enumerate(index.tolist())]
    )
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)


def test_gradients_reach_the_pixels_that_are_shown():
    x = torch.randn(2, 1, 3, 3, requires_grad=True)
    gathered(x, torch.tensor([1]), torch.tensor([[0, 0]]), torch.tensor([[2, 1]])).sum().backward()
    expected = torch.zeros(2, 1, 3, 3)
    expected[1, 0, 0, 1:] = 2
    assert torch.equal(x.grad, expected)
