"""Replays SuperpixelGridCut, -Mean and -Mix on given label maps."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.superpixels import superpixel_means
from mixwell.sample.cutting.superpixel_grid import kept

SOURCE = "independent reference; label maps by scikit-image's slic"
INPUTS = ("images", "labels", "logits", "perm", "n_segments", "ratio", "segments", "draw")
COMPARE = {
    "selected_mask": equal(),
    "cut": equal(),
    "mix": equal(),
    "mean": close(1e-6),
    "segment_mean": close(1e-6),
    "*": close(1e-6, rtol=1e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, segments = case.tensor("images"), case.tensor("segments").long()
    ratio, draws = float(case["ratio"]), case["draw"]
    pixels = mixwell.Pixels((0.0,), (1.0,))
    batch = mixwell.Batch(images, case.tensor("labels"), pixels, extras={"superpixels": segments})
    net = GivenLogits(case.tensor("logits"))

    def turn_of(variant: str, **given: np.ndarray) -> mixwell.Turn:
        text = f"superpixel_grid(variant={variant}, n_segments={int(case['n_segments'])}, ratio={ratio})"
        return one_turn(mixwell.create(text, net.logits.shape[1]), net, batch, None, **given)

    shown = {}
    for variant in ("cut", "mean"):
        turn_of(variant, alone=draws)
        shown[variant] = net.images.numpy()
    turn = turn_of("mix", pairing=case["perm"], blend=draws)
    return {
        **shown,
        "mix": net.images.numpy(),
        "selected_mask": (kept(draws, ratio, segments)[:, 0] == 0).numpy(),
        "segment_mean": superpixel_means(images.double(), segments, draws.shape[1]).transpose(1, 2).numpy(),
        "lam_area": turn.targets.weights[:, 0].double().numpy(),
        "target_area": turn.targets.dense().double().numpy(),
        "loss_area": turn.loss.numpy(),
    }
