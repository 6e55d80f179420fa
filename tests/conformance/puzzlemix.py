"""Replays Puzzle Mix: costs and energies from given saliency; transport, mix and label from the authors' labels.

The authors' labels are given, since their α-β swap may miss the minimum: ours are judged by their energy, in the
golden's own integers.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mixwell.conformance import Case, close, equal, no_worse
from mixwell.core.batch import Pixels
from mixwell.core.criteria import criterion_of
from mixwell.core.mix import Mix, Partners
from mixwell.ops.graphcut import best_labels, labelling_energy, squared_steps
from mixwell.sample.saliency.puzzlemix import (
    assemble,
    block_costs,
    block_saliency,
    block_side,
    colour_side,
    label_costs,
    moving_side,
    transport_plan,
)

SOURCE = "official code"
INPUTS = (
    *("images_norm", "norm_mean", "norm_std", "labels", "grad", "beta", "gamma", "eta", "neigh_size", "configs"),
    *("*/lam", "*/perm", "*/block_num", "*/n_labels", "*/t_size", "*/transport", "*/t_eps", "*/label"),
    *("logits", "loss_target_key"),
)
REINJECTED = ("*/cost_int", "*/edge_?_int")
COMPARE = {
    "*_int": close(1),  # truncated: the last bit of a float can be one unit
    "*/energy": no_worse(0),
    "*/energy_exact": equal(),
    "*/mask_block": close(1e-7),
    "*/transport_mask": close(1e-7),
    "*/plan?_src_of_dst": equal(),
    "*": close(1e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    answers, targets = {}, {}
    for name in case["configs"].tolist():
        config = Config(case, name)
        answers |= {f"{name}/{key}": value for key, value in {**config.costs(), **config.mix()}.items()}
        targets[name] = config.mixture.targets()
    wanted = targets[str(case["loss_target_key"]).partition("/")[0]]
    for key, criterion in (("loss_bce_softmax", "softmax_bce"), ("loss_soft_ce", "cross_entropy")):
        answers[key] = criterion_of(criterion)(case.tensor("logits"), wanted).numpy()
    return {key: value for key, value in answers.items() if key in case.wanted}


def downstream(case: Case) -> dict[str, np.ndarray]:
    answers = {}
    for name in case["configs"].tolist():
        levels = int(case[f"{name}/n_labels"])
        unary = case[f"{name}/cost_int"].astype(np.int64) * 10**5
        down, right = (case[f"{name}/edge_{way}_int"].astype(np.int64) * 10**3 for way in "vh")
        steps = (100 * squared_steps(levels)).astype(np.int64)
        energy = labelling_energy(unary, down, right, steps, best_labels(unary, down, right, steps))
        answers |= {f"{name}/energy": energy, f"{name}/energy_exact": energy}
    return {key: value for key, value in answers.items() if key in case.wanted}


class Config:
    """One of the golden's settings."""

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name = case, name
        self.images, self.perm = case.tensor("images_norm"), self.of("perm")
        self.size = tuple(self.images.shape[2:])
        self.side = block_side(self.size, int(self.of("block_num")))

    def of(self, key: str) -> Tensor:
        return self.case.tensor(f"{self.name}/{key}")

    def costs(self) -> dict[str, np.ndarray]:
        own = block_saliency(self.case.tensor("grad"), self.side)
        pixels = Pixels(tuple(self.case["norm_mean"].tolist()), tuple(self.case["norm_std"].tolist()))
        colours = F.avg_pool2d(pixels.raw(self.images), colour_side(self.side, int(self.case["neigh_size"])))
        blocks = own[0].numel()
        weight = float(self.case["beta"]) / (16 * blocks**0.5)
        costs = block_costs((own, own[self.perm]), (colours, colours[self.perm]), weight * float(self.case["gamma"]))
        unary = label_costs(
            costs.own.numpy(),
            costs.other.numpy(),
            self.of("lam").reshape(1).numpy(),
            float(self.case["eta"]),
            int(self.of("n_labels")),
        )
        return {
            "cost_m1": costs.own.numpy(),
            "cost_m0": costs.other.numpy(),
            "pw_x": costs.down.numpy(),
            "pw_y": costs.right.numpy(),
            "cost_int": (1000 * blocks * unary).astype(np.int32),
            "edge_v_int": (1000 * blocks * (costs.down.numpy() + weight)).astype(np.int32),
            "edge_h_int": (1000 * blocks * (costs.right.numpy() + weight)).astype(np.int32),
        }

    def mix(self) -> dict[str, np.ndarray]:
        m = 1 - self.of("label").float() / (int(self.of("n_labels")) - 1)
        saliency = block_saliency(self.case.tensor("grad"), moving_side(self.size, self.side, int(self.of("t_size"))))
        shown = F.interpolate(m[:, None], saliency.shape[1:], mode="nearest")[:, 0]
        plans = None
        if self.of("transport"):
            eps = float(self.of("t_eps"))
            plans = transport_plan(saliency, shown, eps), transport_plan(saliency[self.perm], 1 - shown, eps)

        def apply(x: Tensor) -> Tensor:
            return assemble(x, x[self.perm], m, plans)

        partners = Partners.at(self.perm[:, None], self.case.tensor("labels"))
        self.mixture = Mix.of_pair(apply(self.images), partners, m.mean((1, 2)), apply)
        plan_arrays = {f"plan{i}_src_of_dst": plan.flatten(1).numpy() for i, plan in enumerate(plans or (), 1)}
        kept = self.case.wanted.get(f"{self.name}/mixed", (0,))[0]  # the golden holds the first rows
        return {
            "mask_block": m.numpy(),
            "transport_mask": shown[:, None].numpy(),
            "ratio": self.mixture.weights[:, 0].numpy(),
            "target": self.mixture.targets().dense(self.case["logits"].shape[1]).numpy(),
            "mixed": self.mixture.images[:kept].numpy(),
            **plan_arrays,
        }
