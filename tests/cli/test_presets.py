"""Published trainings on the command line."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len

from mixwell.presets import families, preset, presets


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [80, 160])
def test_the_list_has_every_preset_and_its_figure(run, columns):
    found = run("list", "--presets", columns=columns)
    assert (found.code, found.err) == (0, "")
    assert max(cell_len(line.rstrip()) for line in found.out.splitlines()) <= columns
    rows = {line.split()[0]: line for line in found.out.splitlines() if line.startswith("  ") and line[2:3].strip()}
    assert set(rows) >= set(presets())
    for name in presets():
        assert f"{preset(name).accuracy:.2f}%" in rows[name]
    assert f"{len(presets())} presets" in found.out


def test_the_list_is_narrowed_by_words(run):
    found = run("list", "--presets", "imagenet-resnet50", "puzzlemix", "--json")
    names = [entry["name"] for entry in json.loads(found.out)]
    assert names == [name for name in presets() if name.startswith("imagenet-resnet50") and name.endswith("puzzlemix")]
    assert len(names) == 4


def test_json_gives_all_that_is_known(run):
    entries = json.loads(run("list", "--presets", "--json").out)
    assert [entry["name"] for entry in entries] == presets()
    for entry in entries:
        assert entry["fields"]["recipe"] == entry["recipe"]
        assert entry["source"]["citation"]
        assert "M passes (estimate)" in entry["cost"] or "h (published)" in entry["cost"]


def test_words_that_no_preset_has(run):
    found = run("list", "--presets", "cifar100-resnet18-2000")
    assert (found.code, found.out) == (1, "")
    assert "did you mean 'cifar100-resnet18-200'" in words(found.err)


@pytest.mark.parametrize("family", families())
def test_the_page_of_a_preset(run, family):
    name = next(name for name in presets() if name.startswith(f"{family}/"))
    found = run("show", "--preset", name)
    each, text = preset(name), words(found.out)
    assert (found.code, found.err) == (0, "")
    assert text.startswith(f"{name} {each.title}")
    assert f"{each.accuracy:.2f}, {each.reported}" in text
    assert words(each.source.citation) in text
    for difference in each.differs:
        assert words(difference) in text
    for field, value in each.fields.items():
        row = next(line for line in found.out.splitlines() if line.startswith(f"  {field} "))
        assert str(value).split()[0].partition("-")[0] in row
    assert f"mixwell train --preset {name}" in text


def test_show_wants_something_to_show(run):
    found = run("show")
    assert (found.code, found.out) == (2, "")
    assert "--preset NAME" in found.err


@pytest.mark.parametrize("command", ["train", "show"])
def test_an_unknown_preset_gets_the_closest(run, command):
    found = run(command, "--preset", "cifar100-resnet18-200/puzzelmix")
    assert (found.code, found.out) == (1, "")
    assert "did you mean 'puzzlemix'" in words(found.err)


def test_a_preset_without_a_name_is_wrong_usage(run):
    found = run("train", "--preset")
    assert (found.code, found.out) == (2, "")
    assert "--preset" in found.err


@pytest.mark.parametrize(
    "given", [("--preset", "cifar100-resnet18-200/cutmix"), ("--preset=cifar100-resnet18-200/cutmix",)]
)
def test_a_training_takes_the_preset_and_options_go_before_it(run, tmp_path, given):
    folder = tmp_path / "run"
    smaller = ("--data", "digits", "--model", "cnn-s", "--epochs", "1", "--batch-size", "200", "--out", str(folder))
    found = run("train", *smaller, *given, "--lr", "0.05")
    assert found.code == 0
    config = json.loads((folder / "run.json").read_text())["config"]
    published = preset("cifar100-resnet18-200/cutmix").fields
    changed = {"data": "digits", "model": "cnn-s", "epochs": 1, "batch_size": 200, "lr": 0.05}
    assert config.items() >= {**published, **changed}.items()


def test_the_help_shows_the_presets_values(run):
    help_of = words(run("train", "--preset", "cifar100-resnet18-200/cutmix", "--help", columns=200).out)
    assert "(default: resnet18-cifar)" in help_of
    assert "(default: 200)" in help_of
