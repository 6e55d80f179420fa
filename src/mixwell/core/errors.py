"""What mixwell raises. Every message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "BatchError",
    "DataError",
    "IncompatibleRecipe",
    "MixwellError",
    "ModelError",
    "OwnershipError",
    "ParameterError",
    "RecipeSyntaxError",
    "RunError",
    "SiteError",
    "UnknownMethod",
    "closest",
    "number_in",
]


class MixwellError(Exception):
    """Base of all errors that mixwell raises on purpose."""


class BatchError(MixwellError, ValueError):
    """Images or labels that must not be trained on: wrong shape, dtype, range, or not finite."""


class DataError(MixwellError, ValueError):
    """A data set that is missing, damaged, or not what its name promises."""


class IncompatibleRecipe(MixwellError, ValueError):
    """Pieces that cannot act together; the message names them, gives the reason and what would work.

    Attributes:
        slot: what two methods both decide, such as "blend"; "" where something else is the reason.
    """

    def __init__(self, message: str, slot: str = "") -> None:
        super().__init__(message)
        self.slot = slot


class ModelError(MixwellError, ValueError):
    """A network that is unknown, or lacks what a recipe needs from it."""


class OwnershipError(MixwellError, RuntimeError):
    """Parameters that a recipe owns are not where they must be: not bound, or not handed to an optimiser."""


class ParameterError(MixwellError, ValueError):
    """A parameter of a method or function that is unknown, of the wrong type, or out of range."""


class RecipeSyntaxError(MixwellError, ValueError):
    """A recipe string that cannot be read; the message shows the place of the mistake."""

    def __init__(self, message: str, text: str = "", position: int = 0) -> None:
        place = f"\n  {text}\n  {' ' * position}^" if text else ""
        super().__init__(f"{message}{place}")
        self.text = text
        self.position = position


class RunError(MixwellError, RuntimeError):
    """A run folder or checkpoint that is damaged, or belongs to another configuration."""


class SiteError(MixwellError, ValueError):
    """A place in a network that does not exist; the message lists those that do."""


class UnknownMethod(MixwellError, ValueError):
    """A method name that the registry does not have; the message gives the closest names."""


_SHOWN = 40


def closest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the known words that look like `name`, or the first of them if none does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(word) for word in near)}?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"known: {', '.join(known[:_SHOWN])}{more}."


def number_in(
    name: str,
    value: Any,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
    hint: str = "",
) -> float:
    """Return `value` as a float if it lies in [low, high]; `open_low` and `open_high` leave that end out.

    Raises:
        ParameterError: not a number, not finite, or outside.
    """
    left, right = "(" if open_low or low == float("-inf") else "[", ")" if open_high or high == float("inf") else "]"
    wanted = f"{name} must be a number in {left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(f"{wanted}, got {value!r}. {hint}".strip())
    left_out = (open_low and value == low) or (open_high and value == high) or value in (float("inf"), float("-inf"))
    if not low <= value <= high or left_out:
        raise ParameterError(f"{wanted}, got {value!r}. {hint}".strip())
    return float(value)
