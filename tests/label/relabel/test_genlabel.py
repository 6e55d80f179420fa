import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.label.relabel.genlabel import posterior

ROWS, CLASSES = 9, 3
LABELS = torch.arange(ROWS) % CLASSES


def clusters(rows=ROWS, seed=0, size=16):
    """Images whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    return 0.3 * torch.randn(rows, 3, size, size, generator=generator) + 3 * labels.view(-1, 1, 1, 1), labels


def ready(text, model, rows=90):
    """A recipe whose densities are fitted."""
    images, labels = clusters(rows, seed=1)
    batches = [mixwell.Batch(images[i::2], labels[i::2]) for i in (0, 1)]
    recipe = mixwell.create(text, CLASSES).use_data(train=lambda: batches).bind(model, images)
    recipe.before_epoch(model)
    return recipe


def step(recipe, model, lam, images=None, pairing=None):
    images = clusters()[0] if images is None else images
    (option,) = recipe.options
    draws = {option.ratio: torch.full((1,), lam).double().numpy()}
    draws[option.pairing] = torch.arange(len(images)).roll(1).numpy() if pairing is None else pairing
    (turn,) = recipe.turns(model, images, torch.arange(len(images)) % CLASSES, draws=mixwell.Draws(draws))
    return turn


def test_posterior_is_a_softmax_under_equal_priors():
    logs = torch.randn(5, 4)
    torch.testing.assert_close(posterior(logs), logs.softmax(1))
    torch.testing.assert_close(posterior(logs + 100), posterior(logs))
    torch.testing.assert_close(posterior(logs, temperature=10.0), (logs / 10).softmax(1))
    torch.testing.assert_close(posterior(logs, top_k=9), logs.softmax(1))


def test_the_two_likeliest_classes():
    logs = torch.tensor([[0.0, 2.0, 1.0, -5.0]])
    two = posterior(logs, top_k=2)
    torch.testing.assert_close(
        two, torch.tensor([[0.0, torch.tensor(1.0).sigmoid(), torch.tensor(-1.0).sigmoid(), 0.0]])
    )
    torch.testing.assert_close(posterior(logs[:, :2], top_k=2), posterior(logs[:, :2]))


@pytest.mark.parametrize("options", ["shrinkage=0.5", "density=kde", "covariance=shared", "covariance=diagonal"])
def test_clean_images_of_separated_classes_keep_their_label(cnn, options):
    model = cnn(CLASSES)
    recipe = ready(f"genlabel(gamma=1.0, site=input, {options})", model)
    turn = step(recipe, model, 1.0)
    torch.testing.assert_close(turn.targets.dense(), F.one_hot(LABELS, CLASSES).float(), atol=1e-3, rtol=0)
    assert turn.parts["intrusion"] == 0


def test_half_way_between_the_outer_classes_lies_the_middle_one(cnn):
    """Brightness 0 and 6 make 3: a mix of classes 0 and 2 intrudes on class 1, and its label says so."""
    model = cnn(CLASSES)
    recipe = ready("genlabel(gamma=1.0, site=input, covariance=shared, shrinkage=1.0)", model)
    images, labels = clusters(6)
    pairing = torch.tensor([2, 1, 0, 5, 4, 3]).numpy()
    turn = step(recipe, model, 0.5, images, pairing)
    expected = torch.tensor([1, 1, 1, 1, 1, 1])
    assert torch.equal(turn.targets.dense().argmax(1), expected)
    assert turn.parts["intrusion"] == pytest.approx(4 / 6)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_gamma_blends_with_the_mixs_own_label(cnn):
    model = cnn(CLASSES).eval()
    own, told, blended = (
        step(ready(f"genlabel(gamma={gamma})", model), model, 0.3).targets.dense() for gamma in (0.0, 1.0, 0.4)
    )
    torch.testing.assert_close(blended, 0.4 * told + 0.6 * own)
    torch.testing.assert_close(own, step(mixwell.create("mixup", CLASSES), model, 0.3).targets.dense())
    torch.testing.assert_close(told.sum(1), torch.ones(ROWS))


def test_the_loss_is_the_sum_of_both_losses(cnn):
    model = cnn(CLASSES).eval()
    turn = step(ready("genlabel(gamma=0.4, temperature=50.0)", model), model, 0.3)
    told = step(ready("genlabel(gamma=1.0, temperature=50.0)", model), model, 0.3).loss
    own = step(mixwell.create("mixup", CLASSES), model, 0.3).loss
    torch.testing.assert_close(turn.loss, 0.4 * told + 0.6 * own)


def test_features_are_those_of_the_mixed_image(cnn):
    """Not the mix of the features, and no gradient reaches the densities."""
    model = cnn(CLASSES).eval()
    recipe = ready("genlabel(gamma=1.0, site=-1, temperature=30.0)", model)
    images, _ = clusters()
    turn = step(recipe, model, 0.3)
    mixed = torch.lerp(images.roll(1, 0), images, 0.3)
    want = mixwell.Want("features", -1)
    features = mixwell.Probe(model).run(mixed, wants=[want])[want].mean((2, 3))
    label = recipe.options[0].label
    torch.testing.assert_close(
        turn.targets.dense(),
        posterior(label.log_density(features.detach()), temperature=30.0).float(),
        rtol=1e-3,
        atol=1e-5,
    )
    assert not turn.targets.dense().requires_grad


def test_densities_follow_the_network_epoch_by_epoch(cnn):
    model = cnn(CLASSES)
    recipe = ready("genlabel", model)
    before = recipe.options[0].label.means.clone()
    recipe.before_epoch(model)
    torch.testing.assert_close(recipe.options[0].label.means, before)
    with torch.no_grad():
        model.layer3[0].weight *= 2
    recipe.before_epoch(model)
    assert not torch.allclose(recipe.options[0].label.means, before)
    assert model.training


@pytest.mark.parametrize("density", ["gaussian", "kde"])
def test_densities_are_in_the_checkpoint(cnn, density):
    model = cnn(CLASSES).eval()
    recipe = ready(f"genlabel(density={density})", model)
    expected = step(recipe, model, 0.4)
    fresh = mixwell.create(f"genlabel(density={density})", CLASSES).bind(model, clusters()[0])
    fresh.load_state_dict({**recipe.state_dict(), "_extra_state": torch.tensor(1)})
    assert torch.equal(step(fresh, model, 0.4).loss, expected.loss)


def test_a_class_without_training_images_is_never_told(cnn):
    model = cnn(CLASSES).eval()
    images, labels = clusters(40)
    kept = [mixwell.Batch(images[labels != 2], labels[labels != 2])]
    recipe = mixwell.create("genlabel(gamma=1.0, site=input, shrinkage=1.0)", CLASSES)
    recipe.use_data(train=lambda: kept).bind(model, images)
    recipe.before_epoch(model)
    dense = step(recipe, model, 0.5).targets.dense()
    assert (dense[:, 2] == 0).all()
    assert torch.isfinite(dense).all()


@pytest.mark.parametrize("policy", ["cutmix", "manifold_mixup", "k_mixup + resizemix", "comixup"])
def test_it_relabels_any_mix(cnn, policy):
    model = cnn(CLASSES)
    images, labels = clusters(8)
    recipe = mixwell.create(f"{policy} + genlabel", CLASSES, pixels=mixwell.Pixels((0.5,), (0.25,)))
    recipe.use_data(train=lambda: [mixwell.Batch(images, labels)]).bind(model, images)
    recipe.before_epoch(model)
    (turn,) = recipe.turns(model, images, labels)
    turn.loss.backward()
    assert torch.isfinite(turn.loss)


def test_a_loss_of_two_hard_classes_is_refused():
    with pytest.raises(mixwell.IncompatibleRecipe, match="labels of genlabel do not have"):
        mixwell.create("mixup + genlabel + decouplemix", CLASSES)


def test_classes_must_be_known(cnn):
    with pytest.raises(mixwell.IncompatibleRecipe, match="num_classes"):
        mixwell.create("genlabel").bind(cnn(CLASSES), clusters()[0])


@pytest.mark.parametrize("bad", ["gamma=1.5", "shrinkage=-0.1", "ridge=0", "bandwidth=0.0", "top_k=0", "temperature=0"])
def test_bad_parameters(bad):
    with pytest.raises(mixwell.ParameterError):
        mixwell.create(f"genlabel({bad})", CLASSES)
