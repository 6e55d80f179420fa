"""Replays SaliencyMix: trials with one λ, box and permutation per batch each, by 8-bit pixels and by float bytes."""

import numpy as np
from torch import Tensor

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.batch import Pixels
from mixwell.ops.boxes import boxes_at
from mixwell.ops.saliency import fine_grained, fine_grained_bytes
from mixwell.sample.saliency.saliencymix import peaks

SOURCE = "official code"
INPUTS = ("images_u8", "images_norm", "norm_mean", "norm_std", "labels", "lam_draw", "perm", "logits")
COMPARE = {
    "saliency_*": equal(),
    "peak_*": equal(),
    "box_*": equal(),
    "mixed_*": equal(),
    "lam_*": close(1e-7),
    "loss_*": close(1e-6, rtol=1e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    maps = {"u8": fine_grained(case.tensor("images_u8")), "float": fine_grained_bytes(case.tensor("images_norm"))}
    answers = {}
    for name, pixels in (("u8", "uint8"), ("float", "float_bytes")):
        places = peaks(maps[name].float())
        answers |= {f"saliency_{name}": maps[name].numpy(), f"peak_{name}": places.numpy()}
        answers |= {f"{key}_{name}": value for key, value in trials(case, pixels, places).items()}
        kept = case.wanted.get(f"mixed_{name}", (0,))[0]  # the golden holds the first trials
        answers[f"mixed_{name}"] = answers[f"mixed_{name}"][:kept]
    return answers


def trials(case: Case, pixels: str, places: Tensor) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images_norm"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    recipe = mixwell.create(
        f"saliencymix(per=batch, pixels={pixels})",
        num_classes=net.logits.shape[1],
        pixels=Pixels(tuple(case["norm_mean"].tolist()), tuple(case["norm_std"].tolist())),
    )
    found = {key: [] for key in ("box", "mixed", "lam", "loss")}
    for lam, perm in zip(case["lam_draw"].reshape(-1, 1), case["perm"], strict=True):
        turn = one_turn(recipe, net, images, labels, pairing=perm, ratio=lam)
        (box,) = boxes_at(places[perm[:1]], np.sqrt(1 - lam), tuple(images.shape[2:])).numpy()
        found["box"].append(box[[0, 2, 1, 3]])
        found["mixed"].append(net.images.numpy())
        found["lam"].append(turn.targets.weights[0, 0].numpy())
        found["loss"].append(turn.loss.numpy())
    return {key: np.stack(values) for key, values in found.items()}
