from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

import mixwell.evaluate
from mixwell.train import TrainConfig, train

TINY = ("--data", "digits", "--epochs", "1", "--train", "threads=1", "batch_size=200")
REPOSITORY = Path(__file__).parents[2]


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_bench_of_options_is_planned_trained_and_verified(run, tmp_path):
    argv = ("bench", "--recipes", "none", "mixup(alpha=0.5)", *TINY, "--seeds", "0", "1", "--out", str(tmp_path))
    plan = run(*argv, "--dry-run")
    assert plan.code == 0
    assert plan.err == ""
    assert not list(tmp_path.iterdir())
    assert re.search(r"^none +digits +cnn-s +0 1: to do", plan.out, re.MULTILINE)
    assert "4 cells in" in plan.out
    assert "0 done, 4 to do" in words(plan.out)
    found = run(*argv)
    assert found.code == 0
    assert found.err.count(" done ") == 4
    assert "4 of 4 cells are finished" in found.out
    folders = sorted(path.name for path in tmp_path.iterdir())
    same = TrainConfig(recipe="mixup(alpha=0.5)", data="digits", epochs=1, batch_size=200, seed=1)
    assert folders[1] == same.folder.name
    again = run(*argv)
    assert (again.code, again.err) == (0, "")
    assert re.search(r"^mixup\(alpha=0\.5\) +digits +cnn-s +0 1: done", again.out, re.MULTILINE)
    verified = run(*argv, "--verify", "1", "--verify-seed", "3")
    assert verified.code == 0
    assert "the same to the last digit" in verified.out
    assert "1 cells trained again" in verified.out


def test_a_figure_that_cannot_be_had_again_is_a_miss(run, tmp_path):
    argv = ("bench", "--recipes", "none", *TINY, "--out", str(tmp_path))
    assert run(*argv).code == 0
    (cell,) = tmp_path.iterdir()
    record = json.loads((cell / "history.jsonl").read_text())
    (cell / "history.jsonl").write_text(json.dumps({**record, "loss": 1.0}) + "\n")
    found = run(*argv, "--verify", "1")
    assert found.code == 1
    assert f"history[0].loss is {record['loss']!r}, was 1.0" in found.out
    assert "1 cells differ" in found.out


def test_a_file_is_restricted_and_changed_by_options(run, tmp_path):
    path = tmp_path / "some.toml"
    path.write_text('title = "Some"\nseeds = [0, 1, 2]\n[[cells]]\nrecipes = ["none", "mixup"]\ndata = ["digits"]\n')
    plan = run("bench", str(path), "--dry-run", "--recipes", "mixup", "--seeds", "7", "--epochs", "2")
    assert plan.code == 0
    assert plan.out.startswith("Some")
    assert re.search(r"^mixup +digits +cnn-s +7: to do", plan.out, re.MULTILINE)
    assert f"1 cells in {tmp_path / 'some'}: 0 done, 1 to do" in words(plan.out)


def test_cells_that_fail_are_reported_and_the_exit_code_says_so(run, tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(
        '[train]\ndata = "digits"\nepochs = 1\nthreads = 1\n'
        '[[cells]]\nrecipes = [{ recipe = "none", lr = 1e30 }, "mixup"]\n'
    )
    found = run("bench", str(path))
    assert found.code == 1
    assert "1 of 2 cells failed; the same command tries them again" in found.out
    assert "none, digits, cnn-s, seed 0: loss is not finite" in found.out
    assert "1 of 2 cells are finished" in found.out


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ((), "needs a FILE, or recipes"),
        (("nowhere.toml",), "nowhere.toml cannot be read"),
        (("--recipes", "cutmx", "transmix", *TINY), "did you mean 'cutmix'"),
        (("--recipes", "none", *TINY, "--jobs", "0"), "jobs must be a whole number >= 1"),
        (("--recipes", "none", *TINY, "--ray", "--jobs", "2"), "no --jobs"),
        (("--recipes", "none", *TINY, "--verify", "0"), "verify must be a whole number >= 1"),
        (("--recipes", "none", *TINY, "--verify", "1"), "nothing to verify"),
    ],
)
def test_a_mistake_is_explained_before_anything_is_trained(run, tmp_path, argv, reason):
    found = run("bench", *argv, "--out", str(tmp_path / "cells"))
    assert found.code == 1
    assert reason in words(found.err)
    assert not (tmp_path / "cells").exists()


def test_the_same_command_in_two_shells_shares_the_work(process, tmp_path):
    argv = ("bench", "--recipes", "none", "mixup", "cutmix", *TINY, "--epochs", "2", "--out", str(tmp_path / "cells"))
    shells = [process(*argv, environment={"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    told = [shell.communicate() for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], told
    done = re.findall(r"\] done   (\w+), digits, cnn-s, seed 0: accuracy", told[0][1] + told[1][1])
    assert sorted(done) == ["cutmix", "mixup", "none"]
    assert all("3 of 3 cells are finished" in out for out, _ in told)
    for cell in sorted((tmp_path / "cells").iterdir()):
        assert sorted(path.name for path in cell.iterdir()) == ["history.jsonl", "run.json"]
        loss = json.loads((cell / "history.jsonl").read_text().splitlines()[-1])["loss"]
        recipe = json.loads((cell / "run.json").read_text())["config"]["recipe"]
        config = TrainConfig(recipe=recipe, data="digits", epochs=2, batch_size=200, threads=1, out=tmp_path / recipe)
        assert train(config, progress=False).history[-1]["loss"] == loss


def test_ctrl_c_stops_workers_and_says_what_remains(process, tmp_path):
    argv = ("bench", "--recipes", "none", "mixup", *TINY, "--epochs", "300", "--out", str(tmp_path), "--jobs", "2")
    shell = process(*argv, environment={"OMP_NUM_THREADS": "1"})
    while not list(tmp_path.glob("*/history.jsonl")):
        assert shell.poll() is None, shell.communicate()
        time.sleep(0.1)
    shell.send_signal(signal.SIGINT)
    _, err = shell.communicate(timeout=60)
    assert shell.returncode == 130
    assert "Interrupted. 2 of 2 cells remain; the same command goes on with them." in err
    assert not list(tmp_path.glob("*.lock"))
    statuses = [
        json.loads((path.parent / "run.json").read_text())["status"] for path in tmp_path.glob("*/history.jsonl")
    ]
    assert set(statuses) == {"running"}


@pytest.mark.skipif(not hasattr(mixwell.evaluate, "evaluate_run"), reason="needs mixwell.evaluate.evaluate_run")
@pytest.mark.parametrize("path", sorted((REPOSITORY / "results").glob("*.toml")), ids=lambda path: path.stem)
def test_the_benches_of_the_repository_can_be_run(run, tmp_path, path):
    found = run("bench", str(path), "--dry-run", "--out", str(tmp_path))
    assert found.code == 0
    assert re.search(r"0 done, \d+ to do", words(found.out))
