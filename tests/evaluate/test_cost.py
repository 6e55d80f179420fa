"""Time and memory beside plain training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixwell.core.errors import RunError
from mixwell.evaluate import Steps, alternating_times, peak_memory, training_cost
from mixwell.evaluate.cost import _resident_peak
from mixwell.train import Run, TrainConfig


@pytest.fixture
def config(run_of: Callable[..., Run]) -> TrainConfig:
    return TrainConfig(**run_of("mixup").facts["config"])


def test_steps_train(config: TrainConfig) -> None:
    training = Steps(replace(config, lr=0.05), "mixup")
    before = [parameter.clone() for parameter in training.model.parameters()]
    assert all(training.take() > 0 for _ in range(3))
    assert training.step == 3
    assert all(not torch.equal(old, new) for old, new in zip(before, training.model.parameters(), strict=True))


def test_recipes_with_several_turns_are_stepped_turn_by_turn(config: TrainConfig) -> None:
    training = Steps(config, "amr")
    before = {name: value.clone() for name, value in training.recipe.named_parameters()}
    training.take()
    assert set(training.steppers) > {"main"}
    moved = [not torch.equal(value, before[name]) for name, value in training.recipe.named_parameters()]
    assert sum(moved) > len(moved) / 2


def test_steps_alternate_and_the_median_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    class Fake:
        def __init__(self, name: str, times: list[float]) -> None:
            self.name, self.times = name, iter(times)

        def take(self) -> float:
            taken.append(self.name)
            return next(self.times)

    pair = [Fake("a", [9, 9, 1, 2, 50]), Fake("b", [9, 9, 4, 4, 5])]
    assert alternating_times(pair, steps=3, seconds=60) == [2, 4]  # type: ignore[arg-type]
    assert "".join(taken) == "ababababab"
    pair = [Fake("a", [1] * 99), Fake("b", [1] * 99)]
    taken.clear()
    alternating_times(pair, steps=50, seconds=0)  # type: ignore[arg-type]
    assert len(taken) == 2 * (2 + 3)


def test_plain_training_costs_itself(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixwell.evaluate.cost.peak_memory", lambda config, recipe, threads: 7_000_000)
    found = training_cost(replace(config, recipe="none"), threads=1, steps=3)
    assert (found["relative_time"], found["relative_memory"], found["peak_memory_bytes"]) == (1, 1, 7_000_000)
    assert found["seconds_per_step"] > 0


def test_the_peak_is_of_another_process(config: TrainConfig) -> None:
    held = torch.ones(2**28)  # a GiB here does not count there
    found = peak_memory(config, "mixup", threads=1)
    assert 2**27 < found < _resident_peak()
    assert _resident_peak() > 4 * held.numel()


def test_a_process_that_fails_is_explained(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'MemoryError: no room' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(RunError, match="'mixup' failed: MemoryError: no room"):
        peak_memory(replace(config, seed=99), "mixup", threads=1)
