"""Runs that are killed, interrupted, run out of disk or rot: what is left, and how they end."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mixwell import RunError
from mixwell.train import train

HARD = {
    "recipe": "transmix",
    "model": "vit-s",
    "model_options": {"proj_drop_rate": 0.2},
    "data_options": {"size": 16, "channels": 1},
    "batch_size": 100,
    "ema": 0.9,
    "accumulate": 2,
    "checkpoint_steps": 3,
    "mix_until": 1.5,
}
"""Everything that a state must hold: dropout, an average, gathered gradients, a switch of recipes."""

DRIVER = """
import json, os, random, resource, signal, sys
from pathlib import Path
from mixwell import RunError, Trainee
from mixwell.train import TrainConfig, train

def config(out):
    values = json.loads(sys.argv[1])
    return TrainConfig(**{**values, "out": Path(out)})

def forked(action):
    '''The exit status of `action` in a process of its own, which starts at once.'''
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(9)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def watched(out, act):
    '''Call act(n) at the n-th moment of a training: each turn, and each file that is opened, moved or removed.'''
    count = 0
    def moment():
        nonlocal count
        count += 1
        act(count)
    forward = Trainee.forward
    def turn(self, *args):
        moment()
        return forward(self, *args)
    Trainee.forward = turn
    def audit(event, args):
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and out in str(args[0]):
            moment()
    sys.addaudithook(audit)
    train(config(out), progress=False)
    return count
"""

KILLED = """
moments = random.Random(0)
total = Path("total")
def whole():
    total.write_text(str(watched("whole", lambda n: None)))
