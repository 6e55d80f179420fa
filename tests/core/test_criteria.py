"""Criteria against torch's own losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell import Targets
from mixwell.core.criteria import (
    BinaryCrossEntropy,
    SoftCrossEntropy,
    SoftmaxBinaryCrossEntropy,
    criterion_of,
    softmax_bce,
)

ROWS, CLASSES = 6, 5
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])


@pytest.fixture
def logits():
    return torch.randn(ROWS, CLASSES)


@pytest.fixture
def ids():
    return torch.tensor([0, 4, 2, 3, 1, 0])


def mixed(pool):
    share = torch.rand(ROWS)
    sources = torch.stack((torch.arange(ROWS), torch.arange(ROWS).roll(1)), 1)
    return Targets(pool, sources, torch.stack((share, 1 - share), 1), CLASSES)


def set_up(criterion, smoothing=0.0, weights=None):
    criterion.smoothing, criterion.class_weights = smoothing, weights
    return criterion


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_plain_ids_give_exactly_torchs_cross_entropy(logits, ids, weights, smoothing):
    criterion = set_up(SoftCrossEntropy(), smoothing, weights)
    expected = nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(logits, ids)
    torch.testing.assert_close(criterion(logits, Targets.of(ids, CLASSES)), expected)
    recipe = mixwell.create("none", CLASSES, label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(recipe(nn.Identity(), logits, ids), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["ids", "int32", "rows"])
def test_mixed_labels_give_torchs_cross_entropy_of_the_dense_targets(logits, ids, kind, smoothing):
    pool = {"ids": ids, "int32": ids.int(), "rows": torch.rand(ROWS, CLASSES).softmax(1)}[kind]
    targets = mixed(pool)
    expected = F.cross_entropy(logits, targets.dense(), label_smoothing=smoothing)
    torch.testing.assert_close(set_up(SoftCrossEntropy(), smoothing)(logits, targets), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["ids", "rows"])
def test_class_weights_count_rows_by_their_classes(logits, ids, kind, smoothing):
    """The sum is torch's; it is divided by the rows' class weights, as torch does for ids, not by their number."""
    targets = mixed(ids if kind == "ids" else torch.rand(ROWS, CLASSES).softmax(1))
    dense = targets.dense()
    total = F.cross_entropy(logits, dense, WEIGHTS, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(
        set_up(SoftCrossEntropy(), smoothing, WEIGHTS)(logits, targets), total / (dense @ WEIGHTS).sum()
    )


def test_sparse_and_dense_paths_agree(logits, ids):
    targets = mixed(ids)
    rows = Targets(F.one_hot(ids, CLASSES).float(), targets.sources, targets.weights, CLASSES)
    for smoothing in (0.0, 0.2):
        for weights in (None, WEIGHTS):
            criterion = set_up(SoftCrossEntropy(), smoothing, weights)
            torch.testing.assert_close(criterion(logits, targets), criterion(logits, rows))


def test_it_is_the_mixup_cross_entropy_of_the_papers(logits, ids):
    targets = mixed(ids)
    lam = targets.weights[:, 0]
    each = lam * F.cross_entropy(logits, ids, reduction="none")
    each += (1 - lam) * F.cross_entropy(logits, ids.roll(1), reduction="none")
    torch.testing.assert_close(SoftCrossEntropy()(logits, targets), each.mean())


def test_rows_that_are_not_valid_do_not_count(logits, ids):
    targets, valid = mixed(ids), torch.tensor([True, False, True, True, False, True])
    for weights in (None, WEIGHTS):
        criterion = set_up(SoftCrossEntropy(), 0.0, weights)
        part = Targets(targets.pool, targets.sources[valid], targets.weights[valid], CLASSES)
        torch.testing.assert_close(criterion(logits, targets, valid), criterion(logits[valid], part))
    logits[1] = float("nan")
    assert torch.isfinite(SoftCrossEntropy()(logits, targets, valid))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_bce(logits, weights, smoothing):
    targets = mixed((torch.rand(ROWS, CLASSES) > 0.5).float())
    wanted = targets.dense() * (1 - smoothing) + smoothing / CLASSES
    expected = nn.BCEWithLogitsLoss(weight=weights)(logits, wanted)
    torch.testing.assert_close(set_up(BinaryCrossEntropy(), smoothing, weights)(logits, targets), expected)


def test_bce_takes_class_ids(logits, ids):
    targets = mixed(ids)
    expected = F.binary_cross_entropy_with_logits(logits, targets.dense())
    torch.testing.assert_close(BinaryCrossEntropy()(logits, targets), expected)


def test_softmax_bce(logits, ids):
    wanted, p = mixed(ids).dense(), logits.softmax(1)
    expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean(1)
    torch.testing.assert_close(softmax_bce(logits, wanted), expected)
    targets = mixed(ids)
    torch.testing.assert_close(SoftmaxBinaryCrossEntropy()(logits, targets), nn.BCELoss()(p, targets.dense()))


def test_softmax_bce_stays_finite_for_certain_answers():
    logits = torch.tensor([[1000.0, 0.0]])
    assert softmax_bce(logits, torch.tensor([[0.0, 1.0]])).item() == 100.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["cross_entropy", "bce", "softmax_bce"])
def test_losses_are_taken_in_fp32(name, dtype, logits, ids):
    criterion = criterion_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(logits.to(dtype) * 30, mixed(ids))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


# Criteria of the user's own


def test_a_callable_gets_each_sources_labels(logits):
    """It may even be about labels that are no classes: here squared error of regression targets."""
    pool = torch.randn(ROWS, CLASSES)
    targets = mixed(pool)
    criterion = criterion_of(lambda outputs, labels: ((outputs - labels) ** 2).mean(1))
    rows = [
        targets.weights[i, k] * ((logits[i] - pool[targets.sources[i, k]]) ** 2).mean()
        for i in range(ROWS)
        for k in (0, 1)
    ]
    torch.testing.assert_close(criterion(logits, targets), torch.stack(rows).sum() / ROWS)


def test_a_callable_must_give_one_loss_per_row(logits, ids):
    with pytest.raises(
        mixwell.BatchError, match=r"expected one loss per row, shape \(6,\), got \(\).*reduction='none'"
    ):
        criterion_of(nn.CrossEntropyLoss())(logits, mixed(ids))


def test_unknown_criteria():
    with pytest.raises(mixwell.ParameterError, match=r"'cross_entrophy' is not known; did you mean 'cross_entropy'"):
        mixwell.create("mixup", criterion="cross_entrophy")
    with pytest.raises(mixwell.ParameterError, match=r"criterion must be one of .* or a callable, got 3"):
        mixwell.create("mixup", criterion=3)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": [1, 1, 1]}])
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"no meaning for PerSource. Leave"):
        mixwell.create("mixup", 3, criterion=lambda outputs, labels: outputs.sum(1), **options)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan"), "a"])
def test_label_smoothing_lies_below_1(value):
    with pytest.raises(mixwell.ParameterError, match="label_smoothing must be a number in"):
        mixwell.create("mixup", 3, label_smoothing=value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 2.0], "must be 3 numbers, got shape (2,)"),
        ([[1.0, 2.0, 3.0]], "must be 3 numbers"),
        ([1.0, -1.0, 1.0], "finite, ≥ 0"),
        ([1.0, float("nan"), 1.0], "finite, ≥ 0"),
        ([0.0, 0.0, 0.0], "not all 0"),
    ],
)
def test_class_weights_are_checked(weights, said):
    with pytest.raises(mixwell.ParameterError) as caught:
        mixwell.create("mixup", 3, class_weights=weights)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "softmax_bce"])
def test_probabilities_are_those_of_the_loss(name, logits, ids):
    """Where every class has the probability that its label says, a criterion pulls nowhere."""
    criterion = criterion_of(name)
    logits.requires_grad_()
    wanted = criterion.probabilities(logits).detach()
    criterion.rows(logits, Targets.of(wanted)).sum().backward()
    assert logits.grad.abs().max() < 1e-6
    assert criterion.probabilities(logits.half()).dtype == torch.float32
