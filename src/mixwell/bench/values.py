"""Fields of a training, as a file says them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mixwell.core.errors import closest
from mixwell.train import TrainConfig

__all__ = ["ELSEWHERE", "fields_of"]

ELSEWHERE = {
    "recipe": 'Name recipes in [[cells]], as recipes = ["cutmix"].',
    "seed": "Name seeds at the top of the file, as seeds = [0, 1, 2].",
    "out": "Name the folder of all cells at the top of the file, as out = FOLDER.",
}
"""Fields that a bench says in another way."""

_MISFIT = object()


def fields_of(table: Mapping[str, Any], axes: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """Fields of `TrainConfig` in the types that it has them, and what is wrong with the others.

    Args:
        table: values as TOML or the command line gives them.
        axes: those of `ELSEWHERE` that are said here.
    """
    hints = typing.get_type_hints(TrainConfig)
    found: dict[str, Any] = {}
    problems = []
    for name, value in table.items():
        if name in ELSEWHERE and name not in axes:
            problems.append(f"{name} does not stand here. {ELSEWHERE[name]}")
        elif name not in hints:
            problems.append(f"a training has no field {name!r}; {closest(name, hints.keys() - ELSEWHERE.keys())}")
        elif (fitting := _fitted(value, hints[name])) is _MISFIT:
            problems.append(f"{name} must be {_words(hints[name])}, got {value!r}")
        else:
            found[name] = fitting
    return found, problems


def _fitted(value: Any, hint: Any) -> Any:
    """The value as the type has it: whole numbers as floats, lists as tuples, texts as paths."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        fits = (_fitted(value, arg) for arg in sorted(args, key=lambda arg: arg is not type(value)))
        return next((each for each in fits if each is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if value in args else _MISFIT
    if origin is tuple:
        items = [_fitted(item, args[0]) for item in value] if isinstance(value, list | tuple) else [_MISFIT]
        return _MISFIT if _MISFIT in items else tuple(items)
    if origin is dict:
        values = {key: _fitted(item, args[1]) for key, item in value.items()} if isinstance(value, dict) else None
        return _MISFIT if values is None or _MISFIT in values.values() else values
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value if type(value) is hint else _MISFIT


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(arg) for arg in args if arg is not type(None))
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args if arg is not None)
    if origin is tuple:
        return f"a list, each item {_words(args[0])}"
    if origin is dict:
        return "a table of numbers, texts and truth values"
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
    return plain.get(hint, str(hint))
