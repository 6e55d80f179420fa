"""How many candidates are trained for how long: successive halving, as figures."""

from __future__ import annotations

from dataclasses import dataclass

from mixwell.core.errors import ParameterError

__all__ = ["Plan", "largest", "plan", "rungs", "shares"]


@dataclass(frozen=True)
class Plan:
    """Attributes:
    rungs: epochs after which candidates are compared, ascending.
    counts: how many candidates reach each rung, the reference not counted.
    epochs: of all trainings together, the reference's included.
    """

    rungs: tuple[int, ...]
    counts: tuple[int, ...]
    epochs: int


def rungs(first: int, longest: int, eta: int) -> tuple[int, ...]:
    """Epochs after which candidates are compared: `longest`, and what is left of it each time it is divided by `eta`.

    Li et al., "Hyperband", JMLR 18 (2018), Algorithm 1, with whole epochs.

    Raises:
        ParameterError: `first` is not in [1, longest], or `eta` is less than 2.
    """
    if isinstance(eta, bool) or eta < 2:
        raise ParameterError(f"eta must be a whole number >= 2, got {eta}.")
    if not 1 <= first <= longest:
        raise ParameterError(f"first must be a whole number of epochs in [1, {longest}] (the longest), got {first}.")
    found = [longest]
    while found[0] // eta >= first:
        found.insert(0, found[0] // eta)
    return tuple(found)


def plan(candidates: int, at: tuple[int, ...], eta: int) -> Plan:
    """What becomes of so many candidates: of those at a rung, one in `eta` goes on, and at least one.

    The reference is trained to the last rung in any case, so that the best has something to be compared with.

    Args:
        candidates: without the reference.
        at: the rungs.
        eta: see above.
    """
    counts = [candidates]
    for _ in at[1:]:
        counts.append(max(1, counts[-1] // eta) if counts[-1] else 0)
    steps = [high - low for low, high in zip((0, *at[:-1]), at, strict=True)]
    return Plan(at, tuple(counts), sum(step * (count + 1) for step, count in zip(steps, counts, strict=True)))


def largest(most: int, at: tuple[int, ...], eta: int, epochs: int) -> Plan:
    """The plan of at most `most` candidates that takes at most so many epochs.

    Raises:
        ParameterError: not even one candidate can be compared with the reference.
    """
    fits = [made for made in (plan(count, at, eta) for count in range(1, most + 1)) if made.epochs <= epochs]
    if not fits:
        need = plan(1, at, eta).epochs
        raise ParameterError(
            f"A budget of {epochs} epochs is too small: the reference and one candidate take {need} epochs, "
            f"{at[-1]} each. Give epochs={need} or more, or a lower `longest`."
        )
    return fits[-1]


def shares(at: tuple[int, ...], eta: int) -> tuple[float, ...]:
    """The share of the time by whose end each rung is to be left, where candidates take equally long and are many."""
    steps = [(high - low) / eta**place for place, (low, high) in enumerate(zip((0, *at[:-1]), at, strict=True))]
    return tuple(sum(steps[: place + 1]) / sum(steps) for place in range(len(steps)))
