"""What a recipe needs is made by the training itself, once for its images, in one process of several."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mixwell import Recipe, create
from mixwell.data import Loader, from_datasets, load
from mixwell.sample.linear.djmix import VQReconstruction
from mixwell.train import train
from mixwell.train.prepare import needs_preparing, prepare

RECIPE = "djmix(channels=4, codes=8, dim=4, epochs=2)"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache of the test's own; its files."""
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path / "cache"))
    return lambda: {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*")}


def test_only_recipes_that_make_something_need_preparing():
    assert needs_preparing(create("0.5*mixup | 0.5*(cutmix + djmix)"))
    assert not needs_preparing(create("cutmix + transmix"))


def test_the_training_prepares_once_for_its_images(quick, digits, cache, capsys):
    for seed in (0, 1):
        config = quick(f"run{seed}", recipe=RECIPE, seed=seed, epochs=1, batch_size=60 + seed)
        result = train(config, dataset=digits)
        assert "djmix" in result.history[0]["parts"]
        assert ("Making the VQ auto-encoder" in capsys.readouterr().err) == (seed == 0)
    assert len(cache()) == 1
    part = digits.train.subset(np.arange(0, 300, 2), augment=None)
    half = from_datasets(part, digits.test, pixels=digits.pixels, name=digits.name)
    train(quick("half", recipe=RECIPE, epochs=1), dataset=half, progress=False)
    assert len(cache()) == 2


def test_preparing_before_the_training_makes_what_the_training_takes(quick, digits, cache):
    recipe, told = create(RECIPE, pixels=digits.pixels), []
    prepare(recipe, digits, progress=lambda *words: told.append(words))
    assert [words[1:] for words in told] == [(0, 2), (1, 2), (2, 2)]
    before = cache()
    train(quick(recipe=RECIPE, epochs=1), dataset=digits, progress=False)
    assert cache() == before


def test_a_recipe_that_needs_nothing_reads_nothing(digits, cache, monkeypatch):
    monkeypatch.setattr(Recipe, "prepare", None)
    prepare(create("cutmix"), digits)
    assert not cache()


def test_a_resumed_run_ends_with_the_same_bits_though_the_cache_was_lost(
    quick, digits, cache, stops, outcome, tmp_path
):
    train(quick("whole", recipe=RECIPE), dataset=digits, progress=False)

    def stop():
        raise ZeroDivisionError

    stops(8, stop)
    config = quick("resumed", recipe=RECIPE, checkpoint_steps=4)
    with pytest.raises(ZeroDivisionError):
        train(config, dataset=digits, progress=False)
    for path in (tmp_path / "cache").glob("*"):
        path.unlink()
    train(config, dataset=digits, progress=False)
    assert outcome(config.folder) == outcome(quick("whole").folder)


@pytest.mark.parametrize("augment", [None, "crop-flip", "rrc-flip"])
def test_every_image_can_be_seen_without_augmentation_beside_its_index(augment, cache, monkeypatch):
    data = load("digits", size=16, channels=1, augment=augment)
    seen = {}
    monkeypatch.setattr(VQReconstruction, "prepare", lambda self, shop: seen.update(shop=shop))
    prepare(create(RECIPE, pixels=data.pixels), data)
    shop = seen["shop"]
    assert shop.rows == len(data.train)
    index = torch.cat([batch.index for batch in shop.originals()])
    assert torch.equal(index, torch.arange(len(data.train)))
    raw = torch.cat([batch.raw for batch in shop.originals()])
    assert torch.equal((raw * 255).round().to(torch.uint8), data.train.images)
    augmented = torch.cat([batch.raw for batch in shop.batches()])
    order = torch.cat([batch.index for batch in shop.batches()])
    assert torch.allclose(augmented, raw[order], atol=1e-5) == (augment is None)


def test_the_same_images_in_another_order_are_other_data(digits, cache):
    prepare(create(RECIPE, pixels=digits.pixels), digits)
    rows = np.arange(300)
    looked_at = next(Loader(digits.train, 64, pixels=digits.pixels).epoch(0)).index.numpy()
    others = np.setdiff1d(rows, looked_at)
    labels = digits.train.labels.numpy()
    first, second = others[0], next(row for row in others if labels[row] != labels[others[0]])
    rows[[first, second]] = second, first
    prepare(
        create(RECIPE, pixels=digits.pixels),
        from_datasets(digits.train.subset(rows, augment=None), digits.test, pixels=digits.pixels, name=digits.name),
    )
    assert len(cache()) == 2


SCRIPT = """
import sys
from pathlib import Path
import torch
from mixwell import Trainee
from mixwell.core.artefacts import Workshop
from mixwell.train import TrainConfig, train

made, nets, original, forward = [], [], Workshop.made, Trainee.forward

def counting(self, kind, settings, make):
    return original(self, kind, settings, lambda: (made.append(kind), make())[1])

def spy(self, *args):
    nets[:] = [{n: p.clone() for n, p in self.recipe.state_dict().items() if isinstance(p, torch.Tensor)}]
    return forward(self, *args)

Workshop.made, Trainee.forward = counting, spy
train(TrainConfig(recipe=sys.argv[1], data="digits", data_options={"size": 16, "channels": 1}, epochs=1, threads=1,
                  batch_size=200, out=Path("run")), progress=False)
torch.save({"made": made, "net": nets[0]}, f"{torch.distributed.get_rank()}.pt")
torch.distributed.destroy_process_group()
"""


def test_one_of_two_processes_makes_it_and_both_take_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launch, "script.py", RECIPE],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MIXWELL_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (one["made"], two["made"]) == (["vq-autoencoder"], [])
    codebooks = [name for name in one["net"] if name.endswith("codebook")]
    assert codebooks
    assert all(torch.equal(one["net"][name], two["net"][name]) for name in one["net"] if "autoencoder" in name)
