"""`mixwell bench`: recipes × data × models × seeds."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mixwell.bench import Bench, Changes, Summary, Verdict, bench_of, read_bench, run, state_of, verify
from mixwell.bench.estimate import Pace
from mixwell.bench.lock import holder
from mixwell.bench.on_ray import OnRay
from mixwell.bench.pools import Here, Pool, Processes
from mixwell.cli.options import KeyValues, read_options
from mixwell.cli.screen import Screen, table
from mixwell.core.errors import ParameterError

__all__ = ["BenchOptions", "main"]

GROUPS = {
    "cells": ("recipes", "models", "data", "seeds", "epochs", "train", "evaluate", "out", "keep_weights"),
    "work": ("jobs", "ray", "dry_run"),
    "verification": ("verify", "verify_seed"),
}


@dataclass(frozen=True)
class BenchOptions:
    """Which cells, and who works on them."""

    file: Path | None = None
    """TOML file that describes the bench, such as those in the repository's results/; without one, the options below
    say all."""
    recipes: tuple[str, ...] = ()
    """Recipes, in quotes if they have spaces; with a file, those of it to which the bench is restricted."""
    models: tuple[str, ...] = ()
    """Networks; with a file, those to which the bench is restricted."""
    data: tuple[str, ...] = ()
    """Data sets; with a file, those to which the bench is restricted."""
    seeds: tuple[int, ...] = ()
    """Seeds, in place of the file's; 0 without a file."""
    epochs: int | None = None
    """Epochs of all cells, in place of the file's."""
    train: KeyValues = field(default_factory=dict)
    """Other fields of the training, as `mixwell train` has them, such as lr=0.05 augment=crop-flip; they go before the
    file's."""
    evaluate: tuple[str, ...] | None = None
    """Evaluate every cell: the parts to evaluate, or all if none is named. A file says this itself."""
    out: Path | None = None
    """Folder of the cells; runs/bench without a file."""
    keep_weights: bool = False
    """Keep the trained networks on the disk."""
    jobs: int = 1
    """Processes of this machine that work at once, each with the threads of its config."""
    ray: tuple[str, ...] | None = None
    """Work on Ray, one task per cell: on the cluster at the address that is given here, or on one that is started on
    this machine."""
    dry_run: bool = False
    """Show the plan, and stop."""
    verify: int | None = None
    """Train and evaluate so many finished cells anew, and compare every figure with the stored one."""
    verify_seed: int = 0
    """Says which cells are verified."""


def main(argv: Sequence[str]) -> int:
    """Run a bench, or show or verify it; returns the exit code."""
    options = read_options(
        BenchOptions,
        argv,
        prog="mixwell bench",
        description="Train recipes × data × models × seeds. The same command again goes on.",
        groups=GROUPS,
        positional="file",
    )
    screen, bench = Screen(), _bench(options)
    if options.verify is not None:
        return _verify(screen, bench, options)
    _plan(screen, bench, options)
    if options.dry_run:
        return 0
    sys.stdout.flush()
    summary = run(bench, _pool(options))
    _print(screen, bench, summary)
    return int(bool(summary.failed))


def _bench(options: BenchOptions) -> Bench:
    """The cells that the options and the file name.

    Raises:
        ParameterError: both are missing, or what they say is wrong.
    """
    train = {**options.train, **({} if options.epochs is None else {"epochs": options.epochs})}
    changes = Changes(seeds=options.seeds or None, train=train, out=options.out)
    axes = {axis: getattr(options, axis) for axis in ("recipes", "models", "data") if getattr(options, axis)}
    if options.file is not None:
        if options.evaluate is not None:
            raise ParameterError(f"What is evaluated stands in [evaluate] of {options.file}. Leave out --evaluate.")
        keep = options.keep_weights or None
        return read_bench(options.file, dataclasses.replace(changes, only=axes, keep_weights=keep))
    if "recipes" not in axes:
        raise ParameterError("A bench needs a FILE, or recipes, such as --recipes none cutmix; got neither.")
    document: dict[str, object] = {
        "out": str(Path("runs") / "bench"),
        "keep_weights": options.keep_weights,
        "cells": [{axis: list(items) for axis, items in axes.items()}],
    }
    if options.evaluate is not None:
        document["evaluate"] = {"parts": list(options.evaluate)} if options.evaluate else {}
    return bench_of(document, Path("bench"), changes)


