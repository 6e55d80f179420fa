"""All figures of a finished run, kept in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from mixwell.core.errors import ParameterError, RunError, closest
from mixwell.evaluate.attacks import ATTACKS, attacked
from mixwell.evaluate.clean import clean_figures, corruption_errors
from mixwell.evaluate.cost import training_cost
from mixwell.evaluate.intrusion import BINS as LAM_BINS
from mixwell.evaluate.intrusion import intrusion_rates, learns_to_mix
from mixwell.evaluate.occlusion import RATIOS, occluded
from mixwell.evaluate.ood import detected
from mixwell.evaluate.reliability import BINS
from mixwell.evaluate.subject import Progress, Subject, silent
from mixwell.train import Run, RunFolder, TrainConfig, trained
from mixwell.train.config import differing

__all__ = ["PARTS", "evaluate_run"]

PARTS = ("clean", "corruptions", "attacks", "ood", "occlusion", "intrusion", "cost")
"""What can be evaluated. "clean" brings "reliability" with it."""

_IMAGES: Mapping[str, int | None] = {"attacks": 1000, "corruptions": 10_000, "occlusion": 2000}
"""Test images of the dear parts, at most."""
_FORMAT = 1


def evaluate_run(
    path: Path | str,
    *,
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    images: int | None = None,
    batch_size: int = 100,
    anew: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run on its test set, and keep what was found in its evaluation.json.

    Every part is written as soon as it is found, so that an evaluation that was stopped goes on where it was. Parts
    that are there already under the same settings are not found again. The final weights are evaluated (not their
    moving average), in fp32, with as many threads as the run had; then all but "cost" is the same again, bit for bit.

    Args:
        path: the run's folder.
        parts: some of `PARTS`.
        seed: of everything random.
        images: test images for attacks, corruptions and occlusion, every class in proportion; None for up to 1,000,
            10,000 and 2,000.
        batch_size: images per pass.
        anew: find the parts again that are there already, and drop parts that were found under other settings.
        progress: called with (part, done, to do).

    Returns:
        the content of evaluation.json: "format", "settings", and what was found by part. Figures are shares in [0, 1],
        NLL in nats, the Brier score in [0, 2].

    Raises:
        ParameterError: an unknown part, or a number out of range.
        RunError: there is no finished run; it is damaged; or its evaluation.json is, or holds parts that were found
            under other settings and are not asked for.
    """
    asked = _checked(parts, seed, images, batch_size)
    run, folder = Run.read(Path(path)), RunFolder(Path(path))
    settings = _settings(run, seed, images, batch_size)
    before = folder.evaluation()
    found = {} if before is None else _kept(before, settings, asked, anew, Path(path))
    missing = [part for part in asked if part not in found]
    if not missing:
        return _content(found, settings)
    with _as_in_training(run):
        subject = Subject(trained(run), batch_size, PartialState().device, run.facts["config"]["channels_last"])
        for part in missing:
            told = silent if progress is None else partial(progress, part)
            found |= _found(part, subject, run, settings, told)
            folder.write_evaluation(_content(found, settings))
    return _content(found, settings)


def _checked(parts: Sequence[str], seed: int, images: int | None, batch_size: int) -> list[str]:
    """The parts in their order, each once."""
    if not parts:
        raise ParameterError(f"parts must name at least one of {', '.join(PARTS)}; got none.")
    for part in parts:
        if part not in PARTS:
            raise ParameterError(f"parts must be some of {', '.join(PARTS)}, got {part!r}; {closest(part, PARTS)}")
    for name, value, low in (("seed", seed, 0), ("batch_size", batch_size, 1), ("images", images, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ParameterError(f"{name} must be a whole number >= {low}, got {value!r}.")
    return [part for part in PARTS if part in parts]


def _settings(run: Run, seed: int, images: int | None, batch_size: int) -> dict[str, Any]:
    """Everything that changes figures: what all parts depend on, and what each does besides."""
    dear = {part: {"images": images or limit} for part, limit in _IMAGES.items()}
    return {
        "weights": run.facts["files"]["weights.safetensors"],
        "seed": seed,
        "images": images,
        "batch_size": batch_size,
        "clean": {"bins": BINS},
        "corruptions": dear["corruptions"],
        "attacks": {**dear["attacks"], **{name: asdict(attack) for name, attack in ATTACKS.items()}},
        "ood": {"images": 2000},
        "occlusion": {**dear["occlusion"], "draws": 3, "ratios": list(RATIOS)},
        "intrusion": {"mixes": 2000, "neighbours": 50_000, "bins": LAM_BINS},
        "cost": {"steps": 15, "seconds": 3.0},
    }


_SHARED = ("weights", "seed", "batch_size")


def _kept(
    before: Mapping[str, Any], settings: Mapping[str, Any], asked: Sequence[str], anew: bool, path: Path
) -> dict[str, Any]:
    """What an earlier evaluation found and this one would find again.

    Raises:
        RunError: it also found parts under other settings that this one does not find anew.
    """
    file, old = path / "evaluation.json", before.get("settings", {})
    if before.get("format") != _FORMAT:
        raise RunError(
            f"{file} has format {before.get('format')!r}, and this version of mixwell reads {_FORMAT}. Delete it, and "
            "evaluate the run again."
        )
    there = [part for part in PARTS if part in before]
    differences = {
        part: differing(
            {key: settings[key] for key in (*_SHARED, part)}, {key: old.get(key) for key in (*_SHARED, part)}
        )
        for part in there
    }
    if not anew and (stale := [part for part in there if differences[part] and part not in asked]):
        raise RunError(
            f"{file} holds {', '.join(stale)} under other settings: {'; '.join(differences[stale[0]])}. Give the same "
            f"settings again, or evaluate {'them' if len(stale) > 1 else 'it'} too, or drop "
            f"{'them' if len(stale) > 1 else 'it'} by evaluating anew."
        )
    kept = [part for part in there if not differences[part] and not (anew and part in asked)]
    return {name: before[name] for name in (*kept, *(["reliability"] if "clean" in kept else []))}


def _content(found: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    there = [part for part in PARTS if part in found]
    return {"format": _FORMAT, "settings": {"parts": there, **settings}, **found}


@contextmanager
def _as_in_training(run: Run) -> Iterator[None]:
    """With the run's number of threads, which rounding depends on; random states are as before afterwards."""
    threads, device = torch.get_num_threads(), PartialState().device
    torch.set_num_threads(run.facts["threads"])
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)


def _found(part: str, subject: Subject, run: Run, settings: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """What one part comes to, by its name."""
    own, seed, config = settings[part], settings["seed"], TrainConfig(**run.facts["config"])
    given: dict[str, Any] = {"seed": seed, "progress": progress}
    match part:
        case "clean":
            figures, bins = clean_figures(subject, **given)
            return {"clean": figures, "reliability": {name: list(values) for name, values in asdict(bins).items()}}
        case "corruptions":
            return {part: corruption_errors(subject, **own, **given)}
        case "attacks":
            return {part: attacked(subject, images=own["images"], **given)}
        case "ood":
            return {part: detected(subject, **own, **given)}
        case "occlusion":
            return {part: occluded(subject, **own, **given)}
        case "intrusion":
            lost = learns_to_mix(subject.trained.recipe) and "recipe.safetensors" not in run.facts["files"]
            return {part: None if lost else intrusion_rates(subject, config, **own, **given)}
        case _:
            return {part: training_cost(config, threads=run.facts["threads"], progress=progress, **own)}
