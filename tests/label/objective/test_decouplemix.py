"""DecoupleMix: what the decoupled terms see, and where they act."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.core.targets import Targets
from mixwell.label.objective.decouplemix import Decoupled, DecoupledBinary, decoupled, rescaled


def pairs(shares: torch.Tensor, classes: torch.Tensor) -> Targets:
    rows = len(classes)
    sources = torch.arange(2 * rows).view(rows, 2)
    return Targets(classes.flatten(), sources, shares)


@pytest.fixture
def case() -> tuple[torch.Tensor, Targets]:
    shares = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5], [0.25, 0.75]])
    return torch.randn(4, 7), pairs(shares, torch.tensor([[0, 1], [2, 3], [6, 4], [5, 5]]))


def test_a_term_does_not_see_the_other_class(case):
    logits, targets = case
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(decoupled(logits, targets.classes)[:3, 0].sum(), logits)
    assert (gradient.gather(1, targets.classes[:, 1:])[:3] == 0).all()
    assert (gradient.gather(1, targets.classes[:, :1])[:3] != 0).all()


def test_both_classes_may_be_confident_at_once():
    logits = torch.tensor([[9.0, 9.0, 0.0, 0.0]])
    phi = (-decoupled(logits, torch.tensor([[0, 1]]))).exp()
    assert (phi > 0.99).all()
    assert (logits.softmax(1)[:, :2] <= 0.5).all()


def test_equal_classes_keep_only_the_cross_entropy(case):
    logits, targets = case
    rows = Decoupled(5.0).rows(logits, targets)
    assert float(rows[3]) == pytest.approx(float(F.cross_entropy(logits[3:], torch.tensor([5]))), rel=1e-5)


def test_without_weight_it_is_the_mixed_cross_entropy(case):
    logits, targets = case
    torch.testing.assert_close(Decoupled(0.0)(logits, targets), F.cross_entropy(logits, targets.dense(7)))


def test_invariances(case):
    logits, targets = case
    swapped = Targets(targets.pool, targets.sources.flip(1), targets.weights.flip(1))
    criterion = Decoupled(0.3, rescale="pow", exponent=0.8)
    torch.testing.assert_close(criterion.rows(logits, targets), criterion.rows(logits + 11, targets))
    torch.testing.assert_close(criterion.rows(logits, targets), criterion.rows(logits, swapped))


def test_regulariser_of_the_paper_does_not_contain_the_share_and_openmixups_does(case):
    _, targets = case
    assert (Decoupled(0.1).side_weights(targets.weights) == 0.1).all()
    torch.testing.assert_close(Decoupled(0.1, rescale="pow").side_weights(targets.weights), 0.1 * targets.weights)


def test_sides(case):
    _, targets = case
    more, less = (Decoupled(1.0, sides=sides).side_weights(targets.weights) for sides in ("more", "less"))
    assert more[:2].tolist() == [[0, 1], [1, 0]]
    assert less[:2].tolist() == [[1, 0], [0, 1]]
    assert Decoupled(1.0, sides="own").side_weights(targets.weights).tolist() == [[1, 0]] * 4


def test_terms_are_left_out_where_one_source_is_all_but_gone():
    shares = torch.tensor([[1.0, 0.0], [0.9995, 0.0005], [0.99, 0.01]])
    assert Decoupled(1.0).side_weights(shares).sum(1).tolist() == [0, 0, 2]


def test_rescaling_is_monotone_and_saturates():
    shares = torch.linspace(0, 1, 21)
    for rescale, exponent in (("pow", 0.5), ("pow", 2.0), ("exp", 3.0)):
        r = rescaled(shares, rescale, exponent, 0.8)
        assert (r.diff() >= 0).all()
        assert (r[shares >= 0.8] == 1).all()
        assert float(r[0]) == pytest.approx(0, abs=1e-6)


def test_binary_targets_may_sum_to_more_than_one_but_not_per_class(case):
    logits, targets = case
    wanted = DecoupledBinary("both", "pow", 1.0, 0.5).wanted(targets, 7)
    assert float(wanted[2].sum()) == 2
    assert float(wanted.max()) == 1
    plain = DecoupledBinary("both", "none", 1.0, 1.0)(logits, targets)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(logits, targets.dense(7)) * 7)


@pytest.mark.parametrize("policy", ["mixup", "cutmix", "manifold_mixup(sites=(0, '0'))", "k_mixup(k=2)"])
@pytest.mark.parametrize("variant", ["ce", "bce"])
def test_it_trains_with_every_policy_of_two_images(policy: str, variant: str):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    recipe = mixwell.create(f"{policy} + decouplemix(variant={variant})", num_classes=10)
    loss = recipe(net, torch.randn(6, 3, 8, 8), torch.arange(6))
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_refusals():
    with pytest.raises(mixwell.IncompatibleRecipe, match="nothing in this recipe mixes"):
        mixwell.create("decouplemix", num_classes=10)
    with pytest.raises(mixwell.IncompatibleRecipe, match="label_smoothing has no meaning"):
        mixwell.create("mixup + decouplemix", num_classes=10, label_smoothing=0.1)
    with pytest.raises(mixwell.IncompatibleRecipe, match="brings its own criterion"):
        mixwell.create("mixup + decouplemix", num_classes=10, criterion="bce")
    with pytest.raises(mixwell.ParameterError, match="variant='bce' has no eta"):
        mixwell.create("mixup + decouplemix(variant=bce, eta=0.2)", num_classes=10)
    soft = torch.full((4, 10), 0.1)
    with pytest.raises(mixwell.BatchError, match="one class id per image"):
        mixwell.create("mixup + decouplemix", num_classes=10)(nn.Linear(5, 10), torch.randn(4, 5), soft)


def test_batches_that_a_switch_leaves_plain_get_plain_cross_entropy():
    recipe = mixwell.create("mixup(prob=0) + decouplemix", num_classes=10)
    net = nn.Linear(5, 10)
    x, y = torch.randn(6, 5), torch.arange(6)
    torch.testing.assert_close(recipe(net, x, y), F.cross_entropy(net(x), y))


@pytest.mark.parametrize("criterion", [Decoupled(1.0), DecoupledBinary("own", "pow", 1.0, 0.5)])
def test_unmixed_targets_have_no_decoupled_terms(criterion):
    """Terms of other methods (a clean loss beside the mixed one) hand the criterion unmixed rows."""
    logits, classes = torch.randn(3, 7), torch.tensor([1, 4, 6])
    rows = criterion.rows(logits, Targets.of(classes))
    plain = F.cross_entropy(logits, classes, reduction="none")
    binary = F.binary_cross_entropy_with_logits(logits, F.one_hot(classes, 7).float(), reduction="none").sum(1)
    torch.testing.assert_close(rows, plain if isinstance(criterion, Decoupled) else binary)
