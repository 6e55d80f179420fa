"""From a frozen dataclass to a command's options, by tyro."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, field, fields, make_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

__all__ = ["KeyValues", "read_options"]

T = TypeVar("T")

KeyValues = dict[str, Any]
"""Given as `--model-options depth=4 dim=64`."""

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def read_options(
    config: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    groups: Mapping[str, Sequence[str]] | None = None,
    positional: str | Sequence[str] = (),
    short: Mapping[str, str] | None = None,
    presets: Callable[[str], Mapping[str, Any]] | None = None,
) -> T:
    """Read a dataclass from the words of a command line.

    Args:
        config: its fields are described by the string below each.
        prog: what the help calls the command.
        description: one line; the help does not wrap it.
        groups: titles in the help and the fields under each; fields that are in none come first.
        positional: the fields that are given without their names.
        short: a second name of a field's option, such as "-o".
        presets: what the name after an option --preset stands for: values of fields, which options of their own change.

    Raises:
        SystemExit: 2 for wrong usage, 0 after --help.
    """
    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False
    groups = groups or {}
    named = (positional,) if isinstance(positional, str) else positional
    start = {} if presets is None else _start(argv, presets)
    declared = _declarations(config, named, short or {}, start)
    if presets is not None:
        declared = {_PRESET[0]: _PRESET, **declared}
    grouped = [
        _group(f"group_{place}", title, [declared.pop(name) for name in names])
        for place, (title, names) in enumerate(groups.items())
    ]
    shape = make_dataclass(config.__name__, [*declared.values(), *grouped])
    given: Any = tyro.cli(
        shape,
        prog=prog,
        description=description,
        args=list(argv),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        registry=_registry(),
    )
    values = dict(vars(given))
    for name, _, _ in grouped:
        values |= vars(values.pop(name))
    if presets is not None:
        del values[_PRESET[0]]
    return config(**values)


_Declaration = tuple[str, Any, Any]
"""Name, type and `dataclasses.field` of an option."""

_PRESET: _Declaration = (
    "preset",
    Annotated[
        str | None,
        tyro.conf.arg(
            help="A published training, whose settings then stand where no other option is given; mixwell list "
            "--presets shows all.",
            metavar="FAMILY/METHOD",
            help_behavior_hint="",
        ),
    ],
    field(default=None),
)


def _start(argv: Sequence[str], presets: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The values of the preset that the words name; of the last one, if they name several."""
    given: str | None = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == "--preset":
            given = following
        elif word.startswith("--preset="):
            given = word.partition("=")[2]
    return {} if given is None else presets(given)


def _declarations(
    config: Any, positional: Sequence[str], short: Mapping[str, str], start: Mapping[str, Any]
) -> dict[str, _Declaration]:
    hints, docs = get_type_hints(config, include_extras=True), _field_docs(config)
    found: dict[str, _Declaration] = {}
    for each in fields(config):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        default = start.get(each.name, default)
        alone, many = each.name in positional, get_origin(hints[each.name]) is tuple
        label = tyro.conf.arg(
            help=docs[each.name],
            metavar=each.name.upper() + " ..." * many if alone else _metavar(hints[each.name]),
            aliases=[short[each.name]] if each.name in short else None,
            help_behavior_hint=_behaviour(default, many),
        )
        hint: Any = Annotated[hints[each.name], label]
        if alone:
            hint = Annotated[hint, tyro.conf.Positional]
        given = field() if default is MISSING else field(default_factory=partial(copy, default))
        found[each.name] = (each.name, hint, given)
    return found


def _behaviour(default: Any, many: bool) -> str | None:
    """What the help says of a default; None for tyro's own words."""
    if default is MISSING and many:
        return "(required)"
    return "" if default is None or default is False or default in ((), {}) else None


def _group(name: str, title: str, declared: Iterable[_Declaration]) -> _Declaration:
    holder: Any = make_dataclass(name, list(declared), namespace={"__doc__": ""})
    return name, Annotated[holder, tyro.conf.arg(name=title)], field(default_factory=holder)


def _field_docs(config: type) -> dict[str, str]:
    """The string below each field of a class, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        first.target.id: " ".join(second.value.value.split())
        for first, second in pairwise(tree.body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
        and isinstance(second.value.value, str)
    }


def _metavar(hint: Any) -> str | None:
    """How the help shows a value of the type; None for tyro's own way."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _metavar(args[0])
    if origin is Literal:
        return f"{{{','.join(args)}}}"
    if origin in (Union, types.UnionType) and type(None) in args and len(args) == 2:
        return _metavar(next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        return f"{_metavar(args[0])} ..."
    return "KEY=VALUE ..." if origin is dict else _METAVARS.get(hint)


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def key_values(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[KeyValues] | None:
        if info.type_origin is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="KEY=VALUE ...",
            instance_from_str=_key_values,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{name}={item}" for name, item in value.items()],
        )

    return registry


def _key_values(words: Sequence[str]) -> KeyValues:
    found: KeyValues = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise ValueError(f"expected KEY=VALUE, such as size=28, got {word!r}")
        if name in found:
            raise ValueError(f"{name} was given twice")
        found[name] = _value(text)
    return found


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
