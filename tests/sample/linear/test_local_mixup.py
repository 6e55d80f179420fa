"""Local Mixup: near pairs count, distant ones do not, and what differs between the paper and its code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mixwell
from mixwell.conformance import GivenLogits, one_turn
from mixwell.sample.linear.local_mixup import (
    Exponential,
    Nearest,
    NearPartners,
    Threshold,
    distances,
    near_partner,
    pair_distances,
    partner_shares,
)

LABELS = torch.arange(8)
PARTNER = np.array([3, 0, 5, 1, 4, 7, 2, 6])  # row 4 meets itself
LOGITS = torch.randn(8, 8)
GRAPHS = {
    "exponential": Exponential(0.1),
    "threshold": Threshold(10.0),
    "quantile": Threshold(0.5, relative=True),
    "knn": Nearest(2),
}


def images():
    """Of different contrasts, so that distances differ."""
    return torch.randn(8, 3, 9, 5) * torch.linspace(0.3, 1.5, 8).view(-1, 1, 1, 1)


def partners(index=PARTNER):
    return mixwell.Partners.at(torch.as_tensor(index)[:, None], LABELS)


def turn_of(text, x, lam=0.3, **draws):
    drawn = {"pairing": PARTNER, "ratio": np.full(8, lam), **draws}
    return one_turn(mixwell.create(text, 8), GivenLogits(LOGITS), x, LABELS, **drawn)


def losses(turn):
    return F.cross_entropy(LOGITS, turn.targets.dense(), reduction="none")


def test_distances_are_euclidean_and_0_to_oneself():
    x = images()
    by_hand = (x[:, None] - x).flatten(2).norm(dim=2)
    torch.testing.assert_close(distances(x), by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair_distances(x, partners()), by_hand[torch.arange(8), PARTNER])
    assert (distances(x).diagonal() == 0).all()
    assert pair_distances(x, partners())[4] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_distances_in_other_precisions_and_layouts(dtype):
    """The sum of squares is far above what half precision holds."""
    x = images().repeat(1, 1, 10, 10) * 10
    assert pair_distances(x, partners()).square().max() > torch.finfo(torch.float16).max
    given = x.to(dtype).contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float64: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    found = pair_distances(given, partners()).float()
    torch.testing.assert_close(found, pair_distances(x, partners()), rtol=tolerance, atol=tolerance)
    assert distances(given).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_lie_in_0_to_1_and_are_1_for_oneself(name):
    weights = GRAPHS[name](images(), partners())
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights[4] == 1
    assert len(weights.unique()) > 1


@pytest.mark.parametrize("name", ["exponential", "threshold", "quantile"])
def test_weights_are_symmetric(name):
    x, swap = images(), np.array([1, 0, 3, 2, 5, 4, 7, 6])
    weights = GRAPHS[name](x, partners(swap))
    torch.testing.assert_close(weights, weights[swap])


def test_threshold_includes_its_boundary():
    x = torch.tensor([[0.0], [3.0]]).expand(2, 1)
    pair = mixwell.Partners.at(torch.tensor([[1], [0]]), LABELS[:2])
    assert Threshold(3.0)(x, pair).tolist() == [1, 1]
    assert Threshold(2.999)(x, pair).tolist() == [0, 0]


def test_a_quantile_keeps_that_share_of_the_pairs():
    x, rolled = torch.randn(40, 6), torch.arange(40).roll(1)[:, None]
    pairs = mixwell.Partners.at(rolled, torch.arange(40))
    assert Threshold(0.25, relative=True)(x, pairs).mean() == pytest.approx(0.25, abs=1 / 40)
    assert Threshold(0.25, relative=True)(x * 100, pairs).mean() == pytest.approx(0.25, abs=1 / 40)


def test_neighbours_are_counted_without_oneself_and_from_the_rows_side():
    x = torch.tensor([[0.0], [1.0], [2.1], [10.0]])
    near = torch.stack(
        [Nearest(1)(x, mixwell.Partners.at(torch.full((4, 1), other), LABELS[:4])) for other in range(4)], 1
    )
    assert near.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert (Nearest(9)(x, mixwell.Partners.at(torch.tensor([[3], [2], [0], [1]]), LABELS[:4])) == 1).all()


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        ("local_mixup(decay=0.1)", "exponential"),
        ("local_mixup(graph=threshold, epsilon=10.0)", "threshold"),
        ("local_mixup(graph=threshold, quantile=0.5)", "quantile"),
        ("local_mixup(graph=knn, k=2)", "knn"),
    ],
)
def test_the_loss_is_the_weighted_mean_of_the_rows_losses(text, graph):
    x = images()
    turn, weights = turn_of(text, x), GRAPHS[graph](x, partners())
    torch.testing.assert_close(turn.loss, (weights * losses(turn)).sum() / weights.sum())
    assert not torch.allclose(turn.loss, losses(turn).mean())


@pytest.mark.parametrize("text", ["local_mixup(decay=0)", "local_mixup(graph=threshold, epsilon=1e9)"])
def test_without_locality_it_is_mixup(text, cnn):
    x, model = torch.randn(8, 3, 9, 5), cnn(8).eval()
    local, plain = (mixwell.create(recipe, 8, seed=1)(model, x, LABELS) for recipe in (text, "mixup"))
    torch.testing.assert_close(local, plain)


def test_images_and_labels_are_those_of_mixup():
    x, net = images(), GivenLogits(LOGITS)
    found = []
    for text in ("local_mixup(graph=knn, k=1)", "mixup"):
        (turn,) = mixwell.create(text, 8, seed=2).turns(net, x, LABELS)
        found.append((net.images, turn.targets.dense()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_permuting_the_batch_leaves_the_loss():
    x, order = images(), torch.randperm(8)
    place = torch.argsort(order)
    recipe = mixwell.create("local_mixup(graph=knn, k=2)", 8)
    moved = one_turn(
        recipe,
        GivenLogits(LOGITS[order]),
        x[order],
        LABELS[order],
        pairing=place[PARTNER][order].numpy(),
        ratio=np.full(8, 0.3),
    )
    torch.testing.assert_close(moved.loss, turn_of("local_mixup(graph=knn, k=2)", x).loss)


def test_no_near_pair_is_no_loss_and_still_a_graph(cnn):
    model, recipe = cnn(8), mixwell.create("local_mixup(graph=threshold, epsilon=0.001)", 8)
    loss = one_turn(recipe, model, images(), LABELS, pairing=np.roll(np.arange(8), 1), ratio=np.full(8, 0.3)).loss
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_the_distances_are_those_of_the_clean_images_wherever_they_are_mixed(cnn):
    x, recipe = images(), mixwell.create("local_mixup(graph=threshold, epsilon=10.0) + manifold_mixup(sites=(2,))", 8)
    turn = one_turn(recipe, cnn(8).eval(), x, LABELS, pairing=PARTNER, ratio=np.full(8, 0.3), place=0)
    weights = Threshold(10.0)(x, partners())
    rows = F.cross_entropy(turn.logits, turn.targets.dense(), reduction="none")
    torch.testing.assert_close(turn.loss, (weights * rows).sum() / weights.sum())


def test_it_weights_other_blends_of_pairs_and_other_criteria():
    x = images()
    turn = turn_of("local_mixup(graph=knn, k=2) + cutmix + decouplemix(eta=0)", x, blend=np.full((8, 2), 0.5))
    weights = Nearest(2)(x, partners())
    torch.testing.assert_close(turn.loss, (weights * losses(turn)).sum() / weights.sum())


def test_it_weights_the_users_criterion_and_multi_hot_labels():
    x, labels = images(), (torch.rand(8, 8) > 0.5).float()
    recipe = mixwell.create("local_mixup(graph=knn, k=2)", 8, criterion="bce")
    turn = one_turn(recipe, GivenLogits(LOGITS), x, labels, pairing=PARTNER, ratio=np.full(8, 0.3))
    rows = F.binary_cross_entropy_with_logits(LOGITS, turn.targets.dense(), reduction="none").mean(1)
    weights = Nearest(2)(x, partners())
    torch.testing.assert_close(turn.loss, (weights * rows).sum() / weights.sum())


def test_sources_outside_the_batch_are_refused():
    recipe = mixwell.create("local_mixup", 8)
    (option,) = recipe.options
    pairs = mixwell.Partners(torch.tensor([[0, 11]]), torch.arange(12))
    mix = mixwell.Mix.of_pair(torch.randn(1, 2), pairs, torch.tensor([0.5]), lambda x: x)
    step = mixwell.core.axes.Step(mixwell.Scene(mixwell.Batch(torch.randn(8, 2), LABELS)), mix, None)
    with pytest.raises(mixwell.IncompatibleRecipe, match="8 images with sources from a pool of 12"):
        option.wrapper.counts(step)


def test_the_authors_image_scripts_train_plain_mixup():
    """They compute the weights and return ones."""
    x = images()
    code = turn_of("local_mixup(decay=0.1, rule=code)", x)
    torch.testing.assert_close(code.loss, losses(code).mean())
    assert not torch.allclose(code.loss, turn_of("local_mixup(decay=0.1)", x).loss)


def test_the_authors_spiral_notebook_scales_the_mean_loss():
    x = images()
    turn = turn_of("local_mixup(graph=threshold, epsilon=10.0, rule=notebook)", x)
    torch.testing.assert_close(turn.loss, losses(turn).mean() * GRAPHS["threshold"](x, partners()).mean())


def test_near_partners_follow_their_probabilities():
    rng, counts = np.random.default_rng(0), np.zeros((5, 5))
    x = torch.from_numpy(rng.normal(size=(5, 3, 9, 5)))
    piece, scene = NearPartners(0.2), mixwell.Scene(mixwell.Batch(x, LABELS[:5]))
    for _ in range(1000):
        counts[np.arange(5), piece.partners(piece.draw(5, rng), scene).column().numpy()] += 1
    expected = torch.softmax(-0.2 * torch.cdist(x.flatten(1), x.flatten(1)).double(), 1).numpy() * 1000
    for row, wanted in zip(counts, expected, strict=True):
        assert stats.chisquare(row, wanted).pvalue > 1e-4


def test_points_at_the_ends_fall_on_the_first_and_last_partner():
    shares = partner_shares(distances(images()), 0.1)
    assert near_partner(shares, torch.zeros(8)).tolist() == [0] * 8
    assert near_partner(shares, torch.full((8,), 1.0)).tolist() == [7] * 8


def test_the_partner_outweighs_the_own_image_in_the_partner_variant():
    targets = mixwell.create("local_mixup(variant=partners)", 4000).mix_batch(torch.randn(4000, 2), torch.arange(4000))
    own = targets[1].weights[:, 0].double().numpy()
    assert stats.kstest(own, stats.uniform(0, 0.5).cdf).pvalue > 1e-4


def test_partners_of_blobs_are_of_the_same_blob():
    """Far apart, no row meets the other blob; mixup's partners do in half of the cases."""
    x = torch.randn(64, 2) + 1e5 * (torch.arange(64) % 2)[:, None]
    crossed = {
        text: (mixwell.create(text).mix_batch(x, torch.arange(64))[1].sources % 2).diff(dim=1).abs().sum().item()
        for text in ("local_mixup(variant=partners)", "mixup")
    }
    assert crossed["local_mixup(variant=partners)"] == 0
    assert crossed["mixup"] > 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("epsilon=3.0", "graph='exponential' has no epsilon"),
        ("graph=knn, k=3, decay=0.1", "graph='knn' has no decay"),
        ("graph=knn", "graph='knn' needs k"),
        ("graph=knn, k=0", r"k must be a number in \[1"),
        ("graph=threshold", "graph='threshold' needs epsilon or quantile"),
        ("graph=threshold, epsilon=1.0, quantile=0.5", "Give exactly one"),
        ("graph=threshold, epsilon=0", "recipe 'none'"),
        ("graph=threshold, quantile=1.5", "quantile must be a number"),
        ("decay=-1", "decay must be a number"),
        ("variant=partners, graph=knn, k=3", "graph and rule have no effect"),
        ("variant=partners, rule=code", "graph and rule have no effect"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings, message):
    with pytest.raises(mixwell.ParameterError, match=message):
        mixwell.create(f"local_mixup({settings})")


@pytest.mark.parametrize(
    "text", ["local_mixup", "local_mixup(graph=threshold, quantile=0.5)", "local_mixup(graph=knn, k=3)"]
)
def test_a_step_trains(text, cnn):
    model: nn.Module = cnn(8)
    loss = mixwell.create(text, 8)(model, images(), LABELS)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
