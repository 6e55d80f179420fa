"""From a recipe's text to one answer per axis: essential beats suggested, and what cannot act together is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

from mixwell.core.algebra import Call, Node, Plain, Sum, Switched, parse
from mixwell.core.axes import Blend, Label, LossWrapper, Need, Pairing, Piece, Place, SelfBlend, Slot, Term
from mixwell.core.errors import IncompatibleRecipe
from mixwell.core.registry import Pieces, method_of

__all__ = ["LOSS_SLOTS", "Chosen", "Option", "compose", "shared_pieces"]

LOSS_SLOTS = frozenset({Slot.CRITERION, Slot.TERM, Slot.WRAPPER})
_WITHOUT_MIXING = LOSS_SLOTS | {Slot.SELF, Slot.STATISTICS}
_SHARED: ContextVar[dict[Call, Pieces] | None] = ContextVar("pieces that recipes share", default=None)
_PLAIN = frozenset({Need.SIMPLEX, Need.OWN_ROW})
"""What labels have that nothing mixed, for criteria; other parts of the loss that need it are about mixes."""


@dataclass(eq=False)
class Chosen:
    """One answer per axis, the method that each came from, and which of them were asked for."""

    pieces: dict[Slot, Piece] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    owners: dict[Piece, str] = field(default_factory=dict)
    essential: set[Piece] = field(default_factory=set)

    def all(self) -> list[Piece]:
        """Every piece, in the order in which a step meets them."""
        return [*(self.pieces[slot] for slot in Slot if slot in self.pieces), *self.terms]


@dataclass(eq=False)
class Option:
    """A probability and what happens with it."""

    weight: float
    chosen: Chosen


@dataclass(eq=False)
class _Part:
    """One method of a sum."""

    call: Call
    pieces: Pieces
    gated: bool

    @property
    def slug(self) -> str:
        return self.call.slug


@contextmanager
def shared_pieces() -> Iterator[None]:
    """While it lasts, methods are built once: for looking at many recipes of which none is used."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def compose(node: Node) -> list[Option]:
    """The options of a recipe with their probabilities; one option if nothing is switched.

    Raises:
        IncompatibleRecipe: pieces contradict each other or cannot act; says why and what would work.
    """
    if isinstance(node, Plain):
        return [Option(1.0, Chosen())]
    if isinstance(node, Switched):
        return [
            Option(weight * inner.weight, inner.chosen) for weight, option in node.options for inner in compose(option)
        ]
    try:
        return _summed(list(_spelled_out(node)))
    except IncompatibleRecipe as error:
        if not (brought := _brought(node)):
            raise
        raise IncompatibleRecipe(f"{error} {brought}", error.slot) from None


def _brought(node: Node) -> str:
    """Which recipes come with the methods of a sum, since messages name what is in them."""
    calls = [term for term in (node.terms if isinstance(node, Sum) else (node,)) if isinstance(term, Call)]
    beside = {call.slug: _part(call).pieces.beside for call in calls}
    return " ".join(f"{slug} comes with {recipe}." for slug, recipe in beside.items() if recipe is not None)


def _summed(terms: list[Node]) -> list[Option]:
    """A sum whose methods are spelled out."""
    for place, term in enumerate(terms):
        if isinstance(term, Switched):
            rest = terms[:place] + terms[place + 1 :]
            return [
                Option(weight * inner.weight, inner.chosen)
                for weight, option in term.options
                for inner in (_unmixed(rest) if isinstance(option, Plain) else _summed([*_spelled_out(option), *rest]))
            ]
    if any(isinstance(term, Plain) for term in terms):
        others = " + ".join(str(term) for term in terms if not isinstance(term, Plain))
        raise IncompatibleRecipe(f"'none' mixes nothing, so it cannot be added to {others}. Leave it out.")
    return _gated([_part(term) for term in terms if isinstance(term, Call)])


def _spelled_out(node: Node) -> Iterator[Node]:
    """The terms of a sum, each method followed by the recipe that belongs to it."""
    for term in node.terms if isinstance(node, Sum) else (node,):
        yield term
        if isinstance(term, Call) and (beside := _part(term).pieces.beside) is not None:
            yield from _spelled_out(beside)


def _part(call: Call) -> _Part:
    entry = method_of(call.slug)
    given = dict(call.given)
    shared = _SHARED.get()
    if shared is None:
        pieces = entry.build(**given)
    elif (known := shared.get(call)) is not None:
        pieces = known
    else:
        pieces = shared[call] = entry.build(**given)
    return _Part(call, pieces, bool(entry.gate) and entry.gate in given)


