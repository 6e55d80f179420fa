"""MixupE: the value of the loss never says anything, so that gradients are compared."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.conformance import one_turn
from mixwell.core.criteria import BinaryCrossEntropy, SoftCrossEntropy
from mixwell.core.targets import Targets
from mixwell.label.objective.mixupe import below, keeping_value, mean_image, mean_lam, slopes

VARIANTS = ["paper", "v1", "v2", "v3", "v4"]
ROWS, CLASSES = 6, 7


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.Tanh(), nn.Linear(9, CLASSES))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(ROWS, 3, 4, 4)


LABELS = torch.arange(ROWS)


def recipe_of(text: str, images: torch.Tensor, **options: object) -> mixwell.Recipe:
    recipe = mixwell.create(text, CLASSES, pixels=mixwell.Pixels((0.5,), (0.25,)), **options)
    digest = f"{images.sum().item()} {tuple(images.shape)}"
    return recipe.prepare(lambda: [mixwell.Batch(images, torch.arange(len(images)))], digest)


def gradients(text: str, net: nn.Module, images: torch.Tensor, **options: object) -> tuple[torch.Tensor, list]:
    lam = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64).numpy()
    draws = {"pairing": LABELS.roll(1).numpy(), "ratio": lam}
    turn = one_turn(recipe_of(text, images, **options), net, images, LABELS, **draws)
    return turn.loss.detach(), list(torch.autograd.grad(turn.loss, list(net.parameters())))


def assert_all_close(found: list, expected: list) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_mean_of_lambda():
    assert mean_lam(1) == pytest.approx(2 / 3)
    assert mean_lam(2) == pytest.approx(0.6)
    assert mean_lam(1e6) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_value_is_mixups_and_the_gradient_is_not(variant, net, images):
    plain, expected = gradients("mixup", net, images)
    loss, found = gradients(f"mixupe(variant={variant}, eta=0.3)", net, images)
    torch.testing.assert_close(loss, plain)
    assert any((one - other).abs().max() > 1e-3 for one, other in zip(found, expected, strict=True))
    _, without = gradients(f"mixupe(variant={variant}, eta=0)", net, images)
    assert_all_close(without, expected)


def test_the_papers_gradient_is_that_of_the_listing(net, images):
    """(s / |L'|)·∇(L_mix + η·(1 - λ̄)·mean|Σ_c f_c·(Y - p)_c|), in which p has a gradient."""
    plain, mixed = gradients("mixup", net, images)
    f = net(images)
    term = 0.4 * (f * (F.one_hot(LABELS, CLASSES) - f.softmax(1))).sum(1).abs().mean()
    pulls = torch.autograd.grad(term, list(net.parameters()))
    scale = plain / (plain + 0.3 * term.detach())
    expected = [scale * (one + 0.3 * other) for one, other in zip(mixed, pulls, strict=True)]
    assert_all_close(gradients("mixupe(eta=0.3)", net, images)[1], expected)


def test_versions_of_the_code_differ_as_they_are_described(net, images):
    """v3 and v4 subtract what the paper's adds; v4 detaches p; v1 and v2 differ by the sign of single derivatives."""
    found = {variant: gradients(f"mixupe(variant={variant}, eta=1e-3)", net, images)[1] for variant in VARIANTS}
    plain = gradients("mixup", net, images)[1]
    moves = {v: torch.cat([(a - b).flatten() for a, b in zip(found[v], plain, strict=True)]) for v in VARIANTS}
    for one, other in (("v3", "v4"), ("v1", "v2"), ("paper", "v3"), ("v1", "v3")):
        assert (moves[one] - moves[other]).norm() > 0.02 * moves[one].norm(), (one, other)


def test_for_a_linear_network_and_a_mean_of_0_the_derivative_to_the_images_is_that_of_the_logits(images):
    """∇_x(f·b)·(-x) = -f·b = q; so v1 adds what v4 subtracts, and their gradients move apart from mixup's alike."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES, bias=False))
    recipe = mixwell.create("mixupe(variant=v1, eta=1e-4, threshold=100)", CLASSES)
    recipe.options[0].wrapper.use(torch.zeros(3, 4, 4))
    draws = {"pairing": LABELS.roll(1).numpy(), "ratio": torch.full((ROWS,), 0.4, dtype=torch.float64).numpy()}
    v1 = torch.autograd.grad(one_turn(recipe, net, images, LABELS, **draws).loss, net[1].weight)[0]
    others = (mixwell.create(text, CLASSES) for text in ("mixup", "mixupe(variant=v4, eta=1e-4)"))
    plain, v4 = (torch.autograd.grad(one_turn(r, net, images, LABELS, **draws).loss, net[1].weight)[0] for r in others)
    scale = (v1 - v4) / 2
    assert scale.norm() > 1e-5
    torch.testing.assert_close((v1 + v4) / 2, plain, rtol=1e-3, atol=1e-5)


def test_certain_and_right_predictions_have_nothing_to_give():
    logits = torch.eye(CLASSES).mul(100).requires_grad_()
    q = slopes(logits, SoftCrossEntropy(), Targets.of(torch.arange(CLASSES)))
    assert q.abs().max() < 1e-6


def test_slopes_follow_the_criterion(images):
    logits, rows = torch.randn(4, CLASSES, requires_grad=True), torch.rand(4, CLASSES).softmax(1)
    smoothed = SoftCrossEntropy()
    smoothed.smoothing = 0.2
    expected = {
        SoftCrossEntropy(): (logits * (rows - logits.softmax(1))).sum(1),
        smoothed: (logits * (0.8 * rows + 0.2 / CLASSES - logits.softmax(1))).sum(1),
        BinaryCrossEntropy(): (logits * (rows - logits.sigmoid())).sum(1) / CLASSES,
    }
    for criterion, q in expected.items():
        found = slopes(logits, criterion, Targets.of(rows))
        torch.testing.assert_close(found, q, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (found, q)), rtol=1e-3, atol=1e-5)


def test_only_derivatives_below_the_threshold_count():
    assert below(torch.tensor([-3.0, 0.5, 1.0, 2.0]), 1.0).tolist() == [-3, 0.5, 0, 0]
    assert below(torch.tensor([2.0, 3.0]), 1.0).tolist() == [0, 0]


def test_a_total_below_0_keeps_its_size_and_a_total_of_0_stays_finite():
    changed = torch.tensor(-0.5, requires_grad=True)
    assert float(keeping_value(torch.tensor(2.0), changed).detach()) == -2
    nothing = torch.tensor(0.0, requires_grad=True)
    assert float(keeping_value(torch.tensor(2.0), nothing).detach()) == 0


def test_the_order_of_the_batch_does_not_matter(net, images):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    found = []
    for shuffle in (torch.arange(ROWS), order):
        partner = torch.argsort(shuffle)[LABELS.roll(1)[shuffle]]
        lam = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)[shuffle]
        recipe = recipe_of("mixupe(variant=v2, eta=0.5)", images)
        draws = {"pairing": partner.numpy(), "ratio": lam.numpy()}
        loss = one_turn(recipe, net, images[shuffle], LABELS[shuffle], **draws).loss
        found.append(list(torch.autograd.grad(loss, list(net.parameters()))))
    assert_all_close(*found)


def test_the_mean_image_is_over_all_batches_and_is_made_once(net, images):
    parts = [mixwell.Batch(images[:4], LABELS[:4]), mixwell.Batch(images[4:], LABELS[4:])]
    torch.testing.assert_close(mean_image(parts), images.mean(0, keepdim=True))
    recipe = mixwell.create("cutmix + mixupe(variant=v1)", CLASSES)
    passes = []
    for _ in range(2):
        recipe.prepare(lambda: passes.append(1) or parts, "two batches")
    assert len(passes) <= 2  # to see that there is a batch, and to average
    torch.testing.assert_close(recipe.options[0].wrapper.mean, images.mean(0, keepdim=True))
    assert not recipe.state_dict().keys() - {"_extra_state"}
    given = torch.zeros(3, 4, 4)
    recipe.options[0].wrapper.use(given)
    recipe.prepare(lambda: parts, "two batches")
    assert recipe.options[0].wrapper.mean is given


def test_without_a_gradient_the_loss_is_the_total(net, images):
    with torch.no_grad():
        found = recipe_of("mixupe(variant=v1, eta=9)", images)(net, images, LABELS)
        torch.testing.assert_close(found, mixwell.create("mixup(alpha=2.0)", CLASSES)(net, images, LABELS))


POLICIES = ["mixup", "cutmix", "cutmix(prob=0.5)", "puzzlemix", "dcutmix", "manifold_mixup", "cutmix + decouplemix"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("variant", ["paper", "v1"])
def test_it_trains_with_every_policy_that_has_an_own_row(policy, variant, cnn):
    model, images = cnn(), torch.randn(ROWS, 3, 32, 32)
    recipe = recipe_of(f"{policy} + mixupe(variant={variant})", images)
    for _ in range(3):
        model.zero_grad()
        recipe(model, images, LABELS).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_and_rows_of_labels(variant, vit):
    images, rows = torch.randn(ROWS, 3, 32, 32), torch.rand(ROWS, CLASSES)
    for labels, options in ((rows.softmax(1), {}), ((rows > 0.5).float(), {"criterion": "bce"})):
        model = vit(CLASSES)
        recipe = recipe_of(f"cutmix + mixupe(variant={variant}, eta=0.5)", images, **options)
        (turn,) = recipe.turns(model, images, labels)
        turn.loss.backward()
        torch.testing.assert_close(turn.loss, turn.parts["criterion"])
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["paper", "v1"])
def test_a_network_that_compiles_itself(variant, net, images):
    """As `mixwell train --compile` makes it; what is compiled cannot be differentiated twice."""
    _, expected = gradients(f"mixupe(variant={variant}, eta=0.3)", net, images)
    net.compile(backend="aot_eager")
    assert_all_close(gradients(f"mixupe(variant={variant}, eta=0.3)", net, images)[1], expected)


def test_batches_that_a_switch_leaves_plain_have_no_term():
    net, x = nn.Linear(5, CLASSES), torch.randn(ROWS, 5)
    loss = mixwell.create("mixup(prob=0) + mixupe(eta=9)", CLASSES)(net, x, LABELS)
    torch.testing.assert_close(
        torch.autograd.grad(loss, net.weight)[0], torch.autograd.grad(F.cross_entropy(net(x), LABELS), net.weight)[0]
    )


def test_refusals(net, images):
    with pytest.raises(mixwell.IncompatibleRecipe, match="the image's own row"):
        mixwell.create("ricap + mixupe", CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the wrapper"):
        mixwell.create("local_mixup + mixupe", CLASSES)
    with pytest.raises(mixwell.ParameterError, match="has no threshold"):
        mixwell.create("mixupe(threshold=2)", CLASSES)
    with pytest.raises(mixwell.MixwellError, match="Call recipe"):
        mixwell.create("mixupe(variant=v2)", CLASSES)(net, images, LABELS)
    with pytest.raises(mixwell.BatchError, match="the images are"):
        recipe_of("mixupe(variant=v2)", torch.randn(2, 3, 8, 4))(net, images, LABELS)
