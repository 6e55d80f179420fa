"""Replays PixMix: rounds of mixing from given starts and sources, and single sums and products."""

import numpy as np
import torch

from mixwell.conformance import Case, close
from mixwell.sample.linear.pixmix import add, mixed, multiply

SOURCE = "official code"
INPUTS = (
    "k",
    "beta",
    "x_u8",
    "mixing_u8",
    "start",
    "start_is_augmented",
    "n_rounds",
    "source_kind",
    "source_u8",
    "mix_op",
    "a",
    "b",
    "unit_ab",
)
COMPARE = {"out": close(1e-5), "unit_out": close(1e-5, rtol=1e-5)}


def replay(case: Case) -> dict[str, np.ndarray]:
    start = case.tensor("start") / 255
    sources = case.tensor("source_u8").flatten(0, 1).permute(0, 3, 1, 2)
    taken = case["source_kind"] >= 0
    which = np.where(taken, np.arange(taken.size).reshape(taken.shape), -1)
    out = mixed(start, sources, which, case["mix_op"] == 1, case["a"], case["b"])

    weights = case.tensor("unit_ab")
    first = start[:1].expand(len(weights), *start.shape[1:])
    picture = case.tensor("mixing_u8")[:1].permute(0, 3, 1, 2).expand_as(first) / 255
    a, b = weights.T[..., None, None, None]
    unit = torch.stack((add(first, picture, a, b), multiply(first, picture, a, b)), 1)
    return {"out": out.numpy(), "unit_out": unit.numpy()}
