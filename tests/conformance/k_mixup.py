"""Replays k-Mixup: the matching by distance (the authors' code) and by squared distance (the paper)."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.sample.ksample.k_mixup import group_costs

SOURCE = "official code; *_w2: independent reference"
INPUTS = ("x", "y", "num_classes", "k", "lam", "index", "logits")
COMPARE = {
    "partner_*": equal(),
    "ind_matches": equal(),
    "cost": close(1e-3, 1e-5),
    "match_cost_official": close(1e-3, 1e-5),
    "*": close(1e-6),
}
BARRIER = 1000.0  # what the authors' code writes between rows of different groups


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, index, k = case.tensor("x"), case.tensor("y"), case.tensor("index"), int(case["k"])
    answers = {}
    for cost, ending in (("euclidean", "official"), ("squared", "w2")):
        recipe = mixwell.create(f"k_mixup(k={k}, cost={cost}, per=batch)", num_classes=int(case["num_classes"]))
        net = GivenLogits(case.tensor("logits"))
        turn = one_turn(recipe, net, x, y, pairing=case["index"], ratio=case["lam"].reshape(1))
        answers[f"partner_{ending}"] = turn.targets.sources[:, 1].numpy()
        answers[f"mixed_{ending}"] = net.images.numpy()
        if cost == "euclidean":
            answers["target_official"] = turn.targets.dense().double().numpy()
            answers["loss_official"] = turn.loss.numpy()
    matrix = torch.full((len(x), len(x)), BARRIER, dtype=torch.float64)
    for start in range(0, len(x), k):
        rows = slice(start, min(start + k, len(x)))
        matrix[rows, rows] = group_costs(x[None, rows].double(), x[None, index[rows]].double(), "euclidean")[0]
    partner = torch.from_numpy(answers["partner_official"])
    columns = torch.argsort(index)[partner]
    answers["cost"] = matrix.numpy()
    answers["ind_matches"] = columns.numpy()
    moved = x - torch.from_numpy(answers["mixed_official"])
    answers["match_cost_official"] = moved.square().sum().numpy()
    return answers
