"""Searches: what goes on, what is never done twice, and what a search must not look at."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from mixwell import ParameterError, Recipe, RunError
from mixwell.bench.lock import locked
from mixwell.core.algebra import parse
from mixwell.data import Loader, load
from mixwell.search import SearchConfig, search
from mixwell.search.pool import usual
from mixwell.search.trials import judged_on
from mixwell.train import RunFolder, TrainConfig, train

BATCHES = 4  # of an epoch: 250 images, of which 50 judge


def found_in(config):
    return json.loads((config.out / "search.json").read_text())


def figures(found):
    """What a search came to, without times."""
    return [(trial.recipe, trial.rung, trial.value("nll")) for trial in found.ranking]


def test_halving_keeps_the_best_and_trains_within_the_budget(quick, digits, turns):
    config = quick("mixup", "cutmix", "mixup(alpha=0.1..2.0)", epochs=30)
    found = search(config, dataset=digits, progress=False)
    assert found.plan.rungs == (1, 2, 4)
    assert found.plan.epochs <= 30
    assert len(turns) == found.plan.epochs * BATCHES
    first, *others = found.plan.counts
    assert len(found.ranking) == first + 1
    for place, count in enumerate(others, 1):
        low, high = found.plan.rungs[place - 1 : place + 1]
        there = [trial for trial in found.ranking if trial.rung >= low and trial is not found.reference]
        on = [trial for trial in there if trial.rung >= high]
        assert len(on) == count
        left = [trial.value("accuracy", low) for trial in there if trial not in on]
        assert all(trial.value("accuracy", low) >= max(left, default=0) for trial in on)
    assert found.reference.rung == 4
    assert [trial.rung for trial in found.ranking] == sorted((trial.rung for trial in found.ranking), reverse=True)
    last = [trial.value("accuracy") for trial in found.ranking if trial.rung == 4]
    assert last == sorted(last, reverse=True)


def test_a_candidate_is_trained_as_one_that_is_judged_but_never_stopped(quick, digits, tmp_path):
    config = quick("mixup", "cutmix")
    found = search(config, dataset=digits, progress=False)
    whole = TrainConfig(**{**vars(found.best.config), "out": tmp_path / "whole"})
    result = train(whole, dataset=judged_on(digits, 0.2, 0), progress=False)
    assert result.accuracy == found.best.value("accuracy")
    assert result.nll == found.best.value("nll")
    run = RunFolder(found.best.config.folder).run()
    assert run["status"] == "finished"
    assert run["identity"]["data"].startswith("digits, judged on 0.2 of its training images: 200 + 50 images")


def test_held_out_images_are_training_images_that_are_not_trained_on(digits):
    data = judged_on(digits, 0.2, 0)
    rows = [{image.numpy().tobytes() for image, _ in part} for part in (data.train, data.test, digits.train)]
    assert rows[0] | rows[1] == rows[2]
    assert not rows[0] & rows[1]
    for share in (0.0, 1.0, -1, 2):
        with pytest.raises(ParameterError, match="held_out must be a share"):
            judged_on(digits, share, 0)


def test_the_same_search_again_trains_nothing_and_a_larger_one_only_what_is_new(quick, digits, turns):
    recipes = ("mixup", "mixup(alpha=0.1..2.0)")
    first = search(quick(*recipes, epochs=18), dataset=digits, progress=False)
    before = found_in(quick())
    turns.clear()
    again = search(quick(*recipes, epochs=18), dataset=digits, progress=False)
    assert turns == []
    assert [trial.recipe for trial in again.ranking] == [trial.recipe for trial in first.ranking]
    assert found_in(quick()) == before
    larger = search(quick(*recipes, epochs=30), dataset=digits, progress=False)
    trained = sum(len(trial.history) for trial in larger.ranking)
    assert len(turns) == (trained - first.plan.epochs) * BATCHES
    assert {trial.recipe for trial in first.ranking} < {trial.recipe for trial in larger.ranking}


def test_an_interrupted_search_goes_on_and_ends_as_one_that_was_not(quick, digits, turns, monkeypatch, capsys):
    recipes = ("mixup", "cutmix(alpha=[0.2, 1.0])", "mixup(alpha=0.1..2.0)")
    whole = search(quick(*recipes, epochs=20, out="whole"), dataset=digits, progress=False)
    turns.clear()
    after_step = Recipe.after_step

    def stop(self, model, clock=None):
        after_step(self, model, clock)
        if len(turns) == 9 * BATCHES + 2:  # amid an epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            search(quick(*recipes, epochs=20), dataset=digits)
    assert "the same command goes on" in capsys.readouterr().err
    assert found_in(quick())["finished"] is False
    found = search(quick(*recipes, epochs=20), dataset=digits, progress=False)
    assert len(turns) == whole.plan.epochs * BATCHES + 2
    assert figures(found) == figures(whole)
    assert found_in(quick())["finished"] is True


def test_all_that_is_drawn_is_new_and_within_its_range(quick, digits):
    config = quick(
        "cutmix(alpha=0.5..0.502)", "mixup(alpha=[0.5, 1.0])", longest=1, samples=6, train={"warmup_epochs": 0}
    )
    found = search(config, dataset=digits, progress=False)
    recipes = [trial.recipe for trial in found.ranking]
    assert len(set(recipes)) == len(recipes)
    assert {"none", "mixup(alpha=0.5)", "mixup(alpha=1.0)"} < set(recipes)
    rest = set(recipes) - {"none", "mixup(alpha=0.5)", "mixup(alpha=1.0)"}
    assert rest <= {"cutmix(alpha=0.5)", "cutmix(alpha=0.501)", "cutmix(alpha=0.502)"}
    assert len(rest) > 1


def test_tuning_tries_what_was_published_first(quick, digits):
    config = quick("mixup", longest=1, samples=3, tune=True, train={"warmup_epochs": 0})
    found = search(config, dataset=digits, progress=False)
    recipes = [trial.recipe for trial in found.ranking]
    assert len(recipes) == 4
    assert {"none", "mixup"} < set(recipes)
    assert found.left_out == ()
    for recipe in set(recipes) - {"none", "mixup"}:
        given = dict(parse(recipe).given)
        assert 0.1 <= given["alpha"] <= 4
        assert 0.3 <= given["prob"] <= 1
    small = quick("mixup", "cutmix", longest=1, epochs=2, tune=True, out="small", train={"warmup_epochs": 0})
    assert search(small, dataset=digits, progress=False).left_out == ("cutmix",)


@pytest.mark.parametrize("metric", ["nll", "ece"])
def test_other_metrics_are_better_if_smaller(quick, digits, metric):
    found = search(quick("mixup", "cutmix", longest=2, metric=metric, eta=2), dataset=digits, progress=False)
    last = [trial.value(metric) for trial in found.ranking if trial.rung == 2]
    assert len(last) == 2
    assert last == sorted(last)
    assert found_in(quick())["trials"][0][metric] == last[0]


def test_the_time_is_kept_and_more_of_it_goes_on(quick, digits, turns, monkeypatch):
    """By a clock on which every batch takes a minute: of 30, the first rung has 4/9·30 and an epoch takes 4."""
    monkeypatch.setattr("mixwell.search.run.time.monotonic", lambda: 60.0 * len(turns))
    recipes = ("mixup", "cutmix", "resizemix", "fmix", "mixup(alpha=0.5..2.0)")
    config = quick(*recipes, epochs=None, minutes=30.0)
    found = search(config, dataset=digits, progress=False)
    assert found.out_of_time
    assert len(turns) == 32  # the epoch in which the time ended was finished
    assert len(found.ranking) == 4
    assert found.left_out == ("fmix", "mixup(alpha=0.5..2.0)")
    assert found_in(config)["out_of_time"] is True
    before = figures(found)
    assert figures(search(config, dataset=digits, progress=False)) == before
    assert len(turns) == 32
    found = search(quick(*recipes, epochs=None, minutes=1000.0, samples=2), dataset=digits, progress=False)
    assert not found.out_of_time
    assert found.left_out == ()
    assert sum(len(trial.history) for trial in found.ranking) * BATCHES == len(turns)


def test_a_training_that_the_time_ends_amid_a_rung_is_not_gone_on_with_before_there_is_more(
    quick, digits, turns, monkeypatch
):
    """As above: none and mixup take 8 minutes to epoch 1 and 16 to epoch 2; the 19 end in mixup's third."""
    monkeypatch.setattr("mixwell.search.run.time.monotonic", lambda: 60.0 * len(turns))
    config = quick("mixup", epochs=None, minutes=19.0)
    for _ in range(2):
        found = search(config, dataset=digits, progress=False)
        assert found.out_of_time
        assert [trial.rung for trial in found.ranking] == [2, 2]
        assert {trial.recipe: len(trial.history) for trial in found.ranking} == {"mixup": 3, "none": 2}
        assert len(turns) == 20
    found = search(quick("mixup", epochs=None, minutes=32.0), dataset=digits, progress=False)
    assert not found.out_of_time
    assert [len(trial.history) for trial in found.ranking] == [4, 4]
    assert len(turns) == 32


