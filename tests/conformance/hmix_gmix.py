"""Replays HMix and GMix: trials with one λ and place per batch each, paired with the batch in reverse."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.boxes import area_of
from mixwell.sample.cutting.hmix_gmix import gmix_masks, hmix_boxes, hmix_masks

SOURCE = "official code"
INPUTS = (
    "images",
    "labels",
    "logits",
    "hmix_lam_raw",
    "hmix_r",
    "?mix_center_row",
    "?mix_center_col",
    "gmix_lam_raw",
)
COMPARE = {"hmix_box_r0_c0_r1_c1": equal(), "hmix_*lam": close(1e-12), "*": close(1e-6, rtol=1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    size = case["images"].shape[2:]
    answers = {}

    (lam, centres), ratios = _draws(case, "hmix", size), case["hmix_r"]
    boxes = [hmix_boxes(*drawn, r, size) for *drawn, r in zip(lam, centres, ratios, strict=True)]
    masks = [hmix_masks(*drawn, r, size) for *drawn, r in zip(lam, centres, ratios, strict=True)]
    found = np.concatenate(boxes)
    answers["hmix_box_r0_c0_r1_c1"] = found[:, [0, 2, 1, 3]]
    answers["hmix_cutmix_lam"] = 1 - area_of(found, size)
    answers["hmix_mixup_lam"] = np.concatenate([mask.base for mask in masks])
    answers["hmix_lam"] = np.concatenate([mask.means for mask in masks])
    recipes = [f"hmix_gmix(variant=hmix, r={r}, per=batch)" for r in ratios]
    answers["hmix_mixed"], answers["hmix_loss"] = _trials(case, recipes, lam, centres)

    lam, centres = _draws(case, "gmix", size)
    masks = [gmix_masks(*drawn, size) for drawn in zip(lam, centres, strict=True)]
    keep = np.concatenate([mask.on(case.tensor("images")).numpy() for mask in masks])[:, 0]
    answers["gmix_kernel"] = np.where(lam[:, :, None] < 0.5, keep, 1 - keep)
    answers["gmix_lam"] = np.concatenate([mask.means for mask in masks])
    recipes = ["hmix_gmix(variant=gmix, per=batch)"] * len(lam)
    answers["gmix_mixed"], answers["gmix_loss"] = _trials(case, recipes, lam, centres)
    return answers


def _draws(case: Case, variant: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """λ (T, 1) and centres (T, 1, 2) in [0, 1): the middle of the golden's pixel falls into that pixel again."""
    pixels = np.stack((case[f"{variant}_center_row"], case[f"{variant}_center_col"]), 1)
    return case[f"{variant}_lam_raw"][:, None], ((pixels + 0.5) / size)[:, None]


def _trials(case: Case, recipes: list[str], lam: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mixed images and the loss of each trial."""
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    reverse = np.arange(len(images))[::-1].copy()
    mixed, losses = [], []
    for text, ratio, centre in zip(recipes, lam, centres, strict=True):
        recipe = mixwell.create(text, num_classes=net.logits.shape[1])
        turn = one_turn(recipe, net, images, labels, pairing=reverse, ratio=ratio, blend=centre)
        mixed.append(net.images.numpy())
        losses.append(turn.loss.numpy())
    return np.stack(mixed), np.stack(losses)
