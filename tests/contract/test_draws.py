"""All randomness comes from keyed streams: the same key, the same numbers, and no global state."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mixwell.core import rng
from mixwell.core.axes import Piece


def numbers(draws, shared=False):
    """Everything drawn, flat; of the pieces whose draws are each rank's own, or of those that are shared."""
    return np.concatenate([[0.0], *(_flat(drawn) for piece, drawn in draws.of.items() if piece.shared == shared)])


def _flat(drawn):
    if drawn is None:
        return np.zeros(0)
    if isinstance(drawn, Mapping):
        drawn = tuple(drawn.values())
    if is_dataclass(drawn):
        drawn = tuple(getattr(drawn, field.name) for field in fields(drawn))
    if isinstance(drawn, tuple):
        return np.concatenate([[0.0], *(_flat(part) for part in drawn)])
    return np.asarray(drawn, dtype=np.float64).ravel()


def test_same_key_same_numbers(act, slug, which):
    first, again = act(slug, which).draws(7, seed=5, step=3), act(slug, which).draws(7, seed=5, step=3)
    assert np.array_equal(numbers(first), numbers(again))
    assert np.array_equal(numbers(first, shared=True), numbers(again, shared=True))


def skip_where_nothing_is_drawn(policy):
    if len(numbers(policy.draws(7))) + len(numbers(policy.draws(7), shared=True)) == 2:
        pytest.skip("nothing is drawn")


def test_another_seed_or_step_another_drawing(act, slug, which):
    policy = act(slug, which)
    skip_where_nothing_is_drawn(policy)
    base = numbers(policy.draws(7, seed=5, step=3))
    assert not np.array_equal(base, numbers(policy.draws(7, seed=6, step=3)))
    assert not np.array_equal(base, numbers(policy.draws(7, seed=5, step=4)))


def test_ranks_draw_their_own_numbers_but_agree_on_the_site(act, slug, which, monkeypatch):
    policy = act(slug, which)
    skip_where_nothing_is_drawn(policy)
    own, common = [], []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        own.append(numbers(policy.draws(7)))
        common.append(np.concatenate([numbers(policy.draws(7, step=step), shared=True) for step in range(20)]))
    assert not np.array_equal(own[0], own[1])
    assert not np.array_equal(own[1], own[2])
    assert np.array_equal(common[0], common[1])
    assert np.array_equal(common[1], common[2])


def test_workers_draw_their_own_numbers(act, slug, which, monkeypatch):
    policy = act(slug, which)
    skip_where_nothing_is_drawn(policy)
    drawn = []
    for seed in (100, 101):
        monkeypatch.setattr(rng, "get_worker_info", lambda seed=seed: SimpleNamespace(seed=seed))
        drawn.append(numbers(policy.draws(7)))
        assert np.array_equal(drawn[-1], numbers(policy.draws(7)))
    assert not np.array_equal(*drawn)


def test_resume_at_a_step_gives_that_steps_numbers(slug, recipe_for, network_for, main_turn):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for row, image in enumerate(images):
        image[:, 8 * row : 8 * row + 8] *= 5  # each is salient at a place of its own
    if not any(option.drawing for option in recipe_for(slug).options):
        pytest.skip("nothing is drawn")
    if any(type(piece).observe is not Piece.observe for o in recipe_for(slug).options for piece in o.pieces):
        pytest.skip("steps depend on the ones before, and training resumes with an epoch's first")

    def losses(recipe, count):
        model = network_for(recipe).eval()
        return [main_turn(recipe, model, images, labels).loss.item() for _ in range(count)]

    straight = losses(recipe_for(slug, seed=1), 6)
    resumed = recipe_for(slug, seed=1)
    resumed.load_state_dict({**resumed.state_dict(), "_extra_state": torch.tensor(4)})
    assert losses(resumed, 2) == straight[4:]
    if straight[:2] == straight[4:]:
        pytest.skip("the method makes the same of these images in every step, so the test saw nothing")


def test_global_generators_are_neither_read_nor_changed(slug, recipe_for, network_for, main_turn, global_random_states):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    seen = []
    for seed in (0, 1):
        recipe = recipe_for(slug, seed=3)
        model = network_for(recipe).eval()  # without dropout, which draws from torch's generator as it should
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = global_random_states()
        seen.append([main_turn(recipe, model, images, labels).loss.item() for _ in range(4)])
        assert global_random_states() == before
    assert seen[0] == seen[1]


def test_mix_batch_leaves_global_generators_alone(slug, recipe_for, prepared, global_random_states):
    if any(option.beyond_images for option in recipe_for(slug).options):
        pytest.skip("acts inside the network or in the loss")
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    before = global_random_states()
    first = prepared(recipe_for(slug), 3, (8, 8)).mix_batch(images, labels)[0]
    assert global_random_states() == before
    torch.manual_seed(99)
    assert torch.equal(prepared(recipe_for(slug), 3, (8, 8)).mix_batch(images, labels)[0], first)
