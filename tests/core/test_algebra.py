"""The recipe language: what it reads, that it prints what it read, and where it says a mistake is."""

from __future__ import annotations

import typing
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixwell
from mixwell.core import registry
from mixwell.core.algebra import Call, Node, Plain, Sum, Switched, parse
from mixwell.core.axes import Blend
from mixwell.core.registry import Pieces, method_of


def values_of(name, hint, gate):
    """Values of a parameter's declared type."""
    origin = get_origin(hint)
    if origin is Literal:
        return st.sampled_from(get_args(hint))
    if origin is tuple:
        part = values_of(name, get_args(hint)[0], gate)
        return st.lists(part, min_size=1, max_size=3).map(tuple)
    if origin is not None:
        return st.one_of([values_of(name, part, gate) for part in get_args(hint) if part is not type(None)])
    if name == gate:
        return st.floats(0, 1)
    recipes = {Plain: "none", Call: "mixup", Sum: "cutmix + transmix", Switched: "0.25*cutmix | 0.75*none"}
    if hint in recipes:
        return st.just(parse(recipes[hint]))
    return {
        float: st.floats(1e-9, 1e9, allow_subnormal=False) | st.integers(1, 9),
        int: st.integers(0, 99),
        bool: st.booleans(),
        str: st.text("abcXYZ019._-+*|(), =", min_size=1, max_size=12),
    }[hint]


@st.composite
def calls(draw):
    slug = draw(st.sampled_from(mixwell.methods()))
    entry = method_of(slug)
    hints = typing.get_type_hints(entry.build)
    names = draw(st.lists(st.sampled_from(list(entry.parameters)), unique=True))
    return Call(slug, tuple((name, draw(values_of(name, hints[name], entry.gate))) for name in names))


def switches(parts):
    """Weights that are exact in binary, so that they survive any number of digits."""

    def built(options):
        weights = {1: [1.0], 2: [0.25, 0.75], 3: [0.5, 0.125, 0.375], 4: [0.25] * 4}[len(options)]
        return Switched(tuple(zip(weights, options, strict=True)))

    return st.lists(parts, min_size=1, max_size=4).map(built)


def sums(parts):
    return st.lists(parts.filter(lambda part: not isinstance(part, Sum)), min_size=2, max_size=3).map(
        lambda terms: Sum(tuple(terms))
    )


nodes = st.recursive(calls() | st.just(Plain()), lambda parts: switches(parts) | sums(parts), max_leaves=6)


@given(nodes)
@settings(max_examples=300, deadline=None)
def test_what_is_printed_is_read_back(node):
    assert parse(str(node)) == node


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("none", "none"),
        ("  cutmix ", "cutmix"),
        ("cutmix()", "cutmix"),
        ("cutmix(0.5)", "cutmix(alpha=0.5)"),
        ("cutmix(.5, per=batch)", "cutmix(alpha=0.5, per='batch')"),
        ("mixup(alpha=1e-3)", "mixup(alpha=0.001)"),
        ("manifold_mixup(sites=(0, layer1))", "manifold_mixup(sites=(0, 'layer1'))"),
        ('manifold_mixup(sites=(2,), per="batch")', "manifold_mixup(sites=(2,), per='batch')"),
        ("transmix+cutmix", "transmix + cutmix"),
        ("(cutmix + transmix)", "cutmix + transmix"),
        ("0.5*mixup(alpha=0.8)|0.5*cutmix", "0.5*mixup(alpha=0.8) | 0.5*cutmix"),
        ("mixup | cutmix", "0.5*mixup | 0.5*cutmix"),
        ("0.25*(cutmix + transmix) | 0.75*none", "0.25*(cutmix + transmix) | 0.75*none"),
        ("(mixup | cutmix) + manifold_mixup", "(0.5*mixup | 0.5*cutmix) + manifold_mixup"),
    ],
)
def test_the_printed_form(text, printed):
    assert str(parse(text)) == printed
    assert str(parse(printed)) == printed


