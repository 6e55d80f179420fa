"""`mixwell prepare`: make what a recipe needs before training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from rich.text import Text

from mixwell.cli.options import KeyValues, read_options
from mixwell.cli.screen import Screen
from mixwell.core.artefacts import cache_folder
from mixwell.core.errors import MixwellError
from mixwell.core.recipe import create
from mixwell.data import load
from mixwell.train.prepare import needs_preparing, prepare
from mixwell.train.report import Reporter

__all__ = ["Prepare", "main"]


@dataclass(frozen=True)
class Prepare:
    """For which recipe, and of which images."""

    recipe: str
    """What will be trained, e.g. "djmix" or "djmix(stride=8) + mixup"."""
    data: str = "fashion-mini"
    """Data set, as mixwell train takes it."""
    data_options: KeyValues = field(default_factory=dict)
    """Options of the data set, such as size=28 channels=1."""
    root: Path | None = None
    """Folder of the data; $MIXWELL_DATA or ~/.cache/mixwell if not given."""
    augment: Literal["crop-flip", "rrc-flip"] | None = None
    """Augmentation of the training images."""
    augment_options: KeyValues = field(default_factory=dict)
    """More of it, as mixwell train takes it."""
    workers: int = 0
    """Processes that read images; sets that lie in memory need none."""


def main(argv: Sequence[str]) -> int:
    """Make it, and say where it is; returns the exit code."""
    config = read_options(
        Prepare,
        argv,
        prog="mixwell prepare",
        description="Make what a recipe needs before training. `mixwell train` does it by itself.",
    )
    data = load(
        config.data,
        root=config.root,
        augment=config.augment,
        augment_options=config.augment_options,
        **config.data_options,
    )
    recipe = create(config.recipe, data.num_classes, pixels=data.pixels)
    screen = Screen()
    if not needs_preparing(recipe):
        screen.print(f"{recipe} needs nothing that is made before training.", soft_wrap=True)
        return 0
    folder = _writable(cache_folder())
    reporter, made = Reporter(True), dict[str, None]()  # in order

    def progress(what: str, done: int, total: int) -> None:
        made[what] = None
        reporter.making(what, done, total)

    try:
        prepare(recipe, data, device=PartialState().device, workers=config.workers, progress=progress)
    finally:
        reporter.close()
    told = f"Made for {recipe}: {', '.join(made)}." if made else f"All that {recipe} needs was there already."
    screen.print(Text(f"{told} It is in {folder}"), soft_wrap=True)
    return 0


def _writable(folder: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        MixwellError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MixwellError(
            f"The cache {folder} cannot be made: {error}. Set MIXWELL_CACHE to another folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise MixwellError(f"The cache {folder} cannot be written. Set MIXWELL_CACHE to another folder.")
    return folder
