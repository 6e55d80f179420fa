"""Sparse label shares: the same as the dense matrix wherever torch looks at them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell import Targets

ROWS, CLASSES = 6, 5


@pytest.fixture
def ids():
    return torch.tensor([0, 4, 2, 2, 1, 0])


def mixed(pool, weights=None, **options):
    sources = torch.stack((torch.arange(ROWS), torch.arange(ROWS).roll(1)), 1)
    share = torch.rand(ROWS)
    weights = torch.stack((share, 1 - share), 1) if weights is None else weights
    return Targets(pool, sources, weights, CLASSES, **options)


def test_dense_is_the_weighted_sum_of_one_hot_rows(ids):
    targets = mixed(ids)
    one_hot = F.one_hot(ids, CLASSES).float()
    expected = targets.weights[:, :1] * one_hot + targets.weights[:, 1:] * one_hot.roll(1, 0)
    torch.testing.assert_close(targets.dense(), expected)
    torch.testing.assert_close(mixed(one_hot, targets.weights).dense(), expected)


def test_two_sources_of_one_class_add_up():
    targets = Targets(torch.tensor([3, 3]), torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]]), CLASSES)
    assert targets.dense().tolist() == [[0, 0, 0, 1, 0]]


def test_weights_are_not_renormalised(ids):
    targets = mixed(ids, torch.full((ROWS, 2), 0.75))
    torch.testing.assert_close(targets.dense().sum(1), torch.full((ROWS,), 1.5))
    torch.testing.assert_close(targets.total, torch.full((ROWS,), 1.5))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8], ids=str)
def test_ids_of_every_integer_type(ids, dtype):
    targets = mixed(ids.to(dtype))
    assert targets.hard
    assert targets.pool.dtype == dtype
    torch.testing.assert_close(targets.dense(), mixed(ids, targets.weights).dense())


@pytest.mark.parametrize("total", [1.0, 0.7])
def test_smoothing_gives_each_source_its_smoothed_label(ids, total):
    weights = mixed(ids).weights * total
    smoothed = F.one_hot(ids, CLASSES) * 0.9 + 0.1 / CLASSES
    expected = weights[:, :1] * smoothed + weights[:, 1:] * smoothed.roll(1, 0)
    torch.testing.assert_close(mixed(ids, weights).dense(smoothing=0.1), expected)


def test_torch_functions_take_targets_for_tensors(ids):
    targets, logits = mixed(ids), torch.randn(ROWS, CLASSES, requires_grad=True)
    dense = targets.dense()
    torch.testing.assert_close(F.cross_entropy(logits, targets), F.cross_entropy(logits, dense))
    torch.testing.assert_close(
        nn.CrossEntropyLoss(label_smoothing=0.1)(logits, targets),
        nn.CrossEntropyLoss(label_smoothing=0.1)(logits, dense),
    )
    torch.testing.assert_close(
        nn.BCEWithLogitsLoss()(logits, targets), F.binary_cross_entropy_with_logits(logits, dense)
    )
    torch.testing.assert_close(F.kl_div(logits.log_softmax(1), target=targets), F.kl_div(logits.log_softmax(1), dense))
    F.cross_entropy(logits, targets).backward()
    assert logits.grad.abs().sum() > 0


def test_targets_of_plain_labels(ids):
    targets = Targets.of(ids, CLASSES)
    assert len(targets) == ROWS
    assert torch.equal(targets.dense(), F.one_hot(ids, CLASSES).float())
    assert torch.equal(targets.classes[:, 0], ids)


def test_classes_are_known_only_for_ids(ids):
    assert torch.equal(mixed(ids).classes[:, 1], ids.roll(1))
    with pytest.raises(mixwell.BatchError, match=r"one class id per image, got label rows.*Give integer class ids"):
        _ = mixed(torch.rand(ROWS, CLASSES)).classes


def test_dense_needs_the_number_of_classes(ids):
    targets = Targets.of(ids)
    with pytest.raises(mixwell.BatchError, match=r"number of classes: give num_classes"):
        targets.dense()
    assert targets.dense(CLASSES).shape == (ROWS, CLASSES)


def test_soft_rows_replace_the_sparse_form(ids):
    soft = torch.rand(ROWS, CLASSES).softmax(1)
    assert torch.equal(mixed(ids, soft=soft).dense(), soft)


def test_accuracy_counts_the_share_of_the_guess(ids):
    weights = torch.tensor([[0.75, 0.25]]).expand(ROWS, 2)
    own, partner = F.one_hot(ids, CLASSES).float(), F.one_hot(ids.roll(1), CLASSES).float()
    same = (ids == ids.roll(1)).float()
    torch.testing.assert_close(mixed(ids, weights).accuracy(own), (0.75 + 0.25 * same).mean())
    torch.testing.assert_close(mixed(ids, weights).accuracy(partner), (0.25 + 0.75 * same).mean())
    torch.testing.assert_close(mixed(own, weights).accuracy(own), mixed(ids, weights).accuracy(own))


def test_moving_keeps_everything(ids):
    targets = mixed(ids, soft=torch.rand(ROWS, CLASSES)).to("cpu")
    assert torch.equal(targets.pool, ids)
    assert targets.soft is not None
    assert targets.num_classes == CLASSES
    moved = mixed(ids).to("meta")
    assert {moved.pool.device.type, moved.sources.device.type, moved.weights.device.type} == {"meta"}
