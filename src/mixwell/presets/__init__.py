"""Published trainings as files: one TOML file per data set, network and number of epochs, one entry in it per method.

A file's `[config]` holds the fields of `TrainConfig` that its methods share; an entry adds its recipe, the published
figure and, where the source trained the method otherwise than the rest, fields of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.core.errors import ParameterError, closest

if TYPE_CHECKING:
    from mixwell.train import TrainConfig

__all__ = ["Preset", "Source", "families", "preset", "presets"]


@dataclass(frozen=True)
class Source:
    """Where a figure was published.

    Attributes:
        table: which one.
        citation: of what.
        url: where to read it; "" where the citation says it.
    """

    table: str
    citation: str
    url: str = ""


@dataclass(frozen=True)
class Preset:
    """One published training.

    Attributes:
        name: "FAMILY/METHOD", such as "cifar100-resnet18-200/puzzlemix".
        title: the family in words.
        recipe: what is mixed and how.
        accuracy: the published figure, in percent.
        reported: what the figure is.
        source: where it was published.
        images: of the training set.
        passes: what a step costs, in training passes of the network over the batch; an estimate.
        hours: that the source says the training took, on its hardware; None where it says nothing.
        differs: in what the published training is not the one of `fields`.
        fields: of `TrainConfig`, the recipe among them.
    """

    name: str
    title: str
    recipe: str
    accuracy: float
    reported: str
    source: Source
    images: int
    passes: float
    hours: float | None
    differs: tuple[str, ...]
    fields: Mapping[str, Any]

    def config(self, **changes: Any) -> TrainConfig:
        """The training, with other values of some fields."""
        from mixwell.train import TrainConfig  # only here, because listing presets must not load the engine

        return TrainConfig(**{**self.fields, **changes})

    @property
    def cost(self) -> str:
        """What the training costs, and who says so."""
        if self.hours is not None:
            return f"{self.hours:g} h (published)"
        epochs = self.fields["epochs"]
        total = epochs * self.images * self.passes
        return f"{epochs} epochs × {self.images:,} images × {self.passes:g} = {total / 1e6:,.3g} M passes (estimate)"


@cache
def _read(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def families() -> list[str]:
    """Names of all families, one per file."""
    return list(_files())


def presets() -> list[str]:
    """Names of all presets, by family."""
    return [f"{family}/{method}" for family, path in _files().items() for method in _read(path)["methods"]]


def preset(name: str) -> Preset:
    """A preset by its name, "FAMILY/METHOD".

    Raises:
        ParameterError: there is none; gives the closest names.
    """
    family, _, method = name.partition("/")
    files = _files()
    if family not in files:
        raise ParameterError(f"There is no preset {name!r}; {_closest(name, family)}")
    whole = _read(files[family])
    if method not in whole["methods"]:
        what = f"{family} has no method {method!r}" if method else f"{name!r} is a family, name one of its methods"
        raise ParameterError(f"There is no preset {name!r}: {what}; {closest(method, whole['methods'])}")
    entry = whole["methods"][method]
    return Preset(
        name=name,
        title=whole["title"],
        recipe=entry["recipe"],
        accuracy=entry["accuracy"],
        reported=whole["reported"],
        source=Source(**entry.get("source", whole["source"])),
        images=whole["images"],
        passes=entry["passes"],
        hours=entry.get("hours"),
        differs=(*whole["differs"], *entry.get("differs", ())),
        fields={**whole["config"], **entry.get("config", {}), "recipe": entry["recipe"]},
    )


def _closest(name: str, family: str) -> str:
    """The presets that look like `name`, or else the families that look like its first part."""
    near = closest(name, presets())
    return closest(family, families()) if near.startswith("known:") else near
