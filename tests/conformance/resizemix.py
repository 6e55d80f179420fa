"""Replays ResizeMix: trials with one scale and permutation per batch each, and a place for each image."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.boxes import area_of
from mixwell.sample.cutting.resizemix import thumbnail_boxes

SOURCE = "official code"
INPUTS = ("images", "labels", "logits", "rate", "center_row", "center_col", "perm")
COMPARE = {
    "small_hw": equal(),
    "box_r0_c0_r1_c1": equal(),
    "mixed": equal(),
    "lam": close(1e-12),
    "target": close(1e-7),
    "loss": close(1e-6, rtol=1e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    recipe = mixwell.create("resizemix(per=batch, places=sample)", num_classes=net.logits.shape[1])
    size = tuple(images.shape[2:])
    # A centre is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
    centres = (np.stack((case["center_row"], case["center_col"]), 2) + 0.5) / size

    boxes, mixed, turns = [], [], []
    for rate, centre, perm in zip(case["rate"], centres, case["perm"], strict=True):
        turns.append(one_turn(recipe, net, images, labels, pairing=perm, ratio=rate.reshape(1), blend=centre))
        mixed.append(net.images.numpy())
        boxes.append(thumbnail_boxes(rate.reshape(1), centre, size))
    found = np.stack(boxes)
    return {
        "small_hw": found[:, 0, 1::2] - found[:, 0, ::2],
        "box_r0_c0_r1_c1": found[:, :, [0, 2, 1, 3]],
        "lam": 1 - area_of(found[:, 0], size),
        "mixed": np.stack(mixed),
        "target": np.stack([turn.targets.dense().numpy() for turn in turns]),
        "loss": np.stack([turn.loss.numpy() for turn in turns]),
    }
