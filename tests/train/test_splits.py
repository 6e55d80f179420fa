"""Trainings whose recipe looks at held-out images, learns before each epoch, or has further players."""

import signal

import pytest

from mixwell import Recipe
from mixwell.core.errors import ParameterError
from mixwell.data import load
from mixwell.train import Run, train, trained

LOOKING = [
    *("metamixup", "camixup", "genlabel(density=kde)", "genlabel(covariance=shared)", "adamixup"),
    *("amr(update_g_every=3)", "automix_barycenter", "samix(stage=1)", "adautomix(stage=1)"),
]


@pytest.mark.matrix(keep=8)
@pytest.mark.parametrize("recipe", LOOKING)
@pytest.mark.parametrize("step", [9, 14], ids=["within an epoch", "late"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(quick, digits, outcome, stops, recipe, step):
    changes = {"recipe": recipe, "batch_size": 30, "checkpoint_steps": 4}
    train(quick("whole", **changes), dataset=digits, progress=False)
    stops(step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(quick(**changes), dataset=digits, progress=False)
    train(quick(**changes), dataset=digits, progress=False)
    assert outcome(quick().folder) == outcome(quick("whole").folder)


def test_a_tenth_is_held_out_for_recipes_that_ask(quick, digits, turns):
    train(quick(recipe="metamixup", epochs=1, batch_size=1000), dataset=digits, progress=False)
    assert len(turns[0].targets) == 270
    turns.clear()
    train(quick("less", recipe="metamixup", held_out=0.5, epochs=1, batch_size=1000), dataset=digits, progress=False)
    assert len(turns[0].targets) == 150


def test_others_hold_out_what_they_are_told(quick, digits, turns):
    """So that recipes are compared on the same images."""
    train(quick(recipe="mixup", epochs=1, batch_size=1000), dataset=digits, progress=False)
    assert len(turns[0].targets) == 300
    turns.clear()
    train(quick("less", recipe="mixup", held_out=0.1, epochs=1, batch_size=1000), dataset=digits, progress=False)
    assert len(turns[0].targets) == 270


def test_nothing_held_out_is_refused(quick, digits):
    with pytest.raises(ParameterError, match="metamixup looks at held-out images"):
        train(quick(recipe="metamixup", held_out=0.0), dataset=digits, progress=False)
    with pytest.raises(ParameterError, match="held_out"):
        quick(held_out=1.0)


def test_held_out_images_are_never_trained_on(quick, digits, monkeypatch):
    trained, kept = set(), set()
    turns = Recipe.turns

    def spy(self, model, images, labels=None, **options):
        data = self._progress.data
        kept.update(tuple(image.flatten().tolist()) for batch in data.held_out() for image in batch.images)
        trained.update(tuple(image.flatten().tolist()) for image in images.images)
        return turns(self, model, images, labels, **options)

    monkeypatch.setattr(Recipe, "turns", spy)
    train(quick(recipe="metamixup", epochs=1), dataset=digits, progress=False)
    assert len(kept) == 30
    assert len(trained) == 270
    assert not kept & trained


def test_statistics_are_learnt_before_each_epoch_of_the_mix(quick, digits, monkeypatch):
    clocks = []
    monkeypatch.setattr(Recipe, "before_epoch", lambda self, model, clock: clocks.append((clock.epoch, clock.step)))
    train(quick(recipe="mixup", epochs=3, mix_until=2), dataset=digits, progress=False)
    assert clocks == [(0, 0), (1, 6)]


def test_wrong_labels_are_trained_on_and_held_out_and_never_tested(quick, digits, monkeypatch):
    true = {tuple(image.flatten().tolist()): int(label) for image, label in digits.train}
    seen = {"trained": {}, "kept": {}}

    def note(where, batch):
        for image, label in zip(batch.pixels.raw(batch.images), batch.labels.tolist(), strict=True):
            seen[where][tuple((image * 255).round().int().flatten().tolist())] = label

    turns = Recipe.turns

    def spy(self, model, images, labels=None, **options):
        note("trained", images)
        for batch in self._progress.data.held_out():
            note("kept", batch)
        return turns(self, model, images, labels, **options)

    monkeypatch.setattr(Recipe, "turns", spy)
    changes = {"recipe": "metamixup", "held_out": 0.2, "label_noise": 0.4, "epochs": 1, "warmup_epochs": 0}
    train(quick(**changes), dataset=digits, progress=False)
    labels = {**seen["trained"], **seen["kept"]}
    assert [len(each) for each in seen.values()] == [240, 60]
    assert sum(labels[image] != label for image, label in true.items()) == 120
    assert 10 < sum(seen["kept"][image] != true[image] for image in seen["kept"]) < 40


def test_a_trained_network_comes_with_the_labels_that_it_was_trained_on(quick):
    config = quick(label_noise=0.4, data_options={"size": 16}, epochs=1, seed=2, batch_size=200)
    train(config, progress=False)
    wrong = trained(Run.read(config.folder)).data.train.labels != load("digits").train.labels
    assert int(wrong.sum()) == 560
