"""What all tests share: the suite's options, sampling of matrices, small networks, independent random states."""

from __future__ import annotations

import datetime
import functools
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from mixwell.train import Run, RunFolder, TrainConfig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, metavar="DIR", help="folder of golden files to replay in place of tests/golden"
    )
    parser.addoption("--all", action="store_true", help="run every case of every matrix")
    parser.addoption("--matrix-seed", type=int, metavar="N", help="which cases of the matrices to run (default: today)")


def pytest_configure(config: pytest.Config) -> None:
    if (
        config.option.matrix_seed is None
    ):  # the controller of xdist hands its options, so also this date, to its workers
        config.option.matrix_seed = int(datetime.date.today().strftime("%Y%m%d"))
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the cache that the controller makes for them
        cache = tempfile.TemporaryDirectory(prefix="mixwell-cache-")
        config.add_cleanup(cache.cleanup)
        os.environ["MIXWELL_CACHE"] = cache.name
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // workers)))


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.all:
        return "matrices: all cases"
    return f"matrices: sampled by --matrix-seed {config.option.matrix_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep `keep` cases of every test marked `matrix(keep=...)`, chosen by the seed and the test's name."""
    if config.option.all:
        return
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("matrix"):
            cases[item.nodeid.partition("[")[0]].append(item)
    dropped: set[pytest.Item] = set()
    for name, found in cases.items():
        marker = found[0].get_closest_marker("matrix")
        assert marker is not None
        keep = min(marker.kwargs["keep"], len(found))
        dropped |= set(found) - set(random.Random(f"{config.option.matrix_seed}/{name}").sample(found, keep))
    if dropped:
        config.hook.pytest_deselected(items=[item for item in items if item in dropped])
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(autouse=True)
def _own_random_states(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test has global random states of its own, whatever ran before it and in whatever order."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    seed = random.Random(f"{request.config.option.matrix_seed}/{request.node.nodeid}").getrandbits(32)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    yield
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    random.setstate(before[2])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many steps of a small network take longer on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SmallCNN(nn.Module):
    """Convolutions with BatchNorm and dropout, in stages layer1 to layer3; any image size."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.layer1 = _stage(channels, 8, 1)
        self.layer2 = _stage(8, 12, 2)
        self.layer3 = _stage(12, 16, 2)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.layer3(self.layer2(self.layer1(x))).mean((2, 3))))


def _stage(inside: int, outside: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


@pytest.fixture(scope="session")
def cnn() -> Callable[..., nn.Module]:
    """`cnn(classes=7, channels=3)`: a small CNN, the same weights each time."""

    def make(classes: int = 7, channels: int = 3) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return SmallCNN(classes, channels)

    return make


@pytest.fixture(scope="session")
def vit() -> Callable[..., nn.Module]:
    """`vit(classes=7, channels=3, size=32, **options)`: timm's VisionTransformer with two blocks of width 32."""

    def make(classes: int = 7, channels: int = 3, size: int | tuple[int, int] = 32, **options: object) -> nn.Module:
        settings = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, **options}
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return timm.models.VisionTransformer(img_size=size, in_chans=channels, num_classes=classes, **settings)

    return make


@pytest.fixture
def global_random_states() -> Callable[[], tuple[bytes, ...]]:
    """A function whose result changes when somebody draws from torch's, NumPy's or Python's global generator."""

    def states() -> tuple[bytes, ...]:
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
        numpy_key = numpy_state["state"]["key"].tobytes() + repr(numpy_state["state"]["pos"]).encode()
        return torch.get_rng_state().numpy().tobytes(), numpy_key, repr(random.getstate()).encode()

    return states


def make_run(
    root: Path,
    recipe: str = "none",
    seed: int = 0,
    *,
    accuracy: float = 0.8,
    ece: float = 0.05,
    nll: float = 0.6,
    seconds: float = 2.0,
    status: str = "finished",
    record: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    **config: Any,
) -> Run:
    settings = TrainConfig(recipe=recipe, seed=seed, **{"epochs": 3, **config})
    folder = RunFolder(root / settings.folder.name)
    folder.begin(
        {
            "status": status,
            "identity": settings.identity,
            "config": settings.to_json(),
            "seed": seed,
            "threads": 2,
            "device": "cpu",
            "versions": {"mixwell": "0.1.0", "torch": "2.4.0"},
            "result": {"accuracy": accuracy, "ece": ece, "nll": nll, "seconds_per_epoch": seconds, "ema": None},
        }
    )
    epochs = range(1, settings.epochs + 1)
    records = [
        {"epoch": epoch, "accuracy": accuracy - 0.1 * (settings.epochs - epoch), "nll": nll, "ece": ece,
         "loss": 2.0 / epoch, "mixed_accuracy": 0.25 * epoch, **(record or {})}
        for epoch in epochs
    ]  # fmt: skip
    folder.write_history(records)
    if evaluation is not None:
        folder.write_evaluation(evaluation)
    return Run.read(folder.path)


@pytest.fixture(scope="session")
def run_in() -> Callable[..., Run]:
    """`run_in(root, recipe, seed, accuracy=…, evaluation=…, **config)`: a run folder without weights, read back."""
    return make_run


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Run]:
    """`finished(recipe, seed, accuracy=…, seconds=…, evaluation=…, **config)`: `run_in` the test's own folder."""
    return functools.partial(make_run, tmp_path)


@pytest.fixture(scope="session")
def evaluation() -> Callable[..., dict[str, Any]]:
    """`evaluation(**parts)`: what `mixwell evaluate` writes; parts of None are left out, others replace its own."""

    def make(**parts: Any) -> dict[str, Any]:
        scores = {"msp": {"auroc": 0.8, "fpr95": 0.5}, "energy": {"auroc": 0.85, "fpr95": 0.4}}
        whole: dict[str, Any] = {
            "format": 1,
            "settings": {"parts": ["clean"], "weights": f"{random.getrandbits(128):032x}", "seed": 0, "images": None},
            "clean": {"accuracy": 0.8, "top5": 0.99, "nll": 0.6, "brier": 0.3, "ece": 0.05, "adaptive_ece": 0.06,
                      "overconfidence": 0.04, "confidence": 0.84, "temperature": 1.2, "ece_at_temperature": 0.01},
            "reliability": {"counts": [0, 10, 30], "confidences": [0.0, 0.5, 0.9], "accuracies": [0.0, 0.4, 0.8]},
            "corruptions": {"error": 0.3, "errors": {"fog": [0.2, 0.3, 0.4], "snow": [0.25, 0.3, 0.35]}},
            "attacks": {"fgsm": 0.3, "pgd10": 0.05, "pgd20_small": 0.4},
            "ood": {"digits": scores, "mean": scores},
            "occlusion": {"ratios": [0.0, 0.5, 1.0], "accuracies": [0.8, 0.5, 0.1], "mean": 0.47},
            "intrusion": {"rate": 0.1, "by_lam": [{"low": 0.0, "high": 0.5, "rate": 0.08, "count": 7},
                                                  {"low": 0.5, "high": 1.0, "rate": None, "count": 0}]},
            "cost": {"seconds_per_step": 0.1, "relative_time": 1.0, "peak_memory_bytes": 1e8, "relative_memory": 1.0},
        }  # fmt: skip
        whole |= parts
        return {name: part for name, part in whole.items() if part is not None or name == "intrusion"}

    return make
