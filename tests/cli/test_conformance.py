from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden(tmp_path):
    """A folder with mixup's golden file."""
    shutil.copy(GOLDEN / "mixup.npz", tmp_path / "mixup.npz")
    return tmp_path


def test_agreement(run, golden):
    found = run("conformance", "--golden", str(golden))
    assert (found.code, found.err) == (0, "")
    (row,) = [line.split() for line in found.out.splitlines() if line.startswith("mixup")]
    with np.load(golden / "mixup.npz") as arrays:
        assert 0 < int(row[1]) <= len(arrays.files)
    assert row[-3:] == ["official", "code", "ok"]
    assert "1 of 1 agree." in found.out


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_lists_the_arrays(run, golden, flag):
    short, long = (run("conformance", "--golden", str(golden), *extra).out for extra in ((), (flag,)))
    assert "close(" not in short
    assert any(line.split()[:1] == ["loss"] and "close(" in line for line in long.splitlines())


def test_a_miss_exits_1_and_names_the_array(run, golden):
    with np.load(golden / "mixup.npz") as archive:
        arrays = dict(archive)
    arrays["loss"] = arrays["loss"] + 1
    np.savez(golden / "mixup.npz", **arrays)
    found = run("conformance", "--golden", str(golden))
    assert found.code == 1
    assert "MISS" in found.out
    assert "mixup missed\n  loss: " in found.out
    assert "0 of 1 agree." in found.out


def test_a_missing_folder(run, tmp_path):
    found = run("conformance", "--golden", str(tmp_path / "nowhere"))
    assert (found.code, found.out) == (1, "")
    assert "nowhere" in found.err
