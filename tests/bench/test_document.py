"""What a file says, what goes before what, and that everything that is wrong is said at once."""

from pathlib import Path

import pytest

from mixwell import ParameterError
from mixwell.bench import Changes, bench_of, read_bench
from mixwell.train import TrainConfig

CELLS = {"recipes": ["none"]}


def test_recipes_by_networks_by_data_by_seeds_with_seeds_last():
    bench = bench_of(
        {
            "title": "All",
            "seeds": [3, 1],
            "train": {"epochs": 2, "warmup_epochs": 1},
            "cells": [
                {"recipes": ["none", "mixup( alpha = 1 )"], "models": ["cnn-s", "vit-s"], "data": ["digits"]},
                {"recipes": ["transmix"], "models": ["vit-s"], "seeds": [7], "train": {"lr": 1}},
            ],
        },
        Path("here/all.toml"),
    )
    assert bench.title == "All"
    assert bench.out == Path("here/all")
    found = [(cell.config.recipe, cell.config.model, cell.config.data, cell.config.seed) for cell in bench.cells]
    first = [(recipe, model, "digits") for model in ("cnn-s", "vit-s") for recipe in ("none", "mixup(alpha=1)")]
    assert found == [
        *((*each, 3) for each in first),
        ("transmix", "vit-s", "fashion-mini", 7),
        *((*each, 1) for each in first),
    ]
    assert {(cell.config.epochs, cell.config.warmup_epochs) for cell in bench.cells} == {(2, 1.0)}
    assert not any(cell.keep_weights or cell.evaluate for cell in bench.cells)


def test_a_cell_is_the_run_that_the_train_command_would_make():
    (cell,) = bench_of({"cells": [CELLS], "train": {"lr": 1, "data": "digits"}}, Path("here/all.toml")).cells
    same = TrainConfig(recipe="none", lr=1.0, data="digits")
    assert cell.config.hash == same.hash
    assert cell.folder == Path("here/all") / same.folder.name
    assert cell.name.endswith(same.hash)


def test_the_closer_a_field_stands_to_a_recipe_the_more_it_counts(monkeypatch):
    monkeypatch.setattr("mixwell.bench.document.misfits", lambda cells: [])

    def lr_of(recipe, model, data, table, shared, option=None):
        def item(axis, name, lr):
            return {axis: name} if lr is None else {axis: name, "lr": lr}

        cells = {
            "recipes": [item("recipe", "none", recipe)],
            "models": [item("model", "cnn-s", model)],
            "data": [item("data", "digits", data)],
            "train": {} if table is None else {"lr": table},
        }
        document = {"cells": [cells], "train": {} if shared is None else {"lr": shared}}
        changes = Changes(train={} if option is None else {"lr": option})
        (cell,) = bench_of(document, Path("all.toml"), changes).cells
        return cell.config.lr

    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    for hidden in range(5):
        assert lr_of(*[None] * hidden, *values[hidden:]) == values[hidden]
    assert lr_of(*values, 6.0) == 6.0


def test_two_tables_may_name_one_cell():
    assert len(bench_of({"cells": [CELLS, CELLS]}, Path("all.toml")).cells) == 1


def test_everything_that_is_wrong_is_said_at_once(evaluations):
    document = {
        "titel": "x",
        "keep_weights": "no",
        "train": {"epoch": 3, "lr": "high", "seed": 4, "data": "digits", "augment": "flip", "decay_milestones": [1.5]},
        "evaluate": {"parts": ["clean", "oood"], "sed": 1},
        "cells": [
            {"recipes": ["cutmx", "mixup + cutmix", {"recipe": "none", "lr": -1.0}, {"lr": 1.0}, 3]},
            {"recipes": ["transmix"], "models": ["cnn-s", "vit-x"], "seed": [1], "data": "digits"},
            {"recipes": ["none"], "data": ["dgits"], "seeds": [-1]},
            {"models": ["cnn-s"]},
        ],
    }
    with pytest.raises(ParameterError) as caught:
        bench_of(document, Path("all.toml"))
    told = str(caught.value)
    for words in (
        "the file has no key 'titel'; did you mean 'title'?",
        "keep_weights must be true or false, got 'no'",
        "[train]: a training has no field 'epoch'; did you mean 'epochs'",
        "[train]: lr must be a number, got 'high'",
        "[train]: seed does not stand here. Name seeds at the top",
        "[train]: augment must be 'crop-flip' or 'rrc-flip', got 'flip'",
        "[train]: decay_milestones must be a list, each item a whole number, got [1.5]",
        "[evaluate] has no key 'sed'; did you mean 'seed'?",
        "[evaluate] has no part 'oood'; did you mean 'ood'?",
        "[[cells]] 1, cutmx: Unknown method 'cutmx': did you mean 'cutmix'",
        "[[cells]] 1, none: lr must be a number in (0, inf), got -1.0",
        "[[cells]] 1: an item of recipes must be a text or a table with recipe, got {'lr': 1.0}",
        "[[cells]] 1: an item of recipes must be a text or a table with recipe, got 3",
        "[[cells]] 2 has no key 'seed'; did you mean 'seeds'?",
        "[[cells]] 2: data must be a list, got 'digits'",
        "[[cells]] 3: seeds must be a list of whole numbers >= 0, got [-1]",
        "[[cells]] 4 names no recipes",
        "mixup + cutmix (digits, cnn-s): mixup and cutmix both decide the blend",
    ):
        assert words in told, words
    assert f"{told.count(chr(10) + '  - ')} things are wrong" in told
    assert evaluations == []


