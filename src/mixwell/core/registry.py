"""The methods: what each publishes, which pieces it fixes, and which it only proposes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from mixwell.core.axes import Piece
from mixwell.core.errors import ParameterError, UnknownMethod, closest, number_in

if TYPE_CHECKING:
    from mixwell.core.algebra import Node

__all__ = ["Method", "Pieces", "method", "method_of", "methods"]


@dataclass(frozen=True)
class Pieces:
    """What a published method answers.

    Attributes:
        essential: the pieces that the method is about.
        suggested: the paper's choice on other axes, which other methods of a recipe may override.
        prob: share of the batches on which the method mixes; on the others the recipe `otherwise` does.
        otherwise: a recipe string.
        beside: a recipe that belongs to the method, as if it had been added to it; None for none. Where it switches,
            the method does.
    """

    essential: tuple[Piece, ...]
    suggested: tuple[Piece, ...]
    prob: float
    otherwise: str
    beside: Node | None

    def __init__(
        self,
        essential: Piece | tuple[Piece, ...],
        suggested: Piece | tuple[Piece, ...] = (),
        prob: float = 1.0,
        otherwise: str = "none",
        beside: Node | None = None,
    ) -> None:
        object.__setattr__(self, "essential", essential if isinstance(essential, tuple) else (essential,))
        object.__setattr__(self, "suggested", suggested if isinstance(suggested, tuple) else (suggested,))
        object.__setattr__(self, "prob", number_in("prob", prob, 0, 1))
        object.__setattr__(self, "otherwise", otherwise)
        object.__setattr__(self, "beside", beside)


@dataclass(frozen=True)
class Method:
    """The entry of one published method; the single source for lists, pages, pictures and tables.

    Attributes:
        slug: its name in recipes.
        section: section of the survey.
        paper: arXiv id; for papers that are not there "doi:…" or "openreview:…".
        venue: where it was published.
        build: makes its pieces from its parameters.
        gate: the parameter that says on which share of the batches it mixes, or "".
    """

    slug: str
    section: str
    paper: str
    venue: str
    build: Callable[..., Pieces]
    gate: str = "prob"

    @property
    def reference(self) -> str:
        """The paper, such as "arXiv:1710.09412"."""
        return self.paper if ":" in self.paper else f"arXiv:{self.paper}"

    @property
    def url(self) -> str:
        """Where the paper is."""
        archive, _, name = self.reference.partition(":")
        return {
            "arXiv": "https://arxiv.org/abs/",
            "doi": "https://doi.org/",
            "openreview": "https://openreview.net/forum?id=",
        }[archive] + name

    @property
    def doc(self) -> str:
        """The method's page: the docstring of its file."""
        return inspect.getdoc(sys.modules[self.build.__module__]) or ""

    @property
    def title(self) -> str:
        """Its name and one-line description."""
        return self.doc.partition("\n")[0].rstrip(".")

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its parameters, with the paper's values as defaults."""
        return inspect.signature(self.build).parameters

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The given parameters by name, checked against the declaration.

        Raises:
            ParameterError: unknown, given twice, or of the wrong type.
        """
        names = list(self.parameters)
        if len(args) > len(names):
            raise ParameterError(
                f"{self.slug} takes {len(names)} parameters ({', '.join(names)}), got {len(args)} values."
            )
        given = dict(zip(names, args, strict=False))
        hints = typing.get_type_hints(self.build)
        for name, value in kwargs.items():
            if name not in names:
                raise ParameterError(f"{self.slug} has no parameter {name!r}; {closest(name, names)}")
            if name in given:
                raise ParameterError(f"{self.slug}: parameter {name!r} was given twice.")
            given[name] = value
        for name, value in given.items():
            if not _fits(value, hints[name]):
                raise ParameterError(f"{self.slug}: {name} must be {_words(hints[name])}, got {value!r}.")
        return given


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint if isinstance(hint, type) else object)


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if origin is tuple:
        return f"a tuple of {_words(get_args(hint)[0])}"
    return {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}.get(hint, str(hint))


_METHODS: dict[str, Method] = {}


def method(slug: str, *, section: str, paper: str, venue: str, gate: str = "prob") -> Callable[[Any], Any]:
    """Register the decorated function as the method `slug`."""

    def register(build: Callable[..., Pieces]) -> Callable[..., Pieces]:
        if slug in _METHODS and _METHODS[slug].build.__module__ != build.__module__:
            raise ParameterError(f"Two files declare the method {slug!r}; slugs must be unique.")
        _METHODS[slug] = Method(
            slug, section, paper, venue, build, gate if gate in inspect.signature(build).parameters else ""
        )
        return build

    return register


@cache
def _discover() -> None:
    """Import every method file of the package."""
    for family in ("mixwell.sample", "mixwell.label"):
        package = importlib.import_module(family)
        for found in pkgutil.walk_packages(package.__path__, f"{family}."):
            if not found.ispkg:
                importlib.import_module(found.name)


def methods() -> list[str]:
    """The slugs of all methods, in the survey's order."""
    _discover()
    return sorted(_METHODS, key=lambda slug: (_METHODS[slug].section, slug))


def method_of(slug: str) -> Method:
    """The entry of a method.

    Raises:
        UnknownMethod: there is none; gives the closest names.
    """
    _discover()
    if slug not in _METHODS:
        raise UnknownMethod(f"Unknown method {slug!r}: {closest(slug, [*_METHODS, 'none'])} See mixwell.methods().")
    return _METHODS[slug]
