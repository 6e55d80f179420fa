"""The registry as test cases: every method, and every option of its switch, drawn and mixed by hand.

A test with an argument `slug` runs for each method; with `slug` and `which`, for each option of each that mixes, and
for hidden maps too where the method mixes these otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Blend, Piece, Statistics
from mixwell.core.places import ByPlace, LamByPlace
from mixwell.core.registry import method_of
from mixwell.core.rng import Streams
from mixwell.sample.attention.tokenmixup import TokenReplace

HOST = "cutmix"
"""What mixes the images for methods that only say something about labels or losses."""

QUICK = {"alignmixup": {"iterations": 5}, "multimix": {"n": 20}}
"""Settings of methods that would take long on maps as large as the suite's images."""

PIXELS = mixwell.Pixels((0.5,), (0.25,))


def text_of(slug: str, **parameters: object) -> str:
    """The method alone if it mixes images, beside a host if it does not; `parameters` go to whom has them."""
    if slug == "none":
        return slug
    entry = method_of(slug)
    pieces = entry.build()
    mixes = pieces.beside or any(
        isinstance(piece, Blend | Statistics) for piece in (*pieces.essential, *pieces.suggested)
    )

    def call(name: str) -> str:
        known = method_of(name).parameters
        given = {**QUICK.get(name, {}), **parameters}
        inside = ", ".join(f"{key}={value!r}" for key, value in given.items() if key in known)
        return f"{name}({inside})"

    return call(slug) if mixes else f"{call(HOST)} + {call(slug)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "slug" not in metafunc.fixturenames or "slug" in given:
        return
    if "which" not in metafunc.fixturenames:
        metafunc.parametrize("slug", mixwell.methods())
        return
    acts = [
        pytest.param(slug, Which(number, hidden), id=f"{slug}{f'-{number}' * (number > 0)}{'-hidden' * hidden}")
        for slug in mixwell.methods()
        for number, option in enumerate(mixwell.create(text_of(slug)).options)
        if option.blend is not None and not isinstance(option.blend, TokenReplace)  # acts on what a block is given
        for hidden in ((False, True) if isinstance(option.blend, ByPlace) else (False,))
    ]
    metafunc.parametrize(("slug", "which"), acts)


def last_turn(recipe: mixwell.Recipe, model: nn.Module, images: Tensor, labels: Tensor) -> mixwell.Turn:
    """The network's own turn in a step, after those of other players."""
    *_, turn = recipe.turns(model, images, labels)
    assert turn.group == "main"
    return turn


@pytest.fixture(scope="session")
def main_turn() -> Callable[..., mixwell.Turn]:
    """`main_turn(recipe, model, images, labels)`: the turn in which the network learns."""
    return last_turn


@dataclass(frozen=True)
class Which:
    """The number of a recipe's option, and whether it mixes hidden maps."""

    option: int = 0
    hidden: bool = False


