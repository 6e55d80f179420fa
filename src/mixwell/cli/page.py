"""What the registry knows of a method, as `mixwell list` and `mixwell show` present it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixwell.conformance import source_of
from mixwell.core.algebra import Call
from mixwell.core.axes import Need, Piece, SelfBlend, Slot
from mixwell.core.compose import compose
from mixwell.core.errors import IncompatibleRecipe
from mixwell.core.registry import Method

__all__ = ["Page", "cost_of", "needs_of", "parameter_docs", "settings_of"]

_NAMES = r"\w+(?:, \w+)*"


@dataclass(frozen=True)
class Page:
    """A method in plain values.

    Attributes:
        slug: its name in recipes.
        section: section of the survey.
        family: the survey's title of the section, as its folder has it: "cutting".
        title: its name in print.
        summary: what it does, in one line.
        paper: arXiv id, or "doi:…", or "openreview:…".
        reference, url: the paper's name in print, and where it is.
        venue: where it was published.
        parameters: defaults by name.
        essential: class of the piece that it fixes, by slot.
        suggested: class of the piece that it proposes, by slot.
        beside: the recipe that comes with it, or None.
        axes: the questions that it decides; "recipe" if the recipe that comes with it decides them all.
        needs: what its essential pieces ask of the blend and of the network.
        cost: what its recipe declares to take besides one training pass over the mix, see `cost_of`.
        conformance: what its outputs are compared with; None without a checkout, which holds the replays.
    """

    slug: str
    section: str
    family: str
    title: str
    summary: str
    paper: str
    reference: str
    url: str
    venue: str
    parameters: dict[str, Any]
    essential: dict[str, str]
    suggested: dict[str, str]
    beside: str | None
    axes: tuple[str, ...]
    needs: tuple[str, ...]
    cost: tuple[str, ...]
    conformance: str | None

    @classmethod
    def of(cls, entry: Method) -> Page:
        """The page of a method with its default parameters."""
        pieces = entry.build()
        essential = pieces.essential
        name, _, summary = entry.title.partition(": ")
        return cls(
            slug=entry.slug,
            section=entry.section,
            family=entry.build.__module__.split(".")[-2],
            title=name,
            summary=summary,
            paper=entry.paper,
            reference=entry.reference,
            url=entry.url,
            venue=entry.venue,
            parameters={name: parameter.default for name, parameter in entry.parameters.items()},
            essential=_by_slot(essential),
            suggested=_by_slot(pieces.suggested),
            beside=None if pieces.beside is None else str(pieces.beside),
            axes=tuple(dict.fromkeys(piece.slot.axis for piece in _in_order(essential))) or ("recipe",),
            needs=tuple(needs_of(essential)),
            cost=tuple(cost_of(_of_its_recipe(entry.slug) or essential)),
            conformance=source_of(entry.slug),
        )


def needs_of(pieces: Iterable[Piece]) -> list[str]:
    """What pieces ask of the blend and of the network, in short words."""
    found: set[str] = set()
    for piece in pieces:
        found |= {need.name.lower() for need in piece.needs}
        looks = {want.kind for want in (*piece.wants(), *piece.views())}
        found |= looks or ({"network"} if piece.network else set())
    return sorted(name.replace("_", " ") for name in found)


def cost_of(pieces: Iterable[Piece]) -> list[str]:
    """What pieces declare that a training takes besides one pass over the mix, in short words.

    What a piece runs by itself (an attack, a look ahead) or asks for where a step happens to mix is not declared.
    """
    outer = list(pieces)
    inner = [part for piece in outer for part in piece.modules() if isinstance(part, Piece)]

    def does(name: str) -> bool:
        return any(getattr(type(piece), name) is not getattr(Piece, name) for piece in inner)

    looks = {want.kind for piece in outer for want in piece.views()}
    found = {
        "preparation": does("prepare"),
        "several views": any(isinstance(piece, SelfBlend) and Need.VIEWS in piece.gives for piece in outer),
        "evaluation pass": bool(looks),
        "input gradient": "gradient" in looks,
        "clean training pass": any(piece.clean for piece in outer),
        "held-out images": any(piece.held_out for piece in outer),
        "pass before each epoch": does("before_epoch"),
        "further optimisers": does("players"),
    }
    return [words for words, applies in found.items() if applies]


def settings_of(piece: object) -> str:
    """The class of a piece, or of a part of one, with what it was built from: `Beta(alpha=1.0, per=sample)`."""
    given = {
        name: value
        for name, parameter in inspect.signature(type(piece)).parameters.items()
        if (value := getattr(piece, name, None)) is not None
        and not inspect.isroutine(value)
        and value != parameter.default
    }
    inside = ", ".join(f"{name}={_setting(value)}" for name, value in given.items())
    return f"{type(piece).__name__}({inside})" if inside else type(piece).__name__


def _setting(value: object) -> str:
    """A value on one line: networks by their class, objects that do not describe themselves by their settings."""
    if isinstance(value, nn.Module):
        return type(value).__name__
    return settings_of(value) if type(value).__repr__ is object.__repr__ else str(value)


def parameter_docs(entry: Method) -> dict[str, str]:
    """What the declaration of a method says about each parameter."""
    text = (inspect.getdoc(entry.build) or "").partition("Args:")[2]
    found = re.findall(rf"^({_NAMES}): (.*(?:\n(?!{_NAMES}: ).*\S.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for names, words in found for name in names.split(", ")}


def _of_its_recipe(slug: str) -> list[Piece]:
    """All pieces of the method's own recipe; none if it is no recipe without a sample policy."""
    try:
        return [piece for option in compose(Call(slug)) for piece in option.chosen.all()]
    except IncompatibleRecipe:
        return []


def _in_order(pieces: Iterable[Piece]) -> list[Piece]:
    order = list(Slot)
    return sorted(pieces, key=lambda piece: order.index(piece.slot))


def _by_slot(pieces: Iterable[Piece]) -> dict[str, str]:
    found: dict[str, str] = {}
    for piece in _in_order(pieces):
        name, slot = type(piece).__name__, piece.slot.value
        found[slot] = f"{found[slot]} + {name}" if slot in found else name
    return found
