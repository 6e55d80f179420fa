"""Two processes: different mixes, equal weights, also of what the recipe owns and of further players."""

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from filelock import FileLock

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from mixwell import Pieces, Recipe, Trainee, method
from mixwell.core.axes import Term
from mixwell.train import TrainConfig, train

class Head(Term):
    '''A classifier of the logits, which the recipe owns.'''

    def build(self, anatomy, num_classes):
        self.of_logits = nn.Linear(num_classes, num_classes)

    def value(self, step, targets, criterion):
        return criterion(self.of_logits(step.outputs.logits), targets)

@method("owned_head", section="0", paper="", venue="")
def owned_head() -> Pieces:
    return Pieces(essential=Head())

forward, after_step = Trainee.forward, Recipe.after_step
seen, last, stop = [], {}, None

def spy(self, *args):
    turn = forward(self, *args)
    if turn.group == "main":
        seen.append(turn.targets.weights.detach().clone())
    last.update({f"recipe.{n}": p.detach().clone() for n, p in self.recipe.named_parameters()})
    last["model"] = self.model
    return turn

def stopping(self, model, clock=None):
    after_step(self, model, clock)
    if clock.step == stop:
        raise ZeroDivisionError

Trainee.forward, Recipe.after_step = spy, stopping
common = dict(data="digits", data_options={"size": 16, "channels": 1}, epochs=2, threads=1, lr=0.05)
recipes = {
    "plain": "cutmix",
    "owned": "0.5*none | 0.5*(mixup + owned_head)",
    "players": "0.4*amr(update_g_every=3) | 0.3*camixup | 0.3*metamixup",
    "hidden": "0.4*(patchup(prob=1.0) + mixstyle(prob=1.0)) | 0.3*gradsalmix(prob=1.0) | 0.3*(cutmix + moex)",
}
for name, recipe in recipes.items():
    until = 1.5 if name == "owned" else None
    for out, at in ((name, None), (f"{name}-resumed", 9)):
        config = TrainConfig(recipe=recipe, out=Path(out), checkpoint_steps=4, mix_until=until, **common)
        stop = at
        if at is not None:
            try:
                train(config, progress=False)
                raise SystemExit("did not stop")
            except ZeroDivisionError:
                stop = None
        seen.clear()
        last.clear()
        result = train(config, progress=False)
        rank = torch.distributed.get_rank()
        model = {n: t.detach().clone() for n, t in last.pop("model").state_dict().items()}
        torch.save({"model": model, "recipe": last, "mixes": seen, "accuracy": result.accuracy,
                    "history": [r["loss"] for r in result.history]}, f"{out}.{rank}.pt")
torch.distributed.destroy_process_group()
"""


RUNS = ["plain", "owned", "players", "hidden"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes ended with, by the name of the run."""
    shared = "PYTEST_XDIST_WORKER" in os.environ  # the workers of one session have folders side by side
    folder = tmp_path_factory.getbasetemp().parent / "ranks" if shared else tmp_path_factory.mktemp("ranks")
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            _run_both(folder)

    def read(name):
        return [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1)]

    read.folder = folder
    return read


def _run_both(folder):
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "done").touch()


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_mix_differently_and_keep_equal_weights(ranks, name):
    one, two = ranks(name)
    assert len(one["mixes"]) == len(two["mixes"]) == 14
    assert any(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(one["mixes"], two["mixes"], strict=True))
    assert one["accuracy"] == two["accuracy"]
    assert one["history"] == two["history"]
    stored = safetensors.torch.load_file(ranks.folder / name / "weights.safetensors")
    for key, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][key]), key
        assert torch.equal(tensor, stored[key]), key


def test_players_keep_equal_weights_and_each_moves(ranks):
    """An auto-encoder that is stepped in every third step, a critic in each, both with optimisers of their own."""
    one, two = ranks("players")
    assert any("critic" in key for key in one["recipe"])
    for key, tensor in one["recipe"].items():
        assert torch.equal(tensor, two["recipe"][key]), key


def test_an_owned_head_is_trained_alike_though_half_of_the_batches_do_not_use_it(ranks):
    one, two = ranks("owned")
    assert one["recipe"]
    for key, tensor in one["recipe"].items():
        assert torch.equal(tensor, two["recipe"][key]), key
    assert {mix.shape[1] for mix in one["mixes"]} == {1, 2}
    assert [a.shape for a in one["mixes"]] == [b.shape for b in two["mixes"]]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_resume_to_the_same_bits(ranks, name):
    whole, resumed = ranks(name)[1], ranks(f"{name}-resumed")[1]
    assert len(resumed["mixes"]) < len(whole["mixes"])
    for part in ("model", "recipe"):
        for key, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][key]), key
    assert whole["history"] == resumed["history"]
