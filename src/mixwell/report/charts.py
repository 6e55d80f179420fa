"""Line charts as plain geometry, which the page's template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["HEIGHT", "WIDTH", "Chart", "Line", "Tick", "line_chart"]

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 30
_TICKS = 6
"""At most so many labels on an axis."""


@dataclass(frozen=True)
class Tick:
    """A label on an axis, and its place in the drawing."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        name: what it stands for.
        style: number of its colour and dashes.
        points: x and y in the drawing, and the values as text.
    """

    name: str
    style: int
    points: tuple[tuple[float, float, str], ...]

    @property
    def path(self) -> str:
        """The line as an SVG path."""
        return "M" + "L".join(f"{x:g},{y:g}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Chart:
    """A drawing of `WIDTH` × `HEIGHT` units, and the numbers behind it.

    Attributes:
        title: what is on the vertical axis.
        values: the figures as text, by name and epoch.
    """

    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    values: Mapping[str, tuple[str, ...]]


def line_chart(title: str, series: Mapping[str, Sequence[float | None]], *, percent: bool = False) -> Chart:
    """A chart over epochs 1, 2, ….

    The vertical axis is fitted to the epochs after the first fifth, so that wild beginnings do not flatten the rest;
    their points may lie outside the frame.

    Args:
        title: of the vertical axis.
        series: one value per epoch by name; None where there is none. At least one value is there.
        percent: whether 0.5 is shown as 50%.
    """
    epochs = max(len(values) for values in series.values())
    every = [value for values in series.values() for value in values if value is not None]
    known = [value for values in series.values() for value in values[epochs // 5 :] if value is not None] or every
    step = _nice((max(known) - min(known) or abs(known[0]) or 1.0) / (_TICKS - 2))
    low, high = math.floor(min(known) / step + 1e-9) * step, math.ceil(max(known) / step - 1e-9) * step
    high = high if high > low else low + step
    digits = max(0, -math.floor(math.log10(step * (100 if percent else 1)) + 1e-9))

    def text(value: float, digits: int) -> str:
        return f"{value:.{digits}%}" if percent else f"{value:.{digits}f}"

    def at(epoch: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (epoch - 1) / max(1, epochs - 1), 1)

    def height(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low), 1)

    apart = max(1, math.ceil(epochs / 8))
    lines = [
        Line(
            name,
            style,
            tuple(
                (at(epoch), height(value), text(value, digits + 1))
                for epoch, value in enumerate(values, 1)
                if value is not None
            ),
        )
        for style, (name, values) in enumerate(series.items())
    ]
    return Chart(
        title,
        tuple(Tick(at(epoch), str(epoch)) for epoch in range(1, epochs + 1) if epoch == 1 or epoch % apart == 0),
        tuple(
            Tick(height(low + i * step), text(low + i * step, digits)) for i in range(round((high - low) / step) + 1)
        ),
        tuple(line for line in lines if line.points),
        {
            name: tuple("" if value is None else text(value, digits + 1) for value in values)
            for name, values in series.items()
        },
    )


def _nice(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))
