"""`mixwell evaluate`: how good, calibrated and robust trained networks are."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen, table
from mixwell.core.errors import ParameterError
from mixwell.evaluate import PARTS, evaluate_run
from mixwell.train import Run

__all__ = ["Evaluate", "main", "rows_of"]

Part = Literal["clean", "corruptions", "attacks", "ood", "occlusion", "intrusion", "cost"]


@dataclass(frozen=True)
class Evaluate:
    """Which runs, and what of them."""

    runs: tuple[Path, ...] = ()
    """Folders of finished runs."""
    parts: tuple[Part, ...] = PARTS  # type: ignore[assignment]
    """What to evaluate. What is in a run's evaluation.json under the same settings is not computed again."""
    images: int | None = None
    """Test images for attacks, corruptions and occlusion, every class in proportion; up to 1,000, 10,000 and 2,000 if
    not given."""
    seed: int = 0
    """Of everything random."""
    anew: bool = False
    """Compute what is there already, too, and drop what was found under other settings."""
    json: bool = False
    """Print what evaluation.json holds: an object, or of several runs a list of objects."""


def main(argv: Sequence[str]) -> int:
    """Evaluate, and print what was found; returns the exit code."""
    config = read_options(
        Evaluate,
        argv,
        prog="mixwell evaluate",
        description="Evaluate trained networks. The same command again goes on where it was stopped.",
        positional="runs",
    )
    if not config.runs:
        raise ParameterError("evaluate needs the folder of at least one finished run, got none.")
    runs = [Run.read(path) for path in config.runs]
    found = [_evaluated(run, config) for run in runs]
    if config.json:
        json.dump(found[0] if len(found) == 1 else found, sys.stdout, indent=2)
        print()
        return 0
    screen = Screen()
    for number, (run, each) in enumerate(zip(runs, found, strict=True)):
        if number:
            screen.print()
        _print(screen, run, each)
    return 0


def _evaluated(run: Run, config: Evaluate) -> dict[str, Any]:
    shown = _Shown(f"Evaluating {run.folder}")
    try:
        return evaluate_run(
            run.folder,
            parts=config.parts,
            seed=config.seed,
            images=config.images,
            anew=config.anew,
            progress=shown.progress,
        )
    finally:
        shown.close()


