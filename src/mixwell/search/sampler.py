"""Which parameters a family of recipes tries next, by Optuna's samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mixwell.core.errors import ParameterError, closest
from mixwell.core.rng import key_of
from mixwell.search.ranges import Span, Template

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

__all__ = ["SAMPLERS", "Sampler", "propose"]

Sampler = Literal["tpe", "random"]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "random")

_RANDOM_FIRST = 3
"""Values that are drawn at random before TPE models anything."""


def propose(
    template: Template,
    seen: Sequence[tuple[tuple[str, ...], float]],
    sampler: Sampler,
    *,
    largest: bool,
    seed: int,
    number: int,
) -> tuple[str, ...]:
    """One value per hole of a template.

    The study is made anew of what was seen, and the sampler is seeded by the number of the proposal: a search that is
    resumed proposes what one that was not would have.

    Args:
        template: has holes.
        seen: values that were tried, with their metric after the first rung, where all are comparable.
        sampler: "tpe", the tree-structured Parzen estimator, or "random".
        largest: whether a large metric is good.
        seed: of the search.
        number: of the proposal, counted from 0.

    Raises:
        ParameterError: there is no such sampler.
        ModuleNotFoundError: Optuna is not installed.
    """
    if sampler not in SAMPLERS:
        raise ParameterError(
            f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}; {closest(str(sampler), SAMPLERS)}"
        )
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    key = key_of(seed, "search", template.text, number) % 2**32
    chosen: BaseSampler = (
        optuna.samplers.RandomSampler(seed=key)
        if sampler == "random"
        else optuna.samplers.TPESampler(seed=key, n_startup_trials=_RANDOM_FIRST)
    )
    study = optuna.create_study(sampler=chosen, direction="maximize" if largest else "minimize")
    names = [f"{place}: {hole.name}" for place, hole in enumerate(template.holes)]
    space = dict(zip(names, map(_distribution, template.holes), strict=True))
    for values, metric in seen:
        numbers = [
            float(value) if isinstance(hole, Span) else value
            for hole, value in zip(template.holes, values, strict=True)
        ]
        params = {
            name: int(number) if isinstance(hole, Span) and hole.whole else number
            for name, number, hole in zip(names, numbers, template.holes, strict=True)
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=metric))
    found = study.ask(fixed_distributions=space).params
    return tuple(
        hole.text(found[name]) if isinstance(hole, Span) else str(found[name])
        for name, hole in zip(names, template.holes, strict=True)
    )


def _distribution(hole: object) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(hole, Span):
        return CategoricalDistribution(hole.values)  # type: ignore[attr-defined]
    if hole.whole:
        return IntDistribution(int(hole.low), int(hole.high), log=hole.log)
    return FloatDistribution(hole.low, hole.high, log=hole.log)
