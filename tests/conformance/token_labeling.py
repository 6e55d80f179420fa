"""Replays Token Labeling: one token box per batch, pairs of a batch with its reverse, given label maps and crops.

The network is one whose outputs are the golden's, so that the recipe's own label, loss and predictor meet them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, equal, one_turn
from mixwell.core.mix import Partners
from mixwell.core.targets import summed
from mixwell.label.attention.token_labeling import WithTokens, token_labels
from mixwell.ops.label_maps import class_maps, token_scores
from mixwell.sample.cutting.cutmix import paste

SOURCE = "official code"
INPUTS = (
    "topk_values",
    "topk_index",
    "crop_ijhw",
    "y",
    "num_classes",
    "smoothing",
    "label_size",
    "tokens",
    "lam_raw",
    "box_token",
    "cls_logits",
    "aux_logits_mixedorder",
)
COMPARE = {
    "tokens_mixed": equal(),
    "aux_logits": equal(),
    "map_sum": close(1e-6, rtol=1e-6),
    "roi_raw": close(2e-5, rtol=1e-5),
    "*": close(1e-5),
}


class Net(nn.Module):
    """A network with given patches, output tokens and logits, whose attention nobody reads.

    Attributes:
        mixed: its patches, as the recipe mixed them.
    """

    def __init__(self, patches: Tensor, outputs: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.patches, self.outputs, self.logits = patches, outputs, logits
        self.patch_embed, self.layer1, self.fc = nn.Identity(), nn.Identity(), nn.Linear(1, logits.shape[1])
        self.mixed = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.mixed = self.patch_embed(self.patches[: len(images)])
        self.layer1(self.outputs[: len(images)])
        return self.logits[: len(images)]


def mapped(rows: Tensor, size: int) -> Tensor:
    """(B, N, C) of tokens as (B, C, h, w)."""
    return rows.mT.reshape(len(rows), -1, size, size)


def centre_of(box: np.ndarray, lam: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(1, 2) a drawn centre, in [0, 1), of a box (top, left, bottom, right) that was clipped at the border."""
    half = (np.sqrt(1 - lam) * np.array(size) / 2).astype(int)
    middle = np.where(box[:2] > 0, box[:2] + half, box[2:] - half)
    return ((middle + 0.5) / size)[None]


def replay(case: Case) -> dict[str, np.ndarray]:
    values, index, y = case.tensor("topk_values"), case.tensor("topk_index"), case.tensor("y")
    classes, smoothing, size = (case[name].item() for name in ("num_classes", "smoothing", "label_size"))
    tokens, aux, logits = (case.tensor(name) for name in ("tokens", "aux_logits_mixedorder", "cls_logits"))
    rows, box, lam = len(y), case["box_token"], case["lam_raw"].reshape(1)
    crops = torch.cat((case.tensor("crop_ijhw"), torch.zeros(rows, 1)), 1)
    maps = torch.stack((values.float(), index.float()), 1)
    batch = mixwell.Batch(torch.zeros(rows, 3, 8, 8), y, extras={"label_map": maps, "crop": crops})
    net = Net(tokens, mapped(aux, size), logits)
    centre = centre_of(box, lam, (tokens.shape[2], tokens.shape[3]))
    draws = {"pairing": np.arange(rows)[::-1].copy(), "ratio": lam, "blend": centre, "place": 0}

    def turn_of(options: str) -> tuple[mixwell.Turn, nn.Module]:
        recipe = mixwell.create(f"token_labeling(per=batch, {options})", classes, label_smoothing=smoothing)
        recipe.bind(net, batch.images)
        head = recipe.options[0].terms[0].head
        with torch.no_grad():
            head.weight.copy_(torch.eye(classes))
            head.bias.zero_()
        return one_turn(recipe, net, batch, **draws), recipe.predictor(net)

    def labels(cells: int, *, swapped: bool) -> tuple[Tensor, Tensor]:
        scores = token_scores(values, index, crops, (cells, cells), swapped=swapped)
        dense = torch.zeros(rows, cells**2, classes).scatter_add_(2, scores[1], scores[0])
        return dense, token_labels(*scores, classes).smoothed(smoothing, classes, "code").dense(classes)

    def full(*, swapped: bool) -> Tensor:
        truth = mixwell.Targets.of(y, classes).dense(smoothing=smoothing)[:, None]
        return torch.cat((truth, labels(1, swapped=swapped)[1], labels(size, swapped=swapped)[1]), 1).mT

    partners = Partners.at(torch.arange(rows).flip(0)[:, None], y)
    shares = partners.shares(torch.tensor([0.7]))
    turns = {
        "w1": "rule=code, beta=1.0",
        "w05": "rule=code, beta=0.5",
        "w1_groundtruth": "rule=code, beta=1.0, ground_truth=true",
        "cls_only": "rule=code, beta=0.0",
        "hardlabel": "rule=code, beta=1.0, maps=none",
    }
    found = {name: turn_of(options) for name, options in turns.items()}
    predictor = found["w1"][1]
    swapped_back = paste(mapped(aux, size), partners, box[None, [0, 2, 1, 3]])
    clean = WithTokens(Net(tokens, swapped_back, logits), predictor.head)
    answers = {
        "map_sum": sum(class_maps(values, index, torch.full_like(y, label)) for label in range(classes)),
        "roi_raw": mapped(labels(size, swapped=True)[0], size),
        "target_full": full(swapped=True),
        "target_full_unswapped": full(swapped=False),
        "target_mix07": summed(full(swapped=True), partners.sources, shares),
        "tokens_mixed": net.mixed,
        "aux_logits": swapped_back.flatten(2).mT,
        **{f"loss_{name}": turn.loss for name, (turn, _) in found.items()},
        "eval_logits": clean(batch.images),
    }
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
