from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mixwell.cli.commands.train import GROUPS
from mixwell.cli.options import read_options
from mixwell.train import TrainConfig


def read(*argv: str) -> TrainConfig:
    return read_options(TrainConfig, argv, prog="mixwell train", description="", groups=GROUPS)


def test_every_field_is_an_option_with_its_default():
    assert read() == TrainConfig()


def test_options_become_fields():
    given = read(
        *("--recipe", "cutmix + transmix", "--epochs", "3", "--lr", "1e-3", "--compile", "--out", "somewhere"),
        *("--model-options", "depth=4", "drop_rate=0.1", "act=gelu", "bias=false"),
        *("--data-options", "size=28", "channels=1", "--decay-milestones", "2", "3", "--augment", "crop-flip"),
    )
    assert given == TrainConfig(
        recipe="cutmix + transmix",
        epochs=3,
        lr=1e-3,
        compile=True,
        out=Path("somewhere"),
        model_options={"depth": 4, "drop_rate": 0.1, "act": "gelu", "bias": False},
        data_options={"size": 28, "channels": 1},
        decay_milestones=(2, 3),
        augment="crop-flip",
    )
    assert [type(value) for value in given.model_options.values()] == [int, float, str, bool]


def test_the_help_shows_every_field_once(run):
    out = run("train", "--help").out
    for field in dataclasses.fields(TrainConfig):
        option = f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"
        assert sum(f"{line.strip('│ ')} ".startswith(f"{option} ") for line in out.splitlines()) == 1, option
    for title in GROUPS:
        assert f"{title} options" in out


@pytest.mark.parametrize("argv", [("--epochs", "x"), ("--precision", "fp8"), ("--data-options", "size=28", "size=32")])
def test_wrong_usage(run, argv):
    found = run("train", *argv)
    assert (found.code, found.out) == (2, "")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("--epochs", "0"), "epochs"),
        (("--recipe", "cutmx"), "did you mean 'cutmix'"),
        (("--data", "dgits"), "did you mean 'digits'"),
        (("--recipe", "transmix"), "no self-attention"),
    ],
)
def test_a_mistake_is_explained_and_leaves_no_folder(run, tmp_path, argv, reason):
    folder = tmp_path / "run"
    found = run("train", "--data", "digits", "--out", str(folder), *argv)
    assert (found.code, found.out) == (1, "")
    assert reason in " ".join(found.err.split())
    assert not folder.exists()


def test_a_training_ends_with_its_figures(run, tmp_path):
    folder = tmp_path / "run"
    argv = ("train", "--data", "digits", "--epochs", "1", "--ema", "0.9", "--out", str(folder))
    found = run(*argv)
    assert found.code == 0
    result = json.loads((folder / "run.json").read_text())["result"]
    row, averaged = (line.split() for line in found.out.splitlines() if line.startswith(("cutmix", "averaged")))
    assert row[1:4] == [f"{result['accuracy']:.2%}", f"{result['ece']:.4f}", f"{result['nll']:.4f}"]
    assert averaged[2:4] == [f"{result['ema']['accuracy']:.2%}", f"{result['ema']['ece']:.4f}"]
    assert f"The run is in {folder}" in found.out
    assert run(*argv).out == found.out
