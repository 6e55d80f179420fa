from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixwell.data import load
from mixwell.evaluate import Subject
from mixwell.train import Run, TrainConfig, train, trained


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """`run_of(recipe)`: a finished run on digits of 16 pixels, trained once per session; only to be read."""
    made: dict[str, Run] = {}

    def make(recipe: str = "mixup", **settings: Any) -> Run:
        key = f"{recipe} {settings}"
        if key not in made:
            out = tmp_path_factory.mktemp("runs") / "run"
            config = TrainConfig(
                recipe=recipe,
                data="digits",
                data_options={"size": 16, "channels": 1},
                epochs=settings.pop("epochs", 3),
                warmup_epochs=0,
                threads=1,
                out=out,
                **settings,
            )
            made[key] = Run.read(train(config, progress=False).folder)
        return made[key]

    return make


@pytest.fixture
def subject_of(run_of: Callable[..., Run]) -> Callable[..., Subject]:
    """`subject_of(recipe, batch_size=…)`: the network of `run_of(recipe)`."""

    def make(recipe: str = "mixup", batch_size: int = 100, **settings: Any) -> Subject:
        return Subject(trained(run_of(recipe, **settings)), batch_size)

    return make


@pytest.fixture
def larger(subject_of: Callable[..., Subject]) -> Subject:
    """A network that learnt digits of 16 pixels and is tested on such of 24."""
    subject = subject_of()
    test = load("digits", size=24, channels=1).test
    return Subject(replace(subject.trained, data=replace(subject.trained.data, test=test)))


@pytest.fixture
def copy_of(run_of: Callable[..., Run], tmp_path: Path) -> Callable[..., Path]:
    """`copy_of(recipe)`: a copy of `run_of(recipe)`'s folder, to write into."""
    import shutil

    def make(recipe: str = "mixup", **settings: Any) -> Path:
        return Path(shutil.copytree(run_of(recipe, **settings).folder, tmp_path / "copy"))

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
