"""What mixing a batch costs, ours beside timm, torchvision and Kornia, in lerps.

    python -m benchmarks.mixing [--methods | --recipes TEXT ...] [--processes 5] [--rounds 30] [--only 32px]
        [--json FILE]

With --methods every method is timed in place of the peers, beside what its authors' code costs; with --recipes, these.

A lerp is the time of `torch.lerp(x, x.flip(0), 0.3)` on the same batch in the same run. Entries take turns of one call
that is not timed and eight that are, in random order, in one process and on one thread; the figure is the median over
processes of (an entry's median time / the lerp's median time). Draws and label work are included: ours ends with the
targets' sources and weights, which losses take as they are, and where it stands beside a peer, which gives dense soft
labels, it makes those too ("dense"). timm mixes in place, so it is given a clone, whose time is included: a user who
still needs the clean batch pays it too. glibc's allocator is pinned (large thresholds), since otherwise every fresh
19 MB result is mapped and faulted in anew and ratios shift up to sevenfold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHAPES = {"32px": (64, 3, 32, 32), "224px": (32, 3, 224, 224)}
CLASSES = 100
IN_A_ROW = 8  # calls that are timed as one, so that every entry meets the same caches
BARS = {  # entry: bars at 32 and 224 pixels
    "mixwell mixup per batch": (1.8, 0.9),
    "mixwell mixup per sample": (1.8, 0.9),
    "mixwell cutmix per batch": (3.0, 1.0),
    "mixwell cutmix per sample": (7.5, 2.0),
}
MODES = {  # entry of a peer: our entry in the same mode
    "timm mixup batch": "mixwell mixup per batch, dense",
    "timm mixup elem": "mixwell mixup per sample, dense",
    "timm cutmix batch": "mixwell cutmix per batch, dense",
    "timm cutmix elem": "mixwell cutmix per sample, dense",
    "torchvision mixup": "mixwell mixup per batch, dense",
    "torchvision cutmix": "mixwell cutmix per batch, dense",
    "kornia mixup": "mixwell mixup per sample, dense",
    "kornia cutmix": "mixwell cutmix per sample, dense",
}
OFFICIAL: dict[str, tuple[float | None, float | None]] = {
    "mixup(per=batch)": (2.0, 1.25),
    "bc": (27, 4.4),
    "bc(variant='bc+')": (27, 4.4),
    "local_mixup": (8, 5),
    "pixmix": (240, 36),
    "pani": (None, None),
    "fmix": (None, None),
    "fmix(per=batch)": (10, 28),
    "smoothmix": (None, None),
    "gridmix": (None, None),
    "gridmix(variant=gridmixup, per=batch)": (6.5, 3.9),
    "resizemix": (None, None),
    "resizemix(per=batch)": (17.6, 4.7),
    "stackmix": (None, None),
    "superpixel_grid": (1700, 640),
    "hmix_gmix(per=batch)": (4.0, 6.2),
    "hmix_gmix(variant=gmix, per=batch)": (3.8, 4.8),
    "recursive_mix(per=batch)": (5.9, 1.0),
    "yoco": (None, None),
    "yoco(per=batch)": (2.1, 1.9),
    "ricap": (8, 5.5),
    "ricap(variant=mosaic)": (None, None),
    "dcutmix": (94, 4),
    "cut_thumbnail": (None, None),
    "cut_thumbnail(per=batch)": (7.5, 2.9),
    "random_mix": (None, None),
    "saliencymix": (370, 65),
    "saliencymix(per=batch)": (7.0, 5.8),
    "guided_mixup(prob=1.0)": (154, 76),
    "snapmix": (None, None),
    "snapmix(per=batch)": (101, 11.5),
    "saliency_grafting": (None, None),
    "comixup": (4046, 200),
    "lgcoamix(prob=1.0)": (7300, 1700),
    "attentive_cutmix": (22, 0.6),
    "scoremix(prob=1.0)": (None, None),
    "scoremix(prob=1.0, per=batch)": (95, 0.6),
    "smmix(switch_prob=1.0)": (None, None),
    "smmix(switch_prob=1.0, per=batch)": (41.6, 3.6),
    "mixpro(prob=1.0)": (19, 1.0),
    "tl_align": (22, 0.7),
    "tokenmix(switch_prob=1.0)": (None, None),
    "tokenmix(switch_prob=1.0, per=batch)": (255, 1.9),
    "camixup": (1.8, 2.9),
    "rankmixup(variant=mndcg)": (15.7, 20.2),
    "diffusemix": (81, 10),
    "samix": (1305, 44),
    "adautomix": (1335, 94),
    "automix_barycenter": (1095, 664),
    "transformmix": (None, None),
}
"""What the authors' code costs in lerps at 32 and 224 pixels, the least that was seen; None where there is none."""
BARS_OF_METHODS = {
    "fmix(per=batch)": (5.0, 2.5),
    "fmix": (50.0, 29.0),
    "resizemix(per=batch)": (6.0, 3.0),
}
_PINNED = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "MALLOC_TOP_PAD_": str(2**28),
    "OMP_NUM_THREADS": "1",
}


