"""One answer per axis: essential beats suggested, and what cannot act together is refused with the reason."""

from __future__ import annotations

import pytest

import mixwell
from mixwell.core.axes import Blend, Label, Need, Pairing, Place, Ratio, Slot, Term
from mixwell.core.criteria import SoftCrossEntropy, SoftmaxBinaryCrossEntropy
from mixwell.core.places import Hidden
from mixwell.core.plain import OF_A_PAIR, Beta, Input, Permutation, Shares
from mixwell.core.registry import Pieces
from mixwell.label.attention.transmix import AttentionShares
from mixwell.sample.cutting.cutmix import Box
from mixwell.sample.linear.mixup import Linear


def kinds(option):
    return tuple(type(piece).__name__ for piece in (option.place, option.ratio, option.blend, option.label))


def alpha(option):
    return None if option.ratio is None else option.ratio.alpha


def one(text, **options):
    (option,) = mixwell.create(text, **options).options
    return option


@pytest.fixture
def registered(monkeypatch):
    """`registered(slug, build)`: a method for this test only."""
    from mixwell.core import registry

    monkeypatch.setattr(registry, "_METHODS", {slug: registry.method_of(slug) for slug in mixwell.methods()})

    def register(slug, build):
        mixwell.method(slug, section="1.1", paper="0000.00000", venue="test 2000")(build)

    return register


def test_the_test_only_registry_is_gone_afterwards():
    assert not {"alone", "single", "sharp", "first", "second", "smooth"} & set(mixwell.methods())


def test_plain_answers_where_nobody_has_another():
    option = one("mixup")
    assert [type(piece) for piece in (option.place, option.pairing, option.label)] == [Input, Permutation, Shares]
    assert type(option.criterion) is SoftCrossEntropy


def test_none_mixes_nothing():
    assert one("none").blend is None


def test_essential_beats_suggested():
    option = one("manifold_mixup + cutmix")
    assert isinstance(option.place, Hidden)
    assert isinstance(option.blend, Box)


@pytest.mark.parametrize(
    "text", ["cutmix(alpha=0.5) + transmix(cutmix_alpha=3.0)", "transmix(cutmix_alpha=3.0) + cutmix(alpha=0.5)"]
)
def test_the_blends_provider_suggests_first(text):
    """λ comes from cutmix, which supplies the blend, wherever it stands; transmix's own switch is a suggestion too."""
    option = one(text)
    assert isinstance(option.label, AttentionShares)
    assert option.ratio.alpha == 0.5


def test_then_suggestions_count_from_left_to_right(registered):
    registered("first", lambda: Pieces(Hidden((0,)), (Linear(), Beta(0.1))))
    registered("second", lambda: Pieces(Permutation(), (Linear(), Beta(0.2))))
    assert one("first + second").ratio.alpha == 0.1
    assert one("second + first").ratio.alpha == 0.2


@pytest.mark.parametrize(
    ("one_way", "other_way"),
    [
        ("cutmix + transmix", "transmix + cutmix"),
        ("manifold_mixup + mixup", "mixup + manifold_mixup"),
        ("cutmix + manifold_mixup + transmix", "transmix + cutmix + manifold_mixup"),
        ("cutmix(prob=0.3) + transmix", "transmix + cutmix(prob=0.3)"),
        ("cutmix + transmix(switch_prob=0.4)", "transmix(switch_prob=0.4) + cutmix"),
    ],
)
def test_the_order_of_a_sum_does_not_matter(one_way, other_way):
    first, second = mixwell.create(one_way), mixwell.create(other_way)
    assert first.weights == second.weights
    assert [kinds(option) for option in first.options] == [kinds(option) for option in second.options]
    assert [alpha(option) for option in first.options] == [alpha(option) for option in second.options]


@pytest.mark.parametrize("text", ["mixup + cutmix", "cutmix + mixup", "transmix + mixup + cutmix"])
def test_two_essentials_in_one_slot_are_named(text):
    with pytest.raises(mixwell.IncompatibleRecipe) as caught:
        mixwell.create(text)
    message = str(caught.value)
    assert "both decide the blend" in message
    assert "mixup" in message
    assert "cutmix" in message
    assert "'0.5*" in message, "no way out is shown"


def test_a_label_that_needs_masks_is_refused_on_a_linear_blend():
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"transmix needs masks.*mixup does not give.*such as cutmix"):
        mixwell.create("mixup + transmix")
    with pytest.raises(mixwell.IncompatibleRecipe, match="transmix needs masks"):
        mixwell.create("0.5*cutmix | 0.5*(transmix + mixup)")


def test_none_cannot_be_added():
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"'none' mixes nothing.*cutmix.*Leave it out"):
        mixwell.create("none + cutmix")


class Alone(Blend):
    """A blend of one image."""

    partners = 0
    takes_lam = False
    hidden = False


class Sharp(Pairing):
    needs = frozenset({Need.DIFFERENTIABLE})


