"""Leaderboards: ranks, best figures, paired differences, verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mixwell.report import METRICS, Board, Row, boards_of, paired, picks, rows_of, summary
from mixwell.train import Run

Finished = Callable[..., Run]
BY_KEY = {metric.key: metric for metric in METRICS}
NONE, BETTER, WORSE = (0.70, 0.71, 0.72), (0.80, 0.815, 0.82), (0.60, 0.61, 0.63)


def seeds(finished: Finished, recipe: str, values: tuple[float, ...], **facts: Any) -> list[Run]:
    return [finished(recipe, seed, accuracy=value, **facts) for seed, value in enumerate(values)]


def board_of(runs: list[Run]) -> Board:
    (board,) = boards_of(rows_of(runs))
    return board


def row_of(board: Board, recipe: str) -> Row:
    return next(row for row in board.rows if row.recipe == recipe)


def test_paired_differences_are_those_of_a_paired_t_test(finished: Finished) -> None:
    board = board_of([*seeds(finished, "none", NONE), *seeds(finished, "mixup", BETTER)])
    found = paired(row_of(board, "mixup"), row_of(board, "none"), "accuracy")
    test = stats.ttest_rel(BETTER, NONE).confidence_interval(0.95)
    assert found is not None
    assert found.margin is not None
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((test.low, test.high))
    assert found.certain


def test_only_shared_seeds_are_compared(finished: Finished) -> None:
    runs = [finished("none", 0, accuracy=0.5), finished("none", 3, accuracy=0.6), finished("mixup", 3, accuracy=0.9)]
    board = board_of([*runs, finished("cutmix", 7)])
    found = board.against(row_of(board, "mixup"), BY_KEY["accuracy"])
    assert found is not None
    assert (found.mean, found.margin, found.certain) == (pytest.approx(0.3), None, False)
    assert board.against(row_of(board, "cutmix"), BY_KEY["accuracy"]) is None
    assert board.against(row_of(board, "none"), BY_KEY["accuracy"]) is None


def test_ranks_hold_within_a_setting_and_are_shared_by_equals(finished: Finished) -> None:
    runs = [finished(recipe, accuracy=value) for recipe, value in (("none", 0.7), ("mixup", 0.9), ("cutmix", 0.9))]
    large, small = boards_of(rows_of([finished("mixup", accuracy=0.95, model="vit-s"), *runs]))
    assert large.ranks == {"mixup": 1, "cutmix": 1, "none": 3}
    assert [row.recipe for row in large.rows] == ["mixup", "cutmix", "none"]
    assert (small.ranks, small.setting, small.reference) == ({"mixup": 1}, {"model": "vit-s"}, None)


def test_best_follows_the_direction_of_the_metric(finished: Finished) -> None:
    board = board_of([finished("none", ece=0.02, nll=0.7), finished("mixup", ece=0.04, nll=float("nan"))])
    assert [board.is_best(row, BY_KEY["ece"]) for row in board.rows] == [row.recipe == "none" for row in board.rows]
    assert board.best(BY_KEY["nll"]) is row_of(board, "none")
    assert not any(board.is_best(row, BY_KEY["accuracy"]) for row in board.rows)  # all are equal


def test_the_mean_rank_is_over_the_main_metrics(finished: Finished, evaluation: Callable[..., Any]) -> None:
    errors = [{"error": error, "errors": {}} for error in (0.3, 0.2, 0.1)]
    runs = [
        finished(recipe, accuracy=accuracy, evaluation=evaluation(corruptions=told))
        for recipe, accuracy, told in zip(("none", "mixup", "cutmix"), (0.9, 0.8, 0.7), errors, strict=True)
    ]
    board = board_of(runs)
    assert len(board.main) == 7
    # accuracy and corruptions order the three, in all else they are equal
    assert board.mean_ranks == {
        "none": pytest.approx(9 / 7),
        "mixup": pytest.approx(9 / 7),
        "cutmix": pytest.approx(9 / 7),
    }
    partly = board_of([*runs, finished("fmix")])
    assert set(partly.mean_ranks) == {"none", "mixup", "cutmix"}
    assert board_of([finished(recipe, 1) for recipe in ("none", "mixup", "cutmix")]).mean_ranks == {}


def test_picks_name_what_is_best_for_what(finished: Finished, evaluation: Callable[..., Any]) -> None:
    def cost(time: float) -> Any:
        return evaluation(cost={"relative_time": time, "relative_memory": 1.0})

    board = board_of(
        [
            *seeds(finished, "none", NONE, evaluation=cost(1.0)),
            *seeds(finished, "mixup", tuple(value + 0.03 for value in NONE), ece=0.01, evaluation=cost(1.1)),
            *seeds(finished, "cutmix", BETTER, evaluation=cost(3.0)),
            *seeds(finished, "fmix", tuple(np.subtract(BETTER, (0.02, 0, -0.01))), evaluation=cost(2.0)),
        ]
    )
    found = {pick.purpose: pick for pick in picks(board)}
    assert found["Most accurate"].row.recipe == "cutmix"
    assert found["Most accurate"].figure == "Accuracy 81.17 ± 2.59%"
    assert found["Most accurate"].difference == "+10.17 ± 0.72 points against none"
    assert found["Most accurate"].level == "Not told apart from it: fmix."
    assert found["Most accurate at little cost"].row.recipe == "mixup"
    assert "1.10× the time of none" in found["Most accurate at little cost"].figure
    assert found["Best calibrated"].row.recipe == "mixup"
    assert picks(board_of([finished("none", 9)])) == []


def test_the_summary_counts_what_the_seeds_can_tell(finished: Finished) -> None:
    unclear = (0.60, 0.71, 0.83)
    runs = [*seeds(finished, "none", NONE), *seeds(finished, "mixup", BETTER), *seeds(finished, "cutmix", WORSE)]
    text = summary(board_of([*runs, *seeds(finished, "fmix", unclear)]))
    assert text.startswith("Of 3 recipes, 1 are more accurate than none and 1 less; 1 cannot be told apart")
    assert "one seed" in summary(board_of([finished("none"), finished("mixup")]))
    assert "no run of none" in summary(board_of([finished("cutmix"), finished("mixup")]))
    assert "one recipe only" in summary(board_of([finished("mixup")]))