def entries(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name; each call mixes one batch of `shape` and makes its dense labels."""
    import numpy as np
    import torch

    import mixwell

    x = torch.randn(shape)
    y = torch.randint(CLASSES, (shape[0],))
    found: dict[str, Callable[[], object]] = {"lerp": lambda: torch.lerp(x, x.flip(0), 0.3), "clone": x.clone}

    def ours(text: str, *, dense: bool = False) -> Callable[[], object]:
        recipe = mixwell.create(text, CLASSES, pixels=mixwell.Pixels((0.5,), (0.25,)))

        def call() -> object:
            images, targets = recipe.mix_batch(x, y)
            return (images, targets.dense()) if dense else (images, targets)

        return call

    for name in ("mixup", "cutmix"):
        for per in ("batch", "sample"):
            found[f"mixwell {name} per {per}"] = ours(f"{name}(per={per})")
            found[f"mixwell {name} per {per}, dense"] = ours(f"{name}(per={per})", dense=True)
    found["mixwell k_mixup"] = ours("k_mixup")

    from timm.data import Mixup

    def timm(**options: object) -> Callable[[], object]:
        mixup = Mixup(label_smoothing=0, num_classes=CLASSES, **options)
        return lambda: mixup(x.clone(), y)

    np.random.seed(0)  # noqa: NPY002  (timm draws from numpy's global state)
    for mode in ("batch", "elem"):
        device = {"device": "cpu"} if "device" in Mixup.__call__.__code__.co_varnames else {}
        found[f"timm mixup {mode}"] = timm(mixup_alpha=1.0, cutmix_alpha=0.0, mode=mode, **device)
        found[f"timm cutmix {mode}"] = timm(mixup_alpha=0.0, cutmix_alpha=1.0, mode=mode, **device)

    from torchvision.transforms import v2

    mix, cut = v2.MixUp(num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)
    found["torchvision mixup"], found["torchvision cutmix"] = lambda: mix(x, y), lambda: cut(x, y)

    try:
        from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    except ImportError:
        return found
    kmix = RandomMixUpV2(data_keys=["input", "class"])
    kcut = RandomCutMixV2(data_keys=["input", "class"])
    found["kornia mixup"], found["kornia cutmix"] = lambda: kmix(x, y), lambda: kcut(x, y)
    return found


def policies(shape: tuple[int, ...], recipes: Iterable[str] = OFFICIAL) -> dict[str, Callable[[], object]]:
    """The sample policy of every recipe: draws, images of all views, sources and weights.

    What a method sees through a network is at hand, and costs nothing here; see benchmarks.steps for what that takes.
    """
    import torch

    import mixwell
    from mixwell.core.rng import Streams
    from mixwell.nets import create_net

    x = torch.randn(shape)
    batch = mixwell.Batch(x, torch.randint(CLASSES, (shape[0],)), mixwell.Pixels((0.5,), (0.25,)))
    found: dict[str, Callable[[], object]] = {"lerp": lambda: torch.lerp(x, x.flip(0), 0.3)}
    batch.index = torch.arange(shape[0])
    steps = itertools.count()
    nets = {name: create_net(name, CLASSES, size=shape[2]) for name in ("cnn-s", "vit-s")}
    # They keep what they saw, so that no row pays for the network.
    looks = {name: mixwell.Views(mixwell.Probe(net, x), batch) for name, net in nets.items()}
    aligned = mixwell.Want("alignment")

    def policy(text: str) -> Callable[[], object]:
        recipe = mixwell.create(text, CLASSES, pixels=batch.pixels)
        streams = Streams(0)
        name = "vit-s" if recipe.needs_tokens else "cnn-s"
        recipe.prepare(lambda: [batch], f"benchmark {shape}").bind(nets[name], x[:2])
        recipe.use_data(train=lambda: [batch], held_out=lambda: [batch]).before_epoch(nets[name])
        with torch.no_grad():
            outputs = mixwell.Probe(nets[name], x).run(x, wants=recipe.wants - {aligned})
        outputs.seen[aligned] = torch.full((len(x), 2), 0.5)

        def call() -> object:
            clock = mixwell.Clock(next(steps))
            option = recipe._option(clock)
            scene = mixwell.Scene(batch, option.draw(len(batch), streams, clock.step), looks[name], clock=clock)
            first, *others = option.views(scene)
            mix = option.mix(first, scene)
            views = [mix.apply(view) for view in others]
            with torch.no_grad():
                option.label.targets(mixwell.Step(scene, mix, outputs))
            if text.startswith("recursive_mix"):  # the next call pastes this one
                option.blend.observe(mixwell.Step(scene, mix, outputs))
            return mix, views

        return call

    return found | {text: policy(text) for text in recipes}


def measure(shape: tuple[int, ...], rounds: int, recipes: Iterable[str] = ()) -> dict[str, float]:
    """Median seconds of each entry, all taking turns in this process: these recipes, or ours beside the peers."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    calls = policies(shape, recipes) if recipes else entries(shape)
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(rounds):
        for name, call in order.sample(list(calls.items()), len(calls)):
            call()
            start = time.perf_counter()
            for _ in range(IN_A_ROW):
                call()
            times[name].append((time.perf_counter() - start) / IN_A_ROW)
    return {name: statistics.median(values) for name, values in times.items()}


def in_processes(name: str, processes: int, rounds: int, recipes: Iterable[str]) -> Iterator[dict[str, float]]:
    """The medians of fresh processes, one after the other, with a pinned allocator."""
    command = [sys.executable, "-m", "benchmarks.mixing", "--measure", name, "--rounds", str(rounds)]
    command += ["--recipes", *recipes] if recipes else []
    for _ in range(processes):
        done = subprocess.run(command, env=os.environ | _PINNED, capture_output=True, text=True, check=True)
        yield json.loads(done.stdout.splitlines()[-1])


def in_lerps(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, least and greatest cost over the processes, in lerps, and the median in µs."""
    table = {}
    for entry in runs[0]:
        ratios = [run[entry] / run["lerp"] for run in runs]
        micros = statistics.median(run[entry] for run in runs) * 1e6
        table[entry] = {"lerps": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "us": micros}
    return table


def verdicts(tables: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Every bar that was missed, and every peer that was faster in the same mode."""
    missed = []
    for place, size in enumerate(SHAPES):
        table = tables.get(size, {})
        for entry, bars in (BARS | BARS_OF_METHODS).items():
            if entry in table and table[entry]["lerps"] > bars[place]:
                missed.append(f"{size}: {entry} takes {table[entry]['lerps']:.2f} lerps, the bar is {bars[place]:g}")
        for entry, official in OFFICIAL.items():
            cost = official[place]
            if entry in table and cost is not None and table[entry]["lerps"] > cost:
                missed.append(f"{size}: {entry} takes {table[entry]['lerps']:.2f} lerps, the authors' code {cost:g}")
        for peer, entry in MODES.items():
            if peer in table and entry in table and table[entry]["lerps"] > table[peer]["lerps"]:
                missed.append(
                    f"{size}: {entry} takes {table[entry]['lerps']:.2f} lerps, {peer} {table[peer]['lerps']:.2f}"
                )
    return missed


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", action="store_true", help="time every method in place of the peers")
    parser.add_argument("--recipes", nargs="+", default=[], help="time these methods only")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=list(SHAPES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=list(SHAPES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    recipes = options.recipes or list(OFFICIAL if options.methods else ())
    if options.measure:
        print(json.dumps(measure(SHAPES[options.measure], options.rounds, recipes)))
        return
    tables = {}
    for size in [options.only] if options.only else SHAPES:
        runs = in_processes(size, options.processes, options.rounds, recipes)
        tables[size] = in_lerps(list(runs))
        print(f"\n{size}: {SHAPES[size]}, one lerp = {tables[size]['lerp']['us']:.0f} µs")
        print(f"  {'entry':38} {'lerps':>7} {'min':>7} {'max':>7} {'µs':>9}" + " official" * bool(recipes))
        for entry, row in tables[size].items():
            cost = OFFICIAL.get(entry, (None, None))[list(SHAPES).index(size)] if recipes else None
            official = "" if cost is None else f" {cost:8g}"
            print(f"  {entry:38} {row['lerps']:7.2f} {row['min']:7.2f} {row['max']:7.2f} {row['us']:9.0f}{official}")
    missed = verdicts(tables)
    print("\n" + ("\n".join(missed) if missed else "Every bar holds."))
    if options.json:
        packages = {name: _version(name) for name in ("mixwell", "torch", "timm", "torchvision", "kornia", "numpy")}
        report = {"versions": packages, "processes": options.processes, "rounds": options.rounds, "tables": tables}
        options.json.write_text(json.dumps(report | {"missed": missed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
