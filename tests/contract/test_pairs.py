"""Recipes of two and three methods train one step, or are refused for a reason that the methods themselves declare."""

import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import permutations

import pytest
import torch
from torch import nn

import mixwell
from mixwell.core.axes import Blend, Need, Piece, Slot
from mixwell.core.pairs import Verdict, pairs

CLASSES = 7
PIXELS = mixwell.Pixels((0.5,), (0.25,))
TRIPLES = {False: {"accepted": 40, "refused": 20}, True: {"accepted": 400, "refused": 200}}
"""How many recipes of three methods are drawn, and with --all; there are far too many to try each."""

RESIZED = {"stackmix": "stackmix(resize=true)"}
"""How methods that change the images' size are used with a network of a fixed one."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "triple" in metafunc.fixturenames:
        config = metafunc.config
        drawn = triples(config.option.matrix_seed, TRIPLES[config.option.all])
        metafunc.parametrize("triple", drawn, ids="+".join)


def triples(seed: int, wanted: dict[str, int]) -> list[tuple[str, ...]]:
    """Different ordered triples of methods, as many of either verdict as wanted."""
    source, slugs, left = random.Random(f"{seed}/triples"), mixwell.methods(), Counter(wanted)
    found: dict[tuple[str, ...], None] = {}
    while left.total():
        triple = tuple(source.sample(slugs, 3))
        verdict = "refused" if refusal(triple) else "accepted"
        if triple not in found and left[verdict]:
            found[triple] = None
            left[verdict] -= 1
    return list(found)


@cache
def declared(slug: str) -> mixwell.Pieces:
    return mixwell.method_of(slug).build()


def pieces_of(slugs: tuple[str, ...]) -> list[tuple[str, mixwell.Pieces]]:
    return [(slug, declared(slug)) for slug in slugs]


def spelled_out(slugs: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The methods of each option that a recipe which comes with a method makes of a sum."""
    options: list[tuple[str, ...]] = [()]
    for slug, found in pieces_of(slugs):
        beside = [()]
        if found.beside is not None:
            nodes = getattr(found.beside, "options", ((1.0, found.beside),))
            called = [tuple(re.findall(r"[a-z_]+(?=\(|$| )", str(node))) for _, node in nodes]
            beside = [option for names in called for option in spelled_out(names)]
        options = [(*option, slug, *more) for option in options for more in beside]
    return options


def unmet(piece: Piece, blend: Blend | None, met: frozenset, *, borrowed: bool, broken: frozenset) -> bool:
    """Whether the piece cannot act beside this blend, read off what both declare.

    Labels may be borrowed besides, and may have `broken` what the blend gives.
    """
    if piece.slot in (Slot.BLEND, Slot.SELF, Slot.STATISTICS):
        return False
    in_loss = piece.slot in (Slot.CRITERION, Slot.TERM, Slot.WRAPPER)
    if blend is None:
        return not (in_loss and piece.needs <= met | {Need.SIMPLEX, Need.OWN_ROW})
    if in_loss and piece.needs & broken:
        return True
    if borrowed and in_loss and Need.PAIR in piece.needs:
        return True
    idle = {
        Slot.PAIRING: blend.partners != getattr(piece, "count", 1),
        Slot.RATIO: not blend.takes_lam,
        Slot.PLACE: getattr(piece, "hidden", False) and not blend.hidden,
    }
    return idle.get(piece.slot, False) or not piece.needs <= blend.offers | met


def refusal(slugs: tuple[str, ...]) -> str:
    """Why the recipe must be refused, or ""."""
    return next(filter(None, map(refusal_of_option, spelled_out(slugs))), "")


def refusal_of_option(slugs: tuple[str, ...]) -> str:
    parts = pieces_of(slugs)
    essential = [(slug, piece) for slug, found in parts for piece in found.essential]
    taken: set[Slot] = set()
    for _, piece in essential:
        if piece.slot in taken:
            return f"two answers for {piece.slot}"
        if piece.slot is not Slot.TERM:
            taken.add(piece.slot)
    met = frozenset().union(*(getattr(piece, "gives", ()) for _, piece in essential if piece.slot is Slot.SELF))
    borrowed = any(getattr(piece, "borrows", False) for _, piece in essential)
    broken = frozenset().union(*(piece.breaks for _, piece in essential if piece.slot is Slot.LABEL))
    unseen = frozenset().union(*(piece.breaks for _, piece in essential if piece.slot is Slot.WRAPPER))
    if any(piece.slot is Slot.CRITERION and piece.needs & unseen for _, piece in essential):
        return "a criterion sees no mix"
    blends = [piece for _, piece in essential if piece.slot is Slot.BLEND]
    offered = [piece for _, found in parts for piece in found.suggested if piece.slot is Slot.BLEND]
    if not blends:
        idle = {b: any(unmet(p, b, met, borrowed=borrowed, broken=broken) for _, p in essential) for b in offered}
        suiting = [b for b in offered if not idle[b]]
        blends = (suiting or offered)[:1]
    blend = blends[0] if blends else None
    idle = [slug for slug, piece in essential if unmet(piece, blend, met, borrowed=borrowed, broken=broken)]
    return f"{idle[0]} cannot act" if idle else ""


