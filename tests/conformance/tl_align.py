"""Replays TL-Align: one box of patches per batch, labelled in a transformer that has the golden's attention."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenAttention, close, equal, one_turn
from mixwell.label.attention.tl_align import token_boxes
from mixwell.ops.tokens import fold, token_masks

SOURCE = "official code"
INPUTS = ("x", "y", "patch", "num_classes", "smoothing", "lam_raw", "box_c[yx]", "attn", "logits")
COMPARE = {
    "box_token": equal(),
    "x_mixed": equal(),
    "lam": close(1e-12),
    "loss": close(1e-6, rtol=1e-6),
    "*": close(1e-6),
}


class Net(nn.Module):
    """A transformer with a class token, whose attention in each block and logits are given.

    Attributes:
        images: what it was last fed.
    """

    def __init__(self, attention: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 1))
        self.blocks = nn.ModuleList(map(GivenAttention, attention))
        self.logits = logits
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        for block in self.blocks:
            block()
        return self.logits


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, attention = case.tensor("x"), case.tensor("y"), case.tensor("attn")
    patch, classes, smoothing = int(case["patch"]), int(case["num_classes"]), float(case["smoothing"])
    grid = x.shape[2] // patch, x.shape[3] // patch
    lam = case["lam_raw"].reshape(1)
    # A centre is drawn in [0, 1); the middle of the golden's token falls into that token again.
    centre = (np.stack((case["box_cy"], case["box_cx"])).reshape(1, 2) + 0.5) / grid
    draws = {"pairing": np.arange(len(x))[::-1].copy(), "ratio": lam, "blend": centre}
    recipe = mixwell.create(f"tl_align(patch={patch}, per=batch)", num_classes=classes, label_smoothing=smoothing)
    net = Net(attention, case.tensor("logits"))
    turn = one_turn(recipe, net, x, y, **draws)

    option = recipe.options[0]
    given = mixwell.Draws({getattr(option, slot): value for slot, value in draws.items()})
    mix = option.mix(x, mixwell.Scene(mixwell.Batch(x, y), given))
    # The labels of all tokens, from the shares of the two sources in each.
    one_hot = torch.eye(classes)[y] * (1 - smoothing) + smoothing / classes
    labels = one_hot[mix.sources]
    shown = token_masks(mix.masks, grid[0] * grid[1]).flatten(2).expand(len(x), -1, -1)
    shares = [torch.cat((mix.weights[:, :, None], shown), 2)]
    for block in attention:
        shares.append(fold(shares[-1], block.mean(1)))
    layers = torch.stack([torch.einsum("rkt,rkc->rtc", each, labels) for each in shares])
    answers = {
        "box_token": torch.from_numpy(token_boxes(lam, centre, grid, grid)[0]),
        "lam": mix.area[0],
        "x_mixed": net.images,
        "labels_in": layers[0],
        "labels_layers": layers[1:],
        "target_cls": turn.targets.dense(smoothing=smoothing),
        "row_sums": layers[-1].sum(2),
        "loss": turn.loss,
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
