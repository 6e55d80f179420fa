"""What a training step costs with a recipe, relative to one without mixing.

    python -m benchmarks.steps [--recipes none mixup ...] [--model cnn-s] [--batch 100] [--rounds 40] [--json FILE]

All recipes take turns in one process, on one thread: mix, forward, backward and the optimiser's step. Besides the ratio
of the median times it counts passes, in batches: rows that went forward through the network or a copy of it, by the
batch's rows, and the same for rows that came back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import mixwell
from mixwell.nets import create_net

CLASSES = 10
SIZE = 32


@dataclass
class Passes:
    """Rows that went forward and came back through networks, counted by hooks on their classifiers' inputs."""

    forward: int = 0
    backward: int = 0
    handles: list[object] = field(default_factory=list)

    def watch(self, net: nn.Module) -> None:
        def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.forward += len(output)
            if output.requires_grad:
                output.register_hook(self._came_back)

        for module in net.modules():
            if isinstance(module, type(net)):
                self.handles.append(module.register_forward_hook(count))

    def _came_back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def step_of(text: str, model: str, images: Tensor, labels: Tensor) -> tuple[Callable[[], None], Passes]:
    """One training step of the recipe, and what counts its passes."""
    torch.manual_seed(0)
    net = create_net(model, CLASSES, size=SIZE).train().to(memory_format=torch.channels_last)
    pixels = mixwell.Pixels((0.5,) * 3, (0.25,) * 3)
    recipe = mixwell.create(text, CLASSES, pixels=pixels)
    batch = mixwell.Batch(images, labels, pixels)
    recipe.prepare(lambda: [batch], "random numbers of the benchmark")
    recipe.use_data(train=lambda: [batch], held_out=lambda: [batch]).bind(net, images)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    groups: dict[str, list[dict[str, object]]] = {}
    for group in recipe.parameter_groups(net):
        groups.setdefault(group["turn"], []).append({"params": group["params"]})
    optimizers = {turn: torch.optim.SGD(parts, lr=0.01, momentum=0.9) for turn, parts in groups.items()}
    passes = Passes()
    passes.watch(net)
    for module in recipe.modules():
        if isinstance(module, type(net)):
            passes.watch(module)

    def step() -> None:
        for turn in recipe.turns(net, images, labels):
            optimizers[turn.group].zero_grad()
            turn.loss.backward()
            optimizers[turn.group].step()
        recipe.after_step(net)

    return step, passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", help="recipes besides none; all that train on the model if not given")
    parser.add_argument("--model", default="cnn-s")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(options.batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (options.batch,))
    steps = {}
    for text in ["none", *(options.recipes or [*mixwell.methods(), "puzzlemix + decouplemix"])]:
        try:
            steps[text] = step_of(text, options.model, images, labels)
        except mixwell.IncompatibleRecipe as error:
            if options.recipes:
                raise SystemExit(str(error)) from error
    times: dict[str, list[float]] = {text: [] for text in steps}
    for number in range(options.rounds + 3):
        for text, (step, _) in steps.items():
            start = time.perf_counter()
            step()
            if number >= 3:
                times[text].append(time.perf_counter() - start)
    plain = statistics.median(times["none"])
    table = {}
    print(f"{options.model}, {options.batch}×3×{SIZE}×{SIZE}; a step of none takes {1e3 * plain:.1f} ms")
    print(f"  {'recipe':28} {'× none':>7} {'forward':>8} {'backward':>9}")
    for text, (_, passes) in steps.items():
        ratio = statistics.median(times[text]) / plain
        share = (options.rounds + 3) * options.batch
        table[text] = {"ratio": ratio, "forward": passes.forward / share, "backward": passes.backward / share}
        print(f"  {text:28} {ratio:7.2f} {table[text]['forward']:8.2f} {table[text]['backward']:9.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({"model": options.model, "ms": 1e3 * plain, "recipes": table}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
