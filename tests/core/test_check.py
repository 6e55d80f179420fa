"""What must never train silently, and that the message says what was expected, what came, and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mixwell
from mixwell import Batch, Pixels

GOOD = torch.randn(4, 3, 8, 8)
IDS = torch.arange(4)
NAN, INF = GOOD.clone(), GOOD.clone()
NAN[2, 1, 3, 3] = float("nan")
INF[0] = float("inf")


def net(classes=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


WAYS = {
    "mix_batch": lambda recipe, *given: recipe.mix_batch(*given),
    "loss": lambda recipe, *given: recipe(net(), *given),
    "turns": lambda recipe, *given: list(recipe.turns(net(), *given)),
}

BAD = {
    "no tensor": (GOOD.numpy(), IDS, ["images must be a tensor (B, C, H, W)", "got ndarray", "Stack"]),
    "integer images": (GOOD.byte(), IDS, ["floating and normalised", "got torch.uint8", "images.float() / 255"]),
    "bool images": (GOOD > 0, IDS, ["floating and normalised", "got torch.bool", "images.float()"]),
    "empty batch": (GOOD[:0], IDS[:0], ["at least one row", "got shape (0, 3, 8, 8)"]),
    "no batch axis": (torch.randn(3), IDS, ["images must be (B, ...)", "got shape (3,)"]),
    "NaN images": (NAN, IDS, ["images contain NaN or infinite", "Check the loader and the normalisation"]),
    "infinite images": (INF, IDS, ["images contain NaN or infinite", "Check the loader and the normalisation"]),
    "infinite fp16 images": (INF.half(), IDS, ["images contain NaN or infinite", "Check the loader"]),
    "fewer labels": (GOOD, IDS[:3], ["same length", "got 4 images and labels (3,)"]),
    "scalar label": (GOOD, torch.tensor(1), ["same length", "got 4 images and labels ()"]),
    "list of labels": (GOOD, [0, 1, 2, 3], ["labels must be a tensor", "got list"]),
    "id too large": (GOOD, IDS + 2, ["class ids must lie in [0, 4]", "got 2 to 5", "Check num_classes"]),
    "id below 0": (GOOD, IDS - 1, ["class ids must lie in [0, 4]", "got -1 to 2", "label encoding"]),
    "float ids": (GOOD, IDS.float(), ["floating labels must be rows (B, 5)", "got shape (4,)", "labels.long()"]),
    "column of ids": (GOOD, IDS[:, None], ["(B,) integer class ids", "got torch.int64 (4, 1)", "labels.long()"]),
    "bool rows": (
        GOOD,
        torch.eye(5)[:4] > 0,
        ["integer class ids or (B, C) floating", "got torch.bool", "labels.float()"],
    ),
    "rows too narrow": (GOOD, torch.eye(4), ["5 columns, got 4", "Check num_classes"]),
    "rows beyond 1": (GOOD, torch.full((4, 5), 1.5), ["lie in [0, 1]", "got 1.5 to 1.5"]),
    "NaN rows": (GOOD, torch.full((4, 5), float("nan")), ["lie in [0, 1]", "got nan"]),
    "rows of logits": (GOOD, torch.full((4, 5), -0.5), ["lie in [0, 1]", "got -0.5"]),
    "multi-hot rows": (GOOD, torch.ones(4, 5), ["sum to 1", "criterion='bce'"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["mixup", "none"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_batches_are_refused(kind, recipe, way):
    images, labels, said = BAD[kind]
    with pytest.raises(mixwell.BatchError) as caught:
        WAYS[way](mixwell.create(recipe, 5), images, labels)
    for part in said:
        assert part in str(caught.value)


def test_good_batches_pass_in_every_way():
    for act in WAYS.values():
        act(mixwell.create("mixup", 5), GOOD, IDS)
        act(mixwell.create("mixup", 5), GOOD[:1], IDS[:1])
        act(mixwell.create("mixup", 5), Batch(GOOD, IDS))


def test_missing_and_double_labels():
    recipe = mixwell.create("mixup", 5)
    with pytest.raises(mixwell.BatchError, match="labels are missing: expected images and labels, or a Batch"):
        recipe.mix_batch(GOOD)
    with pytest.raises(mixwell.BatchError, match="either a Batch or images and labels, not both"):
        recipe.mix_batch(Batch(GOOD, IDS), IDS)


def test_values_are_looked_at_on_the_first_batch_and_every_100th():
    recipe = mixwell.create("mixup", 5)
    recipe.mix_batch(GOOD, IDS)
    for _ in range(99):
        recipe.mix_batch(NAN, IDS)
    with pytest.raises(mixwell.BatchError, match="NaN"):
        recipe.mix_batch(NAN, IDS)


def test_always_looks_at_each():
    recipe = mixwell.create("mixup", 5, validate="always")
    recipe.mix_batch(GOOD, IDS)
    with pytest.raises(mixwell.BatchError, match="NaN"):
        recipe.mix_batch(NAN, IDS)
    with pytest.raises(mixwell.ParameterError, match=r"validate must be 'sampled' .* or 'always', got 'never'"):
        mixwell.create("mixup", validate="never")


def test_class_ids_on_the_host_are_checked_on_every_batch():
    recipe = mixwell.create("mixup", 5)
    recipe.mix_batch(GOOD, IDS)
    with pytest.raises(mixwell.BatchError, match="class ids must lie in"):
        recipe.mix_batch(GOOD, IDS + 3)


def test_a_refused_batch_changes_nothing():
    """The network was not run, and the next batch is looked at as the first one is."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 5))
    recipe = mixwell.create("mixup", 5)
    with pytest.raises(mixwell.BatchError):
        recipe(model, NAN, IDS)
    assert model[1].num_batches_tracked == 0
    with pytest.raises(mixwell.BatchError, match="NaN"):
        recipe(model, NAN, IDS)


# What only shows once the network has answered


@pytest.mark.parametrize("criterion", ["cross_entropy", "bce", "softmax_bce"])
@pytest.mark.parametrize("outputs", [3, 8])
@pytest.mark.parametrize("kind", ["ids", "rows"])
def test_a_network_with_another_number_of_classes(kind, outputs, criterion):
    labels = torch.tensor([0, 1, 2, 1]) if kind == "ids" else torch.eye(5)[:4]
    with pytest.raises(mixwell.MixwellError, match=rf"{outputs}.*5|5.*{outputs}"):
        mixwell.create("mixup", 5, criterion=criterion)(net(outputs), GOOD, labels)


def test_ids_beyond_the_outputs_where_num_classes_was_not_given():
    with pytest.raises(mixwell.MixwellError, match="class id"):
        mixwell.create("mixup")(net(3), GOOD, IDS)


def test_float_ids_where_num_classes_was_not_given():
    """With as many rows as outputs, a vector of float ids would broadcast into a matrix and train."""
    with pytest.raises(mixwell.BatchError, match="label"):
        mixwell.create("mixup")(net(4), GOOD, IDS.float())


# Settings of `create`


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "10"])
def test_num_classes(value):
    with pytest.raises(mixwell.ParameterError, match=r"num_classes must be a whole number ≥ 1, got"):
        mixwell.create("mixup", value)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), (1.0, 1.0), "one value per channel, got 1 and 2"),
        ((), (), "one value per channel"),
        ((0.5,), (0.0,), "> 0"),
    ],
)
def test_pixels(mean, std, said):
    with pytest.raises(mixwell.BatchError, match=said):
        Pixels(mean, std)
