"""Replays RICAP: one point, and four permutations and crops of a batch."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.corners import corner_areas, corner_points
from mixwell.sample.ksample.ricap import CornerDraws

SOURCE = "official code"
INPUTS = ("x", "y", "num_classes", "beta", "beta_draws", "perms", "offsets", "logits")
COMPARE = {
    "split_*": equal(),
    "out": equal(),
    "patch_labels": equal(),
    "area": close(1e-12),
    "target": close(1e-6),
    "loss": close(1e-6, rtol=1e-6),
}

ORDER = [0, 2, 1, 3]
"""The golden's corners go down first, mixwell's to the right, and this is the way there and back."""


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y = case.tensor("x"), case.tensor("y")
    size = np.array(x.shape[2:])
    net = GivenLogits(case.tensor("logits"))
    recipe = mixwell.create(f"ricap(beta={float(case['beta'])!r}, per=batch)", num_classes=int(case["num_classes"]))
    fractions = case["beta_draws"][None]
    (point,) = points = corner_points(fractions, tuple(size))
    heights, widths = (np.array([at, at, side - at, side - at]) for at, side in zip(point, size, strict=True))
    free = size - np.stack((heights, widths[ORDER]), 1)
    # A crop begins at a share of the places it may begin at; the middle of the golden's place is that place again.
    crops = (case["offsets"][ORDER] + 0.5) / (free + 1)
    turn = one_turn(recipe, net, x, y, pairing=case["perms"][ORDER], blend=CornerDraws(fractions, crops[None]))
    return {
        "split_h": point[0],
        "split_w": point[1],
        "out": net.images.numpy(),
        "area": corner_areas(points, tuple(size))[0, ORDER],
        "patch_labels": turn.targets.classes.T[ORDER].numpy(),
        "target": turn.targets.dense().numpy().astype(np.float64),
        "loss": turn.loss.numpy(),
    }
