from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mixwell.report import Run
from mixwell.train import RunFolder, TrainConfig


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Run]:
    """`finished(recipe, seed, accuracy=…, seconds=…, **config)`: a run folder without weights, read back."""

    def make(
        recipe: str = "none",
        seed: int = 0,
        *,
        accuracy: float = 0.8,
        ece: float = 0.05,
        nll: float = 0.6,
        seconds: float = 2.0,
        status: str = "finished",
        record: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Run:
        settings = TrainConfig(recipe=recipe, seed=seed, **{"epochs": 3, **config})
        folder = RunFolder(tmp_path / settings.folder.name)
        facts = {
            "status": status,
            "identity": settings.identity,
            "config": settings.to_json(),
            "seed": seed,
            "threads": 2,
            "device": "cpu",
            "versions": {"mixwell": "0.1.0", "torch": "2.4.0"},
            "result": {"accuracy": accuracy, "ece": ece, "nll": nll, "seconds_per_epoch": seconds, "ema": None},
        }
        folder.begin(facts)
        records = [
            {"epoch": epoch, "accuracy": accuracy - 0.1 * (3 - epoch), "nll": nll, "ece": ece, "loss": 2.0 / epoch,
             "mixed_accuracy": 0.25 * epoch, **(record or {})}
            for epoch in (1, 2, 3)
        ]  # fmt: skip
        folder.write_history(records)
        return Run.read(folder.path)

    return make
