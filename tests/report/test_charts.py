"""Geometry of line charts."""

from __future__ import annotations

import pytest

from mixwell.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart


@pytest.mark.parametrize(
    "values", [[0.31, 0.62, 0.9], [2.0, 2.0, 2.0], [0.0], [-3.0, 1e4], [1e-4, 3e-4], [None, 0.5, None, 0.7]]
)
@pytest.mark.parametrize("percent", [False, True])
def test_points_lie_inside_and_in_proportion(values: list[float | None], percent: bool) -> None:
    chart = line_chart("t", {"a": values}, percent=percent)
    (line,) = chart.lines
    known = [value for value in values if value is not None]
    assert len(line.points) == len(known)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y, _ in line.points)
    ticks = [(tick.place, float(tick.label.rstrip("%")) / (100 if percent else 1)) for tick in chart.y_ticks]
    assert 2 <= len(ticks) <= 8
    assert len({tick.label for tick in chart.y_ticks}) == len(ticks)
    (low_y, low), (high_y, high) = ticks[0], ticks[-1]
    for (_, y, _), value in zip(line.points, known, strict=True):
        assert y == pytest.approx(low_y + (value - low) / (high - low) * (high_y - low_y), abs=0.1)


def test_epochs_run_from_left_to_right() -> None:
    chart = line_chart("t", {"a": [1.0, 2.0, 3.0], "b": [1.0]})
    assert [x for x, _, _ in chart.lines[0].points] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert chart.lines[1].points[0][0] == LEFT
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]


def test_a_wild_beginning_does_not_flatten_the_rest() -> None:
    chart = line_chart("t", {"a": [9.0, 0.5, 0.48, 0.47, 0.46], "b": [0.6, 0.5, 0.49, 0.45, 0.44]})
    heights = [y for line in chart.lines for _, y, _ in line.points]
    assert heights[0] < 0
    assert max(heights[1:5]) - min(heights[1:5]) > (HEIGHT - TOP - BOTTOM) / 2
    assert chart.values["a"][0] == chart.lines[0].points[0][2] == "9.000"


def test_long_trainings_have_few_labels() -> None:
    labels = [tick.label for tick in line_chart("t", {"a": [0.1] * 300}).x_ticks]
    assert labels == ["1", "38", "76", "114", "152", "190", "228", "266"]
