"""Adapters import their frameworks, and nothing else does."""

from __future__ import annotations

import subprocess
import sys

import pytest

ADAPTERS = {
    "timm": ("timm", "from mixwell.compat.timm import Mixup", "train"),
    "torchvision": ("torchvision", "from mixwell.compat.torchvision import MixUp", "train"),
    "transformers": (
        "transformers",
        "import mixwell.compat.transformers as adapter; adapter._callback(None)",
        "hf",
    ),
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_mixwell_imports_no_framework():
    done = run(
        "import sys, mixwell, mixwell.compat, mixwell.compat.lightning, mixwell.compat.transformers\n"
        "names = {'timm', 'torchvision', 'lightning', 'pytorch_lightning', 'transformers', 'accelerate'}\n"
        "assert not names & set(sys.modules), names & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_framework_that_is_not_there_is_named(name):
    package, code, extra = ADAPTERS[name]
    done = run(f"import sys; sys.modules[{package!r}] = None\n{code}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: This adapter is for {package}, which could not be imported")
    assert last.endswith(f'pip install "mixwell[{extra}]"')