class Penalty(Term):
    needs = frozenset({Need.OWN_ROW})


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (Pairing, "decides who mixes with whom, but alone mixes no two images"),
        (Ratio, "decides λ, but alone takes none"),
        (Place, "mixes hidden maps, but alone works on pixels only"),
        (Penalty, "needs mixes that contain the image's own row, which alone does not give"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_essential_pieces_that_could_not_act_are_refused(registered, piece, said):
    registered("alone", lambda: Pieces(Alone()))
    registered("single", lambda: Pieces(piece()))
    with pytest.raises(mixwell.IncompatibleRecipe, match=f"single {said}.*such as mixup or cutmix"):
        mixwell.create("alone + single")


def test_what_is_only_suggested_gives_way(registered):
    registered("alone", lambda: Pieces(Alone()))
    registered("single", lambda: Pieces(Penalty(), (Beta(0.3), Linear())))
    registered("sharp", lambda: Pieces(Shares(), (Sharp(), Box())))
    with pytest.raises(mixwell.IncompatibleRecipe):
        mixwell.create("alone + single")
    assert type(one("sharp").pairing) is Permutation


def test_the_first_suggested_blend_under_which_all_can_act(registered):
    registered("smooth", lambda: Pieces(Sharp(), (Box(), Linear())))
    assert isinstance(one("smooth").blend, Linear)


@pytest.mark.parametrize("slot", [Label, Ratio, Pairing])
def test_a_policy_without_a_blend_is_refused(registered, slot):
    registered("single", lambda: Pieces(slot()))
    with pytest.raises(
        mixwell.IncompatibleRecipe, match=r"nothing in this recipe mixes images.*such as mixup or cutmix"
    ):
        mixwell.create("single")


def test_a_criterion_of_a_method_and_one_of_the_user(registered):
    registered("single", lambda: Pieces(SoftmaxBinaryCrossEntropy(), (Linear(),)))
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"single brings its own criterion.*Leave criterion out"):
        mixwell.create("single", criterion="bce")
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"class_weights have no meaning"):
        mixwell.create("single", 3, class_weights=[1, 1, 1])


def test_the_users_criterion_beats_a_suggested_one():
    suggested = one("manifold_mixup(criterion=softmax_bce)")
    assert type(suggested.criterion) is SoftmaxBinaryCrossEntropy
    assert type(one("manifold_mixup(criterion=softmax_bce)", criterion="cross_entropy").criterion) is SoftCrossEntropy


# Gates and switches

PLAIN = ("NoneType", "NoneType", "Shares")


def weights(text):
    recipe = mixwell.create(text)
    return [(round(w, 9), *kinds(o)[1:]) for w, o in zip(recipe.weights, recipe.options, strict=True)]


PLAIN = ("NoneType", "NoneType", "Shares")


def test_prob_is_a_switch_with_plain():
    assert weights("cutmix(prob=0.3)") == [(0.3, "Beta", "Box", "Shares"), (0.7, *PLAIN)]
    assert weights("cutmix(prob=1.0)") == [(1.0, "Beta", "Box", "Shares")]


def test_transmix_alone_switches_to_mixup():
    assert weights("transmix") == [(0.8, "Beta", "Box", "AttentionShares"), (0.2, "Beta", "Linear", "Shares")]
    cut, mixed = mixwell.create("transmix(cutmix_alpha=2.0, mixup_alpha=0.3, per=batch)").options
    assert (cut.ratio.alpha, cut.ratio.per, cut.blend.per) == (2.0, "batch", "batch")
    assert (mixed.ratio.alpha, mixed.ratio.per) == (0.3, "batch")


def test_the_other_batches_may_be_a_switch():
    assert weights("mixpro(prob=0.6)") == [
        (0.6, "Beta", "MaskMix", "ProgressiveAttention"),
        (0.2, "Beta", "Linear", "Shares"),
        (0.2, "Beta", "Box", "Shares"),
    ]
    assert [w for w, *_ in weights("k_mixup(k=2) + mixpro")] == [0.5, 0.25, 0.25]


def test_a_suggested_switch_is_left_out_beside_another_blend():
    assert weights("cutmix + transmix") == [(1.0, "Beta", "Box", "AttentionShares")]


def test_a_switch_that_was_asked_for_stays():
    assert [w for w, *_ in weights("cutmix + transmix(switch_prob=0.6)")] == [0.6, 0.4]
    assert weights("cutmix(prob=0.5) + transmix") == [(0.5, "Beta", "Box", "AttentionShares"), (0.5, *PLAIN)]


def test_two_gates_are_refused():
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"cutmix and transmix each say on which share"):
        mixwell.create("cutmix(prob=0.5) + transmix(switch_prob=0.5)")


