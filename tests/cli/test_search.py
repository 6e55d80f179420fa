from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import time

import pytest

from mixwell.cli.commands.search import command_of
from mixwell.cli.commands.train import GROUPS
from mixwell.cli.options import read_options
from mixwell.train import TrainConfig

TINY = (
    "--data",
    "digits",
    "--data-options",
    "size=8",
    "channels=1",
    "--train",
    "batch_size=125",
    "threads=1",
    "lr=0.05",
)
HALVING = ("--longest", "2", "--eta", "2", "--epochs", "8")


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_search_ends_in_a_ranked_table_and_a_command(run, tmp_path):
    argv = ("search", "--recipes", "mixup", "cutmix(alpha=[0.5, 1.0])", *TINY, *HALVING, "--out", str(tmp_path / "s"))
    found = run(*argv, "--final-epochs", "30", columns=200)
    assert found.code == 0, found.err
    assert "Plan: 6 epochs: 3 to epoch 1, 1 to epoch 2, and none to the last" in found.err
    rows = re.findall(r"^(none|mixup|cutmix\(alpha=\S+\)) +([\d.]+)% +(\d) +[\d.]+ +([\d.]+)", found.out, re.MULTILINE)
    assert {recipe for recipe, *_ in rows} == {"none", "mixup", "cutmix(alpha=0.5)", "cutmix(alpha=1.0)"}
    assert [epochs for _, _, epochs, _ in rows] == ["2", "2", "1", "1"]
    assert [float(value) for _, value, *_ in rows[:2]] == sorted(
        (float(value) for _, value, *_ in rows[:2]), reverse=True
    )
    assert next(relative for recipe, *_, relative in rows if recipe == "none") == "1.00"
    assert "280 held-out training images; the test set was not read" in words(found.out)
    command = found.out.splitlines()[-1]
    assert found.out.splitlines()[-2] == f"The best recipe: {rows[0][0]}"
    assert shlex.split(command)[:4] == ["mixwell", "train", "--recipe", rows[0][0]]
    assert "--epochs 30" in command
    assert "--batch-size 125 --lr 0.05" in command
    again = run(*argv, "--json", columns=200)
    assert again.code == 0
    content = json.loads(again.out)
    assert [row["recipe"] for row in content["trials"]] == [recipe for recipe, *_ in rows]
    assert content["best"] == rows[0][0]
    assert content["command"] == command.replace("--epochs 30", "--epochs 2")
    assert content["finished"] is True


def test_the_command_trains_the_same_config_for_the_epochs_that_are_wanted():
    config = TrainConfig(
        recipe="cutmix(alpha=0.5, per='batch')",
        data="digits",
        data_options={"size": 8, "channels": 1},
        model_options={"drop_rate": 0.1},
        epochs=9,
        augment="crop-flip",
        augment_options={"erase": 0.25},
        optimizer_options={"eps": 1e-6},
        class_weights=(1.0, 2.0),
        channels_last=False,
        compile=True,
        ema=0.9,
    )
    argv = shlex.split(command_of(config, 40))
    read = read_options(TrainConfig, argv[2:], prog="mixwell train", description="", groups=GROUPS)
    assert read == TrainConfig(**{**vars(config), "epochs": 40})


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ((), "needs one budget, epochs or minutes, got neither"),
        (("--epochs", "9", "--minutes", "2"), "got both"),
        (("--epochs", "9", "--recipes", "mixup(alpha=2.0..1.0)"), "must rise, such as 0.1..2.0, got 2.0..1.0"),
        (("--epochs", "9", "--recipes", "mixup"), "take 18 epochs, 9 each"),
        (("--epochs", "9", "--train", "epochs=3"), "epochs does not stand in --train. Give --longest."),
        (("--epochs", "9", "--train", "recipe=mixup"), "Give --recipes."),
        (("--epochs", "9", "--train", "larning_rate=3"), "a training has no field 'larning_rate'"),
        (("--epochs", "9", "--augment-options", "erase=2", "--train", "augment=crop-flip"), "erase must be"),
        (("--epochs", "9", "--optimizer-options", "speed=2", "--recipes", "mixup"), "speed"),
        (("--epochs", "9", "--held-out", "1"), "held_out must be a share in (0, 1)"),
        (("--epochs", "9", "--first", "10"), "first must be a whole number of epochs in [1, 9]"),
        (("--epochs", "9", "--final-epochs", "0"), "final_epochs must be a whole number >= 1"),
    ],
)
def test_a_mistake_is_explained_before_anything_is_trained(run, tmp_path, argv, reason):
    found = run("search", "--data", "digits", *argv, "--out", str(tmp_path / "s"))
    assert found.code == 1
    assert reason in words(found.err)
    assert not (tmp_path / "s").exists()


def test_optuna_is_needed_only_for_ranges_and_asked_for_before_anything_is_trained(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    argv = ("search", *TINY, "--longest", "1", "--epochs", "4", "--out", str(tmp_path / "s"), "--recipes")
    found = run(*argv, "mixup(alpha=0.1..2.0)")
    assert found.code == 1
    assert 'pip install "mixwell[search]"' in words(found.err)
    assert not (tmp_path / "s").exists()
    assert run(*argv, "mixup(alpha=[0.1, 2.0])").code == 0


def test_ctrl_c_leaves_what_the_same_command_goes_on_with(process, run, tmp_path):
    argv = ("search", "--recipes", "mixup", *TINY, "--longest", "8", "--eta", "4", "--epochs", "16", "--out")
    shell = process(*argv, str(tmp_path), environment={"OMP_NUM_THREADS": "1"})
    while not list(tmp_path.glob("*/history.jsonl")):
        assert shell.poll() is None
        time.sleep(0.05)
    shell.send_signal(signal.SIGINT)
    _, told = shell.communicate()
    assert shell.returncode == 130
    assert "Traceback" not in told
    assert "the same command goes on" in words(told)
    found = run(*argv, str(tmp_path), columns=200)
    assert found.code == 0
    assert len(re.findall(r"^(?:none|mixup) +[\d.]+% +8 ", found.out, re.MULTILINE)) == 2
