import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.label.ratio.metamixup import look_ahead, moved
from mixwell.sample.linear.mixup import linear

ROWS = 6


def held_out(seed=1, rows=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 16, 16, generator=generator)
    return lambda: [mixwell.Batch(images, torch.arange(rows) % 7)]


def bound(text, model, images, **options):
    recipe = mixwell.create(text, 7, **options).use_data(held_out=held_out())
    return recipe.bind(model, images)


def lam_of(recipe, model, images, labels, lam, perm, lr=0.5, step=0):
    """The λ that a step comes to."""
    (option,) = recipe.options
    draws = mixwell.Draws({option.pairing: perm.numpy(), option.ratio: lam.numpy()})
    clock = mixwell.Clock(step, lr=lr)
    (turn,) = recipe.turns(model, images, labels, draws=draws, clock=clock)
    return turn.targets.weights[:, 0]


def tanh_net():
    """Smooth, so that differences and derivatives agree."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5)).double()


def problem():
    net = tanh_net()
    x, kept = torch.randn(ROWS, 3, 2, 2).double(), torch.randn(8, 3, 2, 2).double()
    y, y_kept = torch.arange(ROWS) % 5, torch.arange(8) % 5
    perm = torch.tensor([1, 2, 0, 3, 5, 4])

    def loss(lam, weights):
        logits = torch.func.functional_call(net, dict(weights), (linear(x, x[perm], lam),))
        own, other = (F.cross_entropy(logits, labels, reduction="none") for labels in (y, y[perm]))
        return (lam * own + (1 - lam) * other).mean()

    def held_out_loss(weights):
        return F.cross_entropy(torch.func.functional_call(net, dict(weights), (kept,)), y_kept)

    return net, perm, loss, held_out_loss


def test_the_slope_is_that_of_finite_differences():
    net, perm, loss, held_out_loss = problem()
    weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    lam = torch.rand(ROWS).double()
    found = look_ahead(lam, weights, 0.7, loss, held_out_loss)

    def at(value):
        gradients = torch.autograd.grad(loss(value, weights), list(weights.values()))
        ahead = {name: w - 0.7 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
        return held_out_loss(ahead).item()

    for row in range(ROWS):
        nudge = torch.zeros(ROWS).double()
        nudge[row] = 1e-5
        assert (at(lam + nudge) - at(lam - nudge)) / 2e-5 == pytest.approx(found.slope[row].item(), abs=1e-8)
    assert found.held_out_loss.item() == pytest.approx(at(lam))
    assert found.slope[3] == 0, "an image that meets itself is the same for every λ"
    assert perm[3] == 3


def test_no_step_and_no_slope():
    net, _, loss, held_out_loss = problem()
    weights = dict(net.named_parameters())
    assert (look_ahead(torch.rand(ROWS).double(), weights, 0.0, loss, held_out_loss).slope == 0).all()


def test_a_small_move_helps_the_held_out_images():
    net, _, loss, held_out_loss = problem()
    weights = dict(net.named_parameters())
    lam = torch.full((ROWS,), 0.5).double()
    before = look_ahead(lam, weights, 0.5, loss, held_out_loss)
    after = look_ahead(moved(lam, before.slope, 0.05), weights, 0.5, loss, held_out_loss)
    assert after.held_out_loss < before.held_out_loss


def test_moves_stay_in_range():
    lam, slope = torch.tensor([0.0, 0.5, 1.0, 0.4]), torch.tensor([2.0, -4.0, -1.0, 0.0])
    torch.testing.assert_close(moved(lam, slope, 0.2), torch.tensor([0.0, 0.7, 1.0, 0.4]))
    torch.testing.assert_close(moved(lam, slope, 0.1, normalise=False), torch.tensor([0.0, 0.9, 1.0, 0.4]))
    assert torch.equal(moved(lam, torch.zeros(4), 0.2), lam)


def test_the_recipe_looks_through_its_own_network_and_criterion(cnn):
    """λ moves as the pure function says for the same images, weights and loss, in training mode."""
    model = cnn().double()
    model.dropout.p = 0.0
    images, labels = torch.randn(ROWS, 3, 16, 16).double(), torch.arange(ROWS)
    perm, lam = torch.tensor([1, 2, 0, 4, 5, 3]), torch.linspace(0.2, 0.8, ROWS).double()
    (kept,) = held_out()()
    twin = copy.deepcopy(model)

    def logits(weights, x):
        return torch.func.functional_call(copy.deepcopy(twin), dict(weights), (x,))

    def loss(lam, weights):
        out = logits(weights, linear(images, images[perm], lam))
        wanted = lam[:, None] * F.one_hot(labels, 7) + (1 - lam[:, None]) * F.one_hot(labels[perm], 7)
        return F.cross_entropy(out, wanted)

    def held_out_loss(weights):
        return F.cross_entropy(logits(weights, kept.images.double()), kept.labels)

    expected = look_ahead(lam, dict(twin.named_parameters()), 0.5, loss, held_out_loss)
    recipe = bound("metamixup(eta=0.3)", model, images)
    got = lam_of(recipe, model, images, labels, lam, perm).double()
    torch.testing.assert_close(got, moved(lam, expected.slope, 0.3), rtol=1e-4, atol=1e-5)
    assert (got - lam).abs().max() > 0.05


@pytest.mark.parametrize("text", ["metamixup", "metamixup + manifold_mixup", "metamixup(lookahead=classifier)"])
def test_a_look_leaves_no_trace(cnn, text):
    """Buffers and generators move as in a plain step of the same λ, and gradients are those of that step."""
    images, labels = torch.randn(ROWS, 3, 16, 16), torch.arange(ROWS)
    model, plain = cnn(), cnn()
    recipe = bound(text, model, images, seed=2)
    option = recipe.options[0]
    draws = option.draw(ROWS, recipe._streams, 0)
    torch.manual_seed(5)
    (turn,) = recipe.turns(model, images, labels, draws=draws, clock=mixwell.Clock(0, lr=0.1))
    turn.loss.backward()
    after = torch.get_rng_state()

    other = mixwell.create(text.replace("metamixup", "mixup", 1).partition("(look")[0], 7).bind(plain, images)
    names = {"pairing": draws[option.pairing], "ratio": turn.targets.weights[:, 0].double().numpy()}
    given = {getattr(other.options[0], name): value for name, value in names.items()}
    if other.options[0].place in draws.of or option.place in draws.of:
        given[other.options[0].place] = draws[option.place]
    torch.manual_seed(5)
    (expected,) = other.turns(plain, images, labels, draws=mixwell.Draws(given))
    expected.loss.backward()
    assert torch.equal(after, torch.get_rng_state())
    torch.testing.assert_close(turn.loss, expected.loss)
    for (name, buffer), twin in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, twin, msg=name)
    for (name, parameter), twin in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, msg=name, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_a_move_it_is_mixup(cnn):
    images, labels = torch.randn(ROWS, 3, 16, 16), torch.arange(ROWS)
    lam, perm = torch.rand(ROWS).double(), torch.randperm(ROWS)
    recipe = bound("metamixup(eta=0)", cnn(), images)
    torch.testing.assert_close(lam_of(recipe, recipe._probe.net, images, labels, lam, perm).double(), lam)


def test_looks_in_every_third_step_only(cnn):
    images, labels = torch.randn(ROWS, 3, 16, 16), torch.arange(ROWS)
    lam, perm = torch.full((ROWS,), 0.5).double(), torch.arange(ROWS).roll(1)
    model = cnn()
    recipe = bound("metamixup(every=3)", model, images)
    changed = [bool((lam_of(recipe, model, images, labels, lam, perm, step=step) != 0.5).any()) for step in range(7)]
    assert changed == [True, False, False, True, False, False, True]


def test_one_lam_for_the_batch(cnn):
    images, labels = torch.randn(ROWS, 3, 16, 16), torch.arange(ROWS)
    recipe = bound("metamixup(per=batch)", cnn(), images, seed=3)
    (turn,) = recipe.turns(recipe._probe.net, images, labels)
    assert len(turn.targets.weights[:, 0].unique()) == 1


def test_a_vit_with_fused_attention(vit):
    images, labels = torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    model = vit()
    recipe = mixwell.create("metamixup", 7).use_data(
        held_out=lambda: [mixwell.Batch(torch.randn(4, 3, 32, 32), torch.arange(4))]
    )
    recipe.bind(model, images)
    (turn,) = recipe.turns(model, images, labels)
    turn.loss.backward()
    assert torch.isfinite(turn.loss)
    assert all(block.attn.fused_attn for block in model.blocks)


@pytest.mark.parametrize("blend", ["cutmix", "resizemix", "puzzlemix"])
def test_blends_that_are_not_smooth_in_lam_are_refused(blend):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"metamixup needs a blend that is differentiable in λ"):
        mixwell.create(f"metamixup + {blend}", 7)


def test_held_out_images_must_be_told(cnn):
    images, labels = torch.randn(ROWS, 3, 16, 16), torch.arange(ROWS)
    model = cnn()
    with pytest.raises(mixwell.MixwellError, match="use_data"):
        mixwell.create("metamixup", 7).bind(model, images)(model, images, labels)


@pytest.mark.parametrize("bad", ["alpha=0.0", "eta=-1", "inner_lr=-0.1", "every=0"])
def test_bad_parameters(bad):
    with pytest.raises(mixwell.ParameterError):
        mixwell.create(f"metamixup({bad})", 7)
