"""The six questions and what an answer looks like: pieces, what they need, and what they give.

A piece holds settings and owned parameters. Per step it draws (`draw`, the only place with randomness) and then acts on
what was drawn. Draws never depend on image sizes: they are uniforms, permutations, Betas or keys, so one drawing serves
pixels and hidden maps alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.batch import Batch
from mixwell.core.clock import Clock
from mixwell.core.errors import ParameterError
from mixwell.core.mix import Mix, Partners
from mixwell.core.targets import Targets

if TYPE_CHECKING:
    from mixwell.core.artefacts import Workshop
    from mixwell.core.splits import Splits
    from mixwell.core.turns import Player, Turn
    from mixwell.probe import Act, Anatomy, Outputs, Views, Want

__all__ = [
    "Blend",
    "Criterion",
    "Draws",
    "Inside",
    "Label",
    "LossWrapper",
    "Need",
    "Pairing",
    "Per",
    "Piece",
    "Place",
    "Ratio",
    "Scene",
    "SelfBlend",
    "Slot",
    "Statistics",
    "Step",
    "Term",
    "per_of",
]

Per = Literal["sample", "batch"]


class Slot(StrEnum):
    """Where a piece goes in a recipe. All hold at most one piece, but for `TERM`."""

    SELF = "self"
    PLACE = "place"
    PAIRING = "pairing"
    RATIO = "ratio"
    BLEND = "blend"
    STATISTICS = "statistics"
    LABEL = "label"
    CRITERION = "criterion"
    TERM = "term"
    WRAPPER = "wrapper"

    @property
    def axis(self) -> str:
        """The axis of the design that the slot belongs to."""
        if self in (Slot.CRITERION, Slot.TERM, Slot.WRAPPER):
            return "loss"
        return "blend" if self in (Slot.SELF, Slot.STATISTICS) else self.value


class Need(Enum):
    """What a piece may ask for; a blend lists in `gives` what its mixes have. The value completes "needs …"."""

    MASKS = "masks that say which pixels each source shows"
    PAIR = "mixes of exactly two sources"
    SIMPLEX = "label shares that sum to 1"
    OWN_ROW = "mixes that contain the image's own row"
    DIFFERENTIABLE = "a blend that is differentiable in λ"
    VIEWS = "several views of each image"
    ALIGNED = "mixes whose pixels keep their places"


@dataclass(eq=False)
class Draws:
    """Every random number of a step, by the piece that drew it."""

    of: Mapping[nn.Module, Any] = field(default_factory=dict)

    def __getitem__(self, piece: nn.Module) -> Any:
        return self.of[piece]


@dataclass(eq=False)
class Inside:
    """What is at hand where hidden maps are mixed, besides the map.

    Attributes:
        prefix: (B, P, C) class, distillation and register tokens, or None.
        attention: (B, h·w) how salient each patch is to the block that is given this map, before the mix; fp32,
            detached. Raises SiteError at sites that are not what a block is given.
    """

    prefix: Float[Tensor, "b p c"] | None
    attention: Callable[[], Tensor]


@dataclass(eq=False)
class Scene:
    """What a sample policy may look at while it mixes.

    Attributes:
        batch: the clean batch.
        draws: every random number of the step.
        views: lazy looks at the clean batch through the network; None where no network is at hand.
        site: name of the hidden site where the mix happens, or None for the input.
        clock: where in the training the step stands.
        pairs: how many λ the blend takes, if one is drawn per pair; for ratios that look through a network.
        partners: who mixes with whom, likewise.
        data: the data beside the batch; None where none is at hand.
        inside: what is at hand at the hidden site while the mix happens there.
        attempt: (λ, call) → logits and targets of the recipe's mix with that λ, as `call(images)` sees it; with a graph
            to λ where the blend has one. None where no network is at hand.
        loss: (logits, targets) → the criterion.
    """

    batch: Batch
    draws: Draws = field(default_factory=Draws)
    views: Views | None = None
    site: str | None = None
    clock: Clock = field(default_factory=Clock)
    pairs: int = 0
    partners: Callable[[], Partners] | None = None
    data: Splits | None = None
    inside: Inside | None = None
    attempt: Callable[[Tensor, Callable[[Tensor], Any]], tuple[Tensor, Targets]] | None = None
    loss: Callable[[Tensor, Targets], Tensor] | None = None
    _found: dict[tuple[nn.Module, str], Any] | None = field(default=None, init=False, repr=False)

    @property
    def held_out(self) -> Batch | None:
        """The step's held-out batch, read when a piece first asks for it.

        Raises:
            MixwellError: `Recipe.use_data` told of none.
        """
        return None if self.data is None else self.data.at(self.clock.step)

    def once(self, owner: nn.Module, find: Callable[[], Any], what: str = "") -> Any:
        """What `find` gives, called once in the scene for each owner: for what several pieces ask of one module.

        Args:
            what: tells the things apart that are asked of it.
        """
        if self._found is None:
            self._found = {}
        if (owner, what) not in self._found:
            self._found[owner, what] = find()
        return self._found[owner, what]


@dataclass(eq=False)
class Step:
    """What labels and losses see.

    Attributes:
        scene: what the sample policy saw.
        mix: the finished mix.
        outputs: what the training pass over the mix returned.
        clean: what the training pass over the clean batch returned, if a piece asked for one.
        moments: the maps whose moments were changed, by site, as the network went on with them.
        notes: numbers that pieces tell the log, by name.
    """

    scene: Scene
    mix: Mix
    outputs: Outputs
    clean: Outputs | None = None
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        return self.scene.batch

    @property
    def draws(self) -> Draws:
        return self.scene.draws


class Piece(nn.Module):
    """One answer to one question.

    Attributes:
        slot: where in a recipe it goes.
        needs: what the blend's mixes must have for the piece to act.
        network: whether it needs a network at all; without, it serves `Recipe.mix_batch`.
        shared: whether its draws are the same on all ranks (decisions of which site or branch).
        clean: whether it needs a training pass over the clean batch.
        held_out: whether it looks at images that are kept from training (`Recipe.use_data`).
        tokens: whether it needs a transformer's tokens, besides the attention that it wants.
    """

    slot: ClassVar[Slot]
    needs: frozenset[Need] = frozenset()
    network: bool = False
    shared: bool = False
    clean: bool = False
    held_out: bool = False
    tokens: bool = False

    def draw(self, rows: int, rng: Generator) -> Any:
        """All random numbers of one step for a batch of `rows` images."""
        return None

    def prepare(self, workshop: Workshop) -> None:
        """Make or load what it needs before training begins. Called by `Recipe.prepare`, before `build`."""

    def wants(self) -> tuple[Want, ...]:
        """What it must see of the training pass besides the logits."""
        return ()

    def views(self) -> tuple[Want, ...]:
        """What it must see of a pass over the clean batch."""
        return ()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Check what the network offers and build what the piece owns. Called by `Recipe.bind`, under a seeded RNG.

        Raises:
            ModelError, SiteError: the network lacks what the piece needs.
        """

    def mixed_classifier(self) -> nn.Module | None:
        """A classifier of its own that takes the place of the network's in the training pass over the mix."""
        return None

    def players(self) -> Mapping[str, Player]:
        """Those of its parameters that have an optimiser of their own, by the turn that steps it: "method/name"."""
        return {}

    def lessons(self, scene: Scene) -> Iterator[Turn]:
        """What the players learn in a step; each turn is stepped before the next, and all before the mix is made."""
        return iter(())

    def before_epoch(self, net: nn.Module, data: Splits, clock: Clock) -> None:
        """Called before each epoch (statistics of the data as the network sees them)."""

    def observe(self, step: Step) -> None:
        """Remember something of a finished step."""

    def after_step(self, net: nn.Module, clock: Clock) -> None:
        """Called after the optimisers moved (EMA teachers)."""

    def predictor(self, model: nn.Module) -> nn.Module | None:
        """The network that evaluation and export use, if the piece has another than the model."""
        return None

    def eval_images(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What becomes of clean images before the predictor sees them."""
        return images


class SelfBlend(Piece):
    """How is an image changed, or mixed with itself, before it meets another?

    Attributes:
        gives: `Need.VIEWS` if it makes several views.
        mixes: whether the rows become mixes of several images, whose labels the blend of the same method composes.
    """

    slot = Slot.SELF
    gives: frozenset[Need] = frozenset()
    mixes: bool = False

    def images(self, draws: Any, scene: Scene) -> tuple[Float[Tensor, "b ..."], ...]:
        """The views of the clean batch, normalised; the first is the one whose label is trained."""
        raise NotImplementedError


class Pairing(Piece):
    """Who mixes with whom?

    Attributes:
        count: how many partners it gives each row.
    """

    slot = Slot.PAIRING
    count: int = 1

    def partners(self, draws: Any, scene: Scene) -> Partners:
        """The partner rows of each row."""
        raise NotImplementedError


class Ratio(Piece):
    """How much of each? λ weights the image's own row."""

    slot = Slot.RATIO

    def lam(self, draws: Any, scene: Scene) -> Float[Tensor, " #r"]:
        """λ per row, or one for the batch with shape (1,).

        Drawn ratios are fp64 on the CPU; learned ones live on the network's device.
        """
        raise NotImplementedError


class Blend(Piece):
    """How is the new sample made?

    Attributes:
        gives: what its mixes have.
        partners: how many partners a row has; 0 for blends of one image.
        takes_lam: whether the drawn λ matters.
        hidden: whether it can act on hidden maps.
        grid: whether it needs a pixel grid; without, it mixes any `(B, ...)` tensor.
        aligned: whether every pixel of a mix comes from the same place of its sources; not where images are resized,
            moved or stacked.
        by_channel: whether channels of one pixel may come from different sources.
        shows_shares: whether label shares are the shares that are shown; not where they follow saliency.
        exact: whether its mixes are made of the sources' own values; not where a network renders them.
        repeats: whether `Mix.apply` does to any aligned tensor what was done to the images; not where they are rendered
            or mixed with what is not in the batch.
    """

    slot = Slot.BLEND
    gives: frozenset[Need] = frozenset()
    partners: int = 1
    takes_lam: bool = True
    hidden: bool = True
    grid: bool = True
    aligned: bool = True
    by_channel: bool = False
    shows_shares: bool = True
    exact: bool = True
    repeats: bool = True

    @property
    def offers(self) -> frozenset[Need]:
        """All that pieces may need of its mixes: what it gives, and that it is aligned."""
        return self.gives | {Need.ALIGNED} if self.aligned else self.gives

    def looked_at(self, scene: Scene) -> Float[Tensor, "b h w"] | None:
        """Where it finds the clean images salient, for pictures; None if it does not look, or by a `Saliency`."""
        return None

    def pairs(self, rows: int) -> int:
        """How many λ it takes for a batch of `rows` images, if one is drawn per pair; the first rows'."""
        return rows

    def mix(
        self, images: Float[Tensor, "b ..."], partners: Partners, lam: Float[Tensor, " #b"], draws: Any, scene: Scene
    ) -> Mix:
        """Mix without further randomness; `images` are pixels or the map of the scene's site, and are not modified.

        A blend of no partners is given each row alone, and one that takes no λ a NaN.
        """
        raise NotImplementedError


class Statistics(Piece):
    """How do the moments of hidden maps change? It acts at sites of its own, on whatever rows pass there.

    Attributes:
        borrows: whether a row's label then has a share of other rows' labels, so that mixes have more sources.
    """

    slot = Slot.STATISTICS
    network = True
    borrows: bool = False

    def sites_used(self) -> tuple[str, ...]:
        """Names of all sites at which it may act. Known once it is built."""
        raise NotImplementedError

    def sites(self, draws: Any) -> tuple[str, ...]:
        """Names of the sites at which it acts in this step."""
        raise NotImplementedError

    def change(
        self, hidden: Float[Tensor, "r c h w"], site: str, draws: Any, scene: Scene, mix: Mix | None
    ) -> Float[Tensor, "r c h w"]:
        """The map with other moments; `hidden` is not modified.

        Args:
            hidden: the rows' map at `site`.
            mix: what the rows are; None if they are the batch's own, which are mixed further on or not at all.
        """
        raise NotImplementedError

    def targets(self, targets: Targets, draws: Any, scene: Scene, mix: Mix | None) -> Targets:
        """The labels of the step, given those of its mix; called if it acted, with `mix` as in `change`."""
        return targets


class Place(Piece):
    """Where in the network?

    Attributes:
        hidden: whether it mixes hidden maps, rather than the input.
    """

    slot = Slot.PLACE
    hidden: bool = True

    def site(self, draws: Any) -> str | None:
        """Name of the hidden site of this step, or None for the input."""
        raise NotImplementedError

    def sites_used(self) -> tuple[str, ...]:
        """Names of all hidden sites that it may choose. Known once it is built."""
        return ()

    def acts(self, draws: Any, scene: Scene) -> Sequence[Act]:
        """What it does around transformer blocks in the training pass, besides the mix."""
        return ()

    def blocks_used(self) -> tuple[int, ...]:
        """Numbers of all blocks around which it may act. Known once it is built."""
        return ()


class Label(Piece):
    """What is the truth about it?

    Attributes:
        breaks: what the label shares no longer have, though the blend gives it.
    """

    slot = Slot.LABEL
    breaks: frozenset[Need] = frozenset()

    def targets(self, step: Step) -> Targets:
        """The labels of the mixed rows."""
        raise NotImplementedError

    def looked_at(self, step: Step, targets: Targets) -> Float[Tensor, "r h w"] | None:
        """What of the mixed images the labels follow, for pictures; None if that is no map, or attention they want."""
        return None


class Criterion(Piece):
    """What is minimised, per row.

    Attributes:
        smoothing: ε of label smoothing, applied to every source's label.
        class_weights: (C,) weight of each class, or None.
        smoothable, weightable: whether the rule has a meaning for them.
    """

    slot = Slot.CRITERION
    smoothable: bool = True
    weightable: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.smoothing = 0.0
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        """The loss of each row, in fp32."""
        raise NotImplementedError

    def norms(self, targets: Targets) -> Float[Tensor, " r"] | None:
        """What each row counts in the mean; None for 1 each."""
        return None

    def probabilities(self, logits: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        """What the logits say of each class, in fp32 at least: softmax, or sigmoids where the loss is of these."""
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)

    def forward(
        self,
        logits: Float[Tensor, "r c"],
        targets: Targets,
        valid: Bool[Tensor, " r"] | None = None,
        counts: Float[Tensor, " r"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean loss over the valid rows, each counting as much as `counts` says; 0 if none counts."""
        rows, norms = self.rows(logits, targets), self.norms(targets)
        if valid is None and norms is None and counts is None:
            return rows.mean()
        norms = torch.ones_like(rows) if norms is None else norms
        if counts is not None:
            rows, norms = rows * counts, norms * counts
        if valid is not None:
            rows, norms = torch.where(valid, rows, 0), torch.where(valid, norms, 0)
        return rows.sum() / norms.sum().clamp_min(torch.finfo(norms.dtype).tiny)


class Term(Piece):
    """A part added to the loss."""

    slot = Slot.TERM

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        """The weighted part; parts about mixed classification use the recipe's `criterion`."""
        raise NotImplementedError


class LossWrapper(Piece):
    """A change of what rows count in the loss, or of the total.

    Attributes:
        breaks: what criteria no longer find in the rows, though the blend gives it.
    """

    slot = Slot.WRAPPER
    breaks: frozenset[Need] = frozenset()

    def counts(self, step: Step) -> Float[Tensor, " r"] | None:
        """What each row counts in the criterion's mean; None for 1 each."""
        return None

    def wrap(self, total: Float[Tensor, ""], step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        """The new total."""
        return total


def per_of(value: str) -> Per:
    """`value` as "sample" or "batch".

    Raises:
        ParameterError: anything else.
    """
    if value in get_args(Per):
        return cast(Per, value)
    raise ParameterError(f"per must be 'sample' (one draw per pair) or 'batch' (one for all), got {value!r}.")
