"""`mixwell show`: a method's page, or what a recipe does; with a model, whether it suits the recipe."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from mixwell.cli.options import KeyValues, read_options
from mixwell.cli.page import Page, parameter_docs, settings_of
from mixwell.cli.presets import print_preset
from mixwell.cli.screen import Screen, table
from mixwell.core.axes import Piece
from mixwell.core.compose import compose
from mixwell.core.errors import IncompatibleRecipe, MixwellError, ModelError
from mixwell.core.recipe import Recipe, create
from mixwell.core.registry import method_of, methods
from mixwell.nets import create_net
from mixwell.presets import preset
from mixwell.probe import Probe, Want

__all__ = ["Show", "main"]

_TRIALS = 256


@dataclass(frozen=True)
class Show:
    """What to show."""

    recipe: str = ""
    """A method, such as transmix, or a recipe, such as "cutmix(alpha=0.5) + transmix"."""
    preset: str | None = None
    """A published training, such as cifar100-resnet18-200/puzzlemix: shows its figure, source, cost and settings."""
    model: str | None = None
    """Network to try the recipe on: cnn-s, vit-s, or any name of timm or torchvision. Shows its sites and which of them
    are used; exits 1 if the recipe cannot act on it."""
    model_options: KeyValues = field(default_factory=dict)
    """Keyword arguments of the network."""
    classes: int = 10
    """Classes of the network."""
    size: int = 32
    """Height and width of the images."""
    channels: int = 3
    """Channels of the images."""


def main(argv: Sequence[str]) -> int:
    """Print the page; returns the exit code."""
    config = read_options(
        Show,
        argv,
        prog="mixwell show",
        description="Show a method's page, what a recipe does, or a published training.",
        groups={"network": ("model", "model_options", "classes", "size", "channels")},
        positional="recipe",
    )
    screen = Screen()
    if config.preset is not None:
        print_preset(screen, preset(config.preset))
        return 0
    slug = config.recipe.strip()
    if not slug:
        print("mixwell show needs a METHOD or a RECIPE, or --preset NAME; see mixwell show --help", file=sys.stderr)
        return 2
    recipe = _whole(slug, config.classes) if slug in methods() else create(slug, config.classes)
    if slug in methods():
        _method(screen, slug)
    else:
        screen.print(Text(str(recipe), style="bold"))
    if str(recipe) != slug and slug in methods():
        screen.print(f"\nIt needs a sample policy; what follows is {recipe}.")
    _answers(screen, recipe)
    _needs(screen, recipe)
    _usage(screen, recipe)
    if config.model is not None:
        net = create_net(
            config.model, config.classes, channels=config.channels, size=config.size, **config.model_options
        )
        _model(screen, recipe, config.model, net.eval(), torch.zeros(2, config.channels, config.size, config.size))
    return 0


def _whole(slug: str, classes: int) -> Recipe:
    """The method's recipe; for one that needs a sample policy, with mixup's or else CutMix's.

    Raises:
        IncompatibleRecipe: it suits neither.
    """
    try:
        return create(slug, classes)
    except IncompatibleRecipe:
        for policy in ("mixup", "cutmix"):
            with suppress(IncompatibleRecipe):
                return create(f"{policy} + {slug}", classes)
        raise


def _method(screen: Screen, slug: str) -> None:
    """What the registry says about a method."""
    entry = method_of(slug)
    page, docs = Page.of(entry), parameter_docs(entry)
    title, _, text = entry.doc.partition("\n")
    screen.print(Text(title, style="bold"), width=screen.prose_width)
    screen.print(f"{slug} · {page.venue} · {page.reference} · section {page.section} of the survey ({page.family})")
    for paragraph in text.strip().split("\n\n"):
        screen.print()
        screen.print(" ".join(paragraph.split()), width=screen.prose_width)
    screen.title("Parameters")
    rows = _rows()
    for name, default in page.parameters.items():
        rows.add_row(name, str(default), docs.get(name, ""))
    _indented(screen, rows)


def _answers(screen: Screen, recipe: Recipe) -> None:
    """How each axis is answered, on which share of the batches, and by which method."""
    for weight, option, composed in zip(recipe.weights, _options(recipe), compose(recipe.node), strict=True):
        screen.title("What it does" if weight == 1 else f"What it does on {100 * weight:.4g}% of the batches")
        if not _mixes(option):
            screen.print("  Images stay as they are.")
        essential = {piece.slot for piece in composed.chosen.all() if piece in composed.chosen.essential}
        rows = _rows()
        for piece in option.pieces:
            owner = option.owners.get(piece)
            role = "essential" if piece.slot in essential else "suggested"
            rows.add_row(piece.slot.axis, _piece(piece), f"{owner}, {role}" if owner else "plain")
        _indented(screen, rows)


def _needs(screen: Screen, recipe: Recipe) -> None:
    pieces = [piece for option in _options(recipe) for piece in option.pieces]
    blend = sorted({need.value for piece in pieces for need in piece.needs})
    looks = sorted(
        {f"its {want.kind.replace('_', ' ')}" for piece in pieces for want in (*piece.wants(), *piece.views())}
    )
    if not looks and any(piece.network for piece in pieces):
        looks = ["hidden maps, to change them"]
    rows = _rows()
    for name, found in (("of the blend", blend), ("of the network", looks)):
        if found:
            rows.add_row(name, "; ".join(found))
    if rows.row_count:
        screen.title("What it needs")
        _indented(screen, rows)


def _usage(screen: Screen, recipe: Recipe) -> None:
    screen.title("How to use it")
    for line in (
        f"recipe = mixwell.create({json.dumps(str(recipe), ensure_ascii=False)}, num_classes={recipe.num_classes})",
        "loss = recipe(model, images, labels)",
        f"$ mixwell train --recipe {shlex.quote(str(recipe))}{' --model vit-s' if recipe.needs_tokens else ''}",
    ):
        screen.print(f"  {line}", soft_wrap=True)


def _model(screen: Screen, recipe: Recipe, name: str, net: nn.Module, example: Tensor) -> None:
    """The sites that a network offers, those that the recipe uses, and whether it can act there.

    Raises:
        IncompatibleRecipe: it cannot.
    """
    with _taking(name, example):
        probe = Probe(net, example)
    refusal = None
    try:
        recipe.bind(net, example)
    except IncompatibleRecipe as error:
        refusal = error
    used = {} if refusal else _used(recipe)
    anatomy = probe.anatomy
    parameters = sum(parameter.numel() for parameter in net.parameters())
    screen.title(f"{name}, {parameters:,} parameters, on images {_shape(example)}")
    rows = table("site", "name", "output", "")
    stem, embedding = _names(probe, "stem"), _names(probe, "embedding")
    known = {None, *stem, *anatomy.stages, *embedding}
    for number, site in [
        ("0", None),
        *(("", x) for x in stem if x not in anatomy.stages),
        *((str(i), stage) for i, stage in enumerate(anatomy.stages, 1)),
        *(("", x) for x in (*embedding, *sorted(site for site in used if site is not None and site not in known))),
    ]:
        with _taking(name, example):
            output = _shape(example) if site is None else _output(probe, site, example)
        rows.add_row(number, site or "the input", output, used.get(site, ""))
    _indented(screen, rows)
    if anatomy.attentions:
        token = "a class token" if anatomy.class_token else "no class token"
        screen.print(f"  {len(anatomy.attentions)} blocks whose attention can be read, {token}")
    if refusal is not None:
        screen.print()
        raise refusal
    screen.print(f"  {recipe} can act on {name}.")


def _options(recipe: Recipe) -> list[Any]:
    """What the recipe may do with a batch."""
    return list(recipe.options)


def _mixes(option: Any) -> bool:
    """Whether any of its pieces changes images."""
    return any(piece.slot.axis != "loss" for piece in option.pieces)


def _names(probe: Probe, site: str) -> list[str]:
    """A site that has a name of its own, if the network has it."""
    with suppress(MixwellError):
        return [probe.anatomy.site(site).name]
    return []


def _used(recipe: Recipe) -> dict[str | None, str]:
    """What a bound recipe does at which site; None is the input."""
    found: dict[str | None, str] = {}
    for option in _options(recipe):
        if option.statistics is not None:
            found |= dict.fromkeys(option.statistics.sites_used(), "changes moments here")
    for option in _options(recipe):
        if option.blend is not None:
            # Whether a place that draws among sites may choose the input is not declared; it shows in its draws.
            rng = np.random.default_rng(0)
            found |= dict.fromkeys(option.place.sites_used(), "mixes here")
            found |= {option.place.site(option.place.draw(1, rng)): "mixes here" for _ in range(_TRIALS)}
        elif option.alone is not None:
            found[None] = "changes images here"
    return found


def _output(probe: Probe, site: str, example: Tensor) -> str:
    """The shape of a site's map, or why it cannot be read as one."""
    want = Want("features", site)
    try:
        with torch.no_grad():
            return _shape(probe.run(example, wants=(want,))[want])
    except MixwellError as error:
        return f"cannot be mixed: {error}"


@contextmanager
def _taking(name: str, example: Tensor) -> Iterator[None]:
    """Turn a network's complaint about the images into a `ModelError`."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        if isinstance(error, MixwellError):
            raise
        raise ModelError(
            f"{name} cannot take images {_shape(example)}: {error} Give --size and --channels that suit it."
        ) from error


def _shape(images: Tensor) -> str:
    return "×".join(map(str, images.shape[1:]))


def _piece(piece: Piece) -> str:
    summary = (inspect.getdoc(type(piece)) or "").partition("\n\n")[0]
    return f"{settings_of(piece)}: {' '.join(summary.split())}"


def _rows() -> Table:
    return table("", "", "", header=False)


def _indented(screen: Screen, rows: Table) -> None:
    screen.print(Padding(rows, (0, 0, 0, 2)), width=screen.prose_width)
