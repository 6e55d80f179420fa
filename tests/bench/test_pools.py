"""Several processes: that they share the work, and what happens when one is killed."""

from mixwell.bench import run
from mixwell.bench.pools import Processes

THREE = '[[cells]]\nrecipes = ["none", "mixup", "cutmix"]'


def test_processes_do_what_one_does_though_one_is_killed(tiny, results, killed, capsys):
    whole = tiny(THREE, epochs=4, folder="whole")
    run(whole, progress=False)
    bench = tiny(THREE, epochs=4)
    struck = killed(bench.cells[1], epochs=2)
    summary = run(bench, Processes(2))
    assert len(struck) == 1
    assert (summary.done, summary.failed) == (3, {})
    assert results(bench) == results(whole)
    told = capsys.readouterr().err
    assert told.count(" died   ") == 1
    assert "exit code -9. It is tried again." in told
    assert told.count(" done ") == 3
    assert not list(bench.out.glob("*.lock"))
