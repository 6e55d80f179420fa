"""Which methods go together: what becomes of every recipe "A + B"."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import permutations

from mixwell.core.algebra import Call, Sum
from mixwell.core.compose import compose, shared_pieces
from mixwell.core.errors import IncompatibleRecipe
from mixwell.core.registry import method_of, methods

__all__ = ["Verdict", "pairs"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a recipe.

    Attributes:
        reason: why it is refused, and what would work; "" if it is accepted.
        slot: what two of its methods both decide, if that is the reason; else "".
    """

    reason: str = ""
    slot: str = ""

    @property
    def accepted(self) -> bool:
        """Whether `mixwell.create` makes the recipe."""
        return not self.reason


def pairs(slugs: Iterable[str] | None = None, *, of: Collection[str] = ()) -> dict[tuple[str, str], Verdict]:
    """The verdict on every ordered pair of methods, without making the recipes.

    Args:
        slugs: the methods, which order rows and columns; all in the survey's order if not given.
        of: only pairs that hold one of these; all if empty.

    Raises:
        UnknownMethod: a name that no method has.
    """
    known = methods() if slugs is None else list(slugs)
    for slug in (*known, *of):
        method_of(slug)
    wanted = frozenset(of)
    found = [pair for pair in permutations(known, 2) if not wanted or not wanted.isdisjoint(pair)]
    with shared_pieces():
        return {pair: _verdict(*pair) for pair in found}


def _verdict(*slugs: str) -> Verdict:
    try:
        compose(Sum(tuple(map(Call, slugs))))
    except IncompatibleRecipe as error:
        return Verdict(str(error), error.slot)
    return Verdict()
