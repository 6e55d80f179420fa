"""What a run was trained on: figures are the same to the last digit only on the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mixwell.train.config import differing

__all__ = ["changes", "here", "processor"]

_LIBRARIES = ("mixwell", "torch", "torchvision", "timm", "accelerate", "numpy")


def here(device: torch.device) -> dict[str, Any]:
    """What run.json says of this machine: threads, kind of device, processor, versions."""
    return {
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": processor(device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def changes(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Each way in which two machines differ, with both values; of each what `here` says, among other things."""
    # The first runs do not tell the processor.
    told = [name for name in ("device", "processor", "threads") if name in then]
    return [
        *differing(now["versions"], then["versions"]),
        *differing({name: now[name] for name in told}, {name: then[name] for name in told}),
    ]


def processor(device: torch.device) -> str:
    """Name of a GPU; of the CPU the model and the instructions that PyTorch takes, such as "AMD EPYC (AVX2)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.processor() or platform.machine()} ({device.type})"
    return f"{_model()} ({torch.backends.cpu.get_cpu_capability()})"


def _model() -> str:
    """The CPU's model as Linux tells it; elsewhere what Python knows."""
    record = Path("/proc/cpuinfo")
    if record.exists():
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()
