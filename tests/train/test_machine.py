"""Where a run was trained, and in what this machine differs from that."""

import signal

import pytest
import torch

from mixwell.train import RunFolder, train
from mixwell.train.machine import changes, here

CPU = torch.device("cpu")


def test_here_nothing_has_changed():
    assert changes(here(CPU), {**here(CPU), "status": "running"}) == []


def test_each_change_is_told_with_both_values():
    now = here(CPU)
    then = {**now, "threads": 99, "processor": "abacus", "versions": {**now["versions"], "torch": "0"}}
    torch_version, threads = now["versions"]["torch"], now["threads"]
    assert changes(now, then) == [
        f"torch is {torch_version!r}, was '0'",
        f"processor is {now['processor']!r}, was 'abacus'",
        f"threads is {threads}, was 99",
    ]


def test_a_run_that_does_not_tell_its_processor_had_any():
    then = here(CPU)
    del then["processor"]
    assert changes(here(CPU), then) == []


def test_a_run_that_is_resumed_elsewhere_says_so(quick, digits, stops, capsys):
    changed = {"batch_size": 25, "checkpoint_steps": 4}
    stops(9, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(quick(**changed), dataset=digits, progress=False)
    folder = RunFolder(quick(**changed).folder)
    folder.begin({**folder.run(), "processor": "abacus"})
    capsys.readouterr()
    train(quick(**changed), dataset=digits)
    said = " ".join(capsys.readouterr().err.split())
    assert "It may not end bit for bit as it would have: processor is" in said
    assert "was 'abacus'" in said
