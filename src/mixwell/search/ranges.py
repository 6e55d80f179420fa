"""Recipes whose parameters may be ranges, such as "mixup(alpha=0.1..2.0)" or "cutmix(alpha=[0.5, 1.0])"."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from mixwell.core.algebra import Call, Node, Sum, Switched, parse
from mixwell.core.errors import MixwellError, ParameterError
from mixwell.core.registry import method_of

__all__ = ["Choice", "Span", "Template", "template", "tuned"]

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_HOLE = re.compile(
    rf"(?P<name>[A-Za-z_]\w*)\s*=\s*(?:(?P<low>{_NUMBER})\s*\.\.\s*(?P<high>{_NUMBER})|\[(?P<list>[^\]]*)\])"
)
_COMMA = re.compile(r",(?![^(]*\))")
"""A comma that is not in a tuple."""

_TUNED = {"alpha": "0.1..4.0", "prob": "0.3..1.0"}
"""Ranges of the parameters that `tuned` sets free: from nearly unmixed to nearly always half and half, and from a third
of the batches to all. They hold the published values of most methods."""

_LOG = 10.0
"""Ranges of at least this ratio are searched by orders of magnitude."""


@dataclass(frozen=True)
class Span:
    """All numbers between two, both included.

    Attributes:
        name: of the parameter.
        low, high: the ends.
        whole: whether only whole numbers are meant.
    """

    name: str
    low: float
    high: float
    whole: bool = False

    @property
    def log(self) -> bool:
        """Whether it is searched by orders of magnitude."""
        return self.low > 0 and self.high / self.low >= _LOG

    @property
    def ends(self) -> tuple[str, ...]:
        """Its ends, as a recipe has them."""
        return self.text(self.low), self.text(self.high)

    @property
    def size(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.whole else float("inf")

    @property
    def every(self) -> tuple[str, ...]:
        """All values of a range of whole numbers."""
        return tuple(str(value) for value in range(int(self.low), int(self.high) + 1))

    def text(self, value: float) -> str:
        """A value as a recipe has it: with three digits, and never beyond the ends."""
        if self.whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.3g}"), self.low), self.high))


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        name: of the parameter.
        values: as a recipe has them.
    """

    name: str
    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All values."""
        return self.values

    @property
    def every(self) -> tuple[str, ...]:
        """All values."""
        return self.values

    @property
    def size(self) -> float:
        """How many values there are."""
        return len(self.values)


Hole = Span | Choice


@dataclass(frozen=True)
class Template:
    """A recipe, or a family of recipes that differ in parameters.

    Attributes:
        text: as it was given.
        parts: the text around the holes, one more than there are holes.
        holes: what may be chosen.
        published: a recipe of the family that is tried first, or "".
    """

    text: str
    parts: tuple[str, ...]
    holes: tuple[Hole, ...] = ()
    published: str = ""

    def filled(self, values: Sequence[str]) -> str:
        """The recipe with these values, as mixwell writes it."""
        words = [word for pair in zip(self.parts, (*values, ""), strict=True) for word in pair]
        return str(parse("".join(words)))

    @property
    def size(self) -> float:
        """How many recipes the family has."""
        return math.prod(hole.size for hole in self.holes)

    def nth(self, place: int) -> tuple[str, ...]:
        """The values of one recipe of a family that is finite, counted from 0."""
        return next(islice(product(*(hole.every for hole in self.holes)), place, None))

    @property
    def corners(self) -> list[str]:
        """Recipes that hold every end of every range; the recipe itself where there is none."""
        first = [hole.ends[0] for hole in self.holes]
        found = [self.filled(first)]
        for place, hole in enumerate(self.holes):
            found += [self.filled([*first[:place], end, *first[place + 1 :]]) for end in hole.ends[1:]]
        return found


def template(text: str) -> Template:
    """Read a recipe that may have ranges.

    Raises:
        ParameterError: a range is empty, or takes values that its parameter cannot have.
        RecipeSyntaxError, UnknownMethod: the recipe without its ranges is none.
    """
    parts, found, at = [], list(_HOLE.finditer(text)), 0
    for match in found:
        inside = match.start("low") if match["low"] else match.start("list") - 1
        parts.append(text[at:inside])
        at = match.end()
    parts.append(text[at:])
    if not found:
        return Template(str(parse(text)), (text,))
    holes = [_choice(text, match) if match["low"] is None else _span(text, match) for match in found]
    made = Template(text, tuple(parts), tuple(holes))
    for place, hole in enumerate(made.holes):
        if isinstance(hole, Span) and hole.whole and _takes_fractions(made, place):
            holes[place] = replace(hole, whole=False)
    made = replace(made, holes=tuple(holes))
    try:
        _ = made.corners
    except ParameterError as error:
        raise ParameterError(f"The ranges of {text!r} hold what cannot be: {error}") from error
    return made


def tuned(given: Template) -> Template:
    """The same recipe with the parameters `alpha` and `prob` of its methods set free, where they were not given.

    What was there before is tried first. Recipes that have ranges already, or none of these parameters, stay as they
    are.
    """
    if given.holes:
        return given
    node = parse(given.text)
    free = _freed(node)
    return given if free == node else replace(template(str(free)), published=given.text)


@dataclass(frozen=True)
class _Words:
    """What `str` of a recipe shows as it is."""

    text: str

    def __str__(self) -> str:
        return self.text


def _freed(node: Node) -> Node:
    if isinstance(node, Sum):
        return replace(node, terms=tuple(map(_freed, node.terms)))
    if isinstance(node, Switched):
        return replace(node, options=tuple((weight, _freed(option)) for weight, option in node.options))
    if not isinstance(node, Call):
        return node
    given = dict(node.given)
    return replace(node, given=(*node.given, *((name, _Words(_TUNED[name])) for name in _numbers(node.slug, given))))


def _numbers(slug: str, given: typing.Container[str]) -> Iterator[str]:
    """The parameters of a method that `tuned` sets free."""
    entry = method_of(slug)
    hints = typing.get_type_hints(entry.build)
    for name, parameter in entry.parameters.items():
        if name in _TUNED and name not in given and hints[name] is float and parameter.default > 0:
            yield name


def _span(text: str, match: re.Match[str]) -> Span:
    low, high = float(match["low"]), float(match["high"])
    if not low < high:
        raise ParameterError(
            f"{match['name']} in {text!r} must rise, such as 0.1..2.0, got {match['low']}..{match['high']}. "
            "Give the lower end first, or a single value."
        )
    whole = all(re.fullmatch(r"-?\d+", match[end]) for end in ("low", "high"))
    return Span(match["name"], low, high, whole)


def _choice(text: str, match: re.Match[str]) -> Choice:
    values = tuple(word.strip() for word in _COMMA.split(match["list"]))
    if not all(values) or len(set(values)) < len(values):
        raise ParameterError(
            f"{match['name']} in {text!r} must be a list of different values, such as [0.5, 1.0], got "
            f"[{match['list']}]."
        )
    return Choice(match["name"], values)


def _takes_fractions(made: Template, place: int) -> bool:
    """Whether the parameter of a range with whole ends is a number of any kind."""
    first = [hole.ends[0] for hole in made.holes]
    hole = made.holes[place]
    assert isinstance(hole, Span)
    try:
        made.filled([*first[:place], repr(hole.low + 0.5), *first[place + 1 :]])
    except MixwellError:
        return False
    return True
