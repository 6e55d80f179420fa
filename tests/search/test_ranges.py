from __future__ import annotations

import pytest

from mixwell import MixwellError, ParameterError
from mixwell.search.ranges import Choice, Span, template, tuned


def test_a_recipe_without_ranges_is_itself():
    found = template("cutmix( alpha=0.5 )+mixupe")
    assert found.holes == ()
    assert found.filled(()) == "cutmix(alpha=0.5) + mixupe"
    assert found.corners == ["cutmix(alpha=0.5) + mixupe"]


def test_ranges_and_lists_are_read_and_filled():
    found = template("0.5*k_mixup(k = 2..8, alpha=.1 .. 2) | 0.5*cutmix(alpha=[0.5, 1.0], per=[batch, 'sample'])")
    assert found.holes == (
        Span("k", 2, 8, whole=True),
        Span("alpha", 0.1, 2),
        Choice("alpha", ("0.5", "1.0")),
        Choice("per", ("batch", "'sample'")),
    )
    filled = found.filled(("3", "0.7", "1.0", "batch"))
    assert filled == "0.5*k_mixup(k=3, alpha=0.7) | 0.5*cutmix(alpha=1.0, per='batch')"
    assert len(found.corners) == 5
    assert "0.5*k_mixup(k=2, alpha=2.0) | 0.5*cutmix(alpha=0.5, per='batch')" in found.corners


def test_whole_ends_are_whole_numbers_only_where_the_parameter_is():
    assert template("mixup(alpha=1..3)").holes == (Span("alpha", 1, 3, whole=False),)
    assert template("k_mixup(k=1..3)").holes == (Span("k", 1, 3, whole=True),)


def test_tuples_are_values_of_a_list():
    found = template("cut_thumbnail(size=[(0.3, 0.5), 0.4])")
    assert found.holes == (Choice("size", ("(0.3, 0.5)", "0.4")),)
    assert found.corners == ["cut_thumbnail(size=(0.3, 0.5))", "cut_thumbnail(size=0.4)"]


def test_values_have_three_digits_and_stay_within_the_ends():
    span = Span("alpha", 0.12345, 1.98765)
    assert span.text(0.123451) == "0.12345"
    assert span.text(1.9876499) == "1.98765"
    assert span.text(0.5678912) == "0.568"
    assert span.log
    assert not Span("prob", 0.3, 1.0).log


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mixup(alpha=2.0..0.1)", "must rise, such as 0.1..2.0, got 2.0..0.1"),
        ("mixup(alpha=1..1)", "must rise"),
        ("mixup(alpha=[])", "a list of different values"),
        ("mixup(alpha=[1.0, 1.0])", "a list of different values"),
        ("k_mixup(k=0.5..3.5)", "k must be a whole number"),
        ("mixup(per=1..3)", "per must be"),
        ("mixup(alpha=[1.0, many])", "alpha must be a number"),
        ("mixup(alfa=0.1..2.0)", "no parameter 'alfa'"),
        ("mixpu(alpha=0.1..2.0)", "did you mean 'mixup'"),
    ],
)
def test_ranges_that_cannot_be_are_refused(text, reason):
    with pytest.raises(MixwellError, match=reason):
        template(text)


def test_tuning_frees_what_was_not_given_and_keeps_what_was_published():
    found = tuned(template("cutmix(prob=0.5) + mixupe"))
    assert found.published == "cutmix(prob=0.5) + mixupe"
    assert found.text == "cutmix(prob=0.5, alpha=0.1..4.0) + mixupe(alpha=0.1..4.0)"
    assert [hole.name for hole in found.holes] == ["alpha", "alpha"]
    ranges = template("cutmix(alpha=0.5..1.0)")
    assert tuned(ranges) is ranges
    assert tuned(template("none")).holes == ()
    assert tuned(template("mixup | cutmix")).text.startswith("0.5*mixup(alpha=0.1..4.0, prob=0.3..1.0) | ")


def test_a_refusal_names_the_recipe_with_its_ranges():
    with pytest.raises(ParameterError, match=r"The ranges of 'k_mixup\(k=0.5..3.5\)' hold what cannot be"):
        template("k_mixup(k=0.5..3.5)")
