"""What a recipe makes of images: sources, mask, mix and label shares, as pictures that a page can hold."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mixwell.core.axes import Draws, Scene, Step
from mixwell.core.batch import Batch, Pixels
from mixwell.core.mix import Mix
from mixwell.core.recipe import Recipe
from mixwell.core.rng import Streams
from mixwell.core.targets import Targets
from mixwell.probe import Outputs, Probe, Views, Want
from mixwell.probe.trace import untouched

__all__ = ["Album", "Example", "Frame", "album"]

_SOURCES = 5
"""Sources of a row that are shown, those with the largest shares."""
_STEPS = 64
"""Among so many steps, one is looked for that mixes inside the network, if the recipe ever does."""


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        caption: a word or two.
        alt: what it shows, for those who cannot see it.
        source: a PNG as a data URI.
    """

    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Example:
    """One mixed row.

    Attributes:
        frames: from the sources to the mix.
        shares: class names and their label shares, the image's own first.
    """

    frames: tuple[Frame, ...]
    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Album:
    """Examples of one recipe, and a sentence on what the pictures show."""

    recipe: str
    note: str
    examples: tuple[Example, ...]


def album(recipe: Recipe, model: nn.Module, batch: Batch, classes: Sequence[str], *, rows: int = 3) -> Album:
    """Pictures of the most evenly mixed rows of one batch.

    Args:
        recipe: bound to `model`. Of a recipe that switches, the option that mixes most often is shown.
        model: the network that the recipe looks through.
        batch: images (B, C, H, W) with C = 1 or 3, class ids, and `pixels`.
        classes: names by class id.
        rows: how many examples, at most B.
    """
    options: Any = zip(recipe.weights, recipe.options, strict=True)
    _, option = max(options, key=lambda each: (each[1].blend is not None, each[0]))
    probe, draws = Probe(model, batch.images), _draws(option, len(batch))
    looks = Views(probe, batch, option.view_wants, lambda logits, labels: option.clean_loss(logits, Targets.of(labels)))
    site = None if option.blend is None else option.place.site(draws.of.get(option.place))
    statistics, drawn = option.statistics, draws.of.get(option.statistics)
    moments = () if statistics is None else statistics.sites(drawn)
    scene = Scene(batch, draws, looks, site)
    if option.blend is None and moments:
        site = moments[0]
    with untouched(model), torch.no_grad():
        views = option.views(scene)
        shown = views[0]
        if site is not None:
            want = Want("features", site)
            shown = probe.run(shown, wants=[want])[want]
        mix: Mix = option.mix(shown, scene)
        met = None if option.blend is None else mix
        targets: Targets = option.targets(Step(scene, mix, Outputs(mix.images)))
        if moments:
            targets = statistics.targets(targets, drawn, scene, met)
            if met is None:
                mix = replace(mix, images=statistics.change(shown, site, drawn, scene, met))
    sheet = _Sheet(
        batch=batch,
        views=views if len(views) == 1 else views[1:],
        shown=shown,
        mix=mix,
        targets=targets,
        classes=classes,
        alone=option.alone is not None,
        mixes=option.blend is not None,
        site=site,
        moments=bool(moments),
    )
    return Album(str(recipe), sheet.note, tuple(sheet.example(row) for row in _most_mixed(targets, rows)))


def _draws(option: Any, rows: int) -> Draws:
    streams = Streams(0)
    drawn: list[Draws] = [option.draw(rows, streams, step) for step in range(_STEPS)]

    def inside(draws: Draws) -> bool:
        """Whether something happens inside the network."""
        if option.blend is not None and option.place.site(draws.of.get(option.place)) is not None:
            return True
        return option.statistics is not None and bool(option.statistics.sites(draws.of.get(option.statistics)))

    return next(filter(inside, drawn), drawn[0])


def _most_mixed(targets: Targets, rows: int) -> list[int]:
    other = (targets.sources != targets.sources[:, :1]).any(1)
    evenness = (1 - targets.weights.amax(1)) * other
    order: list[int] = evenness.argsort(descending=True, stable=True).tolist()
    return order[:rows]


