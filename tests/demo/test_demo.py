"""The demo end to end, in a process of its own and continued."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mixwell import ParameterError, UnknownMethod
from mixwell.cli import main
from mixwell.demo import RECIPES, Demo, demo
from mixwell.evaluate import reliability
from mixwell.train import Run, trained


def test_a_second_command_reuses_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "mixwell", "demo", "--epochs", "1", "--out", str(out), "--recipes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run([*command, "none"], capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    assert "[1/1] none" in first.stderr
    assert "epoch 1/1" in first.stderr
    assert str(out / "report.html") in first.stdout.replace("\n", "")
    (none,) = [path for path in out.iterdir() if path.is_dir()]
    written = {path: path.stat().st_mtime_ns for path in none.iterdir()}

    assert main([*command[3:], "none", "cutmix"]) == 0
    printed = capsys.readouterr()
    assert "[2/2] cutmix" in printed.err
    assert printed.err.count("epoch 1/1") == 1
    assert {path: path.stat().st_mtime_ns for path in none.iterdir()} == written

    runs = [Run.read(path) for path in sorted(out.iterdir()) if path.is_dir()]
    page = (out / "report.html").read_text(encoding="utf-8")
    for run in runs:
        accuracy = f"{run.facts['result']['accuracy']:.2%}"
        assert re.search(rf"{run.recipe}\s+{re.escape(accuracy)}", printed.out)
        assert f'"accuracy":[{run.facts["result"]["accuracy"]}]' in page
        assert reliability(trained(run)).ece == pytest.approx(run.facts["result"]["ece"], abs=2e-3)
    assert "one seed (0)" in printed.out.replace("\n", " ")
    assert page.count("<img ") >= 3 + 3 * 4
    assert len(page) < 1_500_000


def test_mistakes_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UnknownMethod, match="cutmx"):
        demo(Demo(recipes=("none", "cutmx"), out=tmp_path / "demo"))
    with pytest.raises(ParameterError, match="at least one recipe"):
        demo(Demo(recipes=(), out=tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()


def test_other_settings_have_other_folders() -> None:
    demos = [Demo(epochs=epochs, seed=seed) for epochs in (1, 2) for seed in (0, 1)]
    folders = [each.run(recipe).folder for each in demos for recipe in RECIPES]
    assert len(set(folders)) == len(folders)
