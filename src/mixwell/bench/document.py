"""From a TOML file, or from options, to the cells of a bench.

    title = "…"                              what the bench is about
    out = "fashion-mini"                     the folder of the cells, seen from the file's; the file's name if not given
    seeds = [0, 1, 2]
    keep_weights = false                     whether trained networks stay on the disk

    [train]                                  fields of `TrainConfig` that all cells share
    [evaluate]                               arguments of `mixwell.evaluate.evaluate_run`; without this, no evaluation

    [[cells]]                                recipes × data × models × seeds
    recipes = ["none", { recipe = "mixup", lr = 0.05 }]
    models = ["cnn-s"]                       optional, and so are data and seeds
    train = { augment = "crop-flip" }        optional: over those of all cells

An item of recipes, models and data is a text, or a table that also has fields of its own. Where fields are given more
than once, recipes go before models, models before data, data before [cells.train], and that before [train].
"""

from __future__ import annotations

import inspect
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixwell.bench.cells import Bench, Cell
from mixwell.bench.check import misfits
from mixwell.bench.values import fields_of
from mixwell.bench.worker import evaluate_run
from mixwell.core.algebra import parse
from mixwell.core.errors import MixwellError, ParameterError, closest
from mixwell.train import TrainConfig

__all__ = ["AXES", "Changes", "bench_of", "read_bench"]

AXES = {"data": "data", "models": "model", "recipes": "recipe"}
"""Lists of a [[cells]] table, and the field that each item sets; a later one goes before an earlier one."""

_TOP = ("title", "out", "seeds", "keep_weights", "train", "evaluate", "cells")
_TABLE = ("seeds", "train", *AXES)
_NOT_SAID = ("anew", "progress")
"""Arguments of `evaluate_run` that say nothing about its figures."""


@dataclass(frozen=True)
class Changes:
    """What is changed of a file, or said in place of one.

    Attributes:
        only: of each axis, the items to which the bench is restricted; all where an axis is missing.
        seeds: in place of all others; None for those of the file.
        train: fields that go before all others.
        out: in place of the file's folder.
        keep_weights: in place of what the file says.
    """

    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    keep_weights: bool | None = None


