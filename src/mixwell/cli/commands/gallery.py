"""`mixwell gallery`: what recipes make of images, as pictures on a page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen
from mixwell.gallery import Watcher, gallery, photographs, read_pictures

__all__ = ["Gallery", "main"]


@dataclass(frozen=True)
class Gallery:
    """Of which images, and which recipes."""

    out: Path
    """Folder of the gallery: a page, index.html, and a picture per recipe. One that is there is drawn anew."""
    images: Path | None = None
    """Folder of images, each a class of its own, or of folders of images, one per class; photographs that come with
    scikit-image if not given."""
    recipes: tuple[str, ...] = ()
    """Recipes to draw, such as transmix "cutmix(alpha=0.2)"; a method's name alone stands for the recipe in which it
    can be seen. All methods if not given."""
    size: int = 160
    """Pixels of both sides that images are resized and cropped to: a multiple of 8 from 32 to 512."""
    count: int = 4
    """How many images to show, 2 to 16, spread over the classes."""
    seed: int | None = None
    """Of all draws; if not given, one that mixes every image with another."""


def main(argv: Sequence[str]) -> int:
    """Draw, and say where the page is; returns the exit code."""
    config = read_options(
        Gallery,
        argv,
        prog="mixwell gallery",
        description="Draw what recipes make of images: originals, saliency, masks, mixes and labels.",
        short={"out": "-o"},
    )
    found = (
        photographs(config.count, size=config.size)
        if config.images is None
        else read_pictures(config.images.expanduser(), count=config.count, size=config.size)
    )
    with _Bar() as bar:
        for path, reason in found.skipped.items():
            bar.note(f"Passed over {path}: {reason}")
        page = gallery(
            found.images,
            found.labels,
            recipes=config.recipes or None,
            out=config.out.expanduser(),
            seed=config.seed,
            progress=bar,
            notes=[f"Images of {config.images.expanduser().absolute()}."] if config.images is not None else (),
        )
    refused = f" {bar.refusals} could not act, and the page says why." if bar.refusals else ""
    Screen().print(
        Text(f"Drew {bar.total - bar.refusals} of {bar.total} recipes.{refused} The page is {page}"), soft_wrap=True
    )
    return 0


class _Bar(Watcher):
    """A bar on a terminal, a line per recipe elsewhere."""

    def __init__(self) -> None:
        self.total = self.refusals = 0
        self.console = Console(stderr=True, highlight=False)
        texts = [TextColumn(f"{{task.{column}}}", markup=False) for column in ("description", "fields[working]")]
        self._bar = Progress(
            BarColumn(20), MofNCompleteColumn(), *texts, console=self.console, disable=not self.console.is_terminal
        )
        self._task = self._bar.add_task("", total=None, working="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Say something once."""
        self.console.print(text, markup=False, soft_wrap=True)

    def recipe(self, recipe: str, done: int, total: int) -> None:
        self.total = total
        self._bar.update(self._task, completed=done, total=total, description=recipe, working="")
        if not self.console.is_terminal:
            self.note(f"[{done + 1}/{total}] {recipe}")

    def working(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, working=f"{what} {done}/{total}")

    def refused(self, recipe: str, reason: str) -> None:
        self.refusals += 1
        self.note(f"{shlex.quote(recipe)} cannot act here: {reason}")
