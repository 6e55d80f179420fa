"""Results that can be had again, and such that cannot."""

import json
import re

import pytest

from mixwell import ParameterError
from mixwell.bench import run, verify
from mixwell.bench.verification import differences
from mixwell.train import RunFolder

TEXT = '[evaluate]\n[[cells]]\nrecipes = ["none", "mixup", "cutmix"]\nseeds = [0, 1]'


def test_a_bench_is_verified_to_the_last_digit(tiny, evaluations):
    bench = tiny(TEXT)
    with pytest.raises(ParameterError, match="nothing to verify"):
        verify(bench, 1)
    run(bench, progress=False)
    evaluations.clear()
    verdicts = verify(bench, 2)
    assert len({verdict.cell.name for verdict in verdicts}) == 2
    assert [verdict.differences for verdict in verdicts] == [(), ()]
    assert all(verdict.figures > 12 for verdict in verdicts)
    assert [call["parts"] for call in evaluations] == [["clean", "ood"]] * 2
    assert not any(bench.out in call["path"].parents for call in evaluations)
    chosen = {tuple(verdict.cell.name for verdict in verify(bench, 1, seed)) for seed in range(5)}
    assert len(chosen) > 1


def test_a_digit_that_differs_is_found_wherever_it_stands(tiny, evaluations):
    bench = tiny(TEXT.replace("seeds = [0, 1]", "").replace('"none", "mixup", ', ""))
    run(bench, progress=False)
    (cell,) = bench.cells
    folder = RunFolder(cell.folder)
    facts, history, path = folder.run(), folder.history(), cell.folder / "evaluation.json"
    evaluation = json.loads(path.read_text())
    nll, loss, clean = facts["result"]["nll"], history[0]["loss"], evaluation["clean"]["accuracy"]
    elsewhere = {"versions": {"torch": "0"}, "processor": "abacus"}
    folder.describe({**facts, "result": {**facts["result"], "nll": nll * (1 + 1e-15)}, **elsewhere})
    folder.write_history([{**history[0], "loss": loss * (1 + 1e-15), "seconds": 1e9}])
    evaluation["clean"]["accuracy"] += 1e-9
    evaluation["cost"] = {"seconds": -1}
    path.write_text(json.dumps(evaluation))
    (verdict,) = verify(bench, 5)
    assert verdict.differences == (
        f"result.nll is {nll!r}, was {nll * (1 + 1e-15)!r}",
        f"history[0].loss is {loss!r}, was {loss * (1 + 1e-15)!r}",
        f"evaluation.clean.accuracy is {clean!r}, was {clean + 1e-9!r}",
    )
    assert any(change.startswith("torch is") for change in verdict.changes)
    assert any(re.fullmatch(r"processor is .+, was 'abacus'", change) for change in verdict.changes)


def test_differences_of_values():
    nan = float("nan")
    assert differences({"a": [1, {"b": nan}]}, {"a": [1, {"b": nan}]}) == []
    assert differences({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}) == ["a[1].b is 2.5, was 2.0"]
    assert differences({"a": None}, {}) == ["a is only in the old run"]
    assert differences({}, {"a": {"b": 1}}) == ["a is only in the new run"]
    assert differences([1], [1, 2]) == [" is [1, 2], was [1]"]
