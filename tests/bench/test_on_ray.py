"""Ray: one task per cell on two workers, of which one is killed in the middle."""

import pytest

from mixwell.bench import run
from mixwell.bench.on_ray import OnRay
from mixwell.core.errors import MixwellError

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch):
    """Two workers on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


def test_a_killed_worker_loses_nothing_and_nothing_is_done_twice(tiny, results, killed, cluster, capsys):
    text = '[[cells]]\nrecipes = ["none", "mixup", "cutmix"]'
    whole = tiny(text, epochs=3, folder="whole")
    run(whole, progress=False)
    bench = tiny(text, epochs=3)
    struck = killed(bench.cells[0], epochs=1)
    summary = run(bench, OnRay())
    assert len(struck) == 1
    assert (summary.done, summary.failed) == (3, {})
    assert results(bench) == results(whole)
    assert capsys.readouterr().err.count(" done ") == 3
    assert not list(bench.out.glob("*.lock"))


def test_no_cluster_at_an_address_is_explained():
    with pytest.raises(MixwellError, match=r"no Ray cluster at 'nowhere'.*ray start"):
        OnRay("nowhere")
