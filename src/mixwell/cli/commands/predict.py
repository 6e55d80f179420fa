"""`mixwell predict`: what the network of a run takes images for."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen, table
from mixwell.core.errors import DataError, ParameterError
from mixwell.predict import Prediction, predict
from mixwell.train import Run, trained

__all__ = ["Predict", "main"]

_WIDE = 100
"""Columns from which on whole paths are shown."""


@dataclass(frozen=True)
class Predict:
    """Which run, and of which images."""

    run: Path
    """Folder of a finished run."""
    images: tuple[Path, ...]
    """Image files, and folders of them."""
    top: int = 3
    """How many classes to name."""
    json: bool = False
    """Print a JSON list: of each image its path, and classes with their probabilities."""
    csv: bool = False
    """Print comma-separated values: image, rank, class, probability."""
    ema: bool = False
    """Take the averaged weights, of a run that keeps some."""


def main(argv: Sequence[str]) -> int:
    """Predict, and print it; returns the exit code."""
    config = read_options(
        Predict,
        argv,
        prog="mixwell predict",
        description="Classify images with the network of a run.",
        positional=("run", "images"),
    )
    if config.json and config.csv:
        raise ParameterError("--json and --csv are two formats. Choose one.")
    if not config.images:
        raise ParameterError("No images were given. Name files or folders after the run.")
    net = trained(Run.read(config.run), ema=config.ema)
    paths = [path.expanduser() for path in config.images]
    done = predict(net, paths, top=config.top, device=PartialState().device)
    notes = Console(stderr=True, highlight=False)
    for path, reason in done.unread.items():
        notes.print(f"Not read: {path}: {reason}", markup=False, soft_wrap=True)
    if config.json:
        json.dump([_plain(found) for found in done.found], sys.stdout, indent=2, ensure_ascii=False)
        print()
    elif config.csv:
        _print_csv(done.found)
    elif done.found:
        _print_table(done.found)
    if not done.found:
        raise DataError("None of the images could be read.")
    return 0


def _plain(found: Prediction) -> dict[str, object]:
    ranked = zip(found.classes, found.probabilities, strict=True)
    return {"image": str(found.path), "classes": [{"class": name, "probability": share} for name, share in ranked]}


def _print_csv(found: Sequence[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability"))
    for each in found:
        for rank, (name, share) in enumerate(zip(each.classes, each.probabilities, strict=True), 1):
            writer.writerow((each.path, rank, name, f"{share:.6g}"))


def _print_table(found: Sequence[Prediction]) -> None:
    """A column per rank; where the screen is narrow, names without their folders, and the classes in one column."""
    screen, ranks = Screen(), range(1, len(found[0].classes) + 1)
    wide = screen.width >= _WIDE
    heads = [word for rank in ranks for word in ("class" if rank == 1 else f"{rank}.", "")] if wide else ["classes"]
    rows = table("image", *heads)
    rows.columns[0].no_wrap = False
    for column in rows.columns[2::2]:
        column.justify, column.no_wrap = "right", True
    for each in found:
        pairs = [(name, f"{share:.1%}") for name, share in zip(each.classes, each.probabilities, strict=True)]
        if wide:
            rows.add_row(str(each.path), *(text for pair in pairs for text in pair))
        else:
            rows.add_row(each.path.name, ", ".join(map(" ".join, pairs)))
    screen.print(rows)