def _gated(parts: list[_Part]) -> list[Option]:
    """A sum, and what happens on the batches where its method of a `prob` does not mix.

    A gate that is only a method's default counts if that method also made the blend; one that was asked for always
    counts.
    """
    chosen = _resolve(parts)
    blend = chosen.pieces.get(Slot.BLEND)
    maker = chosen.owners.get(blend) if blend is not None else None
    gates = [part for part in parts if part.pieces.prob < 1 and (part.gated or part.slug == maker)]
    if not gates:
        return [Option(1.0, chosen)]
    if len(gates) > 1:
        raise IncompatibleRecipe(
            f"{' and '.join(part.slug for part in gates)} each say on which share of the batches to mix, and only one "
            "can. Give one of them, or write the switch out: '0.5*A | 0.5*B'."
        )
    (gate,) = gates
    kept, other = [part.call for part in parts if part is not gate], gate.pieces.otherwise
    otherwise = _unmixed(kept, gate.call) if other == "none" else _beside(kept, gate.call, parse(other))
    rest = [Option((1 - gate.pieces.prob) * option.weight, option.chosen) for option in otherwise]
    return [Option(gate.pieces.prob, chosen), *rest]


def _unmixed(terms: Iterable[Node], gate: Call | None = None) -> list[Option]:
    """Batches without mixing, under what the terms say about single images and the loss, as far as that can act."""
    return [Option(1.0, _resolve(_kept(terms, gate), lenient=True))]


def _beside(terms: Sequence[Node], gate: Call, mixed: Node) -> list[Option]:
    """Another mix, under what the terms say about single images and the loss, as far as that can act on it."""
    if isinstance(mixed, Switched):
        return [
            Option(weight * inner.weight, inner.chosen)
            for weight, option in mixed.options
            for inner in _beside(terms, gate, option)
        ]
    calls = mixed.terms if isinstance(mixed, Sum) else (mixed,)
    own = [_part(call) for call in calls if isinstance(call, Call)]
    return [Option(1.0, _resolve([*own, *_kept(terms, gate)], lenient=True))]


def _kept(terms: Iterable[Node], gate: Call | None) -> list[_Part]:
    """What terms say about single images and the loss, and the criterion of the method that says when to mix."""
    kept = [_unmixing(term) for term in terms if isinstance(term, Call)]
    if gate is None:
        return kept
    pieces = _part(gate).pieces
    criteria = (piece for piece in (*pieces.essential, *pieces.suggested) if piece.slot is Slot.CRITERION)
    return [*kept, _Part(gate, Pieces((), tuple(criteria)), False)]


def _unmixing(call: Call) -> _Part:
    part = _part(call)
    essential = tuple(piece for piece in part.pieces.essential if piece.slot in _WITHOUT_MIXING)
    suggested = tuple(p for p in part.pieces.suggested if p.slot in _WITHOUT_MIXING and not _mixes(p))
    return _Part(call, Pieces(essential, suggested), False)


def _mixes(piece: Piece) -> bool:
    return isinstance(piece, SelfBlend) and piece.mixes


def _resolve(parts: list[_Part], *, lenient: bool = False) -> Chosen:
    """One answer per slot. `lenient`: pieces that cannot act are left out, on batches that a switch left plain."""
    chosen = Chosen()
    for part in parts:
        for piece in part.pieces.essential:
            _take_essential(chosen, piece, part.slug)
    essential = chosen.all()
    maker = chosen.owners.get(chosen.pieces[Slot.BLEND]) if Slot.BLEND in chosen.pieces else None
    ordered = sorted(parts, key=lambda part: part.slug != maker)
    offers = [(piece, part.slug) for part in ordered for piece in part.pieces.suggested]
    _take_blend(chosen, offers, essential)
    maker = chosen.owners.get(chosen.pieces[Slot.BLEND]) if Slot.BLEND in chosen.pieces else None
    for piece, slug in sorted(offers, key=lambda offer: offer[1] != maker):
        stranger = piece.slot is Slot.PLACE and slug != maker  # a place is suggested for the method's own blend
        if piece.slot in chosen.pieces or stranger or piece.slot is Slot.BLEND or _objection(piece, chosen):
            continue
        chosen.pieces[piece.slot] = piece
        chosen.owners[piece] = slug
    for piece in essential:
        objection = _objection(piece, chosen)
        if objection and not lenient:
            raise IncompatibleRecipe(f"{chosen.owners[piece]} {objection}")
        if objection and isinstance(piece, Term):
            chosen.terms.remove(piece)
        elif objection:
            del chosen.pieces[piece.slot]
    return chosen


def _take_essential(chosen: Chosen, piece: Piece, slug: str) -> None:
    chosen.owners[piece] = slug
    chosen.essential.add(piece)
    if isinstance(piece, Term):
        chosen.terms.append(piece)
        return
    if piece.slot in chosen.pieces:
        other = chosen.owners[chosen.pieces[piece.slot]]
        raise IncompatibleRecipe(
            f"{other} and {slug} both decide the {piece.slot.value} ({type(chosen.pieces[piece.slot]).__name__}, "
            f"{type(piece).__name__}), and a recipe has one. Take one of them, or switch per batch: "
            f"'0.5*{other} | 0.5*{slug}'.",
            piece.slot.value,
        )
    chosen.pieces[piece.slot] = piece


