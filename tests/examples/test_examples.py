"""Every example runs as its first lines say."""

from __future__ import annotations

import importlib.util
import os
import re
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
    "segmentation.py": (["--steps", "2"], "of the strokes' pixels"),
    "spectrograms_and_embeddings.py": (["--steps", "2"], "embeddings: k_mixup(k=8) accuracy "),
    "tabular_and_signals.py": (["--steps", "2"], "chimes: local_mixup(decay=0.1) accuracy "),
    "timm_mixup.py": (["--steps", "2"], "epoch 1: loss "),
    "torchvision_transform.py": (["--steps", "4", "--recipe", "k_mixup + cutmix"], "(32, 10) targets"),
    "accelerate_loop.py": (["--steps", "4"], "amr/critic loss "),
    "hf_trainer.py": (["--steps", "2"], "cutmix + transmix: accuracy "),
    "lightning_module.py": (["--steps", "4"], "cutmix + transmix: accuracy "),
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


@pytest.mark.matrix(keep=6)
@pytest.mark.parametrize("name", CASES)
def test_it_runs(name, tmp_path):
    if name == "lightning_module.py" and importlib.util.find_spec("lightning") is None:
        pytest.skip("Lightning is not installed here; `make test-lightning` runs this in an environment that has it")
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


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "timms"])
def test_one_import_decides_whose_mixup_trains(ours, tmp_path):
    text = (FOLDER / "timm_mixup.py").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "# was: " in line]
    theirs = line.partition("# was: ")[2]
    assert theirs == "from timm.data import Mixup"
    script = tmp_path / "train.py"
    script.write_text(text if ours else text.replace(line, theirs), encoding="utf-8")
    arguments = ["--steps", "3", "--epochs", "2", "--mixup-mode", "elem", "--mixup-off-epoch", "1"]
    printed = run(str(script), *arguments, cwd=tmp_path)
    assert len(re.findall(r"epoch \d: loss \d\.\d+, accuracy \d+\.\d %", printed)) == 2


def test_timms_loop_takes_a_recipe(tmp_path):
    arguments = ["--steps", "2", "--epochs", "1"]
    assert "epoch 0: loss" in run("timm_mixup.py", *arguments, "--recipe", "k_mixup + fmix", cwd=tmp_path)
