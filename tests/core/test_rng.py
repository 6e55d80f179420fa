"""Philox streams: no memory, no global state, and another stream for every key."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

import mixwell
from mixwell.core import rng
from mixwell.core.rng import Streams, key_of


def numbers(seed=1, piece="a", step=0, count=4, **options):
    return Streams(seed).at(piece, step, **options).random(count).tolist()


def test_the_same_key_gives_the_same_numbers():
    assert numbers() == numbers()
    streams = Streams(1)
    first = streams.at("a", 5).random(4)
    streams.at("a", 6).random(3)
    streams.at("b", 5).normal()
    assert streams.at("a", 5).random(4).tolist() == first.tolist()


def test_half_used_words_do_not_leak_into_the_next_step():
    """A 32-bit draw leaves half a word in the generator's buffer."""
    streams = Streams(1)
    streams.at("a", 0).integers(0, 10, dtype=np.uint32)
    assert streams.at("a", 1).integers(0, 2**32, 4, dtype=np.uint32).tolist() == (
        Streams(1).at("a", 1).integers(0, 2**32, 4, dtype=np.uint32).tolist()
    )


def test_every_part_of_the_key_counts(monkeypatch):
    seen = [numbers(), numbers(seed=2), numbers(piece="b"), numbers(step=1), numbers(shared=True)]
    monkeypatch.setenv("RANK", "1")
    seen.append(numbers())
    monkeypatch.setattr(rng, "get_worker_info", lambda: SimpleNamespace(seed=7))
    seen.append(numbers())
    assert len({tuple(drawn) for drawn in seen}) == len(seen)


def test_shared_streams_do_not_depend_on_the_rank(monkeypatch):
    before = numbers(shared=True)
    monkeypatch.setenv("RANK", "3")
    assert numbers(shared=True) == before


def test_neighbouring_keys_are_independent():
    for of_key in (
        lambda i: numbers(seed=i, count=1),
        lambda i: numbers(step=i, count=1),
        lambda i: numbers(piece=f"{i}", count=1),
    ):
        drawn = np.concatenate([of_key(i) for i in range(2000)])
        assert stats.kstest(drawn, "uniform").pvalue > 1e-4
        assert stats.pearsonr(drawn[:-1], drawn[1:]).pvalue > 1e-4


def test_long_drawings_of_neighbouring_steps_do_not_overlap():
    streams = Streams(1)
    first, second = streams.at("a", 0).random(100_000), streams.at("a", 1).random(1000)
    assert not np.isin(second, first).any()


def test_keys_tell_their_parts_apart():
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of(1, 2) == key_of("1", "2") == key_of(1, 2)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "1"])
def test_seeds_are_64_bit_integers(seed):
    with pytest.raises(mixwell.ParameterError, match="seed must be an integer"):
        mixwell.create("mixup", seed=seed)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda streams: pickle.loads(pickle.dumps(streams))])
def test_copies_draw_the_same(seed, clone):
    streams = Streams(seed)
    assert clone(streams).at("a", 3).random() == streams.at("a", 3).random()


# Loading workers


@pytest.fixture
def loader():
    """`loader(generator_seed, **options)`: recipe.mix_batch as collate_fn of 24 images, 4 a batch, in two workers."""
    images = torch.arange(24.0)[:, None, None, None].expand(24, 1, 4, 4).clone()
    data = TensorDataset(images, torch.arange(24))

    def make(seed, text="mixup", **options):
        recipe = mixwell.create(text, 24, seed=3)
        return DataLoader(
            data,
            4,
            collate_fn=recipe.mix_batch,
            generator=torch.Generator().manual_seed(seed),
            num_workers=2,
            **options,
        )

    return make


def drawn_weights(loader):
    return [targets.weights[:, 0].tolist() for _, targets in loader]


def test_workers_and_epochs_differ_and_reproduce(loader):
    first = loader(0)
    epochs = [drawn_weights(first), drawn_weights(first)]
    flat = [tuple(batch) for epoch in epochs for batch in epoch]
    assert len(set(flat)) == 12, "two batches of two epochs and workers drew the same"
    again = loader(0)
    assert [drawn_weights(again), drawn_weights(again)] == epochs
    assert drawn_weights(loader(1))[0] != epochs[0][0]


def test_persistent_workers_go_on_drawing(loader):
    persistent = loader(0, persistent_workers=True)
    assert not {tuple(b) for b in drawn_weights(persistent)} & {tuple(b) for b in drawn_weights(persistent)}


def test_what_workers_send_is_the_mix_they_drew(loader):
    for images, targets in loader(0, "0.5*mixup | 0.5*none"):
        own = (targets.weights * targets.classes).sum(1)
        torch.testing.assert_close(images[:, 0, 0, 0], own)


# Ranks


def test_what_is_sent_to_a_worker_knows_its_rank(monkeypatch):
    """A worker that is spawned has neither the process group nor, without a launcher, RANK in its environment."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(rng, "rank", lambda otherwise: 3)
    sent = pickle.dumps(Streams(1))
    monkeypatch.undo()
    monkeypatch.delenv("RANK", raising=False)
    assert pickle.loads(sent).lane() == 3
    monkeypatch.setenv("RANK", "2")
    assert pickle.loads(sent).lane() == 2


RANKS = """
import json, sys
import torch
from torch.utils.data import DataLoader, TensorDataset
import mixwell

def run(rank, folder, seed):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group{seed}", rank=rank, world_size=2)
    data = TensorDataset(torch.randn(24, 1, 4, 4), torch.arange(24))
    drawn = []
    for context, persistent in ((None, False), ("fork", False), ("fork", True), ("fork", False), ("spawn", False)):
        torch.manual_seed(0)  # the same on both ranks, as scripts often do
        recipe = mixwell.create("mixup", 24, seed=seed)
        options = {} if context is None else {"num_workers": 1, "multiprocessing_context": context}
        loader = DataLoader(data, 8, collate_fn=recipe.mix_batch, persistent_workers=persistent, **options)
        epochs = 1 if context == "spawn" else 2
        drawn.append([targets.weights[:, 0].tolist() for _ in range(epochs) for _, targets in loader])
    with open(f"{folder}/{seed}-{rank}.json", "w") as file:
        json.dump(drawn, file)
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.multiprocessing.start_processes(run, (sys.argv[1], int(sys.argv[2])), nprocs=2, start_method="fork")
"""


def test_ranks_epochs_and_workers_draw_differently_and_reproduce(tmp_path):
    """Two processes with the same global seed, without a launcher's environment."""
    (tmp_path / "ranks.py").write_text(RANKS, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}

    subprocess.run([sys.executable, tmp_path / "ranks.py", tmp_path, "5"], env=env, check=True, timeout=120)
    ranks = [json.loads((tmp_path / f"5-{rank}.json").read_text()) for rank in range(2)]
    for kind, batches in enumerate((6, 6, 6, 6, 3)):
        each = [tuple(batch) for rank in ranks for batch in rank[kind]]
        assert len(set(each)) == len(each) == 2 * batches
    assert [rank[1] for rank in ranks] == [rank[3] for rank in ranks]
