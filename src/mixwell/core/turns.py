"""How a training step is handed to whoever runs it: turns, and the module that data-parallel wrappers wrap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.batch import Batch
from mixwell.core.clock import Clock
from mixwell.core.errors import MixwellError
from mixwell.core.mixed import Mixed
from mixwell.core.targets import Targets

if TYPE_CHECKING:
    from mixwell.core.recipe import Recipe

__all__ = ["Player", "Trainee", "Turn"]


@dataclass(frozen=True, eq=False)
class Player:
    """Parameters with an optimiser of their own.

    Attributes:
        parameters: what is stepped.
        optimizer: a name that timm knows, such as "adam".
        settings: of that optimiser: lr, betas, weight_decay, …; the rate stays as it is.
    """

    parameters: tuple[nn.Parameter, ...]
    optimizer: str = "adam"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Turn:
    """One loss, for whose gradient one group of parameters is stepped.

    Attributes:
        loss: scalar to call backward on.
        group: the turn's parameter group (`Recipe.parameter_groups` names each group's turn).
        parts: named parts of the loss, and other numbers, for the log; detached.
        logits: (R, C) detached, of the turn's training pass.
        targets: what they were trained towards.
        last: whether the step ends with this turn.
        mixed: how the batch was mixed.
    """

    loss: Float[Tensor, ""]
    group: str = "main"
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    logits: Float[Tensor, "r c"] | None = None
    targets: Targets | None = None
    last: bool = True
    mixed: Mixed | None = None


class Trainee(nn.Module):
    """The network and what its recipe owns, as one module: what DistributedDataParallel wraps.

    One call is one turn: call it with the batch, run backward and step, and while `turn.last` is false call it again
        with
    None. Every parameter that the recipe owns takes part in every turn's graph, so no process waits for a gradient that
    another branch of the recipe would have made.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self._turns: Iterator[Turn] = iter(())

    def forward(self, batch: Batch | None, clock: Clock | None = None) -> Turn:
        """The next turn of the step.

        Raises:
            MixwellError: None was given, but the step has no further turn.
        """
        if batch is not None:
            self._turns = self.recipe.turns(self.model, batch, clock=clock)
        turn = next(self._turns, None)
        if turn is None:
            raise MixwellError("This step has no further turn: call Trainee with the next batch after `turn.last`.")
        if turn.last:
            next(self._turns, None)
        return turn
