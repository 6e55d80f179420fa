"""Replays DCutMix and DMixup: shares and boxes for each sample."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.sample.ksample.dcutmix import NestDraws

SOURCE = "official code"
INPUTS = ("x", "y", "num_classes", "K_images", "alpha", "phi", "perms_*", "boxes", "logits")
COMPARE = {"out_dcutmix": equal(), "target_*": close(1e-6), "*": close(1e-6, rtol=1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, phi = case.tensor("x"), case.tensor("y"), case["phi"]
    net, answers = GivenLogits(case.tensor("logits")), {}
    for variant, draws in (("dcutmix", NestDraws(phi, places_of(case))), ("dmixup", phi)):
        text = f"dcutmix(k={int(case['K_images'])}, alpha={float(case['alpha'])!r}, variant={variant})"
        pairing = case[f"perms_{variant}"][: phi.shape[1] - 1]
        recipe = mixwell.create(text, num_classes=int(case["num_classes"]))
        turn = one_turn(recipe, net, x, y, pairing=pairing, blend=draws)
        answers |= {
            f"out_{variant}": net.images.numpy(),
            f"target_{variant}": turn.targets.dense().numpy().astype(np.float64),
            f"loss_{variant}": turn.loss.numpy(),
        }
    return answers


def places_of(case: Case) -> np.ndarray:
    """What the positions of the golden's boxes were drawn from: the middle of their place among all inside the last."""
    image = np.broadcast_to([0, 0, *case["x"].shape[2:]], case["boxes"][:1].shape)
    boxes = np.concatenate((image, case["boxes"]))
    free = -np.diff(boxes[:, :, 2:] - boxes[:, :, :2], axis=0)
    return ((np.diff(boxes[:, :, :2], axis=0) + 0.5) / (free + 1)).swapaxes(0, 1)
