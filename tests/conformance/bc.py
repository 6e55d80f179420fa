"""Replays BC and BC+: given pairs at given ratios, their labels and loss, and the zero-mean normalisation."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, one_turn
from mixwell.sample.linear.bc import deviation, loudness_ratio, other_class, zero_mean

SOURCE = "official code; kl_*: independent reference"
INPUTS = ("x1_*", "x2_*", "r", "r_plus", "num_classes", "logits", "target_bc", "raw_u8", "mean_plus", "std_plus")
COMPARE = {"target_plus": close(1e-7), "zero_mean_out": close(2e-6), "*": close(5e-6, rtol=5e-6)}


def classes_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes of the pairs, which the golden tells by its labels alone: the first is the one with share r."""
    target, r = case.tensor("target_bc"), case.tensor("r")[:, None]
    first = torch.where(target > 0, (target - r).abs(), torch.inf).argmin(1)
    return first, target.scatter(1, first[:, None], -1).argmax(1)


def replay(case: Case) -> dict[str, np.ndarray]:
    labels = torch.cat(classes_of(case))
    rows = len(labels) // 2
    wanted = torch.arange(2 * rows).roll(rows)
    # Each pair stands in the batch from both sides, as (r, x1, x2) and (1 - r, x2, x1), which are the same mix.
    picks = torch.stack([other_class(labels, torch.full_like(labels, key)) for key in range(2 * rows)])
    keys = (picks == wanted).int().argmax(0).numpy()
    net = GivenLogits(case.tensor("logits").repeat(2, 1))
    answers = {}
    for ending, text, r in (("bc", "bc", case["r"]), ("plus", "bc(variant='bc+', zero_mean=false)", case["r_plus"])):
        recipe = mixwell.create(text, int(case["num_classes"]))
        images = torch.cat((case.tensor(f"x1_{ending}"), case.tensor(f"x2_{ending}")))
        turn = one_turn(recipe, net, images, labels, pairing=keys, ratio=np.concatenate((r, 1 - r)))
        answers[f"mixed_{ending}"] = net.images[:rows].numpy()
        answers[f"target_{ending}"] = turn.targets.dense()[:rows].numpy()
        answers[f"kl_{ending}"] = turn.loss.numpy()
    del answers["target_bc"]
    g1, g2 = deviation(case.tensor("x1_plus")).double(), deviation(case.tensor("x2_plus")).double()
    pixels = mixwell.Pixels(tuple(case["mean_plus"].tolist()), tuple(case["std_plus"].tolist()))
    return answers | {
        "g1": g1.numpy(),
        "g2": g2.numpy(),
        "p_plus": loudness_ratio(case.tensor("r_plus"), g1, g2).numpy(),
        "zero_mean_out": pixels.normalise(zero_mean(case.tensor("raw_u8").float())).numpy(),
    }
