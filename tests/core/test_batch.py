"""Batches and their pixels."""

from __future__ import annotations

import pytest
import torch

import mixwell
from mixwell import Batch, Pixels

PIXELS = Pixels((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def test_raw_undoes_the_normalisation():
    raw = torch.rand(4, 3, 5, 6, dtype=torch.float64)
    images = PIXELS.normalise(raw)
    torch.testing.assert_close(images[:, 1], (raw[:, 1] - 0.4) / 0.25)
    torch.testing.assert_close(Batch(images, torch.arange(4), PIXELS).raw, raw)


def test_one_value_serves_all_channels():
    one = Pixels((0.5,), (0.25,))
    torch.testing.assert_close(one.normalise(torch.full((2, 3, 4, 4), 0.75)), torch.ones(2, 3, 4, 4))
    with pytest.raises(mixwell.BatchError, match=r"has 3 channels, but the images have shape \(2, 4, 8, 8\)"):
        PIXELS.raw(torch.zeros(2, 4, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept(dtype):
    assert PIXELS.raw(torch.zeros(2, 3, 4, 4, dtype=dtype)).dtype == dtype


def test_raw_needs_the_normalisation():
    with pytest.raises(mixwell.BatchError, match=r"Expected `pixels=Pixels\(mean=..., std=...\)` in the Batch or in"):
        _ = Batch(torch.zeros(2, 3, 4, 4), torch.arange(2)).raw


def test_pixels_of_create_reach_batches_that_have_none():
    recipe = mixwell.create("mixup", 5, pixels={"mean": (0.1,), "std": (0.2,)})
    assert recipe.pixels == Pixels((0.1,), (0.2,))
    assert recipe._batch(torch.zeros(2, 3, 4, 4), torch.arange(2)).pixels == recipe.pixels
    assert recipe._batch(Batch(torch.zeros(2, 3, 4, 4), torch.arange(2)), None).pixels == recipe.pixels
    assert recipe._batch(Batch(torch.zeros(2, 3, 4, 4), torch.arange(2), PIXELS), None).pixels == PIXELS


def test_moving_takes_everything_along():
    batch = Batch(
        torch.zeros(2, 3, 4, 4), torch.arange(2), PIXELS, torch.arange(2), {"crop": torch.zeros(2, 4)}, checked=True
    )
    moved = batch.to("meta", channels_last=True)
    assert {t.device.type for t in (moved.images, moved.labels, moved.index, moved.extras["crop"])} == {"meta"}
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert moved.pixels == PIXELS
    assert moved.checked
    assert len(moved) == 2
    assert Batch(torch.zeros(2, 7), torch.arange(2)).to("cpu", channels_last=True).images.shape == (2, 7)