def test_a_switch_without_weights_is_fair_and_survives_printing():
    node = parse("mixup | cutmix | none")
    assert [weight for weight, _ in node.options] == [1 / 3] * 3
    assert parse(str(node)) == node


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", None, "got the end"),
        ("cutmix +", 8, "got the end"),
        ("cutmix mixup", 7, "Expected '+', '|' or the end of the recipe, got 'mixup'"),
        ("cutmix & mixup", 7, "cannot contain '&'"),
        ("cutmix(alpha=0.5", 16, "got the end"),
        ("cutmix(alpha=)", 13, "got ')'"),
        ("cutmix(alpha=1, 2)", 16, "cannot follow a named one"),
        ("cutmix(alpha=1, alpha=2)", 16, "given twice"),
        ("(cutmix", 7, "Expected ')'"),
        ("0.5 cutmix | 0.5*mixup", 4, "'*' after the weight"),
        ("0.5*cutmix | mixup", 0, "every option of a switch a weight, or none"),
        ("0.5*cutmix | 0.4*mixup", 0, "sum to 1, got 0.5 + 0.4 = 0.9. Add '| 0.1*none'"),
        ("1.5*cutmix | -0.5*mixup", 0, "≥ 0"),
    ],
)
def test_a_mistake_is_shown_where_it_is(text, position, said):
    with pytest.raises(mixwell.RecipeSyntaxError) as caught:
        parse(text)
    assert said in str(caught.value)
    if position is not None:
        assert caught.value.position == position
        assert str(caught.value).endswith(f"\n  {text}\n  {' ' * position}^")


def test_a_recipe_is_a_text():
    with pytest.raises(mixwell.RecipeSyntaxError, match=r"text such as .cutmix.*got int"):
        mixwell.create(3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cutmixx", "Unknown method 'cutmixx': did you mean 'cutmix'"),
        ("mix up", "Unknown method 'mix'"),
        ("cutmix(alfa=1)", "cutmix has no parameter 'alfa'; did you mean 'alpha'?"),
        ("cutmix(alpha=often)", "alpha must be a number, got 'often'"),
        ("cutmix(alpha=true)", "alpha must be a number, got True"),
        ("cutmix(1, 1, batch, 2)", "takes 3 parameters (alpha, prob, per), got 4 values"),
        ("cutmix(1, alpha=1)", "'alpha' was given twice"),
        ("cutmix(per=image)", "per must be 'sample' or 'batch', got 'image'"),
        ("cutmix(alpha=0)", "alpha must be a number in (0, inf), got 0"),
        ("cutmix(prob=1.5)", "prob must be a number in [0, 1], got 1.5"),
        ("manifold_mixup(sites=1)", "sites must be a tuple of a whole number or a text, got 1"),
        ("manifold_mixup(sites=())", "sites must name at least one place"),
        ("transmix(mixup_alpha=-1)", "mixup_alpha must be a number in (0, inf), got -1"),
    ],
)
def test_unknown_words_and_values(text, said):
    with pytest.raises((mixwell.UnknownMethod, mixwell.ParameterError)) as caught:
        mixwell.create(text)
    assert said in str(caught.value)


@pytest.fixture
def holder(monkeypatch):
    """A registry in which `holder` takes a recipe and a text, for this test only."""
    monkeypatch.setattr(registry, "_METHODS", {**{slug: method_of(slug) for slug in mixwell.methods()}})

    @mixwell.method("holder", section="1.1", paper="0000.00000", venue="none")
    def build(inner: Node = Plain(), name: str = "") -> Pieces:  # noqa: B008
        return Pieces(Blend())


RECIPES = ["none", "cutmix", "cutmix(alpha=0.5)", "cutmix + transmix", "0.5*mixup | 0.5*cutmix", "holder(inner=mixup)"]


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("inner", RECIPES)
@pytest.mark.parametrize("brackets", ["{}", "({})"])
def test_recipes_as_arguments(inner, brackets):
    node = parse(f"holder(inner={brackets.format(inner)}, name=x)")
    assert dict(node.given) == {"inner": parse(inner), "name": "x"}
    assert parse(str(node)) == node


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("text", ["it's", 'say "x"', "back\\slash", "C:\\new folder", "", "both ' and \""])
def test_texts_survive_printing(text):
    node = Call("holder", (("name", text),))
    assert parse(str(node)) == node
