"""RandomMix: choose one of several mixes at random for every batch.

Liu, Shen, Zhao, Nie, "RandomMix: A Mixed Sample Data Augmentation Method with Multiple Mixed Modes", 2022,
arXiv:2205.08728.

Every batch is mixed by one candidate, drawn with given weights; by default one of mixup, CutMix, ResizeMix and FMix,
for more diverse samples than each makes alone. Equations: candidate m with probability w_m / Σw → `weighed`; the rest
is the candidate's own.

Paper and code: no official code was found. Candidates may be any recipes: `random_mix(cutmix + transmix | mixup)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixwell.core.algebra import Node, Switched, parse
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.registry import Pieces, method

__all__ = ["weighed"]

CANDIDATES = "mixup | cutmix | resizemix | fmix"
WEIGHTS = (3.0, 1.0, 1.0, 1.0)


def weighed(recipes: Node, weights: Sequence[float]) -> Node:
    """A switch between the options of `recipes` with probabilities in proportion to the weights.

    Raises:
        ParameterError: not one weight ≥ 0 per option, or none is positive.
    """
    nodes = [node for _, node in recipes.options] if isinstance(recipes, Switched) else [recipes]
    if len(nodes) != len(weights):
        raise ParameterError(
            f"random_mix has {len(nodes)} recipes and {len(weights)} weights. Give one weight for each recipe."
        )
    checked = [number_in("weights", weight, 0) for weight in weights]
    if not sum(checked):
        raise ParameterError("random_mix: every weight is 0, so no recipe could be chosen. Give one a weight > 0.")
    options = [(weight / sum(checked), node) for weight, node in zip(checked, nodes, strict=True) if weight]
    return options[0][1] if len(options) == 1 else Switched(tuple(options))


@method("random_mix", section="1.5", paper="2205.08728", venue="arXiv 2022")
def random_mix(recipes: Node | None = None, weights: tuple[float, ...] | None = None) -> Pieces:
    """Args:
    recipes: candidates, "A | B | …", with weights as in every switch; mixup, cutmix, resizemix and fmix if not given.
    weights: of the candidates, in proportion; (3, 1, 1, 1) for the candidates of the paper, else those of the switch.
    """
    if recipes is None:
        return Pieces((), beside=weighed(parse(CANDIDATES), WEIGHTS if weights is None else weights))
    return Pieces((), beside=recipes if weights is None else weighed(recipes, weights))