def test_a_sum_reaches_into_a_switch():
    assert weights("(0.25*cutmix | 0.75*mixup) + manifold_mixup") == weights(
        "0.25*(cutmix + manifold_mixup) | 0.75*(mixup + manifold_mixup)"
    )
    assert [w for w, *_ in weights("(mixup | 0.5*cutmix(prob=0.5))".replace("mixup |", "0.5*mixup |"))] == [
        0.5,
        0.25,
        0.25,
    ]


def test_a_plain_option_stays_plain_in_a_sum():
    assert weights("(0.25*cutmix | 0.75*none) + transmix") == [(0.25, "Beta", "Box", "AttentionShares"), (0.75, *PLAIN)]


def test_a_criterion_also_acts_on_plain_batches(registered):
    """What a method says about the loss holds for the batches that a gate left plain, if it can act there."""
    registered("single", lambda: Pieces(SoftmaxBinaryCrossEntropy()))
    mixed, plain = mixwell.create("cutmix(prob=0.5) + single").options
    assert plain.blend is None
    assert type(mixed.criterion) is type(plain.criterion) is SoftmaxBinaryCrossEntropy


class InPlace(Term):
    needs = frozenset({Need.ALIGNED})


def test_a_piece_that_needs_pixels_in_their_places_is_refused_where_they_move(registered):
    registered("single", lambda: Pieces(InPlace()))
    assert len(one("cutmix + single").terms) == 1
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"single needs mixes whose pixels keep.*resizemix does not"):
        mixwell.create("resizemix + single")


def test_a_place_is_suggested_for_the_methods_own_blend(registered):
    registered("single", lambda: Pieces(Permutation(), (Hidden((1,)), Linear())))
    assert isinstance(one("single").place, Hidden)
    assert isinstance(one("single + cutmix").place, Input)
    assert one("single + manifold_mixup(sites=(2,))").place.sites == (2,)


def test_the_gates_own_criterion_acts_on_all_batches():
    mixed, plain = mixwell.create("manifold_mixup(prob=0.5, criterion=softmax_bce)").options
    assert plain.blend is None
    assert type(mixed.criterion) is type(plain.criterion) is SoftmaxBinaryCrossEntropy
    _, plain = mixwell.create("manifold_mixup(prob=0.5, criterion=softmax_bce)", criterion="cross_entropy").options
    assert type(plain.criterion) is SoftCrossEntropy


def test_a_term_that_needs_a_mix_is_left_out_on_plain_batches(registered):
    registered("single", lambda: Pieces(Penalty()))
    mixed, plain = mixwell.create("cutmix(prob=0.5) + single").options
    assert len(mixed.terms) == 1
    assert len(plain.terms) == 0


def test_what_mixes_images_for_a_blend_is_left_out_without_it(registered):
    """Nothing composes the labels there, so that images must not be mixed either."""

    def single(prob: float = 1.0):
        return Pieces(Penalty(), prob=prob)

    registered("single", single)
    mixed, plain = mixwell.create("tokenmixup + single(prob=0.5)").options
    assert type(mixed.alone).__name__ == "MixedInputs"
    assert plain.blend is plain.alone is None
    assert len(plain.terms) == 0


def test_what_mixes_images_for_a_blend_is_left_out_where_moments_are_exchanged():
    (option,) = mixwell.create("moex + tokenmixup").options
    assert option.alone is None
    assert type(option.blend).__name__ == "TokenReplace"


def test_labels_that_are_followed_through_blocks_need_their_own_tokens(registered):
    class Followed(Label):
        def wants(self):
            return (mixwell.Want("alignment"),)

    registered("single", lambda: Pieces(Followed()))
    assert one("cutmix + single").label
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"single follows labels .* tokenmixup shows a block"):
        mixwell.create("cutmix + single + tokenmixup(variant=vertical)")


def test_a_place_that_mixes_at_the_input_takes_any_blend():
    (option,) = mixwell.create("stackmix + tokenmixup(variant=vertical)").options
    assert not option.blend.hidden
    with pytest.raises(mixwell.IncompatibleRecipe, match="works on pixels only"):
        mixwell.create("stackmix + manifold_mixup")


def test_terms_add_up(registered):
    registered("first", lambda: Pieces(Penalty()))
    registered("second", lambda: Pieces(Penalty()))
    assert len(one("mixup + first + second").terms) == 2


def test_slots_of_the_loss_are_one_axis():
    assert {slot.axis for slot in (Slot.CRITERION, Slot.TERM, Slot.WRAPPER)} == {"loss"}
    assert Slot.PLACE.axis == "place"
    assert {Need.PAIR, Need.SIMPLEX} <= OF_A_PAIR


@pytest.mark.parametrize("text", ["cutmix + random_mix", "random_mix + aug_rmix_at"])
def test_a_refusal_says_which_recipes_come_with_methods(text):
    """The message is about pieces of a recipe that the text does not show."""
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"both decide the blend.* random_mix comes with 0.5\*mixup"):
        mixwell.create(text)
