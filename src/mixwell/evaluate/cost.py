"""What a recipe costs in training: time and memory beside plain training.

Times are of one process in which steps of the recipe and of plain training alternate, so that what else the machine
does falls on both. Peaks of memory are each of a process of its own. Both depend on the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import nn

from mixwell.core.clock import Clock
from mixwell.core.errors import RunError
from mixwell.core.recipe import create
from mixwell.core.rng import key_of
from mixwell.core.turns import Trainee
from mixwell.data import Loader
from mixwell.evaluate.rehearse import bound_recipe
from mixwell.evaluate.subject import Progress, silent
from mixwell.train import TrainConfig
from mixwell.train.named import data_of, net_of
from mixwell.train.optim import steppers
from mixwell.train.split import split

__all__ = ["Steps", "alternating_times", "peak_memory", "tell_peak", "training_cost"]

_BATCHES = 4
"""Different batches that the steps go through again and again, so that no data is loaded between them."""


class Steps:
    """A training of a run's config, one step after the other, from new weights. Networks are not compiled.

    Args:
        config: of the run.
        recipe: in place of the config's.
    """

    def __init__(self, config: TrainConfig, recipe: str) -> None:
        self.config = config
        self.device = PartialState().device
        whole = data_of(config)
        data, held_out = split(whole, create(config.recipe, whole.num_classes), config.held_out, config.seed)
        torch.manual_seed(key_of(config.seed, "initial weights") >> 1)
        net: Any = net_of(config, data).to(self.device)
        self.model: nn.Module = net.to(memory_format=torch.channels_last) if config.channels_last else net
        self.recipe = bound_recipe(config, data, held_out, self.model, recipe=recipe, device=self.device)
        loader = Loader(data.train, config.batch_size, pixels=data.pixels, seed=config.seed)
        self.steppers = steppers(config, self.recipe.parameter_groups(self.model), self.model, len(loader))
        self.batches = cycle(
            [batch.to(self.device, channels_last=config.channels_last) for batch in islice(loader.epoch(0), _BATCHES)]
        )
        self.trainee = Trainee(self.model.train(), self.recipe.train())
        self.accelerator = Accelerator()
        self.total, self.step = config.epochs * len(loader), 0
        self.recipe.before_epoch(self.model, Clock(0, self.total, 0, config.lr))

    def take(self) -> float:
        """Train one step; returns the seconds that it took."""
        batch: Any = next(self.batches)
        self._wait()
        begun = time.perf_counter()
        clock = Clock(self.step, self.total, 0, self.config.lr)
        while True:
            with self._autocast():
                turn = self.trainee(batch, clock)
            stepper = self.steppers[turn.group]
            stepper.optimizer.zero_grad()
            with stepper.alone([other for other in self.steppers.values() if other is not stepper]):
                turn.loss.backward()
            stepper.step(self.accelerator)
            if turn.last:
                break
            batch = None
        self.recipe.after_step(self.model, clock)
        self._wait()
        self.step += 1
        return time.perf_counter() - begun

    def _autocast(self) -> AbstractContextManager[Any]:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.config.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, kinds[self.config.precision])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def alternating_times(
    trainings: Sequence[Steps], *, steps: int, seconds: float, progress: Progress = silent
) -> list[float]:
    """Median seconds of a step of each training, whose steps alternate.

    Args:
        trainings: two or more.
        steps: of each, after two to warm up.
        seconds: after so long no further step begins, though at least three are made.
        progress: called with the steps made and to make.
    """
    for training in (*trainings, *trainings):
        training.take()
    times: list[list[float]] = []
    begun = time.perf_counter()
    while len(times) < steps and (len(times) < 3 or time.perf_counter() - begun < seconds):
        times.append([training.take() for training in trainings])
        progress(len(times), steps)
    return [float(np.median(each)) for each in zip(*times, strict=True)]


def peak_memory(config: TrainConfig, recipe: str, *, threads: int, steps: int = 3) -> int:
    """Largest memory, in bytes, of a process that trains a few steps: on a GPU what torch took there, else what lay in
    the main memory, Python and libraries included.

    Raises:
        RunError: the process failed.
    """
    return _peak(json.dumps(config.to_json()), recipe, threads, steps)


@cache
def _peak(config: str, recipe: str, threads: int, steps: int) -> int:
    code = "import sys; from mixwell.evaluate.cost import tell_peak; tell_peak(*sys.argv[1:])"
    words = [sys.executable, "-c", code, config, recipe, str(threads), str(steps)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
        raise RunError(
            f"The process that measures the memory of {recipe!r} failed: {last}. Leave the part cost out, or free "
            "memory."
        )
    return int(found.stdout.split()[-1])


def tell_peak(config: str, recipe: str, threads: str, steps: str) -> None:
    """What the measured process does: train, and print its peak."""
    torch.set_num_threads(int(threads))
    training = Steps(TrainConfig(**json.loads(config)), recipe)
    for _ in range(int(steps)):
        training.take()
    print(torch.cuda.max_memory_allocated() if training.device.type == "cuda" else _resident_peak())


def _resident_peak() -> int:
    """This process's largest resident set in bytes.

    Linux lets `getrusage` begin with the peak of the process that started this one, so that its own record is read.
    """
    record = Path("/proc/self/status")
    if record.exists():
        line = next(line for line in record.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def training_cost(
    config: TrainConfig, *, threads: int, steps: int = 15, seconds: float = 3.0, progress: Progress = silent
) -> dict[str, float]:
    """Seconds and memory of a training step, and how many times those of plain training they are.

    Args:
        config: of the run.
        threads: of the CPU, in the processes that measure memory.
        steps, seconds: see `alternating_times`.
        progress: called with what is done and to do.

    Raises:
        RunError: a process that measures memory failed.
    """
    total = steps + 2
    recipes = [config.recipe] if config.recipe == "none" else [config.recipe, "none"]
    trainings = [Steps(config, recipe) for recipe in recipes]
    times = alternating_times(trainings, steps=steps, seconds=seconds, progress=lambda done, _: progress(done, total))
    peaks = []
    for number, recipe in enumerate(recipes, 1):
        peaks.append(peak_memory(config, recipe, threads=threads))
        progress(total - len(recipes) + number, total)
    return {
        "seconds_per_step": times[0],
        "relative_time": times[0] / times[-1],
        "peak_memory_bytes": peaks[0],
        "relative_memory": peaks[0] / peaks[-1],
    }
