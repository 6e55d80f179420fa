"""Replays StackMix: both axes, the stack at evaluation, and labels that were soft before."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn

SOURCE = "independent reference"
INPUTS = ("images", "labels", "logits", "perm", "soft_in")
COMPARE = {"stacked_*": equal(), "eval_stack": equal(), "*": close(1e-6, rtol=1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    classes = net.logits.shape[1]
    answers = {}
    for axis in ("width", "height"):
        recipe = mixwell.create(f"stackmix(axis={axis})", classes)
        turn = one_turn(recipe, net, images, labels, pairing=case["perm"], blend=nothing(recipe))
        answers[f"stacked_{axis}"] = net.images.numpy()
    answers |= {"target": turn.targets.dense().numpy(), "loss": turn.loss.numpy()}
    answers["eval_stack"] = recipe.eval_images(images).numpy()

    soft = one_turn(recipe, net, images, case.tensor("soft_in"), pairing=case["perm"], blend=nothing(recipe))
    return answers | {"soft_target": soft.targets.dense().numpy(), "soft_loss": soft.loss.numpy()}


def nothing(recipe: mixwell.Recipe) -> object:
    """The draws of an inner recipe that does nothing."""
    return recipe.options[0].blend.draw(1, np.random.default_rng(0))
