"""Defaults are the papers'; one row per method, from the paper's own tables."""

from __future__ import annotations

import inspect
import re

from mixwell.core.registry import method_of

PAPER = {
    "mixup": {"alpha": 1.0, "prob": 1.0},
    "cutmix": {"alpha": 1.0, "prob": 1.0},
    "patchup": {
        "variant": "hard",
        "gamma": None,
        "block": 7,
        "alpha": 2.0,
        "cutmix_alpha": 1.0,
        "sites": None,
        "criterion": "cross_entropy",
        "loss": "reweighted",
        "prob": None,
    },
    "catchup_mix": {"alpha": 1.0, "cutmix_alpha": 1.0, "sites": None},
    "moex": {"lam": 0.9, "site": "stem", "norm": "pono", "positive_only": False, "eps": 1e-5, "prob": 1.0},
    "mixstyle": {"alpha": 0.1, "sites": (1, 2), "mode": "random", "eps": 1e-6, "prob": 0.5},
    "gradsalmix": {
        "alpha": 1.0,
        "top_fraction": 0.1,
        "sites": None,
        "weights": "normalised",
        "blur": False,
        "prob": 0.5,
    },
    "alignmixup": {
        "alpha": 2.0,
        "sites": (0, -1),
        "eps": 0.1,
        "iterations": 100,
        "threshold": 0.1,
        "normalise_rows": False,
    },
    "multimix": {"n": 1000, "variant": "multimix", "alpha": (0.5, 2.0), "attention": "gap_relu", "site": None},
    "stylemix": {
        "variant": "stylemix",
        "alpha": None,
        "r": 0.7,
        "gamma_alpha": 0.8,
        "delta": 3.0,
        "prob": None,
    },
    "snapmix": {"beta": 5.0, "saliency": "cam", "same_label": "paper", "prob": 1.0},
    "saliency_grafting": {
        "alpha": 2.0,
        "temperature": 0.2,
        "saliency": "activation",
        "site": None,
        "label": "saliency",
    },
    "saliencymix": {"alpha": 1.0, "saliency": "fine_grained", "pixels": "uint8", "prob": 1.0},
    "guided_mixup": {
        "variant": "sr",
        "saliency": None,
        "pairing": "greedy",
        "distance": "l2",
        "clean_lam": 0.0,
        "criterion": "cross_entropy",
        "prob": None,
    },
    "comixup": {
        "part": 20,
        "blocks": 4,
        "beta": 0.32,
        "gamma": 1.0,
        "tau": 0.83,
        "eta": 0.05,
        "alpha": 2.0,
        "omega": 0.001,
        "niter": 4,
        "penalty": "hard",
        "resolve": True,
        "rule": "paper",
        "saliency": "gradient",
        "clean_lam": 1.0,
        "criterion": "softmax_bce",
        "prob": 1.0,
    },
    "lgcoamix": {
        "n_segments": (30, 35),
        "compactness": 8.0,
        "p": 0.5,
        "rule": "average",
        "top": 0.7,
        "local_weight": 0.1,
        "contrast_weight": 0.05,
        "temperature": 0.7,
        "width": 64,
        "layout": "permute",
        "prob": 0.5,
    },
    "attribute_mix": {"attributes": 3, "threshold": 0.5, "attribute_weight": 1.0, "prob": 0.5},
    "attentive_cutmix": {"top_k": 6, "grid": 7, "reduce": "mean", "label": "area", "prob": 1.0},
    "supermix": {
        "k": 2,
        "alpha": 3.0,
        "lambda_s": 25.0,
        "sigma": 1.0,
        "width": 8,
        "max_iter": 50,
        "gamma": 2.0,
        "distill": 0.0,
        "label": "teacher",
    },
    "manifold_mixup": {"alpha": 2.0, "sites": (0, 1, 2), "criterion": "cross_entropy", "prob": 1.0},
    "k_mixup": {"k": 16, "alpha": 1.0},
    "puzzlemix": {"alpha": 1.0, "labels": 3, "beta": 1.2, "gamma": 0.5, "eta": 0.2, "t_eps": 0.8},
    "augmix": {"severity": 3.0, "width": 3, "alpha": 1.0, "weight": 12.0},
    "automix": {"alpha": 2.0, "reduction": 2, "upsample": "nearest", "lam_margin": 0.08, "epsilon": 0.1, "gamma": 0.1},
    "decouplemix": {"variant": "ce", "sides": "both", "exponent": 1.0},
    "resizemix": {"scale": (0.1, 0.8), "interpolation": "nearest"},
    "hmix_gmix": {"variant": "hmix", "alpha": 1.0, "r": 0.5},
    "aug_rmix_at": {"mix": None, "eps": 8 / 255, "step": 2 / 255, "steps": 10, "severity": 3.0, "width": 3},
    "cut_thumbnail": {"variant": "single", "size": 0.5, "lam": 0.25, "participation_rate": 0.8},
    "pani": {"patch": 8, "neighbours": 1, "candidates": 1, "mask_ratio": 0.6, "alpha": 2.0},
    "fmix": {"alpha": 1.0, "decay": 3.0, "max_soft": 0.0, "spectrum": "paper", "reformulate": False},
    "smoothmix": {"variant": "circle", "edge": 0.2},
    "gridmix": {"variant": "gridmix", "grid": 4, "cells": "bernoulli", "p": 0.5, "local_weight": None},
    "superpixel_grid": {"variant": "mix", "n_segments": 100, "ratio": 0.4, "sigma": 5.0, "compactness": 10.0},
    "ricap": {"beta": 0.3, "variant": "ricap"},
    "dcutmix": {"k": 5, "alpha": 0.2, "variant": "dcutmix"},
    "bc": {"variant": "bc", "zero_mean": True},
    "local_mixup": {"variant": "weights", "graph": "exponential", "rule": "paper", "alpha": 1.0},
    "pixmix": {"k": 4, "beta": 3.0, "severity": 3.0, "ops": 13},
    "djmix": {"alpha": 1.0, "weight": 1.0},
    "random_mix": {"recipes": None, "weights": None},
    "recursive_mix": {"alpha": 0.5, "omega": 0.5, "interpolation": "nearest"},
    "stackmix": {"recipe": None, "axis": "height", "resize": False},
    "yoco": {"recipe": None},
    "lumix": {"weight": 1.0},
    "camixup": {"alpha": 0.4},
    "rankmixup": {"weight": 0.1, "margin": None, "mixes": None, "alpha": 2.0},
    "mixupe": {"variant": "paper", "threshold": None},
    "adamixup": {"intrusion_weight": 1.0},
    "mixpro": {
        "cells": 4,
        "patch": None,
        "pal": True,
        "alpha": 1.0,
        "smoothing": 0.1,
        "detach": True,
        "rule": "paper",
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "prob": 0.5,
        "masks": None,
    },
    "scoremix": {"alpha": 1.0, "saliency": "attention", "grid": "own", "rule": "paper", "prob": 0.5},
    "genlabel": {"density": "gaussian", "covariance": "own", "ridge": 1e-4, "top_k": None, "alpha": 1.0},
    "metamixup": {"alpha": 1.0, "normalise": True, "every": 1, "lookahead": "all"},
    "transmix": {"switch_prob": 0.8, "cutmix_alpha": 1.0, "mixup_alpha": 0.8},
}
"""What the papers say; `per` is "sample" everywhere, and `prob` is 1 where nothing is said."""


def test_defaults_are_the_papers(slug):
    assert slug in PAPER, "add the method's paper defaults to the table"
    declared = {name: parameter.default for name, parameter in method_of(slug).parameters.items()}
    assert {name: declared[name] for name in PAPER[slug]} == PAPER[slug]
    assert declared.get("per", "sample") == "sample"
    if "prob" not in PAPER[slug]:
        assert declared.get("prob", 1.0) == 1.0


def test_the_entry_is_complete(slug):
    entry = method_of(slug)
    assert entry.slug == slug
    assert entry.section[0] in "12"
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d+/\S+|openreview:[\w-]+", entry.reference)
    assert entry.venue[-4:].isdigit()
    assert entry.title
    assert entry.reference in entry.doc
    documented = inspect.getdoc(entry.build) or ""
    assert all(f"{name}:" in documented for name in entry.parameters), "a parameter is not documented"