def _pool(options: BenchOptions) -> Pool:
    if options.jobs < 1:
        raise ParameterError(f"jobs must be a whole number >= 1, got {options.jobs}.")
    if options.ray is None:
        return Processes(options.jobs) if options.jobs > 1 else Here()
    if options.jobs > 1 or len(options.ray) > 1:
        raise ParameterError("--ray takes one address, and no --jobs: Ray itself says how many cells run at once.")
    return OnRay(*options.ray)


def _plan(screen: Screen, bench: Bench, options: BenchOptions) -> None:
    """A row per recipe and setting, with the state of each seed."""
    states = {cell.name: state_of(cell) for cell in bench.cells}
    pace = Pace()
    for cell in bench.cells:
        pace.add(cell, states[cell.name].seconds, states[cell.name].epochs)
    rows = table("recipe", "data", "network", "seeds")
    settings: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for cell in bench.cells:
        config, words = cell.config, states[cell.name].words
        if holder(cell.lock) is not None:
            words += ", at work"
        apart = str({name: value for name, value in config.identity.items() if name != "seed"})
        seeds = settings.setdefault((config.recipe, config.data, config.model, apart), {})
        seeds.setdefault(words, []).append(str(config.seed))
    for (*named, _), by_words in settings.items():
        rows.add_row(*named, "; ".join(f"{' '.join(seeds)}: {words}" for words, seeds in by_words.items()))
    screen.print(Text(bench.title, style="bold"))
    screen.print(rows)
    done = sum(state.done for state in states.values())
    left = [(cell, states[cell.name]) for cell in bench.cells if not states[cell.name].done]
    seconds = pace.left(left, options.jobs)
    about = "" if seconds is None or not left else f", about {seconds / 3600:.1f} hours"
    screen.print(
        Text(f"\n{len(bench.cells)} cells in {bench.out}: {done} done, {len(left)} to do{about}."), soft_wrap=True
    )


def _print(screen: Screen, bench: Bench, summary: Summary) -> None:
    if summary.failed:
        screen.title(f"{len(summary.failed)} of {len(bench.cells)} cells failed; the same command tries them again")
        for title, reason in summary.failed.items():
            screen.print(Text(f"{title}: {reason}"), soft_wrap=True)
    screen.print(Text(f"\n{summary.done} of {len(bench.cells)} cells are finished in {bench.out}"), soft_wrap=True)


def _verify(screen: Screen, bench: Bench, options: BenchOptions) -> int:
    if options.verify is None or options.verify < 1:
        raise ParameterError(f"verify must be a whole number >= 1, got {options.verify}.")
    progress = Console(stderr=True, highlight=False)
    verdicts = verify(
        bench,
        options.verify,
        options.verify_seed,
        begin=lambda cell: progress.print(Text(f"trains again: {cell.title}"), soft_wrap=True),
    )
    for verdict in verdicts:
        _judge(screen, verdict)
    wrong = sum(bool(verdict.differences) for verdict in verdicts)
    figures = sum(verdict.figures for verdict in verdicts)
    screen.print(f"\n{len(verdicts)} cells trained again, {figures} figures compared; {wrong} cells differ.")
    return int(wrong > 0)


def _judge(screen: Screen, verdict: Verdict) -> None:
    told = f"{len(verdict.differences)} figures differ" if verdict.differences else "the same to the last digit"
    screen.print(Text(f"{verdict.cell.title}: {verdict.figures} figures, {told}"), soft_wrap=True)
    for difference in verdict.differences:
        screen.print(Text(f"  {difference}"), soft_wrap=True)
    if verdict.differences and verdict.changes:
        screen.print(Text(f"  It was trained elsewhere: {'; '.join(verdict.changes)}"), soft_wrap=True)