def train(recipe: mixwell.Recipe, net: nn.Module, images: torch.Tensor) -> None:
    clean = [mixwell.Batch(images, torch.arange(len(images)) % CLASSES)]
    recipe.prepare(lambda: clean, "noise of the pairs").use_data(train=lambda: clean, held_out=lambda: clean)
    recipe.bind(net, example=images)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    groups = recipe.parameter_groups(net)
    for turn in recipe.turns(net, images, torch.arange(len(images)) % CLASSES):
        assert torch.isfinite(turn.loss)
        parameters = [parameter for group in groups if group["turn"] == turn.group for parameter in group["params"]]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        optimizer.zero_grad()
        turn.loss.backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        optimizer.step()
    recipe.after_step(net)


def check(slugs: tuple[str, ...], cnn: Callable[..., nn.Module], vit: Callable[..., nn.Module]) -> None:
    """See that the sum of the methods trains one step, or is refused as it must be."""
    text = " + ".join(slugs)
    expected = refusal(slugs)
    if expected:
        with pytest.raises(mixwell.IncompatibleRecipe) as caught:
            mixwell.create(text, num_classes=CLASSES)
        assert any(slug in str(caught.value) for slug in slugs), expected
        return
    images = torch.randn(6, 3, 32, 32)
    fixed = " + ".join(RESIZED.get(slug, slug) for slug in slugs)
    train(mixwell.create(fixed, num_classes=CLASSES, pixels=PIXELS), vit(CLASSES), images)
    recipe = mixwell.create(text, num_classes=CLASSES, pixels=PIXELS)
    if recipe.needs_tokens:
        with pytest.raises(mixwell.IncompatibleRecipe):
            recipe.bind(cnn(CLASSES), example=images)
        return
    train(recipe, cnn(CLASSES), images)


@pytest.mark.matrix(keep=150)
@pytest.mark.parametrize("pair", list(permutations(mixwell.methods(), 2)), ids="+".join)
def test_pair_trains_or_is_refused(pair: tuple[str, str], cnn: Callable[..., nn.Module], vit: Callable[..., nn.Module]):
    check(pair, cnn, vit)


def test_triple_trains_or_is_refused(
    triple: tuple[str, ...], cnn: Callable[..., nn.Module], vit: Callable[..., nn.Module]
):
    check(triple, cnn, vit)


def test_triples_are_drawn_by_the_seed():
    wanted = {"accepted": 4, "refused": 3}
    drawn = triples(1, wanted)
    assert drawn == triples(1, wanted) != triples(2, wanted)
    assert len(set(drawn)) == 7
    assert [bool(refusal(triple)) for triple in drawn].count(True) == 3


@pytest.fixture(scope="module")
def verdicts() -> dict[tuple[str, str], Verdict]:
    return pairs()


def test_every_verdict_is_the_one_that_the_methods_declare(verdicts):
    """Of all pairs, also those that the sample above leaves out."""
    assert list(verdicts) == list(permutations(mixwell.methods(), 2))
    for pair, verdict in verdicts.items():
        expected = refusal(pair)
        assert verdict.accepted == (expected == ""), f"{pair}: {expected}, but {verdict.reason}"
        slot = expected.removeprefix("two answers for ")
        assert verdict.slot == ("" if slot == expected else slot), pair
        assert verdict.accepted or any(slug in verdict.reason for slug in pair), verdict.reason


def test_the_order_never_decides_whether_methods_go_together(verdicts):
    for (first, second), verdict in verdicts.items():
        assert verdict.accepted == verdicts[second, first].accepted, (first, second)


def test_the_whole_survey_composes(verdicts):
    """Once every method of the survey is there, at least 1,800 of the 4,160 pairs go together."""
    if len(mixwell.methods()) != 65:
        pytest.skip(f"{len(mixwell.methods())} of the survey's 65 methods are registered")
    assert sum(verdict.accepted for verdict in verdicts.values()) >= 1800


def test_refusals_exist_on_both_sides(verdicts):
    """The matrix must hold pairs of both kinds, or the tests above prove nothing."""
    refused = {pair for pair, verdict in verdicts.items() if not verdict.accepted}
    assert 0 < len(refused) < len(verdicts)
    assert ("mixup", "cutmix") in refused
    assert ("mixup", "transmix") in refused
    assert ("cutmix", "transmix") not in refused
    assert ("mixup", "decouplemix") not in refused
