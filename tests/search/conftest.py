"""A small data set whose test set must not be read, and quick searches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from torch.utils.data import Dataset

from mixwell import Trainee
from mixwell.data import load
from mixwell.search import SearchConfig
from mixwell.train import TrainConfig


class Sealed(Dataset):
    """A test set that nothing may be asked of."""

    def __len__(self):
        raise AssertionError("the test set was asked for its length")

    def __getattr__(self, name):
        raise AssertionError(f"the test set was asked for {name}")

    def __getitem__(self, index):
        raise AssertionError("the test set was read")


@pytest.fixture(scope="session")
def digits():
    """250 training images of 1×16×16, and a test set that raises whatever it is asked for."""
    whole = load("digits", size=16, channels=1)
    return dataclasses.replace(whole, train=whole.train.subset(np.arange(250), augment=None), test=Sealed())


@pytest.fixture
def quick(tmp_path):
    """Makes a search of a few seconds: rungs of 1, 2 and 4 epochs of 4 batches."""

    def make(*recipes, out="search", longest=4, train=(), **changes):
        fields = {"data": "digits", "lr": 0.05, "batch_size": 50, "epochs": longest, "threads": 1}
        base = TrainConfig(**{**fields, **dict(train)})
        defaults = {"epochs": 60, "eta": 2, "out": tmp_path / out}
        return SearchConfig(base, recipes=recipes, **{**defaults, **changes})

    return make


@pytest.fixture
def turns(monkeypatch):
    """A mark for every batch of the trainings to come."""
    seen = []
    forward = Trainee.forward

    def spy(self, *args):
        seen.append(1)
        return forward(self, *args)

    monkeypatch.setattr(Trainee, "forward", spy)
    return seen
