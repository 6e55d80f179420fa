"""Replays TransMix: CutMix with one box per batch, labelled in a transformer that has the golden's attention."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenAttention, close, equal, one_turn
from mixwell.label.attention.transmix import attended
from mixwell.ops.boxes import area_of, boxes_of, pair_masks
from mixwell.ops.tokens import token_masks, token_shares

SOURCE = "official code"
INPUTS = ("x", "y", "num_classes", "smoothing", "lam_raw", "box_c[yx]", "box_small", "attn_full", "logits")
COMPARE = {
    "box": equal(),
    "x_mixed": equal(),
    "mask_token": equal(),
    "lam_area": close(1e-12),
    "loss": close(1e-6, rtol=1e-6),
    "*": close(1e-6),
}


class Net(nn.Module):
    """A transformer with one block, whose attention and logits are given.

    Attributes:
        images: what it was last fed.
    """

    def __init__(self, attention: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 1))
        self.blocks = nn.ModuleList([GivenAttention(attention)])
        self.logits = logits
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        self.blocks[0]()
        return self.logits


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y = case.tensor("x"), case.tensor("y")
    size = tuple(x.shape[2:])
    classes, smoothing = int(case["num_classes"]), float(case["smoothing"])
    net = Net(case.tensor("attn_full"), case.tensor("logits"))
    lam = case["lam_raw"].reshape(1)
    # A centre is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
    centre = (np.stack((case["box_cy"], case["box_cx"])).reshape(1, 2) + 0.5) / size
    draws = {"pairing": np.arange(len(x))[::-1].copy(), "ratio": lam, "blend": centre}

    def recipe(text: str) -> mixwell.Recipe:
        return mixwell.create(text, num_classes=classes, label_smoothing=smoothing)

    turn = one_turn(recipe("transmix(switch_prob=1, per=batch)"), net, x, y, **draws)
    by_area = one_turn(recipe("cutmix(per=batch)"), net, x, y, **draws)
    want = mixwell.Want("class_attention", -1)
    attention = mixwell.Probe(net).run(net.images, wants=[want])[want]

    box = boxes_of(lam, centre, size)
    masks = pair_masks(box, size)
    answers = {
        "box": torch.from_numpy(box[0]),
        "x_mixed": net.images,
        "attn_cls": attention,
        "mask_token": token_masks(masks, attention.shape[1])[0, 1].to(torch.uint8),
        "lam_area": torch.from_numpy(1 - area_of(box, size))[0],
        "lam_attn": token_shares(masks, attention)[:, 0],
        "lam_final": turn.targets.weights[:, 0],
        "target_area": by_area.targets.dense(smoothing=smoothing),
        "target": turn.targets.dense(smoothing=smoothing),
        "loss": turn.loss,
    }
    if "box_small" in case:
        # A box that no draw gives, since drawn boxes have even sides: its label is taken from the box itself.
        small = case["box_small"][None]
        inside = torch.from_numpy(area_of(small, size))
        weights = attended(torch.stack((1 - inside, inside), 1), pair_masks(small, size), attention)
        label = mixwell.Targets(y, by_area.targets.sources, weights, classes)
        answers["target_small_box"] = label.dense(smoothing=smoothing)
    return {name: tensor.numpy() for name, tensor in answers.items()}
