"""Replays CutMix: trials with one λ, box and permutation per batch each."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.boxes import area_of, boxes_of

SOURCE = "official code"
INPUTS = ("images", "labels", "logits", "lam_raw", "center_row", "center_col", "perm")
COMPARE = {
    "box_r0_c0_r1_c1": equal(),
    "mixed": equal(),
    "lam": close(1e-12),
    "target": close(1e-7),
    "loss": close(1e-6, rtol=1e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    recipe = mixwell.create("cutmix(per=batch)", num_classes=net.logits.shape[1])
    size = tuple(images.shape[2:])
    # A centre is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
    centres = (np.stack((case["center_row"], case["center_col"]), 1) + 0.5) / size
    boxes = boxes_of(case["lam_raw"], centres, size)

    mixed, turns = [], []
    for lam, centre, perm in zip(case["lam_raw"], centres, case["perm"], strict=True):
        draws = {"pairing": perm, "ratio": lam.reshape(1), "blend": centre.reshape(1, 2)}
        turns.append(one_turn(recipe, net, images, labels, **draws))
        mixed.append(net.images.numpy())
    return {
        "box_r0_c0_r1_c1": boxes[:, [0, 2, 1, 3]],
        "lam": 1 - area_of(boxes, size),
        "mixed": np.stack(mixed),
        "target": np.stack([turn.targets.dense().numpy() for turn in turns]),
        "loss": np.stack([turn.loss.numpy() for turn in turns]),
    }
