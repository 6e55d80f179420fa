"""RankMixup: what is ranked against what, and that nothing else is asked of mixes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import one_turn
from mixwell.core.mix import Partners
from mixwell.core.targets import Targets
from mixwell.label.calibration.rankmixup import by_image, many_linear, margin_violation, ndcg, truly_mixed

ROWS, CLASSES = 6, 7
VARIANTS = ["mndcg", "mrl"]


class Net(nn.Module):
    """Answers mixes and then clean images with given logits."""

    def __init__(self, mixed: Tensor, clean: Tensor) -> None:
        super().__init__()
        self.logits = [clean, mixed]

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.pop()


def turn_of(text: str, mixed: Tensor, clean: Tensor, labels: Tensor | None = None, **draws: np.ndarray):
    labels = torch.arange(len(clean)) if labels is None else labels
    recipe = mixwell.create(text, CLASSES)
    return one_turn(recipe, Net(mixed, clean), torch.randn(len(clean), 3), labels, **draws)


def partners_of(count: int) -> np.ndarray:
    return np.stack([np.roll(np.arange(ROWS), m + 1) for m in range(count)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_every_mix_is_of_its_own_partner_and_share(layout, per):
    images = torch.randn(ROWS, 3, 4, 6).contiguous(memory_format=layout)
    partners = Partners.at(torch.from_numpy(partners_of(3)).T.contiguous(), torch.arange(ROWS))
    lam = torch.rand(3, ROWS if per == "sample" else 1)
    mixed = many_linear(images, partners, lam)
    assert mixed.is_contiguous(memory_format=layout)
    for row in range(3 * ROWS):
        m, i = divmod(row, ROWS)
        share = lam[m, i if per == "sample" else 0]
        torch.testing.assert_close(mixed[row], share * images[i] + (1 - share) * images[(i - m - 1) % ROWS])
    graph = many_linear(images.clone().requires_grad_(), partners, lam)
    assert graph.requires_grad
    torch.testing.assert_close(graph.detach(), mixed)


def test_rows_of_several_mixes_name_their_sources():
    recipe = mixwell.create("rankmixup(mixes=2)", CLASSES)
    (option,) = recipe.options
    lam = np.linspace(0.1, 0.9, 2 * ROWS).reshape(2, ROWS)
    draws = mixwell.Draws({option.pairing: partners_of(2), option.blend: lam})
    x = torch.eye(ROWS)
    mix = option.mix(x, mixwell.Scene(mixwell.Batch(x, torch.arange(ROWS)), draws))
    torch.testing.assert_close(mix.images, mix.targets().dense(ROWS))
    torch.testing.assert_close(mix.apply(x), mix.images)
    torch.testing.assert_close(mix.share(x), mix.images)
    rows = by_image(mix, ROWS)
    assert (mix.sources[rows][:, :, 0] == torch.arange(ROWS)[:, None]).all()
    assert rows.tolist() == [[i, ROWS + i] for i in range(ROWS)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixes_have_no_cross_entropy_and_without_weight_it_is_that_of_the_clean_images(variant):
    clean = torch.randn(ROWS, CLASSES, requires_grad=True)
    mixed = torch.randn(ROWS * (3 if variant == "mndcg" else 1), CLASSES, requires_grad=True)
    blend = {"blend": np.random.default_rng(0).random((3, ROWS)), "pairing": partners_of(3)}
    pair = {"ratio": np.full(ROWS, 0.3), "pairing": partners_of(1)[0]}
    draws = blend if variant == "mndcg" else pair
    turn = turn_of(f"rankmixup(variant={variant}, weight=0)", mixed, clean, **draws)
    torch.testing.assert_close(turn.loss, F.cross_entropy(clean, torch.arange(ROWS)))
    assert float(turn.parts["criterion"]) == 0
    turn.loss.backward()
    assert (mixed.grad == 0).all()


def test_the_margin_is_on_the_largest_logits_and_leaves_self_mixtures_out():
    clean = torch.zeros(4, CLASSES).index_fill(1, torch.tensor([2]), 5.0).requires_grad_()
    mixed = torch.zeros(4, CLASSES)
    mixed[:, 6] = torch.tensor([1.0, 4.0, 4.0, 4.0])
    mixed.requires_grad_()
    labels = torch.tensor([0, 1, 2, 2])
    draws = {"pairing": np.array([1, 2, 3, 2]), "ratio": np.array([0.5, 0.5, 0.5, 0.5])}
    turn = turn_of("rankmixup(variant=mrl, weight=0.5)", mixed, clean, labels, **draws)
    assert margin_violation(mixed, clean, 2.0).tolist() == [0, 1, 1, 1]
    term = float(turn.parts["rankmixup/MarginRanking"])
    assert term == pytest.approx(0.5 * 1 / 4)
    product = truly_mixed(turn.targets).float().mean() * margin_violation(mixed, clean, 2.0).mean()
    assert term != pytest.approx(0.5 * float(product.detach()))  # what the authors' code makes of it by broadcasting
    (gradient,) = torch.autograd.grad(turn.loss, mixed)
    assert gradient.nonzero().tolist() == [[1, 6]]
    assert float(gradient[1, 6]) == 0.125


def test_self_mixtures_are_told_by_labels_and_shares_and_not_by_rounding():
    pool = torch.tensor([0, 1, 1, 3])
    sources = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 3], [0, 3]])
    weights = torch.tensor([[0.3, 0.7], [0.3, 0.69999], [1.0, 0.0], [0.2, 0.8], [0.0, 1.0]])
    expected = [True, False, False, False, False]
    assert truly_mixed(Targets(pool, sources, weights)).tolist() == expected
    assert truly_mixed(Targets(F.one_hot(pool, 5).float(), sources, weights)).tolist() == expected


def test_ndcg_is_1_where_confidences_are_the_shares_and_misses_count_on_both_sides():
    shares = torch.tensor([[0.6, 0.9, 0.7]]).repeat(3, 1)
    factors = torch.tensor([1.0, 0.5, 0.8])
    found = ndcg(factors, shares * factors[:, None], shares)
    torch.testing.assert_close(found, factors)
    over = ndcg(torch.tensor([1.0]), torch.tensor([[1.0, 1.0, 1.0]]), shares[:1])
    assert 0 < float(over) < 1


def test_ndcg_by_hand_and_in_any_order_of_the_mixes():
    clean, mixed, shares = torch.tensor([0.4]), torch.tensor([[0.9, 0.2]]), torch.tensor([[0.55, 0.8]])
    logs = [1 / np.log2(r + 1) for r in (1, 2, 3)]
    dcg = 0.4 * logs[0] + 0.2 * logs[1] + 0.9 * logs[2]
    idcg = 1.0 * logs[0] + 0.8 * logs[1] + 0.55 * logs[2]
    assert float(ndcg(clean, mixed, shares)) == pytest.approx(dcg / idcg, rel=1e-6)
    torch.testing.assert_close(ndcg(clean, mixed.flip(1), shares.flip(1)), ndcg(clean, mixed, shares))


def test_a_mix_of_one_class_ranks_beside_the_image():
    """λ' is the largest share of the mixed label, which for two images of one class is 1."""
    clean, mixed = torch.randn(4, CLASSES), torch.randn(4, CLASSES)
    draws = {"pairing": np.array([1, 0, 3, 2])[None], "blend": np.full((1, 4), 0.3)}
    labels = torch.tensor([2, 2, 0, 1])
    turn = turn_of("rankmixup(mixes=1, weight=1)", mixed, clean, labels, **draws)
    p, q = (z.softmax(1).amax(1) for z in (clean, mixed))
    expected = 1 - ndcg(p, q[:, None], torch.tensor([[1.0], [1.0], [0.7], [0.7]])).mean()
    torch.testing.assert_close(turn.parts["rankmixup/NDCGRanking"], expected)


