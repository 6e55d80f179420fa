"""The recipe language.

    recipe  :=  option ("|" option)*            a switch: one option per batch
    option  :=  [weight "*"] sum
    sum     :=  term ("+" term)*
    term    :=  "none" | method ["(" arguments ")"] | "(" recipe ")"

Arguments are numbers, 'texts' (bare words will do), true, false and tuples of these, or a recipe where a method takes
one.
"""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mixwell.core.errors import ParameterError, RecipeSyntaxError
from mixwell.core.registry import Method, method_of

__all__ = ["Call", "Node", "Plain", "Sum", "Switched", "parse"]


@dataclass(frozen=True)
class Plain:
    """`none`: nothing is mixed."""

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True)
class Call:
    """A method with the parameters that were given."""

    slug: str
    given: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={_text(value)}" for name, value in self.given)
        return f"{self.slug}({inside})" if inside else self.slug


@dataclass(frozen=True)
class Sum:
    """Methods that act together."""

    terms: tuple[Node, ...]

    def __str__(self) -> str:
        return " + ".join(f"({term})" if isinstance(term, Switched) else str(term) for term in self.terms)


@dataclass(frozen=True)
class Switched:
    """One of several recipes per batch, with probabilities that sum to 1."""

    options: tuple[tuple[float, Node], ...]

    def __str__(self) -> str:
        def option(weight: float, node: Node) -> str:
            return f"{weight!r}*({node})" if isinstance(node, Sum | Switched) else f"{weight!r}*{node}"

        return " | ".join(option(weight, node) for weight, node in self.options)


Node = Plain | Call | Sum | Switched


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value) if isinstance(value, str | int | float) else str(value)


_TOKEN = re.compile(
    r"(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|"
    r"(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<mark>[+*|(),=])"
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = _TOKEN.match(text, position)
        if found is None:
            raise RecipeSyntaxError(f"A recipe cannot contain {text[position]!r} here.", text, position)
        yield _Token(str(found.lastgroup), found.group(), position)
        position = found.end()
    yield _Token("end", "", len(text))


def parse(text: str) -> Node:
    """Read a recipe.

    Raises:
        RecipeSyntaxError: it is malformed; shows the place.
        UnknownMethod, ParameterError: a method or parameter does not exist, or has the wrong type.
    """
    if not isinstance(text, str):
        raise RecipeSyntaxError(f"A recipe is a text such as 'cutmix + transmix', got {type(text).__name__}.")
    reader = _Reader(text)
    node = reader.recipe()
    reader.expect("end", "", "'+', '|' or the end of the recipe")
    return node


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def take(self, kind: str, text: str = "") -> _Token | None:
        token = self.token
        if token.kind != kind or (text and token.text != text):
            return None
        self.at += 1
        return token

    def expect(self, kind: str, text: str, wanted: str) -> _Token:
        token = self.take(kind, text)
        if token is None:
            got = repr(self.token.text) if self.token.text else "the end"
            raise RecipeSyntaxError(f"Expected {wanted}, got {got}.", self.text, self.token.position)
        return token

    def recipe(self) -> Node:
        start = self.token.position
        options = [self.option()]
        while self.take("mark", "|"):
            options.append(self.option())
        weights = [weight for weight, _ in options if weight is not None]
        if len(options) == 1 and not weights:
            return options[0][1]
        if not weights:
            return Switched(tuple((1 / len(options), node) for _, node in options))
        if len(weights) < len(options):
            raise RecipeSyntaxError("Give every option of a switch a weight, or none of them.", self.text, start)
        if any(weight < 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
            raise RecipeSyntaxError(
                f"The weights of a switch must be ≥ 0 and sum to 1, got {' + '.join(f'{w:g}' for w in weights)} = "
                f"{sum(weights):g}. Add '| {max(0, 1 - sum(weights)):g}*none' for plain batches.",
                self.text,
                start,
            )
        return Switched(tuple((float(weight or 0.0), node) for weight, node in options))

    def option(self) -> tuple[float | None, Node]:
        weight = self.take("number")
        if weight is not None:
            self.expect("mark", "*", "'*' after the weight of an option")
        return (None if weight is None else float(weight.text)), self.sum()

    def sum(self) -> Node:
        terms = [self.term()]
        while self.take("mark", "+"):
            terms.append(self.term())
        if len(terms) == 1:
            return terms[0]
        return Sum(tuple(part for term in terms for part in (term.terms if isinstance(term, Sum) else (term,))))

    def term(self) -> Node:
        if self.take("mark", "("):
            inner = self.recipe()
            self.expect("mark", ")", "')'")
            return inner
        name = self.expect("name", "", "a method's name, 'none' or '('")
        if name.text == "none":
            return Plain()
        entry = method_of(name.text)
        return Call(entry.slug, self.arguments(entry))

    def arguments(self, entry: Method) -> tuple[tuple[str, Any], ...]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        start = self.token.position
        hints = typing.get_type_hints(entry.build)
        names = list(entry.parameters)
        if self.take("mark", "("):
            while not self.take("mark", ")"):
                if args or kwargs:
                    self.expect("mark", ",", "',' or ')'")
                name = self.token if self.token.kind == "name" and self.tokens[self.at + 1].text == "=" else None
                if name is None and kwargs:
                    raise RecipeSyntaxError(
                        "A value without a name cannot follow a named one.", self.text, self.token.position
                    )
                if name is None:
                    args.append(self.value(hints.get(names[len(args)]) if len(args) < len(names) else None))
                    continue
                self.at += 2
                if name.text in kwargs:
                    raise RecipeSyntaxError(f"{name.text!r} was given twice.", self.text, name.position)
                kwargs[name.text] = self.value(hints.get(name.text))
        try:
            return tuple(entry.bound(tuple(args), kwargs).items())
        except ParameterError as error:
            raise ParameterError(f"{error}\n  {self.text}\n  {' ' * start}^") from None

    def value(self, hint: Any) -> Any:
        """An argument of a parameter declared with `hint`."""
        if _takes_recipe(hint):
            return self.recipe()
        if number := self.take("number"):
            return float(number.text) if re.search(r"[.eE]", number.text) else int(number.text)
        if string := self.take("string"):
            return ast.literal_eval(string.text)
        if word := self.take("name"):
            lowered = word.text.lower()
            return lowered == "true" if lowered in ("true", "false") else word.text
        self.expect("mark", "(", "a number, a text, true, false or a tuple in brackets")
        items: list[Any] = []
        while not self.take("mark", ")"):
            items.append(self.value(None))
            if not self.take("mark", ","):
                self.expect("mark", ")", "',' or ')'")
                break
        return tuple(items)


def _takes_recipe(hint: Any) -> bool:
    kinds = typing.get_args(Node)
    return hint in kinds or any(part in kinds for part in typing.get_args(hint))
