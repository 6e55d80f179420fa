"""Replays YOCO: flips with one cut per batch and one per sample, and mixup in both halves."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.axes import Ratio
from mixwell.sample.cutting.yoco import FlipDraws

SOURCE = "official code; ps_*: independent reference"
INPUTS = (
    "images",
    "labels",
    "logits",
    "cut_coin",
    "flip_coin_*",
    "mix_cut_coin",
    "mix_lam_*",
    "mix_perm",
    "ps_cut_width",
    "ps_flip",
)
COMPARE = {"hflip_out": equal(), "ps_out": equal(), "mix_lam": close(1e-6), "*": close(1e-6, rtol=1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    classes = net.logits.shape[1]

    def flips(width: np.ndarray, coins: np.ndarray) -> np.ndarray:
        recipe = mixwell.create("yoco", classes)
        one_turn(recipe, net, images, labels, alone=FlipDraws(width, coins))
        return net.images.numpy()

    coins = np.stack((case["flip_coin_first"], case["flip_coin_second"]), 1) < 0.5
    answers = {
        "hflip_out": np.stack(
            [flips(cut[None] > 0.5, pair[None]) for cut, pair in zip(case["cut_coin"], coins, strict=True)]
        ),
        "ps_out": flips(case["ps_cut_width"] == 1, case["ps_flip"] == 1),
    }

    recipe = mixwell.create("yoco(mixup(per=batch), per=batch)", classes)
    (option,) = recipe.options
    mixed, lam, loss = [], [], []
    drawn = (case[name] for name in ("mix_cut_coin", "mix_lam_first", "mix_lam_second", "mix_perm"))
    for coin, first, second, perm in zip(*drawn, strict=True):
        draws = option.blend.draw(len(labels), np.random.default_rng(0))
        draws.width = coin[None] <= 0.5  # the authors' mixup branch reads the coin the other way round
        for half, value in ((draws.first, first), (draws.second, second)):
            half.of = {piece: value.reshape(1) if isinstance(piece, Ratio) else None for piece in half.of}
        turn = one_turn(recipe, net, images, labels, pairing=perm, blend=draws)
        mixed.append(net.images.numpy())
        lam.append(turn.targets.weights[0, 0].numpy())
        loss.append(turn.loss.numpy())
    return answers | {"mix_out": np.stack(mixed), "mix_lam": np.stack(lam), "mix_loss": np.stack(loss)}
