"""Rows of a report: grouping, intervals, relative times, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mixwell import RunError
from mixwell.report import Estimate, Run, rows_of

Finished = Callable[..., Run]


def test_rows_hold_what_the_runs_hold(finished: Finished) -> None:
    runs = [finished("none", accuracy=0.71, seconds=2.0), finished("cutmix", accuracy=0.73, nll=0.51, seconds=3.0)]
    none, cutmix = rows_of(runs)
    assert [none.recipe, cutmix.recipe] == ["none", "cutmix"]
    assert (cutmix.accuracy, cutmix.nll) == (Estimate(0.73, None), Estimate(0.51, None))
    assert (none.relative, cutmix.relative) == (1.0, 1.5)
    assert cutmix.curve("accuracy") == pytest.approx([0.53, 0.63, 0.73])


def test_seeds_become_one_row_with_an_interval(finished: Finished) -> None:
    runs = [finished("mixup", seed, accuracy=accuracy) for seed, accuracy in enumerate((0.70, 0.72, 0.77))]
    (row,) = rows_of(runs)
    # t(0.975, 2 degrees of freedom) = 4.3027, from printed tables
    deviation = math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2)
    assert row.accuracy.mean == pytest.approx(0.73)
    assert row.accuracy.margin == pytest.approx(4.3027 * deviation / math.sqrt(3), rel=1e-4)
    assert row.curve("accuracy")[-1] == pytest.approx(0.73)
    assert row.relative is None


def test_times_are_relative_to_plain_training_in_the_same_setting(finished: Finished) -> None:
    runs = [
        finished("none", epochs=3, seconds=2.0),
        finished("none", epochs=3, seconds=8.0, model="vit-s"),
        finished("mixup", epochs=3, seconds=12.0, model="vit-s"),
    ]
    rows = rows_of(runs)
    assert [row.relative for row in rows] == [1.0, 1.0, 1.5]
    assert [row.setting for row in rows] == [{"model": "cnn-s"}, {"model": "vit-s"}, {"model": "vit-s"}]


def test_fields_that_some_epochs_lack_are_left_out_of_curves(finished: Finished) -> None:
    (row,) = rows_of([finished()])
    assert row.curve("mixer/loss") == [None, None, None]


def test_refusals(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least one finished run"):
        rows_of([])
    run = finished()
    with pytest.raises(RunError, match="same run twice"):
        rows_of([run, run])
    with pytest.raises(RunError, match="unfinished"):
        finished("mixup", status="running")
    with pytest.raises(RunError, match=r"no run\.json"):
        Run.read(tmp_path / "elsewhere")
