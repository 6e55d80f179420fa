"""CAMixup: which classes are mixed, and that the others are not touched."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import mixwell
from mixwell.conformance import one_turn
from mixwell.label.calibration.camixup import ClassAdjusted, coefficients, folded, gap_sums

CLASSES = 4


class Says(nn.Module):
    """A network that says the class of an image's first pixel, with a certainty of its own for each class.

    Attributes:
        images: what it was last fed.
    """

    def __init__(self, certain: float = 0.9) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(np.log(certain / (1 - certain) * (CLASSES - 1)))))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return self.scale * F.one_hot(images[:, 0, 0, 0].round().long().clamp(0, CLASSES - 1), CLASSES)


def shown(classes: list[int]) -> Tensor:
    """Images of one colour each, which `Says` reads."""
    return torch.tensor(classes).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def recipe_of(held_out: list[mixwell.Batch], net: nn.Module, text: str = "camixup") -> mixwell.Recipe:
    return mixwell.create(text, CLASSES).use_data(held_out=lambda: held_out).bind(net, shown([0, 1]))


HELD_OUT = [  # of class 0 all are told, of class 1 half, of class 2 none; there is none of class 3
    mixwell.Batch(shown([0, 0, 1, 0]), torch.tensor([0, 0, 1, 1])),
    mixwell.Batch(shown([0, 3]), torch.tensor([2, 2])),
]


def test_gaps_of_an_ensemble_class_by_class():
    p, labels = torch.rand(2, 30, CLASSES).softmax(2), torch.randint(0, 3, (30,))
    sums, counts = gap_sums(p, labels)
    for e in range(2):
        for c in range(3):
            of_class = p[e][labels == c].double()
            expected = (of_class.argmax(1) == c).double().mean() - of_class.amax(1).mean()
            torch.testing.assert_close(sums[e, c] / counts[c], expected)
    assert (sums[:, 3] / counts[3]).isnan().all()
    for one, other in zip(gap_sums(p, F.one_hot(labels, CLASSES).float()), (sums, counts), strict=True):
        torch.testing.assert_close(one, other)


def test_coefficients_are_1_or_alpha_and_unknown_classes_keep_theirs():
    gaps = torch.tensor([[0.1, -0.1, 0.0, float("nan")]])
    assert coefficients(gaps, 0.3).tolist() == [[1, pytest.approx(0.3), pytest.approx(0.3), 1]]
    assert coefficients(gaps, 0.25, torch.full((1, 4), 0.25)).tolist() == [[1, 0.25, 0.25, 0.25]]


def test_the_own_image_always_outweighs():
    drawn = torch.tensor([0.1, 0.7, 0.2, 0.0])
    assert folded(drawn, torch.tensor([0.4, 0.4, 1.0, 0.4])).tolist() == pytest.approx([0.9, 0.7, 1, 1])


def test_lambda_is_a_folded_beta():
    lam = folded(torch.from_numpy(ClassAdjusted(0.4).draw(4000, np.random.default_rng(1))), torch.full((4000,), 0.4))
    cdf = stats.beta(0.4, 0.4).cdf
    assert stats.kstest(lam.numpy(), lambda x: 2 * cdf(x) - 1).pvalue > 1e-4


def test_nothing_is_mixed_in_the_first_epoch():
    net = Says()
    recipe, images = recipe_of(HELD_OUT, net), shown([0, 1, 2, 3, 2])
    recipe.before_epoch(net)
    (turn,) = recipe.turns(net, images, torch.arange(5) % CLASSES)
    assert torch.equal(net.images, images)
    assert (turn.targets.weights == torch.tensor([1.0, 0.0])).all()


def test_only_classes_on_which_the_network_is_surer_than_right_are_mixed():
    net = Says()
    recipe, images, labels = recipe_of(HELD_OUT, net), torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 3, 0])
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    assert recipe.options[0].ratio.coefficients.tolist() == [1, pytest.approx(0.4), pytest.approx(0.4), 1]
    turn = one_turn(recipe, net, images, labels, ratio=np.array([0.3, 0.2, 0.7, 0.4, 0.1]))
    torch.testing.assert_close(turn.targets.weights[:, 0], torch.tensor([1, 0.8, 0.7, 1, 1]))
    assert turn.targets.sources[:, 1].tolist() == [4, 3, 2, 1, 0]
    for row in (0, 3, 4):
        assert torch.equal(net.images[row], images[row])
    torch.testing.assert_close(net.images[1], 0.8 * images[1] + 0.2 * images[3])
    assert torch.equal(net.images[2], images[2])  # the middle of an odd batch meets itself


def test_a_class_that_is_tamed_is_no_longer_mixed():
    net = Says(0.99)
    right = [mixwell.Batch(shown([0, 1, 2, 3]), torch.arange(4))]
    batches = [HELD_OUT, right]
    recipe = mixwell.create("camixup", CLASSES).use_data(held_out=lambda: batches[0]).bind(net, shown([0]))
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    assert (recipe.options[0].ratio.coefficients < 1).tolist() == [False, True, True, False]
    batches.pop(0)
    recipe.before_epoch(net, mixwell.Clock(2, epoch=2))
    assert (recipe.options[0].ratio.coefficients == 1).all()


def test_coefficients_are_kept_in_checkpoints():
    net = Says()
    recipe, resumed = recipe_of(HELD_OUT, net), recipe_of(HELD_OUT, net)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    resumed.load_state_dict(recipe.state_dict())
    assert torch.equal(resumed.options[0].ratio.coefficients, recipe.options[0].ratio.coefficients)


def test_measuring_leaves_no_trace(cnn, global_random_states):
    net = cnn(CLASSES)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = recipe_of([mixwell.Batch(torch.randn(6, 3, 8, 8), torch.arange(6) % CLASSES)], net)
    states = global_random_states()[:2]  # the checker of shapes draws from Python's
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    assert net.training
    assert global_random_states()[:2] == states
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_label_rows_are_mixed_if_half_of_them_is_of_classes_that_are():
    net = Says()
    recipe = recipe_of(HELD_OUT, net)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    rows = torch.tensor([[0.9, 0.1, 0, 0], [0.2, 0.5, 0.3, 0], [0, 0, 1, 0], [0.6, 0, 0, 0.4]])
    turn = one_turn(recipe, net, torch.randn(4, 3, 4, 4), rows, ratio=np.full(4, 0.2))
    torch.testing.assert_close(turn.targets.weights[:, 0], torch.tensor([1, 0.8, 0.8, 1]))


POLICIES = ["cutmix", "mixup", "k_mixup(k=2)", "manifold_mixup", "puzzlemix", "cutmix + lumix", "cutmix + mixupe"]


@pytest.mark.parametrize("policy", POLICIES)
def test_it_trains_with_every_policy_that_takes_a_lambda(policy, cnn):
    net, images, labels = cnn(CLASSES), torch.randn(6, 3, 32, 32), torch.arange(6) % CLASSES
    recipe = mixwell.create(f"{policy} + camixup", CLASSES, pixels=mixwell.Pixels((0.5,), (0.25,)))
    recipe.use_data(held_out=lambda: [mixwell.Batch(images, labels.roll(1))]).bind(net, images)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    assert (recipe.options[0].ratio.coefficients < 1).any()
    for _ in range(3):
        net.zero_grad()
        (turn,) = recipe.turns(net, images, labels)
        turn.loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
        if "lumix" not in policy and policy != "puzzlemix":  # whose shares are not λ
            assert (turn.targets.weights[:, 0] > 0.49).all()


def test_transformers(vit):
    net, images = vit(CLASSES), torch.randn(6, 3, 32, 32)
    labels = torch.arange(6) % CLASSES
    recipe = recipe_of([mixwell.Batch(images, labels)], net)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    recipe(net, images, labels).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_refusals(cnn):
    for alpha in (0, 1, 2.0):
        with pytest.raises(mixwell.ParameterError, match=r"alpha must be a number in \(0, 1\)"):
            mixwell.create(f"camixup(alpha={alpha})", CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="takes none"):
        mixwell.create("dcutmix + camixup", CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the ratio"):
        mixwell.create("metamixup + camixup", CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="camixup act"):
        mixwell.create("camixup", CLASSES).mix_batch(torch.randn(4, 3, 8, 8), torch.arange(4))
    net, images = cnn(CLASSES), torch.randn(4, 3, 8, 8)
    with pytest.raises(mixwell.IncompatibleRecipe, match="Give num_classes"):
        mixwell.create("camixup").bind(net, images)
    with pytest.raises(mixwell.MixwellError, match="before_epoch"):
        recipe_of(HELD_OUT, net)(net, images, torch.arange(4))
    with pytest.raises(mixwell.MixwellError, match="held-out images"):
        mixwell.create("camixup", CLASSES).before_epoch(net)
    with pytest.raises(mixwell.MixwellError, match="there are none"):
        recipe_of([], net).before_epoch(net, mixwell.Clock(1))
    several = [mixwell.Batch(images, torch.ones(4, CLASSES))]
    with pytest.raises(mixwell.BatchError, match="several labels"):
        recipe_of(several, net).before_epoch(net, mixwell.Clock(1))
