"""LUMix: where the three parts of λ come from, and what may move them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mixwell
from mixwell.conformance import GivenLogits, one_turn
from mixwell.core.targets import Targets
from mixwell.label.ratio.lumix import UncertainShares, hinge, presence, uncertain


def pairs(pool: torch.Tensor, shares: torch.Tensor) -> Targets:
    """Row i is mixed of pool rows 2i and 2i + 1."""
    rows = len(shares)
    return Targets(pool, torch.arange(2 * rows).view(rows, 2), torch.stack((shares, 1 - shares), 1), 7)


def turn_of(text: str, logits: torch.Tensor, lam: float, noise: np.ndarray, labels: torch.Tensor | None = None):
    rows = len(logits)
    draws = {"pairing": np.roll(np.arange(rows), 1), "ratio": np.full(rows, lam), "label": noise}
    labels = torch.arange(rows) if labels is None else labels
    recipe = mixwell.create(f"mixup + {text}", num_classes=logits.shape[1])
    return one_turn(recipe, GivenLogits(logits), torch.randn(rows, 3), labels, **draws)


def test_the_label_leans_to_the_class_that_the_network_sees():
    own, other = torch.eye(6) * 9, torch.eye(6).roll(1, 0) * 9
    noise = np.full(6, 0.5)
    for logits, predicted in ((own, 1 / (1 + np.exp(-9))), (other, 1 / (1 + np.exp(9))), (own * 0, 0.5)):
        weights = turn_of("lumix", logits, 0.3, noise).targets.weights
        assert torch.allclose(weights[:, 0], torch.tensor(0.5 * 0.3 + 0.4 * predicted + 0.1 * 0.5).float())
        assert torch.allclose(weights.sum(1), torch.ones(6))


def test_noise_weights_the_own_row():
    noise = np.array([0.0, 0.25, 0.5, 1.0])
    weights = turn_of("lumix(r_s=0, r_r=1)", torch.randn(4, 4), 0.3, noise).targets.weights
    assert torch.allclose(weights[:, 0], torch.from_numpy(noise).float())


def test_without_prediction_and_noise_the_label_is_the_hosts():
    logits = torch.randn(5, 5)
    turn = turn_of("lumix(r_s=0, r_r=0, weight=0)", logits, 0.3, torch.rand(5).numpy())
    torch.testing.assert_close(turn.targets.weights, torch.tensor([[0.3, 0.7]]).expand(5, 2))
    torch.testing.assert_close(turn.loss, F.cross_entropy(logits, turn.targets.dense()))


def test_the_predicted_share_does_not_see_other_classes_and_never_overflows():
    logits = torch.randn(2, 7)
    targets = pairs(torch.tensor([0, 1, 3, 2]), torch.tensor([0.5, 0.5]))
    changed = logits.scatter_add(1, torch.tensor([[4, 5, 6]] * 2), torch.full((2, 3), 50.0))
    assert torch.equal(presence(logits, targets), presence(changed, targets))
    far = torch.zeros(2, 7, dtype=torch.float16).index_fill(1, torch.tensor([0, 3]), 6e4)
    assert uncertain(targets.weights, presence(far, targets), torch.ones(2), 1.0, 0.0).tolist() == [[1, 0]] * 2


def test_swapping_the_images_changes_nothing():
    logits, labels, lam = torch.randn(2, 7), torch.tensor([0, 1]), 0.2
    noise = np.array([0.9, 0.4])
    turn = turn_of("lumix", logits, lam, noise, labels)
    swapped = turn_of("lumix", logits, 1 - lam, 1 - noise, labels.flip(0))
    torch.testing.assert_close(turn.loss, swapped.loss)
    torch.testing.assert_close(turn.targets.dense(), swapped.targets.dense())


def test_the_label_is_detached_and_the_hinge_is_not():
    logits = torch.randn(5, 5, requires_grad=True)
    turn = turn_of("lumix", logits, 0.3, torch.rand(5).numpy())
    turn.loss.backward()
    again = logits.detach().clone().requires_grad_()
    wanted = turn.targets.dense()
    (F.cross_entropy(again, wanted) + (wanted * (1 - again.softmax(1))).sum(1).mean()).backward()
    torch.testing.assert_close(logits.grad, again.grad)


def test_two_images_of_one_class_keep_it():
    turn = turn_of("lumix", torch.randn(4, 6), 0.3, torch.rand(4).numpy(), torch.full((4,), 2))
    torch.testing.assert_close(turn.targets.dense(), F.one_hot(torch.full((4,), 2), 6).float())


def test_the_hinge_is_0_only_where_every_mixed_class_is_certain():
    wanted = torch.tensor([[0.3, 0.7, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    certain = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert hinge(certain, wanted).tolist() == [0.5, 0, 0]
    drawn = hinge(torch.rand(50, 3).softmax(1), wanted[:1].expand(50, 3))
    assert ((drawn > 0) & (drawn < 1)).all()


def test_noise_is_beta_and_one_draw_per_image():
    drawn = UncertainShares(alpha=0.6).draw(4000, np.random.Generator(np.random.Philox(3)))
    assert stats.kstest(drawn, stats.beta(0.6, 0.6).cdf).pvalue > 1e-4
    assert abs(stats.pearsonr(drawn[:-1], drawn[1:]).statistic) < 0.08


def test_one_hot_rows_say_what_class_ids_say():
    logits, ids, shares = torch.randn(3, 7), torch.tensor([0, 4, 2, 2, 6, 1]), torch.rand(3)
    rows = F.one_hot(ids, 7).float()
    torch.testing.assert_close(presence(logits, pairs(rows, shares)), presence(logits, pairs(ids, shares)))


def test_images_of_several_labels_count_by_the_mean_probability_and_those_of_none_keep_their_share():
    logits, shares = torch.randn(2, 7), torch.tensor([0.3, 0.6])
    rows = torch.zeros(4, 7)
    rows[0, :3] = rows[1, 5] = rows[3, 6] = 1
    targets, p = pairs(rows, shares), logits.softmax(1)
    own, other = p[0, :3].mean(), p[0, 5]
    weights = uncertain(targets.weights, presence(logits, targets), torch.zeros(2), 1.0, 0.0)
    torch.testing.assert_close(weights[:, 0], torch.stack((own / (own + other), torch.tensor(0.6))))


def test_multi_label_hinges_take_sigmoids():
    logits, rows = torch.randn(4, 7), (torch.rand(4, 7) > 0.5).float()
    recipe = mixwell.create("mixup + lumix(weight=2)", 7, criterion="bce")
    draws = {"pairing": np.arange(4), "ratio": np.ones(4), "label": np.ones(4)}
    turn = one_turn(recipe, GivenLogits(logits), torch.randn(4, 3), rows, **draws)
    torch.testing.assert_close(turn.parts["lumix"], 2 * (rows * (1 - logits.sigmoid())).sum(1).mean())


POLICIES = ["mixup", "cutmix", "cutmix(prob=0.5)", "manifold_mixup", "k_mixup(k=2)", "puzzlemix", "stackmix"]


@pytest.mark.parametrize("policy", POLICIES)
def test_it_trains_with_every_policy_of_two_images(policy: str, cnn):
    net, images = cnn(), torch.randn(6, 3, 32, 32)
    recipe = mixwell.create(f"{policy} + lumix", num_classes=7, pixels=mixwell.Pixels((0.5,), (0.25,)))
    for _ in range(4):
        net.zero_grad()
        recipe(net, images, torch.arange(6)).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_batches_that_a_switch_leaves_plain_get_plain_cross_entropy():
    net, x, y = nn.Linear(5, 10), torch.randn(6, 5), torch.arange(6)
    loss = mixwell.create("mixup(prob=0) + lumix", num_classes=10)(net, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(net(x), y))


def test_refusals():
    with pytest.raises(mixwell.IncompatibleRecipe, match="exactly two sources"):
        mixwell.create("dcutmix + lumix", num_classes=10)
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the label"):
        mixwell.create("snapmix + lumix", num_classes=10)
    with pytest.raises(mixwell.IncompatibleRecipe, match="lumix act"):
        mixwell.create("lumix", num_classes=10).mix_batch(torch.randn(4, 3, 8, 8), torch.arange(4))
    with pytest.raises(mixwell.ParameterError, match=r"r_s \+ r_r must be at most 1"):
        mixwell.create("lumix(r_s=0.7, r_r=0.4)", num_classes=10)
    recipe = mixwell.create("mixup + lumix", criterion=nn.L1Loss(reduction="none"))
    with pytest.raises(mixwell.BatchError, match="class ids or label rows"):
        recipe(nn.Linear(5, 1), torch.randn(4, 5), torch.randn(4))