def test_what_does_not_fit_together_is_said_once_per_reason():
    document = {
        "seeds": [0, 1],
        "train": {"data": "digits"},
        "cells": [
            {"recipes": ["transmix", "none"], "models": ["cnn-s", "vit-x"]},
            {"recipes": ["mixup", "none"], "data": ["dgits"]},
        ],
    }
    with pytest.raises(ParameterError) as caught:
        bench_of(document, Path("all.toml"))
    first, *lines = str(caught.value).splitlines()
    assert first == "all.toml cannot be run, 3 things are wrong:"
    assert lines[0].startswith("  - transmix (digits, cnn-s): transmix: CNNS has no self-attention")
    assert lines[1].startswith("  - transmix (digits, vit-x), none (digits, vit-x): unknown network 'vit-x'")
    assert lines[2].startswith("  - mixup (dgits), none (dgits): Unknown data set 'dgits': did you mean 'digits'?")


def test_cells_that_were_begun_are_not_checked_again(tiny, monkeypatch):
    bench = tiny('[[cells]]\nrecipes = ["none", "mixup"]')
    bench.cells[0].folder.mkdir(parents=True)
    (bench.cells[0].folder / "run.json").write_text("{}")
    seen = []
    monkeypatch.setattr("mixwell.bench.check.check", lambda config, dataset: seen.append(config.recipe))
    tiny('[[cells]]\nrecipes = ["none", "mixup"]')
    assert seen == ["mixup"]


def test_an_evaluation_is_what_is_said_and_else_the_default(evaluations):
    def evaluate_of(table):
        document = {"cells": [{**CELLS, "data": ["digits"]}], "evaluate": table}
        return bench_of(document, Path("all.toml")).cells[0].evaluate

    assert evaluate_of({}) == {"parts": ["clean", "ood", "cost"], "seed": 0, "images": None}
    assert evaluate_of({"parts": ["ood"], "seed": 3}) == {"parts": ["ood"], "seed": 3, "images": None}
    with pytest.raises(ParameterError, match="has no key 'anew'"):
        evaluate_of({"anew": True})


def test_changes_restrict_and_replace(tiny):
    text = '[[cells]]\nrecipes = ["none", "mixup + decouplemix"]\nmodels = ["cnn-s", "vit-s"]\nseeds = [0, 1, 2]'
    changes = Changes(
        only={"recipes": ("mixup+decouplemix",), "models": ("cnn-s",)},
        seeds=(5,),
        train={"epochs": 3},
        out=Path("elsewhere"),
        keep_weights=True,
    )
    (cell,) = tiny(text, changes).cells
    config = cell.config
    assert (config.recipe, config.model, config.seed) == ("mixup + decouplemix", "cnn-s", 5)
    assert (config.epochs, cell.folder.parent, cell.keep_weights) == (3, Path("elsewhere"), True)
    with pytest.raises(ParameterError, match="no cell has the recipe 'cutmix'"):
        tiny(text, Changes(only={"recipes": ("cutmix",)}))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"none\.toml cannot be read"):
        read_bench(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seeds = [0, 1\ntitle = 3\n")
    with pytest.raises(ParameterError, match=r"bad\.toml cannot be read.*line 2"):
        read_bench(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ParameterError, match=r"one thing is wrong:\n.*no \[\[cells\]\]"):
        read_bench(tmp_path / "empty.toml")
