"""Replays SnapMix: one pair of boxes per batch, labelled in a network that has the golden's last map and classifier."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, equal, one_turn
from mixwell.core.saliency import resized
from mixwell.label.saliency.snapmix import semantic_maps
from mixwell.ops.boxes import boxes_of

SOURCE = "official code"
INPUTS = ("x", "y", "perm", "lam1", "lam2", "centres", "features", "fc_weight", "fc_bias", "logits")
COMPARE = {
    "box?": equal(),
    "y_b": equal(),
    "same_label": equal(),
    "spm": close(1e-6),
    "x_mix": close(1e-6, rtol=1e-6),
    "*": close(1e-5),
}


class Net(nn.Module):
    """A network with a given last map and classifier, and given logits.

    Attributes:
        images: what it was last trained on.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.features, self.logits = case.tensor("features"), case.tensor("logits")
        self.layer1 = nn.Identity()
        self.fc = nn.Linear(*case["fc_weight"].T.shape)
        self.fc.weight, self.fc.bias = (nn.Parameter(case.tensor(f"fc_{name}")) for name in ("weight", "bias"))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.images = images
        self.layer1(self.features[: len(images)])
        return self.logits[: len(images)]


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, perm = case.tensor("x"), case.tensor("y"), case["perm"]
    net, size = Net(case), tuple(x.shape[2:])
    # A centre is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
    centres = (case["centres"] + 0.5) / size
    lam = [case[f"lam{which}"].reshape(1) for which in (1, 2)]
    draws = {"pairing": perm, "ratio": lam[0], "blend": np.concatenate((lam[1], *centres))[None]}

    def turn_of(same_label: str) -> mixwell.Turn:
        recipe = mixwell.create(f"snapmix(per=batch, same_label={same_label})", num_classes=net.logits.shape[1])
        return one_turn(recipe, net, x, y, **draws)

    turns = {"paper": turn_of("paper"), "official": turn_of("code")}
    looks = mixwell.Views(mixwell.Probe(net), mixwell.Batch(x, y))
    classes = turns["paper"].targets.classes
    answers = {
        "spm": semantic_maps(resized(looks.cam(), size)),
        "x_mix": net.images,
        "y_b": classes[:, 1],
        "same_label": classes[:, 0] == classes[:, 1],
    }
    for which in (0, 1):
        box = boxes_of(lam[which], centres[which : which + 1], size)[0]
        answers[f"box{which + 1}"] = torch.from_numpy(box[[0, 2, 1, 3]])
    for name, turn in turns.items():
        answers |= {f"lam_a_{name}": turn.targets.weights[:, 0], f"lam_b_{name}": turn.targets.weights[:, 1]}
        answers[f"loss_{name}"] = turn.loss
    return {name: tensor.numpy() for name, tensor in answers.items()}
