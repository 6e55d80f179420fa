"""A bench in this process: what it leaves, what it does not do twice, and what happens to cells that fail."""

import json
import signal
from contextlib import ExitStack

import pytest

from mixwell import Recipe, RunError
from mixwell.bench import Changes, Outcome, run, state_of, work
from mixwell.bench.lock import locked
from mixwell.bench.pools import Here
from mixwell.train import Run, TrainConfig, train, trained

TWO = '[[cells]]\nrecipes = ["none", "mixup"]'
EVALUATED = f'[evaluate]\nparts = ["clean", "ood"]\n{TWO}'


def files(cell):
    return sorted(path.name for path in cell.folder.iterdir())


@pytest.fixture
def trainings(monkeypatch):
    """The recipes that were trained."""
    seen = []

    def spy(config, **options):
        seen.append(config.recipe)
        return train(config, **options)

    monkeypatch.setattr("mixwell.bench.worker.train", spy)
    return seen


def test_a_bench_leaves_results_that_can_be_read_without_weights(tiny, evaluations, results, capsys):
    bench = tiny(EVALUATED)
    summary = run(bench)
    assert (summary.done, summary.failed) == (2, {})
    for cell in bench.cells:
        assert files(cell) == ["evaluation.json", "history.jsonl", "run.json"]
        facts = Run.read(cell.folder).facts
        assert facts["dropped"] == ["weights.safetensors"]
        assert facts["config"]["out"] == str(cell.folder)
    assert [call["parts"] for call in evaluations] == [["clean", "ood"]] * 2
    alone = train(TrainConfig(**{**vars(bench.cells[1].config), "out": bench.out / "alone"}), progress=False)
    assert results(bench)[bench.cells[1].name][2][0]["loss"] == alone.history[0]["loss"]
    lines = capsys.readouterr().err.splitlines()
    events = ["[0/2] begin", "[1/2] done", "[1/2] begin", "[2/2] done"]
    assert [" ".join(line.split()[1:3]) for line in lines] == events
    assert "accuracy" in lines[-1]


def test_what_is_done_is_not_done_again(tiny, evaluations, trainings, results):
    bench = tiny(EVALUATED)
    run(bench, progress=False)
    before = results(bench)
    trainings.clear()
    evaluations.clear()
    assert run(bench, progress=False).done == 2
    assert trainings == evaluations == []
    assert results(bench) == before
    assert not list(bench.out.glob("*.lock"))


def test_weights_are_kept_where_that_is_asked_and_a_further_evaluation_uses_them(tiny, evaluations, trainings):
    keep = Changes(keep_weights=True)
    run(tiny(TWO, keep), progress=False)
    trainings.clear()
    bench = tiny(EVALUATED, keep)
    assert not any(state_of(cell).done for cell in bench.cells)
    assert {state_of(cell).words for cell in bench.cells} == {"trained"}
    assert run(bench, progress=False).done == 2
    assert len(evaluations) == 2
    assert all("weights.safetensors" in files(cell) for cell in bench.cells)
    run(tiny(EVALUATED), progress=False)
    assert all("weights.safetensors" not in files(cell) for cell in bench.cells)
    assert len(evaluations) == 2


def test_another_evaluation_of_dropped_weights_is_refused_with_what_to_do(tiny, evaluations):
    run(tiny(EVALUATED), progress=False)
    fewer = tiny(EVALUATED.replace('"clean", ', ""))
    assert all(state_of(cell).done for cell in fewer.cells)
    other = tiny(EVALUATED.replace("[evaluate]", "[evaluate]\nseed = 1"))
    before = [(cell.folder / "evaluation.json").read_bytes() for cell in other.cells]
    failed = run(other, progress=False).failed
    assert len(failed) == 2
    assert all("weights were dropped" in reason and "delete the folder" in reason for reason in failed.values())
    assert before == [(cell.folder / "evaluation.json").read_bytes() for cell in other.cells]


def test_a_cell_that_fails_does_not_stop_the_others_and_is_tried_again(tiny, trainings, capsys):
    bench = tiny('[[cells]]\nrecipes = [{ recipe = "none", lr = 1e30 }, "mixup"]')
    summary = run(bench)
    assert summary.done == 1
    assert "not finite" in summary.failed["none, digits, cnn-s, seed 0"]
    assert "[0/2, 1 failed] failed none, digits, cnn-s, seed 0: loss is not finite" in capsys.readouterr().err
    trainings.clear()
    assert run(bench, progress=False) == summary
    assert trainings == ["none"]


