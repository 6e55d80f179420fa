"""The checkout's texts and their code blocks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


def python_blocks(name: str) -> list[str]:
    """The python blocks of a Markdown file, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def blocks_of():
    return python_blocks


@pytest.fixture(scope="session")
def readers_names(cnn):
    """`readers_names()`: small stand-ins for what the reader brings, by the names that the texts use."""

    def make():
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            images, labels = torch.rand(24, 3, 32, 32), torch.arange(24) % 10
        model = cnn(classes=10)
        return {
            "images": images[:8],
            "labels": labels[:8],
            "dataset": TensorDataset(images, labels),
            "loader": [(images[:8], labels[:8])] * 2,
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        }

    return make
