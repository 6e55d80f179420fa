from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

from mixwell.cli import main
from mixwell.train import TrainConfig, train


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Run:
    """`mixwell ARGV...` in this process, on a terminal of 80 columns; no output may hold a traceback."""

    def call(*argv: str, columns: int = 80) -> Outcome:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("MIXWELL_DEBUG", raising=False)
        code = main(argv)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[str]]:
    """`python -m mixwell ARGV...` as a process of its own, which Ctrl-C reaches even from a shell whose background jobs
    ignore it.
    """

    def start(*argv: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mixwell", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained_run("cutmix", model="vit-s", …)`: the folder of a run of one epoch on digits of 1×16×16; each is trained
    once, and must be left as it is.
    """

    @cache
    def make(recipe: str = "none", *, model: str = "cnn-s", **config: object) -> Path:
        folder = tmp_path_factory.mktemp("run")
        options = {"size": 16, "channels": 1}
        given = {"data": "digits", "epochs": 1, "batch_size": 200, "threads": 1, **config}
        settings = TrainConfig(recipe=recipe, model=model, data_options=options, out=folder, **given)
        return train(settings, progress=False).folder

    return make