class _Shown:
    """What an evaluation is at, on the standard error stream: a bar on a terminal, elsewhere a line for each part."""

    def __init__(self, heading: str) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.heading, self.part = heading, ""
        self.bar: Progress | None = None

    def progress(self, part: str, done: int, total: int) -> None:
        """`done` of `total` of a part."""
        if not self.part:
            self.console.print(Text(self.heading), soft_wrap=True)
        if part != self.part:
            self._end()
            self.part, self.begun = part, time.monotonic()
            if self.console.is_terminal:
                columns = (
                    TextColumn("{task.description:<11}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                )
                self.bar = Progress(*columns, console=self.console, transient=True)
                self.bar.start()
                self.task = self.bar.add_task(part, total=total)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.part:
            self.console.print(Text(f"{self.part}: {time.monotonic() - self.begun:.1f} s"))

    def close(self) -> None:
        """Give the terminal back."""
        self._end()


_Row = tuple[str, str, str, str]
"""Part, figure, value, and what else there is to say of it."""


def _print(screen: Screen, run: Run, found: Mapping[str, Any]) -> None:
    setting = run.facts["config"]
    screen.title(f"{run.recipe} · {setting['data']} · {setting['model']} · seed {run.seed}")
    rows, last = table("part", "figure", "value", ""), ""
    rows.columns[1].no_wrap = True
    rows.columns[2].no_wrap = True
    rows.columns[2].justify = "right"
    for part, figure, value, note in rows_of(found):
        if last and part != last:
            rows.add_section()
        rows.add_row(part if part != last else "", figure, value, note)
        last = part
    screen.print()
    screen.print(rows)
    screen.print(Text(f"\nAll figures are in {run.folder / 'evaluation.json'}"), soft_wrap=True)


def rows_of(found: Mapping[str, Any]) -> Iterator[_Row]:
    """What a person wants to see of an evaluation; parts that are not there are left out."""
    makers = {
        "clean": _clean,
        "corruptions": _corruptions,
        "attacks": _attacks,
        "ood": _ood,
        "occlusion": _occlusion,
        "intrusion": _intrusion,
        "cost": _cost,
    }
    for part, make in makers.items():
        if part in found:
            yield from ((part, *row) for row in make(found))


_Figures = Iterator[tuple[str, str, str]]


def _clean(found: Mapping[str, Any]) -> _Figures:
    clean = found["clean"]
    images = sum(found["reliability"]["counts"])
    gap = clean["confidence"] - clean["accuracy"]
    yield "accuracy", f"{clean['accuracy']:.2%}", f"of {images:,} test images"
    yield "top 5", f"{clean['top5']:.2%}", ""
    yield "NLL", f"{clean['nll']:.4f}", "nats"
    yield "Brier score", f"{clean['brier']:.4f}", "0 is best, 2 is worst"
    side = "above" if gap > 0 else "below"
    yield "ECE", f"{clean['ece']:.4f}", f"confidence {abs(gap) * 100:.1f} points {side} accuracy"
    yield "adaptive ECE", f"{clean['adaptive_ece']:.4f}", "bins of equal counts"
    yield "overconfidence", f"{clean['overconfidence']:.4f}", ""
    yield "ECE, rescaled", f"{clean['ece_at_temperature']:.4f}", f"logits divided by T = {clean['temperature']:.2f}"


def _corruptions(found: Mapping[str, Any]) -> _Figures:
    errors = found["corruptions"]["errors"]
    means = {name: sum(each) / len(each) for name, each in errors.items()}
    worst = max(means, key=lambda name: means[name])
    severities = [sum(each) / len(errors) for each in zip(*errors.values(), strict=True)]
    yield "error", f"{found['corruptions']['error']:.2%}", f"of {len(errors)} corruptions; by severity:"
    yield "", "", " ".join(f"{error:.1%}" for error in severities)
    yield "worst", f"{means[worst]:.2%}", worst


def _attacks(found: Mapping[str, Any]) -> _Figures:
    settings = found["settings"]["attacks"]
    images = settings["images"]
    if "reliability" in found:
        images = min(images, sum(found["reliability"]["counts"]))
    for name, accuracy in found["attacks"].items():
        attack = settings[name]
        kind = "FGSM" if name == "fgsm" else f"PGD-{attack['steps']}"
        note = f"accuracy of {images:,} images" if name == "fgsm" else ""
        yield f"{kind}, ε = {attack['epsilon'] * 255:g}/255", f"{accuracy:.2%}", note


def _ood(found: Mapping[str, Any]) -> _Figures:
    sets = {name: each for name, each in found["ood"].items() if name != "mean"}
    mean = found["ood"]["mean"]
    for score, word in (("msp", "confidence"), ("energy", "energy")):
        hardest = min(sets, key=lambda name: sets[name][score]["auroc"])
        note = f"of {len(sets)} sets; lowest: {hardest}, {sets[hardest][score]['auroc']:.2%}"
        yield f"AUROC, {word}", f"{mean[score]['auroc']:.2%}", note
        note = "pass where 95% of the test set does" if score == "msp" else ""
        yield f"FPR95, {word}", f"{mean[score]['fpr95']:.2%}", note


def _occlusion(found: Mapping[str, Any]) -> _Figures:
    occlusion = found["occlusion"]
    yield "mean accuracy", f"{occlusion['mean']:.2%}", "by the share of the image that is hidden:"
    shown = dict(zip(occlusion["ratios"], occlusion["accuracies"], strict=True))
    yield "", "", ", ".join(f"{ratio:.0%} {shown[ratio]:.1%}" for ratio in (0.2, 0.5, 0.8) if ratio in shown)


def _intrusion(found: Mapping[str, Any]) -> _Figures:
    intrusion = found["intrusion"]
    if intrusion is None:
        yield "mixes", "–", "no two images are mixed at the input"
        return
    filled = [each for each in intrusion["by_lam"] if each["count"]]
    worst = max(filled, key=lambda each: each["rate"])
    count = sum(each["count"] for each in filled)
    yield (
        "rate",
        f"{intrusion['rate']:.2%}",
        f"of {count:,} mixes resemble a third class",
    )
    yield "at worst", f"{worst['rate']:.2%}", f"for λ of {worst['low']:g} to {worst['high']:g}"


def _cost(found: Mapping[str, Any]) -> _Figures:
    cost = found["cost"]
    yield "time per step", f"{1000 * cost['seconds_per_step']:.1f} ms", f"{cost['relative_time']:.2f} × plain training"
    peak = cost["peak_memory_bytes"] / 2**20
    yield "peak memory", f"{peak:,.0f} MiB", f"{cost['relative_memory']:.2f} × plain training"