@dataclass(frozen=True)
class Act:
    """One option of a recipe, mixing outside a training step."""

    recipe: mixwell.Recipe
    which: Which
    network_for: Callable[..., nn.Module]
    prepared: Callable[..., mixwell.Recipe]

    @property
    def option(self) -> Any:
        return self.recipe.options[self.which.option]

    @property
    def blend(self) -> Any:
        return self._at_place(self.option.blend)

    @property
    def ratio(self) -> Any:
        return self._at_place(self.option.ratio)

    def _at_place(self, piece: Any) -> Any:
        if not isinstance(piece, ByPlace | LamByPlace):
            return piece
        return piece.at_hidden if self.which.hidden else piece.at_input

    @property
    def looks(self) -> bool:
        """Whether the mix depends on what a network sees."""
        return any(piece.network for piece in self.option.mixing)

    @property
    def remembers(self) -> bool:
        """Whether a step depends on the steps before it."""
        return any(type(piece).observe is not Piece.observe for piece in self.option.pieces)

    def draws(self, rows: int, seed: int = 0, step: int = 0) -> mixwell.Draws:
        return self.option.draw(rows, Streams(seed), step)

    def mix(self, images: Tensor, labels: Tensor | None = None, draws: mixwell.Draws | None = None) -> mixwell.Mix:
        """Labels are the row numbers, so that a wrong partner shows."""
        batch = mixwell.Batch(images, torch.arange(len(images)) if labels is None else labels, PIXELS)
        drawn = self.draws(len(images)) if draws is None else draws
        scene = mixwell.Scene(batch, drawn)
        if self.looks:
            net = self.network_for(self.recipe, channels=images.shape[1], size=tuple(images.shape[2:])).to(images.dtype)
            probe, data = mixwell.Probe(net, images), self.recipe._progress.data
            scene = self.option.scene(probe, batch, drawn, mixwell.Clock(), data)
        elif images.ndim == 4:
            self.prepared(self.recipe, images.shape[1], tuple(images.shape[2:]))
        scene.site = "hidden" if self.which.hidden else None
        return self.option.mix(images, scene)

    def with_draws(self, rows: int, changes: dict[Piece, Any]) -> mixwell.Draws:
        """The draws of step 0, but for those of some pieces."""
        drawn = self.draws(rows)
        for piece, value in changes.items():
            owner = next(top for top in drawn.of if piece in set(top.modules()))
            if owner is piece:
                drawn.of[piece] = value
            else:
                setattr(drawn.of[owner], "hidden" if self.which.hidden else "input", value)
        return drawn


@pytest.fixture(scope="session")
def act(network_for: Callable[..., nn.Module], prepared: Callable[..., mixwell.Recipe]) -> Callable[..., Act]:
    """`act("cutmix", Which(0), per="batch")`: the first option of cutmix(per='batch')."""

    def make(slug: str, which: Which | int = 0, **parameters: object) -> Act:
        which = Which(which) if isinstance(which, int) else which
        return Act(mixwell.create(text_of(slug, **parameters), 7, pixels=PIXELS), which, network_for, prepared)

    return make


@pytest.fixture(scope="session")
def prepared() -> Callable[..., mixwell.Recipe]:
    """`prepared(recipe, channels=3, size=(32, 32))`: the recipe, with what it needs before training made of noise."""

    def make(recipe: mixwell.Recipe, channels: int = 3, size: tuple[int, int] = (32, 32)) -> mixwell.Recipe:
        noise = torch.rand(7, channels, *size, generator=torch.Generator().manual_seed(0))
        batch = mixwell.Batch(noise, torch.arange(7), mixwell.Pixels((0.0,), (1.0,)))
        recipe.use_data(train=lambda: [batch], held_out=lambda: [batch])
        return recipe.prepare(lambda: [batch], f"noise {channels}×{size}")

    return make


@pytest.fixture(scope="session")
def recipe_for() -> Callable[..., mixwell.Recipe]:
    """`recipe_for("cutmix", per="batch", seed=1)`: parameters of the method and options of `create`, 7 classes."""
    options = ("seed", "criterion", "label_smoothing", "class_weights")

    def make(slug: str, **given: Any) -> mixwell.Recipe:
        settings = {name: given.pop(name) for name in options if name in given}
        return mixwell.create(text_of(slug, **given), 7, pixels=PIXELS, **settings)

    return make


@pytest.fixture(scope="session")
def network_for(
    cnn: Callable[..., nn.Module], vit: Callable[..., nn.Module], prepared: Callable[..., mixwell.Recipe]
) -> Callable[..., nn.Module]:
    """The smallest network that has what a recipe declares to need, with the recipe prepared and bound to it."""

    def make(
        recipe: mixwell.Recipe, classes: int = 7, channels: int = 3, size: tuple[int, int] = (32, 32)
    ) -> nn.Module:
        patch = math.gcd(8, *size)
        model = vit(classes, channels, size, patch_size=patch) if recipe.needs_tokens else cnn(classes, channels)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            prepared(recipe, channels, size).bind(model, torch.randn(2, channels, *size))
            recipe.before_epoch(model, mixwell.Clock(1, epoch=1))  # with an epoch behind it
        return model

    return make
