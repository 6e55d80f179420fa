"""Replays RandomMix: the choice, and what each of its candidates makes of the same batch."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.policy import picked
from mixwell.sample.cutting.fmix import FourierDraws

SOURCE = "independent reference"
INPUTS = (
    "x",
    "y",
    "num_classes",
    "logits",
    "perm",
    "candidates",
    "weights",
    "u",
    "lam",
    "cut_center",
    "tau",
    "resize_box",
    "fmix_mask",
)
SKIPPED = {"cut_box": "its centre is given, and the pixels show the box"}
COMPARE = {
    "choice": equal(),
    "out_mixup": close(1e-6, rtol=1e-6),
    "out_*": equal(),
    "label_weight": close(1e-6),
    # FMix labels with λ, of which the mask's mean is the rounded share.
    "loss": close(1e-2),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, classes = case.tensor("x"), case.tensor("y"), int(case["num_classes"])
    net, size = GivenLogits(case.tensor("logits")), tuple(x.shape[2:])
    names, mask = [str(name) for name in case["candidates"]], case["fmix_mask"]
    lam, tau = case["lam"].reshape(1), case["tau"].reshape(1)
    switch = mixwell.create(f"random_mix({' | '.join(names)}, weights={tuple(case['weights'].tolist())})", classes)
    top, left, bottom, right = case["resize_box"]
    middle = np.array([[top + (bottom - top) // 2, left + (right - left) // 2]])
    exact = lam * mask.size
    draws = {
        "mixup": {"ratio": lam},
        # A centre is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
        "cutmix": {"ratio": lam, "blend": (case["cut_center"][None] + 0.5) / size},
        "resizemix": {"ratio": tau, "blend": (middle + 0.5) / size},
        # The coin that rounds λ·H·W to the mask's size, and noise whose grey image is the mask.
        "fmix": {"ratio": lam, "blend": FourierDraws(0, np.where(np.ceil(exact) == mask.sum(), 1.0, 0.0))},
    }
    noise = torch.view_as_real(torch.fft.rfft2(torch.from_numpy(mask).float()))[None]
    answers, shares, losses = {}, [], []
    for name in names:
        inside = {"fmix": "decay=0, per=batch", "resizemix": "interpolation='nearest-size', per=batch"}.get(
            name, "per=batch"
        )
        recipe = mixwell.create(f"random_mix({name}({inside}))", classes)
        if name == "fmix":
            recipe.options[0].blend.noise = lambda *_: noise
        turn = one_turn(recipe, net, x, y, pairing=case["perm"], **draws[name])
        answers[f"out_{name}"] = net.images.numpy()
        shares.append(mask.mean() if name == "fmix" else float(turn.targets.weights[0, 0]))
        losses.append(float(turn.loss))
    choice = np.array([picked(switch.weights, u) for u in case["u"]])
    return answers | {"choice": choice, "label_weight": np.array(shares), "loss": np.array(losses)}
