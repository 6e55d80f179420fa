"""Leaderboards as CSV and Markdown hold the runs' figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from mixwell.report import boards_of, csv_table, markdown_table, rows_of
from mixwell.train import Run

Finished = Callable[..., Run]


@pytest.fixture
def boards(finished: Finished, evaluation: Callable[..., Any]) -> Any:
    runs = [finished("0.5*mixup | 0.5*cutmix", seed, accuracy=0.8 + seed / 100, ece=0.03) for seed in (0, 1, 2)]
    return boards_of(
        rows_of([*runs, finished("none", accuracy=0.7), finished("none", model="vit-s", evaluation=evaluation())])
    )


def test_csv_can_be_read_back(boards: Any) -> None:
    switch, none, vit = csv.DictReader(io.StringIO(csv_table(boards)))
    assert (switch["recipe"], switch["model"], switch["rank"], switch["seeds"]) == (
        "0.5*mixup | 0.5*cutmix",
        "cnn-s",
        "1",
        "3",
    )
    assert float(switch["accuracy"]) == pytest.approx(0.81)
    # t(0.975, 2 degrees of freedom) = 4.3027, from printed tables
    assert float(switch["accuracy_margin"]) == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert (none["rank"], none["accuracy_margin"], none["corruption_error"]) == ("2", "", "")
    assert (vit["model"], vit["rank"], float(vit["corruption_error"])) == ("vit-s", "1", 0.3)


def test_markdown_has_a_table_per_setting(boards: Any) -> None:
    lines = markdown_table(boards).splitlines()
    assert lines[0] == "model cnn-s"
    assert lines[2].startswith("| Rank | Recipe | Accuracy, % | NLL, nats | ECE, % |")
    assert lines[4].startswith("| 1 | `0.5*mixup \\| 0.5*cutmix` | **81.00 ± 2.48** |")
    assert lines[5].startswith("| 2 | `none` (reference) | 70.00 |")
    assert "model vit-s" in lines
    assert "Corruption error, %" in lines[lines.index("model vit-s") + 2]
    counts = {line.replace("\\|", "").count("|") for line in lines[2:6]}
    assert len(counts) == 1
