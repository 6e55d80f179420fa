"""What all tests share: the suite's options, sampling of matrices, small networks, independent random states."""

from __future__ import annotations

import datetime
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn


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