def test_confidences_are_those_of_the_criterion():
    clean, mixed, labels = torch.randn(4, CLASSES), torch.randn(4, CLASSES), torch.zeros(4, CLASSES)
    labels[0, :2] = labels[1, 2] = labels[2, 1] = 1  # the last image shows nothing
    recipe = mixwell.create("rankmixup(mixes=1, weight=1)", CLASSES, criterion="bce")
    draws = {"pairing": np.array([1, 2, 3, 0])[None], "blend": np.full((1, 4), 0.6)}
    turn = one_turn(recipe, Net(mixed, clean), torch.randn(4, 3), labels, **draws)
    p, q = (z.sigmoid().amax(1) for z in (clean, mixed))
    shares, best = torch.tensor([[0.6], [0.6], [0.6], [0.4]]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(turn.parts["rankmixup/NDCGRanking"], 1 - ndcg(p, q[:, None], shares, best).mean())
    torch.testing.assert_close(turn.parts["rankmixup/CleanLoss"], F.binary_cross_entropy_with_logits(clean, labels))


def test_lambda_of_every_mix_is_its_own():
    (option,) = mixwell.create("rankmixup(alpha=2.0)", CLASSES).options
    drawn = option.blend.draw(2000, np.random.Generator(np.random.Philox(1)))
    assert drawn.shape == (3, 2000)
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.var() - 1 / 20) < 0.004  # of Beta(2, 2)
    assert (np.abs(np.corrcoef(drawn)[np.triu_indices(3, 1)]) < 0.1).all()


