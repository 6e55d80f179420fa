"""Replays TokenMix: one mask per batch, pairs of a batch with its reverse, the golden's label maps and crops."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.label.attention.tokenmix import (
    activation_shares,
    block_masks,
    partner_tokens,
    random_masks,
    smoothed_by_halves,
)
from mixwell.ops.label_maps import class_maps, cropped

SOURCE = "official code, with 224 pixels replaced by the golden's own size"
INPUTS = (
    "x",
    "y",
    "num_classes",
    "smoothing",
    "lam_target",
    "draws",
    "topk_values",
    "topk_index",
    "crop_ijhw",
    "logits",
    "random_perm",
)
COMPARE = {
    "*mask": equal(),
    "x_mixed": equal(),
    "*lam*": close(1e-12),
    "act_map": close(2e-5, rtol=1e-5),
    "*": close(1e-5),
}
GRID = (14, 14)


def attempts_of(draws: np.ndarray) -> np.ndarray:
    """(1, T, 4) uniforms of the blocks that were tried.

    The code draws an area and the logarithm of a ratio, and row and column only where the block fits into the grid.
    """
    found: list[list[float]] = []
    for kind, low, high, value in draws:
        if kind == 0 and (not found or len(found[-1]) >= 2):
            found.append([])
        if kind == 0:
            found[-1].append((value - low) / max(high - low, 1e-9))
        else:
            found[-1].append((value - low + 0.5) / (high - low + 1))  # the middle of what gives this number again
    return np.array([[*one, *(0.0,) * (4 - len(one))] for one in found])[None]


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y = case.tensor("x"), case.tensor("y")
    classes, smoothing, lam = int(case["num_classes"]), float(case["smoothing"]), case["lam_target"].reshape(1)
    crops = torch.cat((case.tensor("crop_ijhw"), torch.zeros(len(x), 1)), 1)
    own = torch.stack((case.tensor("topk_values").float(), case.tensor("topk_index").float()), 1)
    batch = mixwell.Batch(x, y, extras={"label_map": own, "crop": crops})
    attempts = attempts_of(case["draws"])
    draws = {"pairing": np.arange(len(x))[::-1].copy(), "ratio": lam, "blend": attempts}

    def turn_of(smoothing: float) -> tuple[mixwell.Turn, GivenLogits]:
        recipe = mixwell.create(
            "tokenmix(rule=code, switch_prob=1, per=batch)", num_classes=classes, label_smoothing=smoothing
        )
        net = GivenLogits(case.tensor("logits"))
        return one_turn(recipe, net, batch, **draws), net

    turn, net = turn_of(smoothing)
    wanted = partner_tokens(lam, GRID[0] * GRID[1], "code")
    mask = block_masks(attempts, wanted, GRID)
    maps = cropped(class_maps(*map(case.tensor, ("topk_values", "topk_index", "y"))), crops, GRID, swapped=True)
    weights = turn.targets.weights
    target = smoothed_by_halves(weights, turn.targets.classes, classes, smoothing)
    # Each map's normalised values are what it counts where a single token is shown.
    single = torch.eye(maps[0].numel()).view(-1, 1, *GRID)
    rows = torch.arange(len(x))
    norms = [activation_shares(maps, single, rows[i].expand(len(single), 1))[:, 0].view(GRID) for i in rows]
    order = np.empty(len(case["random_perm"]))
    order[case["random_perm"]] = np.arange(len(order))
    random_mask = random_masks(order[None], wanted, GRID)
    answers = {
        "mask": mask[0].astype(np.uint8),
        "lam_out": 1 - mask.mean(),
        "x_mixed": net.images,
        "act_map": maps,
        "act_norm": torch.stack(norms),
        "w_target": weights[:, 0],
        "w_source": weights[:, 1],
        "target": target,
        "target_nosmooth": turn_of(0.0)[0].targets.dense(),
        "loss_bce": turn.loss,
        "loss_ce": SoftCrossEntropy()(
            net.logits, mixwell.Targets(y, turn.targets.sources, weights, classes, soft=target)
        ),
        "random_mask": random_mask[0].astype(np.uint8),
        "random_lam": 1 - random_mask.mean(),
    }
    return {name: np.asarray(value) for name, value in answers.items()}
