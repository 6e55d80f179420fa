"""Replays FMix: trials with one λ, noise, mask and permutation per batch each, and masks of the paper's spectrum."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, one_turn
from mixwell.ops.fourier import grey_images, stretched
from mixwell.sample.cutting.fmix import FourierDraws, fourier_masks, pixels_shown

SOURCE = "official code; *_intended: independent reference"
INPUTS = ("images", "labels", "logits", "perm", "lam", "max_soft", "round_coin", "decay_power", "noise")
COMPARE = {"mixed": close(1e-6, rtol=1e-6), "loss": close(1e-6, rtol=1e-6), "*": close(1e-11)}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    noise, decay = case.tensor("noise")[:, 0], float(case["decay_power"])
    size = tuple(images.shape[2:])
    count = pixels_shown(case["lam"], case["round_coin"], size[0] * size[1])
    answers = {}
    for spectrum, suffix in (("code", ""), ("paper", "_intended")):
        grey = stretched(grey_images(noise, size, decay, spectrum))
        masks = [
            fourier_masks(grey[[trial]], count[[trial]], case["lam"][[trial]], float(soft))
            for trial, soft in enumerate(case["max_soft"])
        ]
        answers |= {f"lowfreq{suffix}": grey[:, None].numpy(), f"mask{suffix}": np.stack(masks)}

    mixed, losses = [], []
    for trial, soft in enumerate(case["max_soft"]):
        text = f"fmix(per=batch, spectrum=code, decay={decay}, max_soft={float(soft)})"
        recipe = mixwell.create(text, num_classes=net.logits.shape[1])
        recipe.options[0].blend.noise = lambda *_, trial=trial: noise[[trial]]
        coin = FourierDraws(0, case["round_coin"][[trial]])
        turn = one_turn(
            recipe, net, images, labels, pairing=case["perm"][trial], ratio=case["lam"][[trial]], blend=coin
        )
        mixed.append(net.images.numpy())
        losses.append(turn.loss.numpy())
    return answers | {"mixed": np.stack(mixed), "loss": np.stack(losses)}
