"""Replays GenLabel on features: moments, log-densities, posteriors, losses, and where mixes intrude."""

import numpy as np
import torch
from torch import Tensor

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.label.relabel.genlabel import posterior
from mixwell.ops.densities import (
    covariances_of,
    gaussian_log_density,
    isotropic_log_density,
    kernel_log_density,
    kernels_of,
    moments_of,
    nearest,
    shrunk,
)

SOURCE = (
    "official code for moments, the isotropic label and intrusion; independent reference for log-densities and labels"
)
INPUTS = (
    "features",
    "labels",
    "batch_idx",
    "x_batch",
    "y_batch",
    "perm",
    "lam",
    "iso_means",
    "kde_bw",
    "logits",
    "gamma",
)
COMPARE = {
    "non_intrusion_official": equal(),
    "gm_*": close(1e-4, rtol=1e-5),
    "kde_logpdf": close(1e-3, rtol=1e-4),
    "*": close(1e-5, rtol=1e-5),
}
RIDGE = 1e-4


def replay(case: Case) -> dict[str, np.ndarray]:
    features, labels = case.tensor("features"), case.tensor("labels")
    x, y, perm = case.tensor("x_batch"), case.tensor("y_batch"), case.tensor("perm")
    lam, gamma = case["lam"].reshape(1), float(case["gamma"])
    classes = case.tensor("iso_means").shape[0]
    shares = torch.nn.functional.one_hot(labels, classes)
    means, covariances = covariances_of(*moments_of(features.double(), shares))
    covariances = shrunk(covariances, ridge=RIDGE)

    def step(text: str) -> tuple[mixwell.Turn, Tensor]:
        """One step on features as images, whose densities are fitted to all of them."""
        net = GivenLogits(case.tensor("logits"))
        recipe = mixwell.create(text, classes).use_data(train=lambda: [mixwell.Batch(features, labels)])
        recipe.bind(net, x)
        recipe.before_epoch(net)
        turn = one_turn(recipe, net, x, y, pairing=perm.numpy(), ratio=lam)
        return turn, net.images

    by_mix, mixed = step("mixup(per=batch)")
    by_all, _ = step(f"genlabel(gamma={gamma!r}, site=input, ridge={RIDGE!r})")
    by_two, _ = step(f"genlabel(gamma={gamma!r}, site=input, ridge={RIDGE!r}, top_k=2)")
    only_all, _ = step(f"genlabel(gamma=1, site=input, ridge={RIDGE!r})")
    only_two, _ = step(f"genlabel(gamma=1, site=input, ridge={RIDGE!r}, top_k=2)")
    kde, _ = step(f"genlabel(gamma=1, site=input, density=kde, bandwidth={float(case['kde_bw'])!r})")
    isotropic = isotropic_log_density(mixed, case.tensor("iso_means"))
    kernels = kernels_of(features.double(), labels, classes, float(case["kde_bw"]))
    neighbour = labels[nearest(mixed, features)]
    answers = {
        "x_mix": mixed,
        "y_mix": by_mix.targets.dense().double(),
        "gm_mean": means.float(),
        "gm_cov": covariances.float(),
        "gm_logpdf": gaussian_log_density(mixed.double(), means, torch.linalg.cholesky(covariances)),
        "y_gen_all": only_all.targets.dense().double(),
        "y_gen_top2": only_two.targets.dense().double(),
        "y_gen_top2_isotropic_official": posterior(isotropic, top_k=2),
        "kde_logpdf": kernel_log_density(mixed.double(), kernels),
        "y_gen_kde": kde.targets.dense().double(),
        "loss_mix": by_mix.loss.double(),
        "loss_gen_all": only_all.loss.double(),
        "loss_gen_top2": only_two.loss.double(),
        "loss_total_all": by_all.loss.double(),
        "loss_total_top2": by_two.loss.double(),
        "non_intrusion_official": (neighbour == y) | (neighbour == y[perm]),
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
