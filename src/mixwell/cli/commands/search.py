"""`mixwell search`: which recipes suit one's own data and network."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from mixwell.bench.values import ELSEWHERE, fields_of
from mixwell.cli.options import KeyValues, read_options
from mixwell.cli.screen import Screen, table
from mixwell.core.errors import ParameterError
from mixwell.search import Found, Metric, SearchConfig, search
from mixwell.search.sampler import Sampler
from mixwell.train import TrainConfig

__all__ = ["SearchOptions", "main"]

_TABLES = ("data_options", "augment_options", "model_options", "optimizer_options")

GROUPS = {
    "budget": ("epochs", "minutes", "longest", "first", "eta"),
    "candidates": ("recipes", "tune", "samples", "sampler"),
    "trainings": ("data", "model", *_TABLES, "train", "seed"),
    "comparison": ("metric", "held_out"),
    "result": ("final_epochs", "json", "out"),
}

_OWN = ("recipe", "data", "model", *_TABLES, "epochs", "seed", "out")
"""Fields of a training that have options of their own here, or none."""


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and for how long."""

    recipes: tuple[str, ...] = ()
    """Candidates, in quotes, whose parameters may be ranges: "mixup(alpha=0.1..2.0)" or "cutmix(alpha=[0.5, 1.0])". If
    none are given: all methods that train on the network as they are, and well-known sums."""
    epochs: int | None = None
    """Budget: epochs of all trainings together."""
    minutes: float | None = None
    """Budget: time of all trainings together; what is trained when it ends is trained to the end of the epoch."""
    longest: int = 9
    """Epochs of the candidates that are trained longest. The learning rate of every candidate is scheduled over these,
    so that those that are compared early are at the same place of the same schedule. Strong mixing pays off late: short
    trainings favour weak mixing."""
    first: int = 1
    """Epochs before the first comparison, at least."""
    eta: int = 3
    """At each comparison one candidate in so many goes on, which is trained so many times longer."""
    tune: bool = False
    """Also try other values of alpha and prob, in candidates without ranges."""
    samples: int = 8
    """Most candidates that are drawn from one recipe with ranges."""
    sampler: Sampler = "tpe"
    """Optuna's sampler that draws them."""
    data: str = "fashion-mini"
    """Data set, as `mixwell train` has it. Its test set is not read."""
    data_options: KeyValues = field(default_factory=dict)
    """Options of the data set, such as size=28 channels=1."""
    model: str = "cnn-s"
    """Network, as `mixwell train` has it."""
    model_options: KeyValues = field(default_factory=dict)
    """Keyword arguments of the network, such as drop_rate=0.1."""
    augment_options: KeyValues = field(default_factory=dict)
    """More of the augmentation that --train augment=... names, such as erase=0.25."""
    optimizer_options: KeyValues = field(default_factory=dict)
    """Keyword arguments of the optimiser, such as eps=1e-6."""
    train: KeyValues = field(default_factory=dict)
    """Other fields of the trainings, as `mixwell train` has them, such as lr=0.05 augment=crop-flip."""
    seed: int = 0
    """Of everything random: the held-out images, what is drawn, and the trainings."""
    metric: Metric = "accuracy"
    """What is compared, on the held-out images."""
    held_out: float = 0.2
    """Share of the training images that judge and are not trained on."""
    final_epochs: int | None = None
    """Epochs of the training that the command at the end is for; those of --longest if not given."""
    json: bool = False
    """Print what search.json holds, with the command, in place of the table."""
    out: Path | None = None
    """Folder of the search; runs/search-DATA-MODEL-sSEED-HASH if not given. The same command again goes on there, also
    with a larger budget."""


def main(argv: Sequence[str]) -> int:
    """Search, and print what was found; returns the exit code."""
    options = read_options(
        SearchOptions,
        argv,
        prog="mixwell search",
        description="Find recipes that suit your data and network. The same command goes on.",
        groups=GROUPS,
    )
    if options.final_epochs is not None and options.final_epochs < 1:
        raise ParameterError(f"final_epochs must be a whole number >= 1, got {options.final_epochs}.")
    base = _training(options)
    names = ("recipes", "epochs", "minutes", "first", "eta", "metric", "held_out", "tune", "samples", "sampler", "out")
    found = search(SearchConfig(base, **{name: getattr(options, name) for name in names}))
    command = command_of(found.best.config, options.final_epochs or options.longest)
    if options.json:
        content = json.loads((found.folder / "search.json").read_bytes())
        json.dump({**content, "command": command}, sys.stdout, indent=2, ensure_ascii=False)
        print()
        return 0
    _print(Screen(), found, options, command)
    return 0


def command_of(config: TrainConfig, epochs: int) -> str:
    """The command that trains a config for so many epochs, on all training images."""
    words = ["mixwell", "train", "--recipe", config.recipe]
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        shown = each.name in ("data", "model")
        if each.name in ("recipe", "out", "epochs") or (value == default and not shown):
            continue
        option = each.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *_words(value)]
        if each.name == "model":
            words += ["--epochs", str(epochs)]
    return shlex.join(words)


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}={item}" for name, item in value.items()]
    return [str(item) for item in value] if isinstance(value, tuple) else [str(value)]


def _training(options: SearchOptions) -> TrainConfig:
    """What all trainings share.

    Raises:
        ParameterError: a field does not exist, has the wrong type, or is said elsewhere.
    """
    if own := [name for name in options.train if name in _OWN]:
        advice = {"recipe": "--recipes", "epochs": "--longest"}.get(own[0], f"--{own[0].replace('_', '-')}")
        raise ParameterError(f"{own[0]} does not stand in --train. Give {advice}.")
    given = {name: getattr(options, name) for name in ("data", "model", *_TABLES, "seed")}
    found, problems = fields_of({**options.train, **given, "epochs": options.longest}, tuple(ELSEWHERE))
    if problems:
        raise ParameterError(f"--train: {'; '.join(problems)}.")
    return TrainConfig(**found)


def _print(screen: Screen, found: Found, options: SearchOptions, command: str) -> None:
    metric = options.metric
    rows = table("recipe", metric if metric == "accuracy" else metric.upper(), "epochs", "s/epoch", "× none")
    for trial in found.ranking:
        value = trial.value(metric)
        rows.add_row(
            trial.recipe,
            f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}",
            str(trial.rung),
            f"{trial.seconds_per_epoch:.1f}",
            f"{trial.relative_time(found.reference):.2f}",
        )
    screen.print()
    screen.print(rows)
    for trial in (*found.failed, *(each for each in found.ranking if each.failed)):
        screen.print(Text(f"{trial.recipe} failed: {trial.failed}"), soft_wrap=True)
    screen.print()
    for note in _notes(found, options):
        screen.print(Text(note), soft_wrap=True)
    screen.print(Text(f"\nThe best recipe: {found.best.recipe}", style="bold"), soft_wrap=True)
    screen.print(Text(command), soft_wrap=True)


def _notes(found: Found, options: SearchOptions) -> list[str]:
    judged = f"Judged on {found.judged} held-out training images; the test set was not read."
    if options.metric == "accuracy":
        share = found.best.value("accuracy")
        error = math.sqrt(share * (1 - share) / found.judged)
        judged += f" One standard error of the best accuracy is {100 * error:.1f} points, with one seed each."
    notes = [judged]
    if found.out_of_time:
        notes.append("The time was up before the last comparison; the same command with more --minutes goes on.")
    if found.left_out:
        notes.append(f"The budget left no place for {len(found.left_out)} recipes: {', '.join(found.left_out)}.")
    notes.append(f"Everything is in {found.folder}")
    return notes
