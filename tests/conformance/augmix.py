"""Replays AugMix: single operations, chains, one view made of them, and the loss of given predictions."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.augment import OPERATIONS, augment
from mixwell.sample.linear.augmix import augmented

SOURCE = "official code"
INPUTS = (
    "x_u8",
    "op_names",
    "op_ids",
    "op_params",
    "ws",
    "m",
    "norm_*",
    "single_op_ids",
    "single_op_params",
    "y",
    "logits_*",
)
COMPARE = {"chain_u8": equal(), "single_op_out_u8": equal(), "mixed": close(1e-6), "*": close(1e-5)}


def replay(case: Case) -> dict[str, np.ndarray]:
    pixels = mixwell.Pixels(tuple(case["norm_mean"].tolist()), tuple(case["norm_std"].tolist()))
    levels = case.tensor("x_u8").permute(0, 3, 1, 2)
    images = pixels.normalise(levels / 255)

    ours = [operation.name for operation in OPERATIONS]
    position = np.array([*(ours.index(name) for name in case["op_names"]), -1])  # -1 stays -1

    chains = augment(levels, position[case["op_ids"]][None], case["op_params"][None])[0]
    single = augment(
        levels[:1], position[case["single_op_ids"]][:, None, None, None], case["single_op_params"][:, None, None, None]
    )
    mixed = augmented(images, chains, case.tensor("ws"), case.tensor("m"), pixels)

    y = case.tensor("y")
    net = GivenLogits(torch.cat([case.tensor(f"logits_{view}") for view in ("clean", "aug1", "aug2")]))
    recipe = mixwell.create("augmix(weight=12)", num_classes=net.logits.shape[1], pixels=pixels)
    given = recipe.options[0].alone.draw(len(y), np.random.default_rng(0))
    turn = one_turn(recipe, net, images, y, alone=given)
    return {
        "chain_u8": chains.movedim(2, -1).numpy(),
        "single_op_out_u8": single[:, 0, 0].movedim(1, -1).numpy(),
        "mixed": mixed.numpy(),
        "ce": turn.parts["criterion"].numpy(),
        "js": (turn.parts["augmix"] / 12).numpy(),
        "loss": turn.loss.numpy(),
    }
