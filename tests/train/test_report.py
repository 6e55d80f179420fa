"""What is said while something is made before a training."""

from __future__ import annotations

import pytest

from mixwell.train import report
from mixwell.train.report import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    return now


def test_where_there_is_no_bar_a_line_a_minute_says_how_long_it_takes(clock: list[float], capsys):
    reporter = Reporter(True)
    reporter.making("edited images", 10, 100)
    for second in range(1, 91):
        clock[0] = 100 + second
        reporter.making("edited images", 10 + second // 3, 100)
    reporter.making("teacher", 0, 5)
    reporter.close()
    assert capsys.readouterr().err.splitlines() == [
        "Making the edited images, once for these images.",
        "edited images: 30 of 100, 3:30 left",  # 20 in a minute, 70 to come
        "Making the teacher, once for these images.",
    ]


def test_a_silent_one_says_nothing(clock: list[float], capsys):
    reporter = Reporter(False)
    for done in range(4):
        clock[0] += 100
        reporter.making("teacher", done, 3)
    reporter.close()
    assert capsys.readouterr().err == ""
