"""Recipes: one answer per axis, ready to train with, and the three ways to use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.data import default_collate

from mixwell.core.algebra import Node, parse
from mixwell.core.artefacts import Progress, Workshop
from mixwell.core.axes import (
    Blend,
    Criterion,
    Draws,
    Inside,
    Label,
    LossWrapper,
    Piece,
    Place,
    Scene,
    SelfBlend,
    Slot,
    Statistics,
    Step,
    Term,
)
from mixwell.core.batch import Batch, Pixels
from mixwell.core.check import Validate, check_images, check_labels, validate_of
from mixwell.core.clock import Clock
from mixwell.core.compose import LOSS_SLOTS, Chosen, compose
from mixwell.core.criteria import BinaryCrossEntropy, PerSource, SoftCrossEntropy, SquaredError, criterion_of
from mixwell.core.errors import (
    BatchError,
    IncompatibleRecipe,
    MixwellError,
    ModelError,
    OwnershipError,
    ParameterError,
    number_in,
)
from mixwell.core.mix import Mix
from mixwell.core.mixed import Mixed
from mixwell.core.plain import Input, Shares
from mixwell.core.policy import Policy, picked
from mixwell.core.rng import Streams, distributed, key_of, seeded
from mixwell.core.splits import Splits
from mixwell.core.targets import Targets
from mixwell.core.turns import Player, Turn
from mixwell.ops.tokens import grid_of
from mixwell.probe import Edit, Outputs, Probe, Views, Want

__all__ = ["Recipe", "create"]

_PATIENCE = 25
"""Steps in which an owned parameter may get gradients without moving (a gradient scaler skips its first ones)."""

_UNSEEN = Outputs(torch.empty(0, 0))
"""What a network returned where there is none."""


@dataclass(frozen=True, eq=False)
class _Settings:
    """What `create` was told besides the recipe."""

    num_classes: int | None
    criterion: Any
    label_smoothing: float
    class_weights: Tensor | None

    @property
    def about_loss(self) -> list[str]:
        """What was said about the loss, by name."""
        given = {
            "criterion": self.criterion is not None,
            "label_smoothing": self.label_smoothing > 0,
            "class_weights": self.class_weights is not None,
        }
        return [name for name, said in given.items() if said]


@dataclass
class _Progress:
    """Beside the module, since setting an attribute of an nn.Module takes longer than drawing λ."""

    steps: int = 0
    checked: bool = False
    begun: bool = False
    data: Splits = field(default_factory=Splits)


class _Option(Policy):
    """One answer per axis: what a recipe does with a batch, once it has decided to."""

    def __init__(self, chosen: Chosen, settings: _Settings, name: str) -> None:
        super().__init__(chosen)
        self.name = name
        self.num_classes = settings.num_classes
        self.place = cast(Place, chosen.pieces.get(Slot.PLACE) or Input())
        self.label = cast(Label, chosen.pieces.get(Slot.LABEL) or Shares())
        self.criterion = _criterion(chosen, settings)
        self.terms = nn.ModuleList(chosen.terms)
        self.wrapper = cast(LossWrapper | None, chosen.pieces.get(Slot.WRAPPER))
        self.statistics = cast(Statistics | None, chosen.pieces.get(Slot.STATISTICS))
        around = () if self.blend is None else (self.place, self.label)
        found = (*self.mixing, *around, self.statistics, self.criterion, *self.terms, self.wrapper)
        self.pieces = tuple(cast(Piece, piece) for piece in found if piece is not None)
        self.names = {piece: self._name_of(piece) for piece in self.pieces}
        self.drawing = tuple(
            (piece, f"{name}/{self.names[piece]}") for piece in self.pieces if type(piece).draw is not Piece.draw
        )
        # Submodules are found in `__dict__` first, so that a step does not pay for nn.Module's attribute look-up.
        self.__dict__.update(self._modules)
        self.beyond_images = sorted(
            chosen.owners[piece] for piece in chosen.essential if piece.slot in LOSS_SLOTS or piece.network
        )
        self.unrepeatable = self._unrepeatable()
        self.clean_loss = (
            self.criterion
            if isinstance(self.criterion, BinaryCrossEntropy | SquaredError | PerSource)
            else SoftCrossEntropy()
        )

    def _name_of(self, piece: Piece) -> str:
        """Its slot; a term's is its method, and its own name where the method has several."""
        if not isinstance(piece, Term):
            return piece.slot.value
        owner = self.owners[piece]
        alone = sum(self.owners[cast(Term, term)] == owner for term in self.terms) == 1
        return owner if alone else f"{owner}/{type(piece).__name__}"

    def draw(self, rows: int, streams: Streams, step: int) -> Draws:
        """Every random number of one step, each piece from a stream of its own."""
        lane = streams.lane()
        return Draws(
            {
                piece: piece.draw(rows, streams.at(key, step, shared=piece.shared, lane=lane))
                for piece, key in self.drawing
            }
        )

    def targets(self, step: Step) -> Targets:
        """The labels of a finished step."""
        found = self.label.targets(step)
        found.num_classes = self.num_classes
        return found

    def mixed(self, step: Step, targets: Targets) -> Mixed:
        """What became of the batch, and whether other tensors can be mixed alike."""
        refusal, site = self.unrepeatable, step.scene.site
        if not refusal and site is not None:
            refusal = f"The images were mixed inside the network, at {site!r}: their own grid has no such mix."
        return Mixed(step.mix.images, targets, step.mix, len(step.batch), refusal)

    def _unrepeatable(self) -> str:
        """Why what is done to images cannot be done to another tensor; empty if it can."""
        for part in self.modules():  # also those of recipes inside pieces
            name = self.owners.get(cast(Any, part), type(part).__name__)
            if isinstance(part, SelfBlend):
                return f"{name} changes each image by itself, which cannot be repeated on another tensor."
            if isinstance(part, Blend) and not part.repeats:
                return f"{name} renders its mixes, or mixes more than the batch, which cannot be repeated."
        return ""

    def turns(
        self, probe: Probe, model: nn.Module, batch: Batch, draws: Draws, clock: Clock, data: Splits
    ) -> Iterator[Turn]:
        """The turns of one step."""
        scene = self.scene(probe, batch, draws, clock, data)
        for piece in self.pieces:
            yield from piece.lessons(scene)
        step, met = self._run(probe, model, scene)
        targets = self.targets(step)
        if self.statistics is not None and step.moments:
            targets = self.statistics.targets(targets, draws.of.get(self.statistics), step.scene, met)
            targets.num_classes = self.num_classes
        counts = None if self.wrapper is None else self.wrapper.counts(step)
        total = self.criterion(step.outputs.logits, targets, step.mix.valid, counts)
        parts = {"criterion": total.detach()}
        for term in self.terms:
            value = cast(Term, term).value(step, targets, self.criterion)
            parts[self.names[cast(Term, term)]] = value.detach()
            total = total + value
        if self.wrapper is not None:
            wrapped = self.wrapper.wrap(total, step, targets, self.criterion)
            if wrapped is not total:
                parts["wrapped"] = wrapped.detach()
            total = wrapped
        parts |= {name: value.detach() for name, value in step.notes.items()}
        yield Turn(total, "main", parts, step.outputs.logits.detach(), targets, mixed=self.mixed(step, targets))
        for piece in self.pieces:
            piece.observe(step)

    def scene(self, probe: Probe, batch: Batch, draws: Draws, clock: Clock, data: Splits) -> Scene:
        """What the sample policy may look at in a step through a network."""
        looks = Views(probe, batch, self.view_wants, lambda logits, labels: self.clean_loss(logits, Targets.of(labels)))
        site = None if self.blend is None else self.place.site(draws.of.get(self.place))
        scene = Scene(batch, draws, looks, site, clock, data=data, loss=self.criterion)
        scene.attempt = partial(self._attempt, probe, scene)
        return scene

    def _views_in(self, scene: Scene) -> tuple[Tensor, ...]:
        """The images that go into the step's mix, made once."""
        found: tuple[Tensor, ...] = scene.once(self, partial(self.views, scene), "views")
        return found

    def _run(self, probe: Probe, model: nn.Module, scene: Scene) -> tuple[Step, Mix | None]:
        """The step's passes, and the mix that changed moments belong to, if the rows were mixed before."""
        batch, looks, views = scene.batch, cast(Views, scene.views), self._views_in(scene)
        if looks.wants:
            _ = looks.logits  # before the training pass moves the statistics of normalisations
        lam = None if self.blend is None else self.lam(scene)
        heads = (piece.mixed_classifier() for piece in self.pieces)
        head = next((found for found in heads if found is not None), None)
        outputs, mix, met, moments = self._through(probe, scene, views, lam, model, self.wants, head)
        self._check_logits(outputs.logits, probe.net, batch)
        clean = probe.run(batch.images, call=model) if any(piece.clean for piece in self.pieces) else None
        if self.statistics is not None and self.statistics.borrows and len(set(map(id, met))) > 1:
            raise IncompatibleRecipe(
                f"{self.owners[self.statistics]} exchanges moments and labels both before and after site "
                f"{scene.site!r}, where images are mixed. Let all its sites be on one side."
            )
        return Step(scene, mix, outputs.split(len(views)), clean, moments), met[0] if met else None

    def _attempt(
        self, probe: Probe, scene: Scene, lam: Tensor, call: Callable[[Tensor], Any]
    ) -> tuple[Tensor, Targets]:
        """Logits and labels of the mix with another λ, see `Scene.attempt`."""
        views = self._views_in(scene)
        outputs, mix, _, _ = self._through(probe, scene, views, lam, call)
        targets = mix.targets()
        targets.num_classes = self.num_classes
        return outputs.split(len(views)).logits, targets

    def _through(
        self,
        probe: Probe,
        scene: Scene,
        views: Sequence[Tensor],
        lam: Tensor | None,
        call: Callable[[Tensor], Any],
        wants: Iterable[Want] = (),
        head: nn.Module | None = None,
    ) -> tuple[Outputs, Mix, list[Mix | None], dict[str, Tensor]]:
        """One pass over the mix: what it returned, the mix, and what the statistics met and changed."""
        draws, site = scene.draws, scene.site
        mixes: list[Mix] = []

        def mixed(parts: Sequence[Tensor]) -> Tensor:
            mixes.append(self.mix(parts[0], scene, lam=lam))
            return _joined([mixes[0].images, *map(mixes[0].apply, parts[1:])])

        def edit(hidden: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
            parts, fronts = hidden.chunk(len(views)), None if prefix is None else prefix.chunk(len(views))
            front = None if fronts is None else fronts[0]
            scene.inside = Inside(front, partial(probe.attention_here, parts[0], front))
            changed = mixed(parts)
            scene.inside = None
            return changed, None if fronts is None else _joined([*map(mixes[0].share, fronts)])

        def start(prefix: int, patches: int) -> Tensor | None:
            return _token_shares(mixes[0], prefix, patches, scene.batch.images, len(views)) if mixes else None

        edits: dict[str, Edit] = {} if site is None else {site: edit}
        moments: dict[str, Tensor] = {}
        met: list[Mix | None] = []
        if self.statistics is not None:
            for where in self.statistics.sites(draws.of.get(self.statistics)):
                edits[where] = self._change_of(where, scene, mixes, met, moments, len(views), edits.get(where))
        images = mixed(views) if site is None else _joined(views)
        acts = () if self.blend is None else self.place.acts(draws.of.get(self.place), scene)
        outputs = probe.run(images, wants=wants, edits=edits, acts=acts, start=start, head=head, call=call)
        if len(mixes) != 1:
            raise IncompatibleRecipe(
                f"The network passed site {site!r} {len(mixes)} times in one forward pass; mixing there needs "
                "exactly one. Choose another site."
            )
        return outputs, mixes[0], met, moments

    def _change_of(
        self,
        site: str,
        scene: Scene,
        mixes: list[Mix],
        met: list[Mix | None],
        moments: dict[str, Tensor],
        views: int,
        first: Edit | None,
    ) -> Edit:
        """What the statistics do at a site, after what else is done there; they note the mix they met and the map."""
        statistics = cast(Statistics, self.statistics)

        def edit(hidden: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
            if first is not None:
                hidden, prefix = first(hidden, prefix)
            met.append(mixes[0] if mixes and self.blend is not None else None)
            drawn = scene.draws.of.get(statistics)
            hidden = _joined([statistics.change(part, site, drawn, scene, met[-1]) for part in hidden.chunk(views)])
            moments[site] = hidden.detach()
            return hidden, prefix

        return edit

    def _check_logits(self, logits: Tensor, net: nn.Module, batch: Batch) -> None:
        """See that network and labels speak of the same classes."""
        outputs, name = logits.shape[-1], type(net).__name__
        if self.num_classes is not None and outputs != self.num_classes:
            raise ModelError(
                f"{name} gives {outputs} outputs, but the recipe was made for {self.num_classes} classes. "
                "Build the network's classifier, or the recipe, with the other number."
            )
        labels = batch.labels
        hard = self.num_classes is None and labels.device.type == "cpu" and not labels.is_floating_point()
        if hard and logits.ndim == 2 and int(labels.max()) >= outputs:
            raise BatchError(
                f"class ids must lie in [0, {outputs - 1}], as {name} has {outputs} outputs; got {int(labels.max())}. "
                "Check the labels and the network's classifier."
            )

    @property
    def wants(self) -> frozenset[Want]:
        """What the pieces must see of the training pass."""
        return frozenset(want for piece in self.pieces for want in piece.wants())

    @property
    def view_wants(self) -> frozenset[Want]:
        """What the pieces must see of a pass over the clean batch."""
        return frozenset(want for piece in self.pieces for want in piece.views())


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _token_shares(mix: Mix, prefix: int, patches: int, images: Tensor, views: int) -> Float[Tensor, "r k n"]:
    """Each source's share of every token: of patches what shows there, of the tokens before them the label shares."""
    aspect = images.shape[-2] / images.shape[-1] if images.ndim == 4 else 1.0
    masks = mix.weights[:, :, None, None] if mix.masks is None else mix.masks
    shown = F.interpolate(masks.float(), size=grid_of(patches, aspect, "a block"), mode="nearest").flatten(2)
    front = mix.weights.float()[:, :, None].expand(-1, -1, prefix)
    return torch.cat((front, shown.expand(*mix.weights.shape, -1)), 2).repeat(views, 1, 1)


def _criterion(chosen: Chosen, settings: _Settings) -> Criterion:
    """The method's own criterion, else the user's, else the suggested one, else cross-entropy."""
    piece = chosen.pieces.get(Slot.CRITERION)
    owner = "" if piece is None else chosen.owners[piece]
    if piece in chosen.essential and settings.criterion is not None:
        raise IncompatibleRecipe(
            f"{owner} brings its own criterion ({type(piece).__name__}), so criterion={settings.criterion!r} cannot "
            "act. Leave criterion out, or the method."
        )
    if settings.criterion is not None or piece is None:
        criterion = criterion_of(settings.criterion or "cross_entropy")
        owner = f"criterion={settings.criterion!r}"
    else:
        criterion = cast(Criterion, piece)
    if settings.label_smoothing and not criterion.smoothable:
        raise IncompatibleRecipe(
            f"{owner}: label_smoothing has no meaning for {type(criterion).__name__}. Leave it out."
        )
    if settings.class_weights is not None and not criterion.weightable:
        raise IncompatibleRecipe(
            f"{owner}: class_weights have no meaning for {type(criterion).__name__}. Leave them out."
        )
    criterion.smoothing = settings.label_smoothing
    criterion.class_weights = settings.class_weights
    return criterion


class Recipe(nn.Module):
    """One answer per axis, ready to train with; made by `mixwell.create`.

    Three ways to use it, all of which also take a `Batch` in place of images and labels:

    - `recipe.mix_batch(images, labels)` gives mixed images and their `Targets`; for recipes that need no network.
      Also a `collate_fn`, and a transform in the manner of torchvision.
    - `recipe(model, images, labels)` gives the loss of one step; for a training loop of one's own.
    - `recipe.turns(model, images, labels)` gives the losses of a step that has several, each with the group to step.

    `str(recipe)` is a text from which `create` makes the same recipe.
    """

    def __init__(
        self,
        node: Node,
        settings: _Settings,
        *,
        seed: int = 0,
        pixels: Pixels | None = None,
        validate: str = "sampled",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.node = node
        self.ignore_index = ignore_index
        self.num_classes = settings.num_classes
        self.pixels = pixels
        self.validate: Validate = validate_of(validate)
        self._progress = _Progress()
        self._streams = Streams(seed)
        self._probe: Probe | None = None
        self._strikes: dict[nn.Parameter, tuple[int, int]] = {}
        found = compose(node)
        self.weights = [option.weight for option in found]
        each = [_Option(option.chosen, settings, str(i)) for i, option in enumerate(found)]
        self.options = nn.ModuleList(each)
        self._each = tuple(each)
        self._about_loss = settings.about_loss
        self._beyond_images = sorted({name for option in each for name in option.beyond_images})
        self._soft = all(isinstance(option.criterion, SoftCrossEntropy) for option in each)

    def __str__(self) -> str:
        return str(self.node)

    def extra_repr(self) -> str:
        return f"{self!s}, num_classes={self.num_classes}, seed={self._streams.seed}"

    @property
    def steps(self) -> int:
        """Steps that it made; the next one's draws are those of this number."""
        return self._progress.steps

    # What it needs of a network

    @property
    def owns(self) -> bool:
        """Whether the recipe brings parameters that must be trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def wants(self) -> frozenset[Want]:
        """Everything that its pieces must see of a training pass."""
        return frozenset().union(*(option.wants for option in self._each))

    @property
    def needs_tokens(self) -> bool:
        """Whether it acts on transformers only: on their attention, or on their tokens."""
        attention = ("class_attention", "patch_attention", "alignment")
        return any(want.kind in attention for option in self._each for want in option.wants | option.view_wants) or any(
            piece.tokens for option in self._each for piece in option.pieces
        )

    @property
    def beyond_images(self) -> tuple[str, ...]:
        """The methods that act in the network or in the loss; if there are none, `mix_batch` serves."""
        return tuple(self._beyond_images)

    @property
    def sites(self) -> frozenset[str]:
        """Every hidden site at which it may mix or change moments. Known once it is bound."""
        mixing = [option.place.sites_used() for option in self._each if option.blend is not None]
        changing = [option.statistics.sites_used() for option in self._each if option.statistics is not None]
        return frozenset(site for sites in (*mixing, *changing) for site in sites)

    def bind(self, model: nn.Module, example: Float[Tensor, "b ..."] | None = None) -> Recipe:
        """Check what the model offers and build what the recipe owns; before the optimisers are made.

        Args:
            model: the network; wrappers (DistributedDataParallel, torch.compile) are looked through.
            example: some images (B, ...) as the network takes them; needed where stages are found by a pass.

        Raises:
            IncompatibleRecipe: the network lacks what a method needs; names the method and what would work.
        """
        self._probe = Probe(model, example)
        self._progress.data.device = _device_of(model)
        for option in self._each:
            for piece in option.pieces:
                owner = option.owners.get(piece, type(piece).__name__)
                try:
                    for want in (*piece.wants(), *piece.views()):
                        self._probe.check(want)
                    with seeded(key_of(self._streams.seed, option.name, option.names[piece]), model):
                        piece.build(self._probe.anatomy, self.num_classes)
                except MixwellError as error:
                    raise IncompatibleRecipe(f"{owner}: {error}") from error
        _ = self.players  # of which no two may have one name
        return self

    def install_hooks(self, model: nn.Module) -> None:
        """Put the recipe's hooks into the network for good; call it before torch.compile, which must see them."""
        probe = self._probe_of(model)
        heads = any(piece.mixed_classifier() is not None for option in self._each for piece in option.pieces)
        blocks = {block for option in self._each if option.blend is not None for block in option.place.blocks_used()}
        probe.install(self.wants, self.sites, sorted(blocks), head=heads)

    @property
    def players(self) -> dict[str, Player]:
        """The parts that have an optimiser of their own, by the turn that steps them. Known once it is bound.

        Raises:
            IncompatibleRecipe: two have the same name.
        """
        found: dict[str, Player] = {}
        for option in self._each:
            for piece in option.pieces:
                for turn, player in piece.players().items():
                    if turn in found:
                        raise IncompatibleRecipe(
                            f"The recipe has {turn!r} twice, and each would need an optimiser of its own. Use the "
                            "method once, and other recipes on the other batches."
                        )
                    found[turn] = player
        return found

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for the optimisers: the model's and the recipe's own, each with the `turn` that steps it.

        A group with an "optimizer" wants one of that name, with the settings beside it.
        """
        groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad], "turn": "main"}]
        players = self.players
        elsewhere = {parameter for player in players.values() for parameter in player.parameters}
        own = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in elsewhere]
        groups += [{"params": own, "turn": "main"}] if own else []
        return groups + [
            {"params": list(player.parameters), "turn": turn, "optimizer": player.optimizer, **player.settings}
            for turn, player in players.items()
        ]

    def predictor(self, model: nn.Module) -> nn.Module:
        """The network that evaluation and export use."""
        found = (piece.predictor(model) for option in self._each for piece in option.pieces)
        return next((predictor for predictor in found if predictor is not None), model)

    def eval_images(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What is done to clean images before the predictor sees them."""
        for piece in {type(piece): piece for option in self._each for piece in option.pieces}.values():
            images = piece.eval_images(images)
        return images

    def prepare(
        self,
        batches: Callable[[], Iterable[Batch]],
        data: str,
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        unaugmented: Callable[[], Iterable[Batch]] | None = None,
        rows: int | None = None,
    ) -> Recipe:
        """Make or load what its pieces need before training begins (auto-encoders, teachers, label maps, pictures).

        Args:
            batches: called for each pass over the clean training batches.
            data: a text that names the data; artefacts are cached under it.
            device: where to compute.
            progress: called with (what is made, steps done, steps in all).
            unaugmented: called for each pass over the same images without augmentation, each with its `index` in the
                data set; None where `batches` are not augmented.
            rows: how many images there are, if that is known; for the progress only.
        """

        def of_here(batches: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
            return self._kept_of(batches())

        workshop = Workshop(partial(of_here, batches), data, torch.device(device), self.num_classes, rows=rows)
        if unaugmented is not None:
            workshop.unaugmented = partial(of_here, unaugmented)
        if progress is not None:
            workshop.progress = progress
        for piece in self.modules():  # also those of recipes inside pieces
            if isinstance(piece, Piece):
                piece.prepare(workshop)
        return self

    @property
    def holds_out(self) -> bool:
        """Whether it looks at images that are kept from training."""
        return any(piece.held_out for option in self._each for piece in option.pieces)

    @property
    def _learns_by_epoch(self) -> bool:
        return any(
            type(piece).before_epoch is not Piece.before_epoch for option in self._each for piece in option.pieces
        )

    def use_data(
        self,
        *,
        train: Callable[[], Iterable[Batch]] | None = None,
        held_out: Callable[[], Iterable[Batch]] | None = None,
    ) -> Recipe:
        """Tell it where the data is, for pieces that look beyond the step's batch.

        Args:
            train: called for each pass over the clean training batches.
            held_out: called for each pass over clean batches that are not trained on, always in the same order; never
                the test set.
        """

        def of_here(batches: Callable[[], Iterable[Batch]] | None) -> Callable[[], Iterator[Batch]] | None:
            return None if batches is None else lambda: self._kept_of(batches())

        self._progress.data = Splits(of_here(train), of_here(held_out), self._progress.data.device)
        return self

    def before_epoch(self, model: nn.Module, clock: Clock | None = None) -> None:
        """To be called before each epoch, by loops whose recipe learns from the data epoch by epoch.

        Raises:
            MixwellError: a piece looks at data that `use_data` did not tell of.
        """
        probe = self._probe_of(model)
        self._progress.data.device = _device_of(model)  # which may have been moved since it was bound
        for option in self._each:
            for piece in option.pieces:
                piece.before_epoch(probe.net, self._progress.data, clock or Clock(self.steps))
        self._progress.begun = True

    # The three ways in

    def mix_batch(
        self,
        images: Float[Tensor, "b ..."] | Batch | Sequence[tuple[Any, Any]],
        labels: Shaped[Tensor, "b ..."] | None = None,
        *,
        clock: Clock | None = None,
    ) -> tuple[Float[Tensor, "b ..."], Targets]:
        """Mixed images and their targets, without a network; `mixed` also gives how they were mixed.

        Also a `collate_fn`: given a list of (image, label) samples, it collates them first. Every loading worker draws
        its own numbers; they are the same again under the same seed of the DataLoader's generator.

        Args:
            images: (B, ...) floating, normalised; not modified.
            labels: (B,) class ids or (B, C) rows.
            clock: the step whose numbers to draw; the recipe counts its own calls if not given.

        Raises:
            IncompatibleRecipe: the recipe needs a network, or says something about the loss that targets cannot carry.
            BatchError: images or labels that must not be trained on.
        """
        found = self.mixed(images, labels, clock=clock)
        return found.images, found.targets

    def mixed(
        self,
        images: Float[Tensor, "b ..."] | Batch | Sequence[tuple[Any, Any]],
        labels: Shaped[Tensor, "b ..."] | None = None,
        *,
        clock: Clock | None = None,
    ) -> Mixed:
        """What `mix_batch` makes, and how: `mixed.apply(x)` mixes what is aligned with the images in the same way.

        In a training step, `turn.mixed` is the same.

        Raises:
            IncompatibleRecipe, BatchError: as `mix_batch`.
        """
        if self._beyond_images:
            raise IncompatibleRecipe(
                f"mix_batch mixes images and labels alone, but {' and '.join(self._beyond_images)} act inside the "
                "network or in the loss. Use recipe(model, images, labels) in the training loop."
            )
        if self._about_loss:
            raise IncompatibleRecipe(
                f"mix_batch gives images and targets, which cannot carry {' and '.join(self._about_loss)}. Give that "
                "to your own loss, or use recipe(model, images, labels) in the training loop."
            )
        if not isinstance(images, Tensor | Batch) and isinstance(images, Sequence):
            images, labels = default_collate(list(images))
        batch = self._batch(images, labels)
        clock = self._checked_at(batch, clock)
        option = self._option(clock)
        draws = option.draw(len(batch), self._streams, clock.step)
        scene = Scene(batch, draws, None, None, clock)
        step = Step(scene, option.mix(option.views(scene)[0], scene), _UNSEEN)
        return option.mixed(step, option.targets(step))

    def forward(
        self,
        model: nn.Module,
        images: Float[Tensor, "b ..."] | Batch,
        labels: Shaped[Tensor, "b ..."] | None = None,
        *,
        clock: Clock | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of one step, to call backward on.

        Raises:
            MixwellError: the recipe's steps have several losses; use `turns`.
            BatchError: images or labels that must not be trained on.
        """
        found = list(self.turns(model, images, labels, clock=clock))
        if len(found) != 1:
            raise MixwellError(
                f"A step of {self!s} has {len(found)} losses. Use `for turn in recipe.turns(...)`, and step each."
            )
        return found[0].loss

    def turns(
        self,
        model: nn.Module,
        images: Float[Tensor, "b ..."] | Batch,
        labels: Shaped[Tensor, "b ..."] | None = None,
        *,
        clock: Clock | None = None,
        draws: Draws | None = None,
    ) -> Iterator[Turn]:
        """The losses of one step, made one after the other: call backward and step each turn's group before the next.

        Args:
            draws: the random numbers to use in place of drawn ones.
        """
        batch = self._batch(images, labels)
        clock = self._checked_at(batch, clock)
        probe = self._probe_of(model, batch.images)
        option = self._option(clock)
        drawn = option.draw(len(batch), self._streams, clock.step) if draws is None else draws
        if self._learns_by_epoch and not self._progress.begun:
            raise MixwellError(
                f"{self!s} learns from the data before each epoch. Call recipe.before_epoch(model) at its start, after "
                "recipe.use_data(...); `mixwell train` does so by itself."
            )
        for turn in option.turns(probe, model, batch, drawn, clock, self._progress.data):
            yield replace(turn, loss=self._touching_all(turn, model))

    @property
    def policies(self) -> tuple[Policy, ...]:
        """How each of its options mixes."""
        return self._each

    def preview(self, model: nn.Module, images: Batch, clock: Clock | None = None) -> Float[Tensor, "r ..."]:
        """What the first option that mixes would make of a batch at its place, without a step being counted."""
        clock = clock or Clock(self.steps)
        batch = self._batch(images, None)
        option = next(option for option in self._each if option.blend is not None)
        draws = option.draw(len(batch), self._streams, clock.step)
        scene = option.scene(self._probe_of(model, batch.images), batch, draws, clock, self._progress.data)
        return option.mix(option.views(scene)[0], scene).images

    def after_step(self, model: nn.Module, clock: Clock | None = None) -> None:
        """To be called after the optimisers moved.

        Raises:
            OwnershipError: a parameter that the recipe owns gets gradients but never moves.
        """
        for option in self._each:
            for piece in option.pieces:
                piece.after_step(model, clock or Clock(self.steps))
        for name, parameter in self.named_parameters():
            if parameter.grad is None:
                continue
            version, strikes = self._strikes.get(parameter, (parameter._version, 0))
            moved = parameter._version != version
            self._strikes[parameter] = (parameter._version, -(2**31) if moved else strikes + 1)
            if strikes >= _PATIENCE and not moved:
                raise OwnershipError(
                    f"The recipe's parameter {name!r} got gradients for {_PATIENCE} steps but never moved. Give the "
                    "optimiser recipe.parameter_groups(model) in place of model.parameters()."
                )

    # Inside

    def _option(self, clock: Clock) -> _Option:
        if len(self.weights) == 1:
            return self._each[0]
        point = self._streams.at("switch", clock.step, shared=True).random()
        return self._each[picked(self.weights, point)]

    def _probe_of(self, model: nn.Module, example: Tensor | None = None) -> Probe:
        if self._probe is None or not self._probe.belongs_to(model):
            if self.owns:
                raise OwnershipError(
                    f"{self!s} owns parameters. Call recipe.bind(model, example=images) before building the "
                    "optimiser, with the model that is trained."
                )
            self.bind(model, example)
        return cast(Probe, self._probe)

    def _batch(self, images: Any, labels: Any) -> Batch:
        if isinstance(images, Batch):
            if labels is not None:
                raise BatchError("Give either a Batch or images and labels, not both.")
            known = images.pixels is not None or self.pixels is None
            return self._kept(images if known else replace(images, pixels=self.pixels))
        if labels is None:
            raise BatchError("labels are missing: expected images and labels, or a Batch.")
        return self._kept(Batch(images, labels, self.pixels))

    def _kept_of(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of the training data, but for those of which nothing is kept."""
        for batch in batches:
            if self.ignore_index is None or bool((batch.labels != self.ignore_index).any()):
                yield self._batch(batch, None)

    def _kept(self, batch: Batch) -> Batch:
        """The batch without the images that are to be ignored."""
        if self.ignore_index is None:
            return batch
        if batch.labels.is_floating_point():
            raise BatchError(
                f"ignore_index={self.ignore_index} goes with class ids, got label rows {tuple(batch.labels.shape)}. "
                "Leave it out, and such images too."
            )
        kept = batch.labels != self.ignore_index
        if bool(kept.all()):
            return batch
        if not bool(kept.any()):
            raise BatchError(f"Every label of the batch is ignore_index={self.ignore_index}. Skip such a batch.")
        return batch.at(kept.nonzero()[:, 0])

    def _checked_at(self, batch: Batch, clock: Clock | None) -> Clock:
        """Check the batch of a step, and count the step."""
        progress = self._progress
        clock = clock or Clock(progress.steps)
        values = self.validate == "always" or not progress.checked or clock.step % 100 == 0
        check_images(batch.images, values)
        check_labels(batch, self.num_classes, values, rows_sum_to_1=self._soft)
        progress.checked, progress.steps = True, clock.step + 1
        return clock

    def _touching_all(self, turn: Turn, model: nn.Module) -> Tensor:
        """The loss, with every parameter in its graph that it leaves out, for processes that wait for each other's
        gradients.
        """
        if not distributed():
            return turn.loss
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if turn.group != "main":
            own += [parameter for parameter in model.parameters() if parameter.requires_grad]
        return turn.loss + sum(0.0 * parameter.sum() for parameter in own) if own else turn.loss

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self._progress.steps = int(state)
        self._progress.begun |= self.steps > 0


def create(
    recipe: str | Recipe,
    num_classes: int | None = None,
    *,
    seed: int = 0,
    criterion: str | Callable[[Tensor, Tensor], Tensor] | None = None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int | None = None,
    pixels: Pixels | Mapping[str, tuple[float, ...]] | None = None,
    validate: str = "sampled",
) -> Recipe:
    """Make a recipe from its text, such as "cutmix", "cutmix(alpha=0.5) + transmix" or "0.5*mixup | 0.5*cutmix".

    Args:
        recipe: the text; see `mixwell.methods()` for the names, and "none" for plain training.
        num_classes: C. None where labels are rows, or the task has no classes.
        seed: of every random number that the recipe draws.
        criterion: "cross_entropy", "bce" (multi-label, sigmoid), "softmax_bce", "mse" (regression), or a callable
            (outputs, labels) → (R,) that is applied to each source's label and weighted; None takes the method's own or
            cross-entropy.
        label_smoothing: ε in [0, 1), applied to each source's label.
        class_weights: C weights, as torch.nn.CrossEntropyLoss takes them.
        ignore_index: images of this label, such as -100, are left out before anything is mixed (on a GPU, to see which
            takes a host sync per step).
        pixels: how images are normalised, for methods that need raw pixels: Pixels, or a mapping with mean and std.
        validate: "sampled" looks at values on the first batch and every 100th, "always" on each (a host sync on a GPU).

    Raises:
        RecipeSyntaxError, UnknownMethod, ParameterError: the text cannot be read.
        IncompatibleRecipe: its methods cannot act together.
    """
    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1
    ):
        raise ParameterError(f"num_classes must be a whole number ≥ 1, got {num_classes!r}.")
    smoothing = number_in("label_smoothing", label_smoothing, 0, 1, open_high=True)
    weights = None if class_weights is None else _class_weights(class_weights, num_classes)
    if isinstance(pixels, Mapping):
        pixels = Pixels(tuple(pixels["mean"]), tuple(pixels["std"]))
    node = parse(str(recipe)) if isinstance(recipe, Recipe) else parse(recipe)
    settings = _Settings(num_classes, criterion, smoothing, weights)
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise ParameterError(f"ignore_index must be a whole number, such as -100, got {ignore_index!r}.")
    return Recipe(node, settings, seed=seed, pixels=pixels, validate=validate, ignore_index=ignore_index)


def _class_weights(values: Sequence[float] | Tensor, num_classes: int | None) -> Tensor:
    weights = torch.as_tensor(values, dtype=torch.float32)
    if weights.ndim != 1 or (num_classes is not None and len(weights) != num_classes):
        raise ParameterError(f"class_weights must be {num_classes or 'C'} numbers, got shape {tuple(weights.shape)}.")
    if not (torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ParameterError("class_weights must be finite, ≥ 0 and not all 0.")
    return weights
