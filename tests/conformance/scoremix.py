"""Replays ScoreMix: given maps and places, by the partner's own map and, as the official code does, by the image's."""

import numpy as np
import torch
from torch import Tensor

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.saliency import Saliency
from mixwell.ops.windows import window_sums
from mixwell.sample.attention.scoremix import WindowDraws, position_chances, window_sides

SOURCE = "official code (the partner's own places: independent reference)"
INPUTS = ("x", "y", "index", "cell", "saliency", "lam_raw", "box_h", "pos_source", "pos_target", "logits")
COMPARE = {
    "x_mixed_*": equal(),
    "box_w": equal(),
    "lam": close(1e-7),
    "loss": close(1e-6, rtol=1e-6),
    "*": close(1e-6),
}
SKIPPED = {
    "head_*": "learnt weights of the heads of ScoreNet's own scorer; the heads of other transformers are averaged",
}


class Given(Saliency):
    """Given maps in place of what a network sees."""

    def __init__(self, found: Tensor) -> None:
        super().__init__()
        self.found = found

    def maps(self, scene: mixwell.Scene) -> Tensor:
        return self.found


def points_on(chances: Tensor, places: np.ndarray) -> np.ndarray:
    """The middle of what falls on each place."""
    upto, chance = (table.flatten(1).numpy() for table in (chances.flatten(1).cumsum(1), chances))
    rows = np.arange(len(places))
    return upto[rows, places] - chance[rows, places] / 2


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, maps, index = case.tensor("x"), case.tensor("y"), case.tensor("saliency"), case["index"]
    grid, pasted = tuple(maps.shape[1:]), case["lam_raw"].reshape(1)
    # Heights h are 1 … ⌈√m⌉ - 1; the middle of what falls on the golden's.
    most = max(1, int(np.ceil(np.sqrt(np.ceil((pasted * maps[0].numel()).round(9)))).item()) - 1)
    height = (case["box_h"].reshape(1) - 0.5) / most
    sides = window_sides(height, pasted, grid)
    sums = window_sums(maps, torch.from_numpy(sides))
    source, target = position_chances(sums), position_chances(-sums)
    nh, nw = (side - length + 1 for side, length in zip(grid, sides[0].tolist(), strict=True))

    def among_windows(table: Tensor) -> np.ndarray:
        return table[:, :nh, :nw].float().numpy()

    def place(name: str) -> np.ndarray:
        return case[name] // nw * grid[1] + case[name] % nw

    points = {"code": points_on(source, place("pos_source")), "into": points_on(target, place("pos_target"))}
    points["paper"] = points["code"][index]
    answers = {
        "box_w": sides[0, 1],
        "region_score": among_windows(sums),
        "prob_source": among_windows(source).reshape(len(x), -1),
        "prob_target": among_windows(target).reshape(len(x), -1),
    }
    for rule, name in (("code", "official"), ("paper", "paper")):
        recipe = mixwell.create(f"scoremix(rule={rule}, prob=1, per=batch)", num_classes=case["logits"].shape[1])
        recipe.options[0].blend.saliency = Given(maps)
        net = GivenLogits(case.tensor("logits"))
        draws = WindowDraws(height, points[rule], points["into"])
        turn = one_turn(recipe, net, x, y, pairing=index, ratio=1 - pasted, blend=draws)
        answers[f"x_mixed_{name}"] = net.images.numpy()
    return {**answers, "lam": turn.targets.weights[0, 0].double().numpy(), "loss": turn.loss.numpy()}