assert forked(whole) == 0
total, kills = int(total.read_text()), 0
while kills < 100:
    # Early enough to strike again and again, late enough to get on.
    at = moments.randint(1, total // 3) if kills < 5 else total + 1
    def strike(n, at=at):
        if n == at:
            os.kill(os.getpid(), signal.SIGKILL)
    status = forked(lambda: watched("killed", strike))
    if status == 0:
        break
    assert status == signal.SIGKILL, status
    kills += 1
print(json.dumps({"kills": kills, "total": total}))
"""

FULL = """
def limited(size):
    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(config("full"), progress=False)
    return run
def interrupted():
    def strike(n):
        if n == 60:
            os.kill(os.getpid(), signal.SIGKILL)
    watched("full", strike)
statuses = [forked(interrupted), forked(limited(20_000))]
left = sorted(str(path) for path in Path("full").rglob("*") if path.is_file())
statuses.append(forked(lambda: train(config("full"), progress=False)))
forked(lambda: train(config("whole"), progress=False))
print(json.dumps({"statuses": statuses, "left": left}))
"""


def drive(script, quick, tmp_path):
    values = {name: value for name, value in quick(**HARD).to_json().items() if name != "out"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER + script, json.dumps(values)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_run_killed_at_five_random_moments_ends_as_one_that_was_not(quick, tmp_path, outcome):
    told, _ = drive(KILLED, quick, tmp_path)
    assert told["kills"] == 5
    assert told["total"] > 50
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_a_full_disk_leaves_the_last_state_whole_and_the_same_command_resumes(quick, tmp_path, outcome):
    told, errors = drive(FULL, quick, tmp_path)
    killed, full, resumed = told["statuses"]
    assert killed == signal.SIGKILL
    assert full != 0
    assert resumed == 0
    assert "RunError" in errors
    assert "free space" in errors
    assert not [path for path in told["left"] if path.endswith(".tmp")]
    assert any(path.endswith(".pt") for path in told["left"])
    assert outcome(tmp_path / "full") == outcome(tmp_path / "whole")


def test_a_run_that_is_stopped_after_an_epoch_goes_on_there_and_ends_as_one_that_was_not(quick, digits, outcome, turns):
    config, asked = quick(recipe="cutmix", epochs=4), []

    def stop(record):
        asked.append(record["epoch"])
        return record["epoch"] == 2

    so_far = train(config, dataset=digits, progress=False, stop=stop)
    assert asked == [1, 2]
    assert len(so_far.history) == 2
    assert so_far.accuracy == so_far.history[-1]["accuracy"]
    assert json.loads((config.folder / "run.json").read_text())["status"] == "running"
    assert not (config.folder / "weights.safetensors").exists()
    assert len(turns) == 2 * 6
    result = train(config, dataset=digits, progress=False, stop=stop)
    assert asked == [1, 2, 3]
    assert len(turns) == 4 * 6
    assert result.history[:2] == so_far.history
    whole = quick("whole", recipe="cutmix", epochs=4)
    train(whole, dataset=digits, progress=False)
    assert outcome(config.folder) == outcome(whole.folder)


def test_an_interrupted_run_says_how_to_go_on_and_does(quick, digits, outcome, stops, capsys):
    changes = {**HARD, "data_options": {}, "batch_size": 25}
    train(quick("whole", **changes), dataset=digits, progress=False)
    stops(9, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(quick(**changes), dataset=digits)
    assert "The state of step 8 is saved" in capsys.readouterr().err
    train(quick(**changes), dataset=digits)
    assert "Resumes" in capsys.readouterr().err
    assert outcome(quick().folder) == outcome(quick("whole").folder)


@pytest.fixture
def broken_off(quick, digits, stops):
    """A run that stopped after eight steps."""
    stops(8, lambda: signal.raise_signal(signal.SIGINT))
    config = quick(checkpoint_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset=digits, progress=False)
    return config


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "truncate", "remove"])
@pytest.mark.parametrize("pattern", ["run.json", "state/latest.json", "state/*.pt"])
def test_a_damaged_file_is_named_with_what_to_do(broken_off, digits, pattern, damage):
    (path,) = broken_off.folder.glob(pattern)
    damage(path)
    if not path.exists() and path.suffix == ".json":
        # Without run.json it is no run; without the pointer there is no state, as before the first was written.
        if path.name == "run.json":
            with pytest.raises(RunError, match=r"no run\.json"):
                train(broken_off, dataset=digits, progress=False)
        else:
            assert len(train(broken_off, dataset=digits, progress=False).history) == broken_off.epochs
        return
    before = {each: each.read_bytes() for each in broken_off.folder.rglob("*") if each.is_file()}
    with pytest.raises(RunError, match=rf"{path.name}.*(delete the folder)"):
        train(broken_off, dataset=digits, progress=False)
    assert before == {each: each.read_bytes() for each in broken_off.folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("name", ["history.jsonl", "weights.safetensors"])
def test_damage_of_a_finished_run_is_named(quick, digits, flat, name):
    train(quick(), dataset=digits, model=flat(), progress=False)
    truncate(quick().folder / name)
    with pytest.raises(RunError, match=name):
        train(quick(), dataset=digits, model=flat(), progress=False)


def test_a_torn_line_of_the_history_is_mended(broken_off, digits, outcome, quick):
    path = broken_off.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    train(broken_off, dataset=digits, progress=False)
    train(quick("whole"), dataset=digits, progress=False)
    assert outcome(broken_off.folder) == outcome(quick("whole").folder)


def test_another_config_in_the_folder_is_refused_by_the_fields_that_differ(broken_off, quick, digits):
    with pytest.raises(RunError, match=r"lr is 0\.2, was 0\.05; seed is 3, was 0"):
        train(quick(lr=0.2, seed=3), dataset=digits, progress=False)
    with pytest.raises(RunError, match="few digits"):
        train(quick(), progress=False)


def test_what_does_not_change_the_training_may_change(broken_off, quick, digits, outcome):
    train(quick(workers=1, checkpoint_seconds=0.0), dataset=digits, progress=False)
    train(quick("whole"), dataset=digits, progress=False)
    assert outcome(quick().folder) == outcome(quick("whole").folder)


def test_a_folder_that_is_no_run_is_left_alone(quick, digits):
    folder = quick().folder
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        train(quick(), dataset=digits, progress=False)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_state_is_not_unpickled(broken_off, digits, tmp_path):
    """Even with a checksum that fits: weights_only is what refuses code."""
    import hashlib
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (path,) = broken_off.folder.glob("state/*.pt")
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    pointer = {"file": path.name, "checksum": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}
    text = (json.dumps(pointer, indent=2, sort_keys=True) + "\n").encode()
    pointer["checksum_of_this"] = hashlib.blake2b(text, digest_size=16).hexdigest()
    (broken_off.folder / "state" / "latest.json").write_text(json.dumps(pointer))
    with pytest.raises(RunError, match="cannot be read"):
        train(broken_off, dataset=digits, progress=False)
    assert not (tmp_path / "owned").exists()
