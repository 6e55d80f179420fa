"""Replays AugRmixAT: the attack on a linear model, and the losses of the three mixed views."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.sample.random.aug_rmix_at import AdversarialDraws, attacked

SOURCE = "independent reference"
INPUTS = (
    "x",
    "y",
    "num_classes",
    "linear_weight",
    "pool",
    "eps",
    "step",
    "steps",
    "init_noise",
    "x_aug",
    "perm",
    "lam",
)
COMPARE = {"x_adv": close(1e-6), "*": close(1e-5, rtol=1e-5)}


class Linear(nn.Module):
    """Logits that are linear in the pooled pixels."""

    def __init__(self, weight: torch.Tensor, pool: int) -> None:
        super().__init__()
        self.pool, self.fc = pool, nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.fc.weight = nn.Parameter(weight)
        self.logits = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.logits = self.fc(F.avg_pool2d(images, self.pool).flatten(1))
        return self.logits


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, noise = case.tensor("x"), case.tensor("y"), case.tensor("init_noise")
    net = Linear(case.tensor("linear_weight"), int(case["pool"]))
    eps, step, steps = float(case["eps"]), float(case["step"]), int(case["steps"])
    pixels = mixwell.Pixels((0.0,), (1.0,))

    def turn(**options: object) -> mixwell.Turn:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        text = f"aug_rmix_at(mix=mixup(per=batch), eps={eps!r}, step={step!r}, steps={steps}, {given})"
        recipe = mixwell.create(text, int(case["num_classes"]), pixels=pixels)
        (option,) = recipe.options
        option.alone.noise = lambda *_: noise / eps
        option.alone.chains.images = lambda *_: (case.tensor("x_aug"),)
        draws = {"alone": AdversarialDraws(None, 0), "pairing": case["perm"], "ratio": case["lam"].reshape(1)}
        return one_turn(recipe, net, x, y, **draws)

    mean = turn(weights=(1 / 3, 1 / 3, 1 / 3))
    logits = net.logits.detach().unflatten(0, (3, -1))
    total = turn(weights=(1.0, 1.0, 1.0))
    one = [turn(weights=tuple(np.eye(3)[view].tolist())).loss.item() for view in range(3)]
    diverging = turn(weights=(1.0, 0.0, 0.0), consistency=1.0).loss.item() - one[0]

    def loss(found: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net(found), y)

    trace = [attacked(loss, x, noise, eps, step, count) for count in range(1, steps + 1)]
    return {
        "x_adv": trace[-1].numpy(),
        "ce_trace": np.array([loss(found).item() for found in trace]),
        "logits": logits.numpy().astype(np.float64),
        "mce": np.array(one),
        "loss_sum": total.loss.detach().numpy(),
        "loss_mean": mean.loss.detach().numpy(),
        "js": np.array(diverging),
    }
