from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mixwell.cli.commands.evaluate import Part, rows_of
from mixwell.evaluate import PARTS
from mixwell.train import TrainConfig, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(
        recipe="mixup",
        data="digits",
        data_options={"size": 16, "channels": 1},
        epochs=1,
        threads=1,
        out=tmp_path_factory.mktemp("runs") / "run",
    )
    return train(config, progress=False).folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_part_can_be_asked_for():
    assert Part.__args__ == PARTS


def test_it_tells_what_it_found_and_keeps_it(run, folder: Path):
    argv = ("evaluate", str(folder), "--parts", "clean", "attacks", "intrusion", "--images", "20")
    found = run(*argv)
    assert found.code == 0
    assert "Evaluating" in found.err
    assert all(f"{part}: " in found.err for part in ("clean", "attacks", "intrusion"))
    stored = json.loads((folder / "evaluation.json").read_text())
    lines = {" ".join(line.split()[:2]): line for line in found.out.splitlines() if line.split()}
    assert f"{stored['clean']['accuracy']:.2%}" in lines["clean accuracy"]
    assert f"{stored['attacks']['pgd10']:.2%}" in found.out
    assert f"{stored['intrusion']['rate']:.2%}" in lines["intrusion rate"]
    assert "mixup · digits · cnn-s · seed 0" in found.out
    assert max(map(len, found.out.split("All figures")[0].splitlines())) <= 80
    again = run(*argv)
    assert (again.code, again.err, again.out) == (0, "", found.out)


def test_json(run, folder: Path):
    argv = ("evaluate", str(folder), "--parts", "clean", "--json")
    found = run(*argv)
    assert found.code == 0
    one = json.loads(found.out)
    stored = json.loads((folder / "evaluation.json").read_text())
    stored.pop("checksum_of_this")
    assert one == stored
    both = run("evaluate", str(folder), str(folder), "--parts", "clean", "--json")
    assert json.loads(both.out) == [one, one]


def test_several_runs_are_told_one_after_the_other(run, folder: Path):
    found = run("evaluate", str(folder), str(folder), "--parts", "clean", columns=120)
    assert found.out.count("mixup · digits") == 2


def test_a_run_that_cannot_be_evaluated_is_told_before_the_others_are(run, folder: Path, tmp_path: Path):
    found = run("evaluate", str(folder), str(tmp_path / "nowhere"), "--parts", "clean")
    assert (found.code, found.out) == (1, "")
    assert "holds no run.json" in " ".join(found.err.split())
    assert not (folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        ((), 1, "at least one finished run"),
        (("RUN", "--parts", "cleen"), 2, "clean"),
        (("RUN", "--images", "0"), 1, "images"),
    ],
)
def test_mistakes(run, folder: Path, argv: tuple[str, ...], code: int, reason: str):
    found = run("evaluate", *(str(folder) if word == "RUN" else word for word in argv))
    assert (found.code, found.out) == (code, "")
    assert reason in " ".join(found.err.split())
    assert not (folder / "evaluation.json").exists()


def test_other_settings_and_damage_leave_what_is_there(run, folder: Path):
    run("evaluate", str(folder), "--parts", "clean", "occlusion", "--images", "20")
    before = (folder / "evaluation.json").read_bytes()
    found = run("evaluate", str(folder), "--parts", "clean", "--images", "30")
    assert (found.code, found.out) == (1, "")
    assert "under other settings" in " ".join(found.err.split())
    assert (folder / "evaluation.json").read_bytes() == before
    assert run("evaluate", str(folder), "--parts", "clean", "--images", "30", "--anew").code == 0
    (folder / "evaluation.json").write_bytes(before[:-9])
    found = run("evaluate", str(folder), "--parts", "clean")
    assert found.code == 1
    assert "Delete it" in " ".join(found.err.split())


def test_every_part_has_its_rows():
    scores = {name: {"auroc": value, "fpr95": 1 - value} for name, value in (("msp", 0.8), ("energy", 0.9))}
    lower = {name: {**each, "auroc": each["auroc"] - 0.2} for name, each in scores.items()}
    found = {
        "settings": {"attacks": {"images": 9, "pgd10": {"epsilon": 8 / 255, "steps": 10}}},
        "corruptions": {"error": 0.3, "errors": {"fog": [0.1] * 5, "snow": [0.5] * 5}},
        "attacks": {"pgd10": 0.25},
        "ood": {"a": scores, "b": lower, "mean": scores},
        "occlusion": {"ratios": [0.0, 0.5], "accuracies": [0.9, 0.4], "mean": 0.65},
        "intrusion": None,
        "cost": {"seconds_per_step": 0.02, "relative_time": 1.5, "peak_memory_bytes": 2**30, "relative_memory": 1.25},
    }
    rows = {(part, figure): (value, note) for part, figure, value, note in rows_of(found)}
    assert rows["corruptions", "worst"] == ("50.00%", "snow")
    assert rows["attacks", "PGD-10, ε = 8/255"][0] == "25.00%"
    assert rows["ood", "AUROC, energy"] == ("90.00%", "of 2 sets; lowest: b, 70.00%")
    assert "50% 40.0%" in rows["occlusion", ""][1]
    assert rows["intrusion", "mixes"][0] == "–"
    assert rows["cost", "time per step"] == ("20.0 ms", "1.50 × plain training")
    assert rows["cost", "peak memory"] == ("1,024 MiB", "1.25 × plain training")