@dataclass(frozen=True, eq=False)
class _Sheet:
    """Everything that there is to show of a batch.

    Attributes:
        views: what was made of each image alone.
        shown: what was mixed: images, or maps of the site.
        alone, mixes, moments: whether the recipe changes single images, whether it mixes, and whether it changes the
            moments of hidden maps.
    """

    batch: Batch
    views: Sequence[Tensor]
    shown: Tensor
    mix: Mix
    targets: Targets
    classes: Sequence[str]
    alone: bool
    mixes: bool
    site: str | None
    moments: bool

    @property
    def note(self) -> str:
        """What the pictures show."""
        notes = []
        if self.alone:
            notes.append("Each image is changed on its own, and keeps its label.")
        if self.site is not None:
            height, width = self.shown.shape[2:]
            done = "Mixed" if self.mixes else "Given other moments"
            maps = f"The maps are the mean size of the activations over channels, {height}×{width}."
            if height == width == 1:
                maps = f"The maps are the {self.shown.shape[1]} activations, row by row."
            notes.append(f"{done} inside the network, here at {self.site}. {maps}")
        elif self.mix.masks is not None:
            notes.append("The mask is white where the mix shows the image, black where the partner, grey where both.")
        return " ".join(notes) or "Nothing is mixed."

    def example(self, row: int) -> Example:
        """The pictures of a row, from its sources to its mix."""
        most = self.targets.weights[row].argsort(descending=True, stable=True)[:_SOURCES].sort().values
        sources = self.targets.sources[row, most].tolist()
        names = [self.classes[int(self.targets.pool[source])] for source in sources]
        shares = tuple(zip(names, self.targets.weights[row, most].tolist(), strict=True))
        return Example(tuple(self._frames(row, sources, names)), shares)

    def _frames(self, row: int, sources: Sequence[int], names: Sequence[str]) -> Iterator[Frame]:
        both, raw = " and ".join(names), self.batch.raw
        pixels = cast(Pixels, self.batch.pixels)
        roles = ["image", *["partner"] * (len(sources) - 1)]
        for role, source, name in zip(roles, sources, names, strict=True):
            yield _frame(role, name, raw[source])
        if self.alone:
            for number, view in enumerate(self.views, 1):
                yield _frame(f"view {number}", f"{names[0]}, changed", pixels.raw(view)[row])
        if self.site is not None:
            for role, source, name in zip(roles, sources, names, strict=True):
                yield _frame(f"{role}’s map", f"activations of {name}", self._grey(self.shown[source]))
            yield _frame("mixed map", f"mixed activations of {both}", self._grey(self.mix.images[row]))
        elif self.mixes:
            if self.mix.masks is not None:
                masks = self.mix.masks
                mask = masks[row if len(masks) > 1 else 0, :1].expand(1, *raw.shape[2:])
                yield _frame("mask", f"where the mix shows {names[0]}", mask)
            yield _frame("mix", f"mix of {both}", pixels.raw(self.mix.images)[row])

    def _grey(self, hidden: Float[Tensor, "c h w"]) -> Float[Tensor, "1 h w"]:
        """The mean size over channels, or each channel of an embedding; scaled as all of the batch's maps are."""

        def seen(maps: Tensor) -> Tensor:
            if maps.shape[-1] * maps.shape[-2] > 1:
                return maps.abs().mean(-3)
            side = math.isqrt(maps.shape[-3])
            wide = maps.shape[-3] // side
            return maps[..., : side * wide, 0, 0].reshape(*maps.shape[:-3], side, wide)

        every = seen(self.shown)
        low, high = every.min(), every.max()
        return ((seen(hidden) - low) / (high - low).clamp_min(1e-12))[None]


def _frame(caption: str, alt: str, values: Float[Tensor, "c h w"]) -> Frame:
    levels = (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    # Grey images whose channels repeat make files of a third of the size.
    if bool((levels == levels[:1]).all()):
        levels = levels[:1]
    array = levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", optimize=True)
    return Frame(caption, alt, f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
