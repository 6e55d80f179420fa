"""A small data set, quick configs, and ways to look at a run."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixwell import Recipe, Trainee
from mixwell.data import from_datasets, load
from mixwell.train import TIME_FIELDS, TrainConfig

QUICK = {"data": "digits", "model": "cnn-s", "lr": 0.05, "batch_size": 50, "epochs": 2, "threads": 1}


@pytest.fixture(scope="session")
def digits():
    """300 training and 100 test images of 1×16×16."""
    whole = load("digits", size=16, channels=1)
    parts = [part.subset(np.arange(rows), augment=None) for part, rows in ((whole.train, 300), (whole.test, 100))]
    return from_datasets(*parts, num_classes=10, pixels=whole.pixels, name="few digits")


@pytest.fixture
def quick(tmp_path):
    """Makes a config that trains for a second."""

    def make(out="run", **changes):
        return TrainConfig(**{**QUICK, "out": tmp_path / out, **changes})

    return make


class Flat(nn.Module):
    """A network without BatchNorm."""

    def __init__(self, dropout=0.0, classes=10):
        super().__init__()
        self.body = nn.Linear(256, 32)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32, classes)

    def forward(self, images):
        return self.fc(self.dropout(self.body(images.flatten(1)).tanh()))


@pytest.fixture
def flat():
    """Makes networks without BatchNorm that start from the same weights."""

    def make(**options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Flat(**options)

    return make


@pytest.fixture
def outcome():
    """The weights of a run as bytes, and its history without times."""

    def read(folder):
        lines = [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]
        history = [{name: value for name, value in line.items() if name not in TIME_FIELDS} for line in lines]
        return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))}, history

    return read


@pytest.fixture
def turns(monkeypatch):
    """Every turn of the trainings to come."""
    seen = []
    forward = Trainee.forward

    def spy(self, *args):
        seen.append(forward(self, *args))
        return seen[-1]

    monkeypatch.setattr(Trainee, "forward", spy)
    return seen


@pytest.fixture
def stops(monkeypatch):
    """Makes the training to come stop in a step. Interrupts are heard even where the suite runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def arm(step, act):
        after_step = Recipe.after_step

        def stop(self, model, clock=None):
            after_step(self, model, clock)
            if clock.step == step:
                monkeypatch.setattr(Recipe, "after_step", after_step)
                act()

        monkeypatch.setattr(Recipe, "after_step", stop)

    yield arm
    signal.signal(signal.SIGINT, before)
