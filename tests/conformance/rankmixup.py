"""Replays RankMixup: M mixes of each image by given partners and λ, and both rankings of the golden's logits."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, equal, one_turn
from mixwell.label.calibration.rankmixup import ndcg, truly_mixed

SOURCE = "official code; rank_mrl_elementwise: independent reference"
INPUTS = ("x", "y", "lams", "perms", "logits", "logits_mix", "margin", "weight")
_BROADCAST = (
    "the official value, or its gradient: a mask broadcast against the excess makes the product of two means of the "
    "masked mean; not to be reproduced, rank_mrl_elementwise is what is meant"
)
SKIPPED = {"rank_mrl": _BROADCAST, "loss_mrl": _BROADCAST, "grad_logits*_mrl": _BROADCAST}
COMPARE = {"mrl_mask_first": equal(), "x_mix_first": close(1e-6), "*": close(2e-6, 1e-5)}


class Net(nn.Module):
    """A network that answers the mixes with given logits, and after that the clean batch with others."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = list(logits)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.logits[len(self.seen) - 1]


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, weight = case.tensor("x"), case.tensor("y"), float(case["weight"])
    count, rows = case["perms"].shape
    classes = case["logits"].shape[1]
    leaves = {name: case.tensor(name).requires_grad_() for name in ("logits", "logits_mix")}

    def turn(net: Net, text: str, **draws: np.ndarray) -> mixwell.Turn:
        return one_turn(mixwell.create(f"rankmixup({text}, per=batch)", num_classes=classes), net, x, y, **draws)

    net, many = Net(leaves["logits_mix"], leaves["logits"]), {"pairing": case["perms"], "blend": case["lams"][:, None]}
    ranked = turn(net, f"mixes={count}, weight={weight}", **many)
    confidence = {name: logits.softmax(1).amax(1) for name, logits in leaves.items()}
    shares = ranked.targets.dense().amax(1).view(count, rows).T
    answers = {
        "x_mix_first": net.seen[0][:rows],
        "target_mix": ranked.targets.dense(),
        "ndcg": ndcg(confidence["logits"], confidence["logits_mix"].view(count, rows).T, shares),
        "loss_mndcg": ranked.loss,
        "ce_mndcg": ranked.parts["rankmixup/CleanLoss"],
        "rank_mndcg": turn(Net(*reversed(leaves.values())), f"mixes={count}, weight=1", **many).parts[
            "rankmixup/NDCGRanking"
        ],
    }
    gradients = torch.autograd.grad(ranked.loss, list(leaves.values()))
    answers |= {f"grad_{name}_mndcg": found for name, found in zip(leaves, gradients, strict=True)}

    pair = {"pairing": case["perms"][0], "ratio": case["lams"][:1]}
    margin = turn(
        Net(leaves["logits_mix"][:rows], leaves["logits"]),
        f"variant=mrl, margin={float(case['margin'])}, weight=1",
        **pair,
    )
    answers |= {
        "ce_mrl": margin.parts["rankmixup/CleanLoss"],
        "rank_mrl_elementwise": margin.parts["rankmixup/MarginRanking"],
        "mrl_mask_first": truly_mixed(margin.targets),
    }
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