def test_a_candidate_that_fails_does_not_stop_the_others(quick, digits, monkeypatch):
    def failing(config, **options):
        if config.recipe == "cutmix":
            raise RunError("loss is not finite")
        return train(config, **options)

    monkeypatch.setattr("mixwell.search.run.train", failing)
    found = search(quick("cutmix", "mixup"), dataset=digits, progress=False)
    assert [trial.recipe for trial in found.failed] == ["cutmix"]
    assert {trial.recipe for trial in found.ranking} == {"none", "mixup"}
    assert found_in(quick())["trials"][-1]["failed"] == "loss is not finite"


def test_a_reference_that_fails_ends_the_search(quick, digits):
    with pytest.raises(RunError, match=r"The reference 'none' cannot be trained, so nothing can: .*not finite"):
        search(quick("mixup", train={"lr": 1e30}), dataset=digits, progress=False)


def test_a_network_of_ones_own(quick, digits):
    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

    config = quick("mixup", longest=1, train={"warmup_epochs": 0})
    found = search(config, dataset=digits, network=network, progress=False)
    torch.manual_seed(5)
    again = search(quick("mixup", longest=1, out="b", train={"warmup_epochs": 0}), dataset=digits, network=network)
    assert figures(found) == figures(again)
    assert RunFolder(found.best.config.folder).run()["parameters"] == 2570
    with pytest.raises(ParameterError, match=r"cutmix \+ transmix: .*no self-attention"):
        search(quick("cutmix + transmix"), dataset=digits, network=network, progress=False)


