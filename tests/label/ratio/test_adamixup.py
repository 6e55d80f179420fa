import math

import pytest
import torch

import mixwell
from mixwell.label.ratio.adamixup import lam_in, policy_input, region

ROWS, CLASSES = 7, 7
IMAGES, LABELS = torch.randn(ROWS, 3, 16, 16), torch.arange(ROWS)


def bound(text, model, images=IMAGES, seed=0):
    recipe = mixwell.create(text, CLASSES, seed=seed)
    return recipe.bind(model, images)


def test_the_region_lies_within_0_and_1():
    logits = torch.randn(50, 3)
    abc = region(logits)
    low, high = lam_in(abc, torch.zeros(50)), lam_in(abc, torch.ones(50))
    assert (abc > 0).all()
    torch.testing.assert_close(abc.sum(1), torch.ones(50))
    torch.testing.assert_close(low, abc[:, 0])
    torch.testing.assert_close(high, abc[:, 0] + abc[:, 1])
    assert (high < 1).all()
    u = torch.rand(50)
    torch.testing.assert_close(lam_in(region(torch.zeros(50, 3)), u), (1 + u) / 3)


def test_the_slope_of_lam():
    logits = torch.randn(4, 3, requires_grad=True)
    u = torch.rand(4)
    s = region(logits)
    (slope,) = torch.autograd.grad(lam_in(s, u).sum(), logits)
    s = s.detach()
    first, second = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(slope, s[:, :1] * (first - s) + u[:, None] * s[:, 1:2] * (second - s))


def test_weights_of_the_policys_input_are_a_cut_normal():
    ones, zeros = torch.ones(40, 3, 32, 32), torch.zeros(40, 3, 32, 32)
    own, other = 2 * policy_input(ones, zeros, 5), 2 * policy_input(zeros, ones, 5)
    for weights in (own, other):
        assert weights.abs().max() <= 2
        assert weights.mean().abs() < 0.02
        assert weights.std().item() == pytest.approx(0.8796, abs=0.01)  # of a normal cut at two deviations
    assert torch.corrcoef(torch.stack((own.flatten(), other.flatten())))[0, 1].abs() < 0.02
    assert torch.equal(policy_input(ones, zeros, 5), policy_input(ones, zeros, 5))
    assert not torch.equal(policy_input(ones, zeros, 6), policy_input(ones, zeros, 5))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_half_of_the_batch_is_mixed_and_comes_clean_too(cnn, rows):
    model = cnn()
    fed, images = [], IMAGES[:rows]
    recipe = bound("adamixup", model, images)
    model.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    (turn,) = recipe.turns(model, images, LABELS[:rows])
    count = max(1, rows // 2)
    trained = fed[0]
    assert len(trained) == len(turn.targets) == 2 * count
    assert torch.equal(trained[count:], images[:count])
    assert torch.equal(turn.targets.weights[count:], torch.tensor([[1.0, 0.0]]).expand(count, 2))
    lam, partner = turn.targets.weights[:count, :1, None, None], turn.targets.sources[:count, 1]
    torch.testing.assert_close(trained[:count], lam * images[:count] + (1 - lam) * images[partner])
    assert len(fed[1]) == rows + count  # the second head sees the whole batch, and the mixes
    assert torch.equal(fed[1][:rows], images)
    assert torch.equal(fed[1][rows:], trained[:count])


def test_the_second_head_tells_real_from_mixed(cnn):
    model = cnn().eval()
    recipe = bound("adamixup", model)
    (turn,) = recipe.turns(model, IMAGES, LABELS)
    assert turn.parts["adamixup"].item() == pytest.approx(math.log(2), abs=0.02)
    torch.testing.assert_close(turn.loss.detach(), turn.parts["criterion"] + turn.parts["adamixup"])
    head = recipe.options[0].terms[0].head
    with torch.no_grad():
        head[1].bias[1] = 50.0  # all are real
    (turn,) = recipe.turns(model, IMAGES, LABELS)
    assert turn.parts["adamixup"].item() == pytest.approx(50 * 3 / 10, rel=0.01)


def test_the_policy_gets_gradients_through_images_and_labels(cnn):
    """From both losses; a policy that is detached from either gets others."""
    model = cnn().eval()
    recipe = bound("adamixup", model)
    own = [p for p in recipe.options[0].ratio.parameters() if p.requires_grad]

    def gradient(weight):
        recipe.options[0].terms[0].weight = weight
        (turn,) = recipe.turns(model, IMAGES, LABELS, clock=mixwell.Clock(0))
        return torch.cat([g.flatten() for g in torch.autograd.grad(turn.loss, own)])

    alone, both = gradient(0.0), gradient(1.0)
    assert alone.abs().sum() > 0
    assert (both - alone).abs().sum() > 0


def test_policy_and_network_share_nothing(cnn):
    model = cnn()
    recipe = bound("adamixup", model)
    policy = recipe.options[0].ratio.policy
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in theirs for p in policy.parameters())
    assert not torch.equal(policy.net.layer1[0].weight, model.layer1[0].weight)
    own = [p for p in policy.parameters() if p.requires_grad]
    before = [p.clone() for p in own]
    optimiser = torch.optim.SGD(recipe.parameter_groups(model), lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        recipe(model, IMAGES, LABELS).backward()
        optimiser.step()
        recipe.after_step(model)
    moved = [not torch.equal(p, old) for p, old in zip(own, before, strict=True)]
    assert sum(moved) >= len(moved) - 1


@pytest.mark.parametrize(
    ("text", "rows"), [("adamixup + mixup", ROWS), ("adamixup + manifold_mixup(sites=(2,))", 2 * (ROWS // 2))]
)
def test_other_blends_and_places(cnn, text, rows):
    """Another smooth blend mixes the whole batch; at a hidden site half of the maps are mixed."""
    model = cnn()
    recipe = bound(text, model)
    (turn,) = recipe.turns(model, IMAGES, LABELS)
    turn.loss.backward()
    assert len(turn.targets) == rows
    assert turn.targets.weights[:, 0].min() < 1
    assert all(p.grad is not None for p in recipe.options[0].ratio.policy.parameters() if p.requires_grad)


@pytest.mark.parametrize("blend", ["cutmix", "resizemix", "fmix"])
def test_blends_that_are_not_smooth_in_lam_are_refused(blend):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"adamixup needs a blend that is differentiable in λ"):
        mixwell.create(f"adamixup + {blend}", CLASSES)


def test_transformers(vit):
    model, images = vit(), torch.randn(4, 3, 32, 32)
    recipe = bound("adamixup", model, images)
    recipe(model, images, torch.arange(4)).backward()
    assert all(p.grad is not None for p in recipe.options[0].ratio.policy.parameters() if p.requires_grad)


def test_bad_weight():
    with pytest.raises(mixwell.ParameterError, match="intrusion_weight"):
        mixwell.create("adamixup(intrusion_weight=-1)", CLASSES)
