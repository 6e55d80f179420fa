"""Replays AdaMixUp: λ of given regions, half a batch mixed, both losses for given logits."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.label.ratio.adamixup import PolicyDraws, lam_in, region

SOURCE = "independent reference"
INPUTS = ("x1", "y1", "perm", "gate_logits", "u", "cls_logits_mix_then_clean", "intr_logits_*")
COMPARE = {"*": close(1e-6, rtol=1e-6)}


class Given(nn.Module):
    """Returns given rows, whatever it is fed."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.rows


class Net(nn.Module):
    """A classifier that gives given logits.

    Attributes:
        images: what it was fed first: the mixed half and the clean one.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        classes = logits.shape[1]
        self.logits, self.images = logits, torch.empty(0)
        self.fc = nn.Linear(classes, classes, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, images: Tensor) -> Tensor:
        self.images = self.images if self.images.numel() else images
        return self.fc(self.logits)


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, gates = case.tensor("x1"), case.tensor("y1"), case.tensor("gate_logits").requires_grad_()
    pairs, classes = len(gates), case["cls_logits_mix_then_clean"].shape[1]
    unseen_then_own, fake = case.tensor("intr_logits_pos_unseen_then_x1"), case.tensor("intr_logits_neg_mix")
    u = np.zeros(len(x))
    u[:pairs] = case["u"]

    def step(weight: float) -> tuple[mixwell.Turn, Tensor]:
        net = Net(case.tensor("cls_logits_mix_then_clean").float())
        recipe = mixwell.create(f"adamixup(intrusion_weight={weight!r})", classes).bind(net, x)
        (option,) = recipe.options
        option.ratio.policy = Given(gates)
        # Real images come in the order of the batch, whose first half is mixed.
        option.terms[0].head = Given(torch.cat((unseen_then_own.roll(pairs, 0), fake)))
        turn = one_turn(recipe, net, x, y, pairing=case["perm"], ratio=PolicyDraws(0, u))
        return turn, net.images.detach()

    turn, images = step(1.0)
    labels_alone, _ = step(0.0)
    abc = region(gates.detach())
    answers = {
        "abc": abc,
        "lam": lam_in(abc, torch.from_numpy(case["u"])),
        "x_mix": images[:pairs],
        "y_mix": turn.targets.dense().detach()[:pairs].double(),
        "cls_loss": turn.parts["criterion"].double(),
        "intr_loss": turn.parts["adamixup"].double(),
        "total_loss": turn.loss.detach().double(),
        "dcls_dgate_label_path": torch.autograd.grad(labels_alone.loss, gates)[0],
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