POLICIES = ["cutmix", "cutmix(prob=0.5)", "mixup", "manifold_mixup", "k_mixup(k=2)", "puzzlemix", "cutmix + lumix"]


@pytest.mark.parametrize("policy", ["", *POLICIES])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_trains_with_every_policy_of_two_images(variant, policy, cnn):
    net, images = cnn(), torch.randn(ROWS, 3, 32, 32)
    text = " + ".join(filter(None, (policy, f"rankmixup(variant={variant})")))
    recipe = mixwell.create(text, CLASSES, pixels=mixwell.Pixels((0.5,), (0.25,)))
    for _ in range(3):
        net.zero_grad()
        recipe(net, images, torch.arange(ROWS)).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_several_mixes_under_a_label_that_looks_at_each(cnn):
    turns = mixwell.create("rankmixup + lumix", CLASSES).turns(cnn(), torch.randn(4, 3, 8, 8), torch.arange(4))
    (turn,) = turns
    assert len(turn.targets) == 12
    assert turn.targets.weights.unique().numel() > 12
    torch.testing.assert_close(turn.targets.total, torch.ones(12))


def test_transformers(vit):
    for variant in VARIANTS:
        net = vit(CLASSES)
        loss = mixwell.create(f"rankmixup(variant={variant})", CLASSES)(net, torch.randn(5, 3, 32, 32), torch.arange(5))
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_batches_that_a_switch_leaves_plain_get_plain_cross_entropy():
    net, x, y = nn.Linear(5, CLASSES), torch.randn(ROWS, 5), torch.arange(ROWS)
    loss = mixwell.create("mixup(prob=0) + rankmixup", CLASSES)(net, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(net(x), y))


def test_refusals():
    with pytest.raises(mixwell.IncompatibleRecipe, match="exactly two sources"):
        mixwell.create("dcutmix + rankmixup", CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the wrapper"):
        mixwell.create("mixupe + rankmixup", CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="rankmixup lets a criterion see none"):
        mixwell.create("cutmix + decouplemix + rankmixup", CLASSES)
    with pytest.raises(mixwell.ParameterError, match="margin is for"):
        mixwell.create("rankmixup(margin=1)", CLASSES)
    with pytest.raises(mixwell.ParameterError, match="margin is for"):
        mixwell.create("rankmixup(variant=mrl, mixes=3)", CLASSES)
    with pytest.raises(mixwell.ParameterError, match="mixes must be"):
        mixwell.create("rankmixup(mixes=0)", CLASSES)
