"""Successive halving over recipes, in a folder that resumes.

Every candidate is trained to the first rung; the best 1/eta of them go on to the next, in the run folders that they
have, and so on to the longest training (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", AISTATS 2016). All are trained as if they were trained longest, with one learning-rate
schedule, so that those at a rung are at the same place of the same schedule, and going on is not starting anew. What is
good early need not be good late: strong mixing slows training down at first, and early rungs favour weak mixing.

Rungs are synchronous: all candidates of a rung are compared with each other. Optuna's pruners compare a trial with
those that came before it, so that the first one always goes on, and one that was stopped never does; of Optuna, the
samplers are used. What is decided follows from the settings and from the folder alone. To resume is to decide all of it
again, where nothing that is in a run folder is trained twice.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from mixwell.bench.lock import Busy, locked
from mixwell.core.errors import MixwellError, ParameterError, RunError
from mixwell.core.rng import key_of
from mixwell.data import DataSet
from mixwell.data.items import size_of
from mixwell.search.config import SearchConfig
from mixwell.search.plan import Plan, largest, plan, rungs, shares
from mixwell.search.pool import REFERENCE, asked, usual
from mixwell.search.ranges import Template, tuned
from mixwell.search.record import Record
from mixwell.search.sampler import propose
from mixwell.search.trials import Trial, judged_on, ranked, trial_of
from mixwell.train import train
from mixwell.train.named import data_of

__all__ = ["Found", "search"]

_REDRAWN = 10
"""Draws after which a family of recipes that gives nothing new is left."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        ranking: all candidates and the reference, best first; those that were trained longer go before the others.
        failed: candidates whose training failed before the first rung.
        reference: the trial of plain training.
        plan: what the budget allows.
        left_out: recipes that it does not.
        judged: number of held-out images.
        out_of_time: whether the minutes ended before the last rung was complete.
        folder: of the search; `search.json` in it holds all of this.
    """

    ranking: tuple[Trial, ...]
    failed: tuple[Trial, ...]
    reference: Trial
    plan: Plan
    left_out: tuple[str, ...]
    judged: int
    out_of_time: bool
    folder: Path

    @property
    def best(self) -> Trial:
        """The first of the ranking."""
        return self.ranking[0]


def search(
    config: SearchConfig,
    *,
    dataset: DataSet | None = None,
    network: Callable[[], nn.Module] | None = None,
    progress: bool = True,
) -> Found:
    """Find the recipes that do best on held-out training images; the test set is not read.

    The same call goes on where it was, also with a larger budget, which then includes what was trained before.

    Args:
        config: what is searched.
        dataset: used in place of `config.train.data`.
        network: makes a network (B, C, H, W) → logits, in place of `config.train.model`; called once per training, with
            torch's generator seeded.
        progress: whether to show what happens on the standard error stream.

    Raises:
        MixwellError: the config asks for what does not exist or does not fit together (before a folder is made); the
            folder holds another search; the reference cannot be trained.
        ModuleNotFoundError: a recipe has a range, and Optuna is not installed.
        KeyboardInterrupt: passed on; the same call goes on.
    """
    return _Search(config, dataset, network, progress).run()


class _Search:
    def __init__(
        self, config: SearchConfig, dataset: DataSet | None, network: Callable[[], nn.Module] | None, progress: bool
    ) -> None:
        base = config.train
        self.config, self.console = config, Console(stderr=True, quiet=not progress, highlight=False)
        self.network = None if network is None else _seeded(network, base.seed)
        self.rungs = rungs(config.first, base.epochs, config.eta)
        data = dataset or data_of(base)
        self.data = judged_on(data, config.held_out, base.seed)
        self.judged = size_of(self.data.test, "held-out")
        found = (
            asked(config.recipes, base, self.data, self.network)
            if config.recipes
            else usual(base, self.data, self.network)
        )
        if not found:
            raise ParameterError("There is nothing to compare with none. Give other recipes, such as mixup and cutmix.")
        self.templates = [tuned(each) for each in found] if config.tune else found
        if any(each.size > config.samples for each in self.templates):
            importlib.import_module("optuna")  # which may be missing: before anything is trained
        most = sum(int(min(config.samples, each.size)) for each in self.templates)
        at, eta = self.rungs, config.eta
        self.plan = plan(most, at, eta) if config.epochs is None else largest(most, at, eta, config.epochs)
        self.shares = shares(at, eta)
        sizes = f"{size_of(self.data.train, 'train')} + {self.judged} images {self.data.shape}"
        settings = config.settings([each.text for each in self.templates], f"{self.data.name}: {sizes}")
        self.folder = config.folder(settings)
        self.record = Record(self.folder / "search.json", settings)
        self.budget = float("inf") if config.minutes is None else 60 * config.minutes
        self.used = 0.0
        self.out_of_time = False
        self.trials: list[Trial] = []

    def run(self) -> Found:
        """Halve until one is left or the budget is used up."""
        try:
            with locked(self.folder / "search.lock"):
                self.record.read()
                self._note(self._planned())
                try:
                    self._first_rung()
                    for place in range(1, len(self.rungs)):
                        self._next_rung(place)
                except KeyboardInterrupt:
                    self._note(f"Interrupted. What was trained is in {self.folder}; the same command goes on.")
                    raise
                self._write(finished=True)
        except Busy as error:
            raise RunError(f"Another process searches in {self.folder}: {error}. Wait for it, or stop it.") from error
        tried = {trial.family for trial in self.trials}
        return Found(
            ranking=tuple(ranked(self.trials, self.config.metric)),
            failed=tuple(trial for trial in self.trials if not trial.rung and trial.failed),
            reference=self.trials[0],
            plan=self.plan,
            left_out=tuple(each.published or each.text for each in self.templates if each.text not in tried),
            judged=self.judged,
            out_of_time=self.out_of_time,
            folder=self.folder,
        )

    # Rungs

    def _first_rung(self) -> None:
        reference = trial_of(REFERENCE, self.config.train, self.folder)
        self.trials.append(reference)
        self._train(reference, 0)
        if reference.failed:
            raise RunError(f"The reference {REFERENCE!r} cannot be trained, so nothing can: {reference.failed}")
        for count, trial in enumerate(islice(self._candidates(), self.plan.counts[0])):
            if not self._time_for(0, anyway=count == 0):
                break
            self.trials.append(trial)
            self._train(trial, 0)

    def _next_rung(self, place: int) -> None:
        """Train the best 1/eta of the last rung, and the reference."""
        reference, *others = self.trials
        there = [trial for trial in others if trial.rung == self.rungs[place - 1] and not trial.failed]
        best, *more = ranked(there, self.config.metric)[: max(1, len(there) // self.config.eta)] or [reference]
        for trial in dict.fromkeys((best, reference, *more)):
            anyway = trial in (best, reference)
            if trial.rung == self.rungs[place - 1] and self._time_for(place, anyway=anyway):
                self._train(trial, place)

    def _time_for(self, place: int, *, anyway: bool) -> bool:
        """Whether another training may begin at this rung; `anyway` if only the whole budget counts."""
        if self.used >= self.budget:
            self.out_of_time = True
            return False
        return anyway or self.used < self.budget * self.shares[place]

    def _candidates(self) -> Iterator[Trial]:
        """Every recipe once, then more of those with ranges, in turn. What was seen when one is asked for counts."""
        known = {REFERENCE}
        for turn in range(self.config.samples):
            for template in self.templates:
                if turn and not template.holes:
                    continue
                trial = self._drawn(template, turn, known)
                if trial is not None:
                    known.add(trial.recipe)
                    yield trial

    def _drawn(self, template: Template, turn: int, known: set[str]) -> Trial | None:
        """A recipe of the family that is not known yet, or None if there seems to be none.

        Families that are no larger than the number of samples are tried whole, in order.
        """
        config = self.config
        if not template.holes or (template.published and not turn):
            recipe = template.published or template.filled(())
            return None if recipe in known else trial_of(recipe, config.train, self.folder, template.text)
        if template.size <= config.samples:
            if turn >= template.size:
                return None
            values = template.nth(turn)
            recipe = template.filled(values)
            return None if recipe in known else trial_of(recipe, config.train, self.folder, template.text, values)
        first = self.rungs[0]
        seen = [
            (trial.values, trial.value(config.metric, first))
            for trial in self.trials
            if trial.family == template.text and trial.values and trial.rung
        ]
        for draw in range(_REDRAWN):
            values = propose(
                template,
                seen,
                config.sampler,
                largest=config.metric == "accuracy",
                seed=config.train.seed,
                number=turn * _REDRAWN + draw,
            )
            recipe = template.filled(values)
            if recipe not in known:
                return trial_of(recipe, config.train, self.folder, template.text, values)
        return None

    # Trainings

    def _train(self, trial: Trial, place: int) -> None:
        """Train to a rung, or to the end of the epoch in which the time is up, from where its folder is."""
        epochs, low = self.rungs[place], (0, *self.rungs)[place]
        trial.look()
        done = sum(each["seconds"] + each["evaluation_seconds"] for each in trial.history[low:epochs])
        before = self.record.seconds_of(trial).get(str(epochs), done)
        begun = time.monotonic()
        trial.seconds[epochs] = before

        def stop(record: Any) -> bool:
            late = self.used + before + time.monotonic() - begun >= self.budget
            return bool(record["epoch"] >= epochs or late)

        if not trial.has(epochs) and self.used + before < self.budget:
            try:
                net = None if self.network is None else self.network()
                train(trial.config, dataset=self.data, model=net, progress=False, stop=stop)
            except (MixwellError, torch.cuda.OutOfMemoryError) as error:
                trial.failed = str(error)
            finally:
                trial.look()
                trial.seconds[epochs] = before + time.monotonic() - begun
                self._write(finished=False)
        if trial.has(epochs):
            trial.rung = epochs
        elif not trial.failed:
            self.out_of_time = True
        self.used += trial.seconds[epochs]
        self._tell(trial, place)

    def _tell(self, trial: Trial, place: int) -> None:
        metric = self.config.metric
        told = f"failed: {trial.failed}" if trial.failed else "stopped, the time is up"
        if trial.rung == self.rungs[place]:
            value = trial.value(metric)
            told = f"{metric} {f'{value:.2%}' if metric == 'accuracy' else f'{value:.4f}'}"
        self._note(
            f"rung {place + 1}/{len(self.rungs)}, epoch {len(trial.history)}/{self.rungs[-1]}: {trial.recipe}: {told}, "
            f"{trial.seconds[self.rungs[place]]:.1f} s"
        )

    def _write(self, *, finished: bool) -> None:
        budget = {"epochs": self.config.epochs, "minutes": self.config.minutes}
        about = {"budget": budget, "finished": finished, "out_of_time": self.out_of_time, "rungs": self.rungs}
        self.record.write(self.trials, self.config.metric, about)

    def _note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _planned(self) -> str:
        made, most = self.plan, "at most " if self.config.minutes is not None else ""
        steps = ", ".join(f"{count} to epoch {epoch}" for count, epoch in zip(made.counts, made.rungs, strict=True))
        return (
            f"Plan: {most}{made.epochs} epochs: {steps}, and {REFERENCE} to the last; judged on {self.judged} held-out "
            f"training images. In {self.folder}"
        )


def _seeded(network: Callable[[], nn.Module], seed: int) -> Callable[[], nn.Module]:
    """The same network every time."""

    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(key_of(seed, "initial weights") >> 1)
            return network()

    return make
