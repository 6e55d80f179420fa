"""What a training shows while it runs: bars on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["Reporter"]

_SECONDS = 0.25
"""Between two looks at the running means; each waits for the device."""
_MINUTE = 60.0
"""Between two lines about what is being made, where there is no bar."""


class Reporter:
    """Writes to the standard error stream.

    Args:
        shown: False keeps it silent.
        epochs, steps: of the whole training.
    """

    def __init__(self, shown: bool, epochs: int = 0, steps: int = 0) -> None:
        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        self._epochs, self._steps = epochs, steps
        self._progress: Progress | None = None
        self._making: str | None = None

    def making(self, what: str, done: int, total: int) -> None:
        """Something that the training needs is being made, and how long that will take; `close` ends the bar."""
        if self.console.quiet:
            return
        now = time.monotonic()
        if what != self._making:
            self._making, self._made, self._made_at, self._noted = what, done, now, now
            if not self.console.is_terminal:
                self.note(f"Making the {what}, once for these images.")
        left = (now - self._made_at) / max(1, done - self._made) * (total - done)
        told = f"{_span(left)} left" if done > self._made else ""
        if not self.console.is_terminal:
            if now - self._noted >= _MINUTE:
                self._noted = now
                self.note(f"{what}: {done} of {total}, {told}")
            return
        if self._progress is None:
            texts = [TextColumn(column) for column in ("{task.description}", "{task.fields[left]}")]
            self._progress = Progress(texts[0], BarColumn(), MofNCompleteColumn(), texts[1], console=self.console)
            self._progress.start()
            self._task = self._progress.add_task("", left="")
        self._progress.update(self._task, description=f"making the {what}", completed=done, total=total, left=told)

    def start(self, done: int) -> None:
        """The training begins, or goes on after `done` steps."""
        self._before = done
        self._begun = self._looked = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            columns = ("{task.description}", "{task.fields[means]}", "{task.fields[left]}")
            texts = [TextColumn(column) for column in columns]
            self._progress = Progress(texts[0], BarColumn(), MofNCompleteColumn(), *texts[1:], console=self.console)
            self._progress.start()
            self._task = self._progress.add_task("", total=None, means="", left="")

    def note(self, text: str) -> None:
        """Say something once."""
        self.console.print(text, markup=False, soft_wrap=True)

    def step(
        self, epoch: int, batch: int, batches: int, step: int, speed: float, means: Callable[[], Mapping[str, float]]
    ) -> None:
        """A step is done; `means` is called only if there is something to draw."""
        now = time.monotonic()
        if self._progress is None or (now - self._looked < _SECONDS and batch < batches):
            return
        self._looked = now
        left = (now - self._begun) / max(1, step - self._before) * (self._steps - step)
        self._progress.update(
            self._task,
            description=f"epoch {epoch + 1}/{self._epochs}",
            completed=batch,
            total=batches,
            means=f"{_words(means())} · {speed:,.0f} images/s",
            left=f"{_span(left)} left",
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done."""
        tested = f"test accuracy {record['accuracy']:.2%}, ECE {record['ece']:.3f}"
        averaged = f", EMA {record['ema']['accuracy']:.2%}" if "ema" in record else ""
        self.note(
            f"epoch {record['epoch']}/{self._epochs}: {_words(record)}, {tested}{averaged}, "
            f"{record['images_per_second']:,.0f} images/s, {record['seconds']:.1f} s"
        )

    def close(self) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _words(means: Mapping[str, Any]) -> str:
    accuracy = f", mixed accuracy {means['mixed_accuracy']:.1%}" if "mixed_accuracy" in means else ""
    return f"loss {means['loss']:.4f}{accuracy}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