def read_bench(path: Path, changes: Changes | None = None) -> Bench:
    """Read a bench from a TOML file.

    Raises:
        ParameterError: the file cannot be read, or says what does not exist or does not fit together; names everything
            that is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path} cannot be read: {error}. Give a TOML file that describes a bench.") from error
    return bench_of(document, path, changes)


def bench_of(document: Mapping[str, Any], path: Path, changes: Changes | None = None) -> Bench:
    """Make a bench of what a file says.

    Args:
        document: as `tomllib` gives it.
        path: of the file; paths in it are seen from its folder.
        changes: of what it says.

    Raises:
        ParameterError: it says what does not exist or does not fit together; names everything that is wrong.
    """
    reader = _Reader(document, path, changes or Changes())
    bench = reader.bench()
    problems = list(dict.fromkeys(reader.problems + misfits(bench.cells)))
    if problems:
        many = f"{len(problems)} things are" if len(problems) > 1 else "one thing is"
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ParameterError(f"{path} cannot be run, {many} wrong:{lines}")
    return bench


class _Reader:
    """Reads all that can be read, and notes what cannot."""

    def __init__(self, document: Mapping[str, Any], path: Path, changes: Changes) -> None:
        self.document, self.path, self.changes = document, path, changes
        self.problems: list[str] = []

    def bench(self) -> Bench:
        self._known("the file", self.document, _TOP)
        title = self._typed("title", str, self.path.stem)
        out = self.changes.out or self.path.parent / self._typed("out", str, self.path.stem)
        tables = self._typed("cells", list, [])
        if not tables:
            self.problems.append('the file has no [[cells]]. Add one, with recipes = ["none", "cutmix"] or so.')
        found = [cell for number, table in enumerate(tables, 1) for cell in self._table(number, table)]
        found.sort(key=lambda each: each[0])
        keep, evaluate = self._typed("keep_weights", bool, False), self._evaluate()
        if self.changes.keep_weights is not None:
            keep = self.changes.keep_weights
        cells = {}
        for _, config in found:
            name = config.folder.name
            cells[name] = Cell(replace(config, out=out / name), evaluate, keep)
        self._selected({axis: {getattr(cell.config, AXES[axis]) for cell in cells.values()} for axis in AXES})
        return Bench(title, out, tuple(cells.values()))

    # Parts of the file

    def _table(self, number: int, table: Any) -> Iterator[tuple[int, TrainConfig]]:
        """The configs of a [[cells]] table, each with the place of its seed, by which cells are sorted."""
        where = f"[[cells]] {number}"
        if not isinstance(table, dict):
            self.problems.append(f"{where} must be a table, got {table!r}")
            return
        self._known(where, table, _TABLE)
        shared = {
            **self._fields("[train]", self.document.get("train", {})),
            **self._fields(where, table.get("train", {})),
        }
        if not table.get("recipes"):
            self.problems.append(f'{where} names no recipes. Give recipes = ["none", "cutmix"] or so.')
        axes = [self._axis(where, axis, table[axis]) for axis in AXES if axis in table]
        seeds = self.changes.seeds or self._seeds(where, table.get("seeds", self.document.get("seeds", [0])))
        for (place, seed), *chosen in itertools.product(enumerate(seeds), *axes):
            fields = {**shared, **{name: value for item in chosen for name, value in item.items()}}
            try:
                config = TrainConfig(**{**fields, **self._fields("the options", self.changes.train), "seed": seed})
            except ParameterError as error:
                self.problems.append(f"{where}, {fields.get('recipe', 'no recipe')}: {error}")
                continue
            if self._wanted(config):
                yield place, config

    def _axis(self, where: str, axis: str, items: Any) -> list[dict[str, Any]]:
        """Of each item the fields that it sets."""
        name = AXES[axis]
        if not isinstance(items, list):
            self.problems.append(f"{where}: {axis} must be a list, got {items!r}")
            return []
        found = []
        for item in items:
            table = {name: item} if isinstance(item, str) else item
            if not isinstance(table, dict) or not isinstance(table.get(name), str):
                self.problems.append(f"{where}: an item of {axis} must be a text or a table with {name}, got {item!r}")
                continue
            fields = self._fields(f"{where}, {table[name]}", table, (name,))
            if axis == "recipes":
                try:
                    fields["recipe"] = str(parse(table[name]))
                except MixwellError as error:
                    self.problems.append(f"{where}, {table[name]}: {error}")
                    continue
            found.append(fields)
        return found

    def _seeds(self, where: str, seeds: Any) -> list[int]:
        if isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds):
            return seeds
        self.problems.append(f"{where}: seeds must be a list of whole numbers >= 0, got {seeds!r}")
        return []

    def _evaluate(self) -> dict[str, Any] | None:
        """All arguments of `evaluate_run`, with its defaults for those that are not given."""
        if "evaluate" not in self.document:
            return None
        table = self._typed("evaluate", dict, {})
        defaults = {
            name: each.default
            for name, each in inspect.signature(evaluate_run()).parameters.items()
            if each.kind is inspect.Parameter.KEYWORD_ONLY and name not in _NOT_SAID
        }
        self._known("[evaluate]", table, defaults)
        every = list(defaults["parts"])
        parts = table.get("parts", every)
        if not isinstance(parts, list) or not parts:
            self.problems.append(f"[evaluate]: parts must be a list of {', '.join(every)}; got {parts!r}")
            return None
        for part in parts:
            if part not in every:
                self.problems.append(f"[evaluate] has no part {part!r}; {closest(str(part), every)}")
        return {**defaults, **table, "parts": parts}

    # Helpers

    def _fields(self, where: str, table: Any, axes: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(table, Mapping):
            self.problems.append(f"{where}: fields of a training must stand in a table, got {table!r}")
            return {}
        found, problems = fields_of(table, axes)
        self.problems += [f"{where}: {problem}" for problem in problems]
        return found

    def _known(self, where: str, table: Mapping[str, Any], known: Any) -> None:
        self.problems += [f"{where} has no key {name!r}; {closest(name, known)}" for name in table if name not in known]

    def _typed(self, name: str, kind: type, default: Any) -> Any:
        value = self.document.get(name, default)
        if isinstance(value, kind):
            return value
        words = {str: "a text", bool: "true or false", list: "tables, as [[cells]]", dict: "a table"}
        self.problems.append(f"{name} must be {words[kind]}, got {value!r}")
        return default

    # Changes

    def _wanted(self, config: TrainConfig) -> bool:
        only = self.changes.only
        return all(axis not in only or getattr(config, AXES[axis]) in _normal(axis, only[axis]) for axis in AXES)

    def _selected(self, there: Mapping[str, set[str]]) -> None:
        """Note what was asked for and is not there."""
        for axis, items in self.changes.only.items():
            for item in _normal(axis, items):
                if item not in there[axis]:
                    self.problems.append(f"no cell has the {AXES[axis]} {item!r}. Add it to the file, or leave it out.")


def _normal(axis: str, items: tuple[str, ...]) -> list[str]:
    return [str(parse(item)) for item in items] if axis == "recipes" else list(items)
