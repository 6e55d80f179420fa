"""Which recipe shows a method, and under which seed: on a few pictures, whatever usual batches do must be seen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.core.algebra import Call, Node, Sum, Switched, parse
from mixwell.core.axes import Blend, SelfBlend, Slot, Statistics
from mixwell.core.batch import Pixels
from mixwell.core.compose import LOSS_SLOTS
from mixwell.core.recipe import create
from mixwell.core.registry import Method, method_of, methods

__all__ = ["AXES", "HOST", "Exhibit", "exhibits", "picture_text", "pictured", "recipe_text", "seed_of", "telling_seed"]

HOST = "cutmix"
"""What mixes the images for methods that only say something about labels or losses."""
AXES = ("pairing", "ratio", "blend", "place", "label", "loss", "recipe")
"""What a method may decide; one that only chooses among others decides the recipe."""
_PICTURED = {
    "adamixup": "intrusion_weight=10.0",
    "amr": "update_g_every=1, rec_weight=1000.0, scales=2",
    "attentive_cutmix": "teacher_epochs=100",
    "automix_barycenter": "distance=kl, rec_weight=10.0",
    "comixup": "beta=0.16",
    "token_labeling": "teacher_epochs=100",
    "tokenmix": "teacher_epochs=100",
    "supermix": "teacher_epochs=100, max_unsuccessful_fraction=0.0",
    "transformmix": "teacher_epochs=100, epochs=300, lr=0.003",
    "tokenmixup": "inputs=none",
}
"""Settings under which a few photographs show what usual batches do."""
_TRIES = 5_000
"""How many seeds are tried for one whose draws show something."""
_VISIBLE = 0.8
"""A label share from which on a picture looks like that image alone."""


@dataclass(frozen=True)
class Exhibit:
    """One recipe of a gallery.

    Attributes:
        name: the method's slug, else the text as a file's name.
        text: the recipe.
        about: the methods that it shows, without those that only help them to act.
    """

    name: str
    text: str
    about: tuple[Method, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """What its methods decide, in the order of `AXES`."""
        found = {axis for entry in self.about for axis in _axes_of(entry)}
        return tuple(axis for axis in AXES if axis in found)

    @property
    def sections(self) -> tuple[str, ...]:
        """Sections of the survey, such as "1.3 cutting"."""
        return tuple(dict.fromkeys(f"{entry.section} {entry.build.__module__.split('.')[-2]}" for entry in self.about))

    @property
    def only_loss(self) -> bool:
        """Whether it changes the loss and nothing that can be seen."""
        return bool(self.about) and not any(pictured(entry.slug) for entry in self.about)


def exhibits(recipes: Sequence[str] | None = None) -> tuple[Exhibit, ...]:
    """What a gallery shows.

    Args:
        recipes: texts, each once; a method's name alone stands for the recipe of its picture, see `picture_text`. All
            methods if not given.

    Raises:
        RecipeSyntaxError, UnknownMethod, ParameterError: a text cannot be read.
    """
    found: dict[str, Exhibit] = {}
    for text in methods() if recipes is None else recipes:
        node = parse(text)
        if isinstance(node, Call) and not node.given:
            exhibit = Exhibit(node.slug, picture_text(node.slug), (method_of(node.slug),))
        else:
            about = tuple(method_of(slug) for slug in dict.fromkeys(_slugs(node)))
            exhibit = Exhibit(re.sub(r"\W+", "_", str(node)).strip("_")[:60], str(node), about)
        if any(exhibit.text == other.text for other in found.values()):
            continue
        place, name = 1, exhibit.name
        while name in found:
            place += 1
            name = f"{exhibit.name}-{place}"
        found[name] = Exhibit(name, exhibit.text, exhibit.about)
    return tuple(found.values())


def recipe_text(slug: str) -> str:
    """The method alone if it makes images of its own, beside a host if it does not."""
    pieces = method_of(slug).build()
    acts = pieces.beside or any(
        isinstance(piece, Blend | SelfBlend | Statistics) for piece in (*pieces.essential, *pieces.suggested)
    )
    return slug if acts else f"{HOST} + {slug}"


def pictured(slug: str) -> bool:
    """Whether the method can be seen: it changes images, maps or labels, not only the loss."""
    pieces = method_of(slug).build()
    return pieces.beside is not None or any(piece.slot not in LOSS_SLOTS for piece in pieces.essential)


def picture_text(slug: str) -> str:
    """The recipe of the method's picture: it always mixes, and in the network's first stage if it mixes hidden maps."""
    entry = method_of(slug)
    given = [_PICTURED[slug]] if slug in _PICTURED else []
    if entry.gate and entry.build().prob < 1:
        given.append(f"{entry.gate}=1.0")
    if "sites" in entry.parameters:
        given.append("sites=(1,)")
    call = f"{slug}({', '.join(given)})" if given else slug
    return recipe_text(slug).replace(slug, call)


def telling_seed(images: Float[Tensor, "b c h w"], tries: int = _TRIES) -> int:
    """The first seed under which mixup and CutMix mix no image with itself, and with shares that can be seen; if there
    is none, the one under which they do so for most images.

    Args:
        images: at least two.
        tries: how many seeds are looked at.
    """

    def shown(seed: int) -> int:
        """In how many rows two images are seen."""
        labels, seen = torch.arange(len(images)), 0
        for text in ("mixup", "cutmix"):
            _, targets = create(text, len(images), seed=seed).mix_batch(images, labels)
            seen += int((targets.dense().amax(1) < _VISIBLE).sum())
        return seen

    best, most = 0, -1
    for seed in range(tries):
        if (rows := shown(seed)) > most:
            best, most = seed, rows
        if most == 2 * len(images):
            break
    return best


def seed_of(slug: str, images: Float[Tensor, "b c h w"], seed: int) -> int:
    """A seed that shows the method; for augmentations of single images one that changes every image."""
    pieces = method_of(slug).build().essential
    if any(piece.slot is not Slot.SELF or piece.network for piece in pieces) or not pieces:
        return seed

    def least_change(tried: int) -> float:
        recipe = create(slug, len(images), seed=tried, pixels=Pixels((0.0,), (1.0,)))
        mixed, _ = recipe.mix_batch(images, torch.arange(len(images)))
        return float((mixed - images).abs().mean((1, 2, 3)).amin())

    return max(range(40), key=least_change)


def _axes_of(entry: Method) -> set[str]:
    return {piece.slot.axis for piece in entry.build().essential} or {"recipe"}


def _slugs(node: Node) -> Iterator[str]:
    """The methods of a recipe, also those inside others."""
    inner: Iterable[Any] = ()
    if isinstance(node, Call):
        yield node.slug
        inner = (value for _, value in node.given)
    elif isinstance(node, Sum):
        inner = node.terms
    elif isinstance(node, Switched):
        inner = (option for _, option in node.options)
    for part in inner:
        if isinstance(part, Node):
            yield from _slugs(part)
