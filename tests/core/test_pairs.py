from __future__ import annotations

import pickle
from itertools import permutations

import pytest

import mixwell
from mixwell.core.pairs import Verdict, pairs

SOME = ("mixup", "cutmix", "k_mixup", "transmix", "decouplemix")


def test_it_says_what_create_says():
    for (first, second), verdict in pairs(SOME).items():
        if verdict.accepted:
            mixwell.create(f"{first} + {second}", 10)
            continue
        with pytest.raises(mixwell.IncompatibleRecipe) as caught:
            mixwell.create(f"{first} + {second}", 10)
        assert Verdict(str(caught.value), caught.value.slot) == verdict


def test_every_ordered_pair_in_the_order_of_the_methods():
    assert list(pairs(SOME)) == list(permutations(SOME, 2))
    assert list(pairs(reversed(SOME))) == list(permutations(reversed(SOME), 2))


def test_two_answers_name_their_slot_and_other_reasons_none():
    found = pairs(SOME)
    assert found["mixup", "cutmix"].slot == "blend"
    assert found["cutmix", "k_mixup"] == Verdict()
    assert not found["mixup", "transmix"].accepted
    assert found["mixup", "transmix"].slot == ""
    assert "needs masks" in found["mixup", "transmix"].reason


def test_the_pairs_of_some_methods():
    everything = pairs(SOME)
    assert pairs(SOME, of=["transmix"]) == {pair: everything[pair] for pair in everything if "transmix" in pair}
    both = pairs(SOME, of=["transmix", "mixup"])
    assert list(both) == [pair for pair in everything if {"transmix", "mixup"} & set(pair)]


def test_unknown_methods_are_errors():
    with pytest.raises(mixwell.UnknownMethod, match="'cutmix'"):
        pairs(("mixup", "cutmx"))
    with pytest.raises(mixwell.UnknownMethod, match="'cutmix'"):
        pairs(SOME, of=["cutmx"])


def test_the_error_survives_pickling():
    with pytest.raises(mixwell.IncompatibleRecipe) as caught:
        mixwell.create("mixup + cutmix", 10)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.slot) == (str(caught.value), "blend")


def test_recipes_made_afterwards_share_nothing():
    pairs(SOME)
    first, second = (mixwell.create("cutmix + transmix", 10) for _ in range(2))
    assert not set(first.modules()) & set(second.modules())
