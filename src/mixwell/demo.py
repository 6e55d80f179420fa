"""A few minutes of mixup on the data that comes with mixwell: one training per recipe, and a page about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from mixwell.core.algebra import parse
from mixwell.core.batch import Batch
from mixwell.core.errors import ParameterError
from mixwell.core.recipe import create
from mixwell.data import DataSet, Loader, load
from mixwell.data.items import labels_of, size_of
from mixwell.evaluate import reliability
from mixwell.report import Row, album, page, rows_of
from mixwell.train import Run, TrainConfig, train, trained

__all__ = ["RECIPES", "Demo", "Outcome", "demo"]

RECIPES = ("none", "mixup", "cutmix", "manifold_mixup", "augmix", "puzzlemix + decouplemix")


@dataclass(frozen=True)
class Demo:
    """What the demo trains, on fashion-mini without crop or flip."""

    recipes: tuple[str, ...] = RECIPES
    """Recipes to compare, in quotes if they have spaces."""
    model: str = "cnn-s"
    """Network, as `mixwell train` takes it."""
    epochs: int = 15
    """Passes over the training set."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("runs/demo")
    """Folder of the runs and of the page report.html."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given."""

    def run(self, recipe: str) -> TrainConfig:
        """The training of one recipe; other settings give other folders, so that none is in another's way."""
        config = TrainConfig(
            recipe=recipe,
            model=self.model,
            epochs=self.epochs,
            seed=self.seed,
            threads=self.threads,
            channels_last=True,
        )
        return replace(config, out=self.out / config.folder.name)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        rows: one per recipe.
        page: the HTML page.
        verdict: the best recipe, and what one seed can say about it.
    """

    rows: tuple[Row, ...]
    page: Path
    verdict: str


def demo(config: Demo, *, begin: Callable[[str], None] = lambda heading: None) -> Outcome:
    """Train each recipe, or resume it, or reuse its finished run; then write the page.

    Args:
        config: what to train.
        begin: called before each training with a heading.

    Raises:
        MixwellError: a recipe cannot be made (before anything is trained), or a folder holds something else.
        KeyboardInterrupt: passed on; the same call continues.
    """
    if not config.recipes:
        raise ParameterError("recipes must name at least one recipe, e.g. none cutmix; got none.")
    data = load("fashion-mini")
    recipes = tuple(dict.fromkeys(str(parse(recipe)) for recipe in config.recipes))
    for recipe in recipes:
        create(recipe, data.num_classes)
    runs = []
    for number, recipe in enumerate(recipes, 1):
        begin(f"[{number}/{len(recipes)}] {recipe}")
        runs.append(Run.read(train(config.run(recipe)).folder))
    begin("Writing the page")
    rows, sizes = tuple(rows_of(runs)), [size_of(part, data.name) for part in (data.train, data.test)]
    verdict = _verdict(rows, sizes[1], config.seed)
    nets = [trained(run) for run in runs]
    written = page(
        runs,
        config.out / "report.html",
        title="mixwell demo",
        pictures=[album(net.recipe, net.model, _one_of_each(data), data.classes) for net in nets],
        reliabilities={run.recipe: reliability(net) for run, net in zip(runs, nets, strict=True)},
        notes=[
            verdict,
            f"Each recipe trained the network {config.model} on the {sizes[0]:,} training images of {data.name} for "
            f"{config.epochs} epoch{'s' * (config.epochs > 1)}, without crop or flip. The figures are of its "
            f"{sizes[1]:,} test images.",
        ],
    )
    return Outcome(rows, written, verdict)


def _verdict(rows: tuple[Row, ...], images: int, seed: int) -> str:
    best = max(rows, key=lambda row: row.accuracy.mean)
    accuracy = best.accuracy.mean
    if len(rows) == 1:
        return f"{best.recipe} reached {accuracy:.2%} with seed {seed}. Add recipes to compare."
    # Two standard errors of the difference of two proportions, as if the test images were drawn anew for each.
    noise = 2 * (2 * accuracy * (1 - accuracy) / images) ** 0.5
    return (
        f"Best here: {best.recipe} with {accuracy:.2%}. This is one seed ({seed}): a difference below about "
        f"{100 * noise:.1f} points may be chance, and another seed or a longer training may order the recipes "
        "differently."
    )


def _one_of_each(data: DataSet) -> Batch:
    """The first training image of each class."""
    labels: Int[Tensor, " n"] = labels_of(data.train)
    first = [int((labels == label).nonzero()[0]) for label in range(data.num_classes)]
    subset = torch.utils.data.Subset(data.train, first)
    return next(Loader(subset, len(first), pixels=data.pixels, shuffle=False).epoch(0))
