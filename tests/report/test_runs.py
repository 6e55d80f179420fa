"""Rows of a report: grouping, intervals, relative times, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixwell import RunError
from mixwell.report import Estimate, find_runs, rows_of
from mixwell.train import Run

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


def test_evaluations_are_read_and_their_absence_is_none(finished: Finished, evaluation: Callable[..., Any]) -> None:
    told = evaluation(attacks=None, intrusion=None)
    assert finished("mixup", evaluation=told).evaluation == told
    assert finished("cutmix").evaluation is None
    mixup, cutmix = rows_of([finished("mixup", 1, evaluation=told), finished("cutmix", 1)])
    assert mixup.estimate("corruption_error") == Estimate(0.3, None)
    assert mixup.estimate("ood_energy") == Estimate(0.85, None)
    assert [mixup.estimate(name) for name in ("fgsm", "intrusion")] == [None, None]
    assert (cutmix.estimate("corruption_error"), cutmix.reliability, cutmix.mean("corruptions", "errors")) == (
        None,
    ) * 3


def test_a_damaged_evaluation_is_told(finished: Finished, evaluation: Callable[..., Any]) -> None:
    path = finished(evaluation=evaluation()).folder / "evaluation.json"
    path.write_text(path.read_text().replace("0.85", "0.95", 1))
    with pytest.raises(RunError, match=r"evaluation\.json is damaged or was edited"):
        find_runs([path.parent])


def test_figures_are_means_over_the_seeds_that_have_them(finished: Finished, evaluation: Callable[..., Any]) -> None:
    tellings = [
        evaluation(corruptions={"error": 0.2, "errors": {"fog": [0.1, 0.3]}}),
        None,
        evaluation(corruptions={"error": 0.4, "errors": {"fog": [0.3, 0.5]}}),
    ]
    (row,) = rows_of([finished("mixup", seed, evaluation=told) for seed, told in enumerate(tellings)])
    assert row.values["corruption_error"] == {0: 0.2, 2: 0.4}
    found = row.estimate("corruption_error")
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert row.mean("corruptions", "errors") == {"fog": pytest.approx([0.2, 0.4])}
    assert row.mean("intrusion", "by_lam")[1]["rate"] is None


def test_reliability_is_that_of_all_predictions_together(finished: Finished, evaluation: Callable[..., Any]) -> None:
    seeds = [
        {"counts": [0, 10, 30], "confidences": [0.0, 0.5, 0.9], "accuracies": [0.0, 0.4, 0.8]},
        {"counts": [0, 30, 10], "confidences": [0.0, 0.6, 0.8], "accuracies": [0.0, 0.8, 0.4]},
    ]
    (row,) = rows_of([finished("mixup", i, evaluation=evaluation(reliability=each)) for i, each in enumerate(seeds)])
    pooled = row.reliability
    assert pooled is not None
    assert pooled.counts == (0, 40, 40)
    assert pooled.confidences == pytest.approx((0, 0.575, 0.875))
    assert pooled.accuracies == pytest.approx((0, 0.7, 0.7))


def test_seeds_must_be_evaluated_alike(finished: Finished, evaluation: Callable[..., Any]) -> None:
    few = evaluation(settings={"parts": ["clean"], "seed": 0, "images": 100})
    part = evaluation(settings={"parts": ["ood"], "seed": 0, "images": None})
    runs = [finished("mixup", 0, evaluation=evaluation()), finished("mixup", 1, evaluation=part)]
    assert len(rows_of(runs)) == 1
    with pytest.raises(RunError, match="images is 100, was None"):
        rows_of([*runs, finished("mixup", 2, evaluation=few)])


def test_every_finished_run_below_is_found_once(finished: Finished, run_in: Finished, tmp_path: Path) -> None:
    runs = [finished("none"), run_in(tmp_path / "deep" / "er", "cutmix", 1)]
    with pytest.raises(RunError, match="unfinished"):
        run_in(tmp_path / "deep", "mixup", status="running")
    found = find_runs([tmp_path, tmp_path / "deep", runs[0].folder])
    assert {run.folder for run in found.runs} == {run.folder for run in runs}
    assert len(found.runs) == 2
    (unfinished,) = found.unfinished
    assert unfinished.parent == tmp_path / "deep"
    (tmp_path / "bare").mkdir()
    with pytest.raises(RunError, match="there is no run in"):
        find_runs([tmp_path / "bare"])
    with pytest.raises(RunError, match=r"only unfinished runs \(1\)"):
        find_runs([unfinished])
    with pytest.raises(RunError, match="There is no folder"):
        find_runs([tmp_path / "elsewhere"])