def test_the_usual_candidates_train_on_the_network_without_preparing(digits, quick, monkeypatch):
    base, data = quick().train, judged_on(digits, 0.2, 0)
    convolutional = [each.text for each in usual(base, data)]
    assert convolutional[:3] == ["mixup", "cutmix", "0.5*mixup | 0.5*cutmix"]
    assert len(set(convolutional)) == len(convolutional) > 40
    assert not {"none", "transmix", "cutmix + transmix", "decouplemix", "pixmix", "supermix"} & set(convolutional)
    monkeypatch.setattr("mixwell.search.pool.methods", lambda: ["tokenmixup", "tokenmix"])
    transformer = {each.text for each in usual(dataclasses.replace(base, model="vit-s"), data)}
    assert {"cutmix + transmix", "tokenmixup"} < transformer
    assert "tokenmix" not in transformer  # which trains a teacher first


def test_what_cannot_be_is_refused_with_every_reason_before_a_folder_is_made(quick, digits, tmp_path):
    config = quick("cutmx", "mixup(alpha=-1.0..2.0)", "mixup", "transmix", "cutmix(prob=0.5..1.5)")
    with pytest.raises(ParameterError) as refusal:
        search(config, dataset=digits, progress=False)
    text = str(refusal.value)
    assert "cutmx: Unknown method" in text
    assert "mixup(alpha=-1.0..2.0): " in text
    assert "cutmix(prob=0.5..1.5): prob must be a number in [0, 1], got 1.5" in text
    assert "transmix: " in text
    assert "- mixup: " not in text
    with pytest.raises(ParameterError, match="too small"):
        search(quick("mixup", epochs=7), dataset=digits, progress=False)
    with pytest.raises(ParameterError, match="nothing to compare with none"):
        search(quick("none"), dataset=digits, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_another_search_in_the_folder_and_a_damaged_one_are_refused(quick, digits):
    config = quick("mixup", longest=1, train={"warmup_epochs": 0})
    search(config, dataset=digits, progress=False)
    with pytest.raises(RunError, match=r"held_out is 0\.3, was 0\.2"):
        search(dataclasses.replace(config, held_out=0.3), dataset=digits, progress=False)
    with locked(config.out / "search.lock"), pytest.raises(RunError, match="Another process searches"):
        search(config, dataset=digits, progress=False)
    (config.out / "search.json").write_text('{"settings": {}')
    with pytest.raises(RunError, match=r"search.json is damaged"):
        search(config, dataset=digits, progress=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "one budget, epochs or minutes, got neither"),
        ({"epochs": 10, "minutes": 1.0}, "got both"),
        ({"minutes": 0.0}, "minutes must be a number"),
        ({"epochs": 0}, "epochs must be a whole number >= 1"),
        ({"epochs": 9, "samples": 0}, "samples must be"),
        ({"epochs": 9, "metric": "f1"}, "metric must be one of accuracy, nll, ece"),
        ({"epochs": 9, "sampler": "grid"}, "sampler must be one of tpe, random"),
    ],
)
def test_settings_that_cannot_be(changes, reason):
    with pytest.raises(ParameterError, match=reason):
        SearchConfig(**changes)


def test_held_out_images_are_not_augmented():
    augmented = judged_on(load("digits", size=16, augment="crop-flip", augment_options={"erase": 1.0}), 0.2, 0)
    plain = judged_on(load("digits", size=16), 0.2, 0)

    def same(one, other):
        batches = (next(Loader(part, 50, pixels=plain.pixels, shuffle=False).epoch(0)) for part in (one, other))
        return torch.equal(*(batch.images for batch in batches))

    assert same(augmented.test, plain.test)
    assert not same(augmented.train, plain.train)
