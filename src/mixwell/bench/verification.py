"""Whether the results of a bench can be had again, to the last digit."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixwell.bench.cells import Bench, Cell, state_of
from mixwell.bench.worker import work
from mixwell.core.errors import ParameterError, RunError
from mixwell.train import TIME_FIELDS, RunFolder
from mixwell.train.machine import changes

__all__ = ["Verdict", "differences", "figures_of", "verify"]


@dataclass(frozen=True)
class Verdict:
    """What came of a cell's second training.

    Attributes:
        cell: the one of the bench.
        figures: how many were compared.
        differences: each figure that differs, with both values.
        changes: of versions and machine since the first training.
    """

    cell: Cell
    figures: int
    differences: tuple[str, ...]
    changes: tuple[str, ...]


def verify(
    bench: Bench, count: int, seed: int = 0, *, begin: Callable[[Cell], None] = lambda cell: None
) -> list[Verdict]:
    """Train and evaluate finished cells anew in a temporary folder, and compare all that is not a time or a size.

    Args:
        bench: some of its cells are finished.
        count: how many of them to take; all if there are fewer.
        seed: says which.
        begin: called before each.

    Raises:
        ParameterError: no cell is finished.
        RunError: one could not be trained again.
    """
    finished = [cell for cell in bench.cells if state_of(cell).done]
    if not finished:
        raise ParameterError(f"No cell of {bench.out} is finished, so there is nothing to verify. Run the bench first.")
    chosen = random.Random(seed).sample(finished, min(count, len(finished)))
    with tempfile.TemporaryDirectory(prefix="mixwell-verify-") as place:
        verdicts = []
        for cell in chosen:
            begin(cell)
            verdicts.append(_again(cell, Path(place)))
    return verdicts


def _again(cell: Cell, place: Path) -> Verdict:
    facts = RunFolder(cell.folder).run()
    evaluate = cell.evaluate
    if evaluate is not None:
        # What was evaluated, though less may be asked for by now; but no times.
        parts = json.loads((cell.folder / "evaluation.json").read_bytes())["settings"]["parts"]
        evaluate = {**evaluate, "parts": [part for part in parts if part != "cost"]}
    config = replace(cell.config, out=place / cell.name, threads=facts["threads"])
    outcome = work(Cell(config, evaluate))
    if outcome.status != "done":
        raise RunError(f"{cell.title} could not be trained again: {outcome.reason}")
    old, new = figures_of(cell.folder), figures_of(config.folder)
    moved = changes(RunFolder(config.folder).run(), facts)
    return Verdict(cell, _count(old), tuple(differences(old, new)), tuple(moved))


def figures_of(folder: Path) -> dict[str, Any]:
    """All that two runs of one config must have in common: result, history, weights by their checksums, evaluation."""
    run = RunFolder(folder)
    facts = run.run()
    found = {
        "result": {name: value for name, value in facts["result"].items() if name != "seconds_per_epoch"},
        "history": [
            {name: value for name, value in record.items() if name not in TIME_FIELDS} for record in run.history()
        ],
        "weights": facts["files"],
    }
    path = folder / "evaluation.json"
    if path.exists():
        evaluation = json.loads(path.read_bytes())
        settings = {name: value for name, value in evaluation.pop("settings").items() if name != "parts"}
        left_out = ("cost", "checksum_of_this")
        found["evaluation"] = {name: value for name, value in evaluation.items() if name not in left_out}
        found["evaluation"]["settings"] = settings
    return found


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Each value in which two JSON values differ, by its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        inside = [(f"{place}.{name}" if place else name, name) for name in dict.fromkeys((*old, *new))]
        missing = object()
        return [
            text
            for where, name in inside
            for text in (
                differences(old[name], new[name], where)
                if name in old and name in new
                else [f"{where} is only in the {'old' if old.get(name, missing) is not missing else 'new'} run"]
            )
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [text for number, pair in pairs for text in differences(*pair, f"{place}[{number}]")]
    same = old == new or (old != old and new != new)  # NaN is the same figure again
    return [] if same else [f"{place} is {new!r}, was {old!r}"]


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, list) else 1
