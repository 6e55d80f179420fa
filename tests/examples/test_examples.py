"""Every example runs as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"

CASES = {
    "plain_loop.py": (["--steps", "2", "--model", "cnn-s"], "step 1: loss "),
    "timm_vit_transmix.py": (["--steps", "2"], "so it is refused: transmix"),
    "collate_fn.py": (["--steps", "3"], "label-weighted accuracy"),
    "own_dataset.py": (["--epochs", "1"], "accuracy "),
    "switch.py": (["--steps", "6"], "options with weights"),
    "tabular_and_signals.py": (["--steps", "2"], "chimes: local_mixup(decay=0.1) accuracy "),
}


def run(name: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_case():
    assert {path.name for path in FOLDER.glob("*.py")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_runs(name, tmp_path):
    arguments, said = CASES[name]
    printed = run(name, *arguments, cwd=tmp_path)
    assert said in printed
    assert "nan" not in printed


def test_the_switch_switches(tmp_path):
    """Of 20 batches some are mixed (two images per label) and some are not."""
    printed = run("switch.py", "--steps", "20", cwd=tmp_path)
    assert {line.rsplit(" ", 1)[1] for line in printed.splitlines() if line.startswith("step")} == {"1", "2"}


def test_a_recipe_of_ones_own(tmp_path):
    assert "step 0: loss" in run(
        "plain_loop.py", "--steps", "1", "--recipe", "puzzlemix", "--model", "cnn-s", cwd=tmp_path
    )