def _take_blend(chosen: Chosen, offers: list[tuple[Piece, str]], essential: list[Piece]) -> None:
    """The first suggested blend under which every essential piece can act; the first of all if there is none."""
    blends = [(piece, slug) for piece, slug in offers if isinstance(piece, Blend)]
    if Slot.BLEND in chosen.pieces or not blends:
        return

    def suits(blend: Piece) -> bool:
        trial = Chosen({**chosen.pieces, Slot.BLEND: blend}, chosen.terms, chosen.owners)
        return not any(_objection(piece, trial) for piece in essential)

    piece, slug = next((offer for offer in blends if suits(offer[0])), blends[0])
    chosen.pieces[Slot.BLEND] = piece
    chosen.owners[piece] = slug


def _objection(piece: Piece, chosen: Chosen) -> str:
    """Why the piece cannot act beside the others, or ""."""
    blend, statistics = chosen.pieces.get(Slot.BLEND), chosen.pieces.get(Slot.STATISTICS)
    borrows = getattr(statistics, "borrows", False)
    if _mixes(piece) and borrows:
        return (
            f"mixes images before {chosen.owners[cast(Piece, statistics)]} adds the labels of further rows, which are "
            "then no single images. Take one of them."
        )
    if piece.slot in (Slot.BLEND, Slot.SELF, Slot.STATISTICS):
        return ""
    alone = chosen.pieces.get(Slot.SELF)
    met = alone.gives if isinstance(alone, SelfBlend) else frozenset()
    if not isinstance(blend, Blend):
        plain = _PLAIN if piece.slot is Slot.CRITERION else frozenset()
        if piece.slot in LOSS_SLOTS and piece.needs <= met | plain:
            return ""
        return (
            f"decides the {piece.slot.value}, but nothing in this recipe mixes images. Add a sample policy, such as "
            f"mixup or cutmix."
        )
    name = chosen.owners.get(blend, type(blend).__name__)
    if isinstance(piece, Pairing) and blend.partners not in (0, piece.count):
        return (
            f"gives each image {piece.count} partner{'s' * (piece.count != 1)}, but {name} mixes it with "
            f"{blend.partners}. Take a blend of pairs, such as mixup or cutmix."
        )
    if piece.slot is Slot.PAIRING and not blend.partners:
        return (
            f"decides who mixes with whom, but {name} mixes no two images. Take a blend of pairs, such as mixup or "
            "cutmix."
        )
    if piece.slot is Slot.RATIO and not blend.takes_lam:
        return f"decides λ, but {name} takes none. Take a blend with a λ, such as mixup or cutmix."
    if isinstance(piece, Place) and piece.hidden and not blend.hidden:
        return f"mixes hidden maps, but {name} works on pixels only. Take a blend such as mixup or cutmix."
    place = chosen.pieces.get(Slot.PLACE)
    around_blocks = isinstance(place, Place) and type(place).acts is not Place.acts
    if around_blocks and any(want.kind == "alignment" for want in piece.wants()):
        return (
            f"follows labels from block to block, but {chosen.owners[cast(Piece, place)]} shows a block tokens of "
            "others. Take one of them."
        )
    if piece.slot in LOSS_SLOTS and Need.PAIR in piece.needs and borrows:
        return (
            f"needs {Need.PAIR.value}, but {chosen.owners[cast(Piece, statistics)]} adds the labels of further rows. "
            "Take one of them."
        )
    label = chosen.pieces.get(Slot.LABEL)
    broken = label.breaks if isinstance(label, Label) and piece.slot in LOSS_SLOTS else frozenset()
    if broken & piece.needs:
        return (
            f"needs {' and '.join(sorted(need.value for need in broken & piece.needs))}, which the labels of "
            f"{chosen.owners[cast(Piece, label)]} do not have. Take one of them."
        )
    wrapper = chosen.pieces.get(Slot.WRAPPER)
    unseen = wrapper.breaks if isinstance(wrapper, LossWrapper) and piece.slot is Slot.CRITERION else frozenset()
    if unseen & piece.needs:
        return (
            f"needs {' and '.join(sorted(need.value for need in unseen & piece.needs))}, and "
            f"{chosen.owners[cast(Piece, wrapper)]} lets a criterion see none. Take one of them."
        )
    missing = piece.needs - blend.offers - met
    if missing:
        return (
            f"needs {' and '.join(sorted(need.value for need in missing))}, which {name} does not give. "
            f"{_remedy(missing)}"
        )
    return ""


def _remedy(missing: frozenset[Need]) -> str:
    return {
        Need.MASKS: "Take a blend that cuts or masks, such as cutmix.",
        Need.DIFFERENTIABLE: "Take a blend that is smooth in λ, such as mixup.",
        Need.ALIGNED: "Take a blend that moves no pixels, such as cutmix.",
    }.get(min(missing, key=lambda need: need.name), "Take a blend of two images, such as mixup or cutmix.")