def test_any_error_of_a_cell_is_its_own(tiny, monkeypatch):
    def broken(path, *, parts=("clean",)):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("mixwell.evaluate.evaluate_run", broken, raising=False)
    bench = tiny(f"[evaluate]\n{TWO}")
    assert set(run(bench, progress=False).failed.values()) == {"ZeroDivisionError: by nought"}
    assert all("weights.safetensors" in files(cell) for cell in bench.cells)


def test_an_interrupted_bench_says_what_remains_and_goes_on(tiny, results, monkeypatch, capsys):
    bench, whole = tiny(TWO, epochs=2), tiny(TWO, epochs=2, folder="whole")
    run(whole, progress=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    after_step = Recipe.after_step

    def stop(self, model, clock=None):
        after_step(self, model, clock)
        if str(self) == "mixup" and clock.step == 9:  # in the second epoch of two
            monkeypatch.setattr(Recipe, "after_step", after_step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recipe, "after_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(bench)
    signal.signal(signal.SIGINT, before)
    assert "Interrupted. 1 of 2 cells remain" in capsys.readouterr().err
    assert [state_of(cell).words for cell in bench.cells] == ["done", "epoch 2"]
    assert not list(bench.out.glob("*.lock"))
    run(bench, progress=False)
    assert results(bench) == results(whole)


def test_a_damaged_folder_is_reported_and_left_alone(tiny):
    bench = tiny(TWO)
    run(bench, progress=False)
    path = bench.cells[0].folder / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    damaged = path.read_bytes()
    assert state_of(bench.cells[0]).words == "damaged"
    summary = run(bench, progress=False)
    assert summary.done == 1
    assert "does not match its own checksum" in summary.failed["none, digits, cnn-s, seed 0"]
    assert path.read_bytes() == damaged


def test_a_folder_of_another_config_is_not_taken_for_the_cell(tiny):
    first, second = tiny(TWO).cells
    assert work(first).status == "done"
    first.folder.rename(second.folder)
    assert "another config" in state_of(second).trouble
    assert "another config" in work(second).reason


def test_dropped_weights_are_said_to_be_dropped(tiny):
    cell = tiny(TWO).cells[0]
    work(cell)
    with pytest.raises(RunError, match="were dropped"):
        trained(Run.read(cell.folder))


class Frail(Here):
    """Dies over cells of one recipe, so many times."""

    def __init__(self, recipe, times):
        super().__init__()
        self.recipe, self.times = recipe, times

    def finished(self, seconds):
        (cell,) = self._cells
        if cell.config.recipe != self.recipe or not self.times:
            return super().finished(seconds)
        self.times -= 1
        self._cells = []
        return [Outcome(cell.name, "died", "Its process died with exit code -9.")]


def test_a_cell_over_which_three_workers_died_is_given_up(tiny, trainings):
    bench = tiny(TWO)
    assert run(bench, Frail("none", 3), progress=False).failed == {
        "none, digits, cnn-s, seed 0": "Its process died with exit code -9."
    }
    assert trainings == ["mixup"]
    assert run(bench, Frail("none", 2), progress=False).failed == {}
    assert trainings == ["mixup", "none"]


def test_cells_of_other_processes_are_waited_for_and_taken_over_if_these_die(tiny, trainings, monkeypatch, capsys):
    bench = tiny('[[cells]]\nrecipes = ["none", "mixup", "cutmix"]')
    finished, dead, own = bench.cells
    naps = []

    def nap(seconds):
        naps.append(list(trainings))
        if len(naps) == 1:
            held.pop(finished.name).close()
            assert work(finished).status == "done"
        elif len(naps) == 2:
            held.pop(dead.name).close()

    held = {cell.name: ExitStack() for cell in (finished, dead)}
    for cell in (finished, dead):
        held[cell.name].enter_context(locked(cell.lock))
    monkeypatch.setattr("mixwell.bench.scheduler.time.sleep", nap)
    assert run(bench).done == 3
    assert naps == [["cutmix"], ["cutmix", "none"]]
    assert trainings == ["cutmix", "none", "mixup"]
    assert "done   none, digits, cnn-s, seed 0, by another process" in capsys.readouterr().err
    assert own.folder.exists()


def test_a_terminal_shows_the_whole_and_every_cell(tiny, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    run(tiny(TWO, epochs=2))
    shown = capsys.readouterr().err
    for words in ("cells", "0/2", "2/2", "none, digits, cnn-s, seed 0", "mixup, digits, cnn-s, seed 0", "left"):
        assert words in shown


def test_the_history_says_that_no_epoch_was_done_twice(tiny):
    (cell, _) = tiny(TWO, epochs=3).cells
    outcome = work(cell)
    assert outcome.epochs == 3
    lines = (cell.folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert work(cell).epochs == 0
