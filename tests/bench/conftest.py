"""Benches of a second or two, an evaluation that notes how it is called, and killers."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import mixwell.evaluate
from mixwell.bench import read_bench
from mixwell.train import TIME_FIELDS, RunFolder

TINY = """
out = "cells"
[train]
data = "digits"
data_options = {{ size = 8, channels = 1 }}
epochs = {epochs}
batch_size = 200
threads = 1
"""

PARTS = ("clean", "ood", "cost")


@pytest.fixture
def tiny(tmp_path):
    """Makes a bench of this text, with digits of 8×8."""

    def make(text, changes=None, *, epochs=1, folder="bench"):
        path = tmp_path / folder / "tiny.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(TINY.format(epochs=epochs) + text)
        return read_bench(path, changes)

    return make


@pytest.fixture
def evaluations(monkeypatch):
    """The calls of a stand-in for `evaluate_run`, whose figures follow from the weights."""
    calls = []

    def evaluate_run(path, *, parts=PARTS, seed=0, images=None, anew=False):
        calls.append({"path": Path(path), "parts": list(parts), "seed": seed, "images": images})
        weights = (Path(path) / "weights.safetensors").read_bytes()
        found = {"clean": {"accuracy": sum(weights) / 1e9}, "ood": {"auroc": seed}, "cost": {"seconds": time.time()}}
        settings = {"parts": list(parts), "seed": seed, "images": images}
        told = {"format": 1, "settings": settings, **{part: found[part] for part in parts}}
        RunFolder(Path(path)).write_evaluation(told)
        return told

    monkeypatch.setattr(mixwell.evaluate, "evaluate_run", evaluate_run, raising=False)
    return calls


@pytest.fixture
def results():
    """What all cells of a bench came to, without times."""

    def read(bench):
        found = {}
        for cell in bench.cells:
            run = json.loads((cell.folder / "run.json").read_text())
            history = [json.loads(line) for line in (cell.folder / "history.jsonl").read_text().splitlines()]
            lines = [{name: value for name, value in line.items() if name not in TIME_FIELDS} for line in history]
            result = {name: value for name, value in run["result"].items() if name != "seconds_per_epoch"}
            found[cell.name] = (result, run["files"], lines)
        return found

    return read


@pytest.fixture
def killed():
    """Kills whoever works on a cell, once it has finished so many epochs; gives the list of the processes killed."""
    threads = []

    def arm(cell, epochs=1, times=1):
        struck = []

        def strike():
            deadline = time.monotonic() + 50
            while len(struck) < times and time.monotonic() < deadline:
                time.sleep(0.005)
                try:
                    process = json.loads(cell.lock.read_text())["process"]
                    done = len((cell.folder / "history.jsonl").read_text().splitlines()) if epochs else 0
                except (OSError, ValueError):
                    continue
                if process != os.getpid() and process not in struck and done >= epochs:
                    os.kill(process, signal.SIGKILL)
                    struck.append(process)

        threads.append(threading.Thread(target=strike, daemon=True))
        threads[-1].start()
        return struck

    yield arm
    for thread in threads:
        thread.join()
