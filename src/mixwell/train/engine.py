"""The training loop, on Hugging Face Accelerate."""

from __future__ import annotations

import io
import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import Dataset

from mixwell.core.batch import Batch
from mixwell.core.check import check_images, check_labels
from mixwell.core.clock import Clock
from mixwell.core.errors import MixwellError, ModelError, ParameterError, RunError, closest
from mixwell.core.recipe import Recipe
from mixwell.core.rng import key_of
from mixwell.core.turns import Trainee
from mixwell.data import DataSet, Loader, with_label_noise
from mixwell.probe.capture import logits_of
from mixwell.probe.trace import untouched
from mixwell.train.config import TrainConfig, differing
from mixwell.train.evaluation import Evaluation, evaluate
from mixwell.train.folder import RunFolder
from mixwell.train.init import load_init
from mixwell.train.machine import changes, here
from mixwell.train.meters import Meters
from mixwell.train.named import data_of, net_of, recipe_of
from mixwell.train.optim import check_names, steppers
from mixwell.train.prepare import prepare
from mixwell.train.report import Reporter
from mixwell.train.samples import COUNT, renders, samples
from mixwell.train.split import split

__all__ = ["TIME_FIELDS", "Result", "check", "train"]

TIME_FIELDS = frozenset({"seconds", "evaluation_seconds", "images_per_second"})
"""Fields of the history that differ between two runs of one config."""

_LOOK = 50
"""Steps between two looks at the loss; each waits for the device."""

_AGREE = 20
"""Steps between two agreements of several processes on whether it is time to save."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        accuracy, nll, ece: on the test set after the last epoch, as in `Evaluation`.
        ema: the same of the averaged weights, or None.
        seconds_per_epoch: median time of an epoch's training, without evaluation.
        folder: the run's folder; `weights.safetensors` in it holds the trained network.
        history: one record per epoch.
    """

    accuracy: float
    nll: float
    ece: float
    ema: Evaluation | None
    seconds_per_epoch: float
    folder: Path
    history: tuple[dict[str, Any], ...]


def train(
    config: TrainConfig,
    *,
    dataset: DataSet | None = None,
    model: nn.Module | None = None,
    progress: bool = True,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Result:
    """Train, or resume, or return what a finished run came to.

    On the CPU, a run that was killed and resumed ends with the same weights, bit for bit, as one that was not.

    Args:
        config: what to train.
        dataset: used in place of `config.data`, e.g. from `mixwell.data.from_datasets`.
        model: network (B, C, H, W) → logits, used in place of `config.model`; it is trained in place.
        progress: whether to show what happens on the standard error stream.
        stop: asked after every epoch but the last, with its record of the history. True leaves the run there, as an
            interruption would, and returns what it came to so far; the same call resumes.

    Raises:
        MixwellError: the config asks for what does not exist or does not fit together (before a folder is made); the
            run folder is damaged, belongs to another config or cannot be written; the loss is not finite.
        KeyboardInterrupt: passed on; the same call resumes.
    """
    folder = RunFolder(config.folder)
    identity = _identity(config, dataset, model)
    check_names(config)
    accelerator = _accelerator(config)
    finished = _on_main(accelerator, lambda: _finished(folder, identity))
    if finished is not None and model is None:
        Reporter(progress and accelerator.is_main_process).note(f"{folder.path} is finished; this is its result.")
        return finished
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_gpu = [accelerator.device] if accelerator.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(on_gpu):
            engine = _Engine(config, identity, folder, accelerator, dataset, model, progress)
            engine.stop = stop
            return engine.run() if finished is None else engine.recall(finished)
    finally:
        torch.set_num_threads(threads)


def check(config: TrainConfig, *, dataset: DataSet | None = None, model: nn.Module | None = None) -> None:
    """See that a config can be trained, without training, preparing or writing anything.

    Args:
        config: what would be trained.
        dataset: used in place of loading `config.data`.
        model: network used in place of `config.model`; it may be changed.

    Raises:
        MixwellError: what `train` would raise before its first step.
    """
    check_names(config)
    accelerator = _accelerator(config)
    on_gpu = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(on_gpu):
        _Engine(config, config.identity, RunFolder(config.folder), accelerator, dataset, model, False, prepared=False)


def _identity(config: TrainConfig, dataset: DataSet | None, model: nn.Module | None) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    given: dict[str, Any] = {}
    if dataset is not None:
        sizes = [len(part) for part in (dataset.train, dataset.test)]  # type: ignore[arg-type]
        given["data"] = f"{dataset.name}: {sizes[0]} + {sizes[1]} images {dataset.shape}, {dataset.num_classes} classes"
    if model is not None:
        given["model"] = f"{type(model).__name__} of {sum(p.numel() for p in model.parameters())} parameters"
    return {**config.identity, **given}


def _finished(folder: RunFolder, identity: dict[str, Any]) -> Result | None:
    """The result that the folder holds, if the run is finished."""
    if not folder.exists:
        return None
    run = folder.run()
    _same(folder, run["identity"], identity)
    if run["status"] != "finished":
        return None
    history = folder.history()
    if len(history) != run["config"]["epochs"]:
        raise RunError(
            f"{folder.path / 'history.jsonl'} is damaged: expected {run['config']['epochs']} lines, got {len(history)}."
            " Restore it from a copy, or delete the folder to train anew."
        )
    return _result(run["result"], folder.path, history)


def _result(values: dict[str, Any], folder: Path, history: list[dict[str, Any]]) -> Result:
    ema = values["ema"]
    return Result(**{**values, "ema": ema and Evaluation(**ema)}, folder=folder, history=tuple(history))


def _same(folder: RunFolder, old: dict[str, Any], new: dict[str, Any]) -> None:
    if differences := differing(new, old):
        raise RunError(
            f"{folder.path} holds a run of another config: {'; '.join(differences)}. "
            "Give the same config to resume it, or another --out."
        )


def _accelerator(config: TrainConfig) -> Accelerator:
    if config.tracker is not None and find_spec(config.tracker) is None:
        raise ParameterError(f"tracker {config.tracker!r} is not installed. Run: pip install {config.tracker}")
    # Accelerate keeps the precision of a process's first Accelerator for all that follow.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.precision, log_with=config.tracker, project_dir=str(config.folder))
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise ParameterError("precision 'fp16' needs a GPU, and this machine has none. Take 'bf16' or 'no'.")
    # Batches are weighted by `_Engine._step`, whatever the launcher's environment says.
    accelerator.gradient_accumulation_steps = 1
    return accelerator


class _Engine:
    """One training, from its parts to its result."""

    def __init__(
        self,
        config: TrainConfig,
        identity: dict[str, Any],
        folder: RunFolder,
        accelerator: Accelerator,
        dataset: DataSet | None,
        model: nn.Module | None,
        progress: bool,
        *,
        prepared: bool = True,
    ) -> None:
        self.config, self.identity, self.folder, self.accelerator = config, identity, folder, accelerator
        data = dataset or data_of(config)
        self.data = with_label_noise(data, config.label_noise, config.seed)
        self.recipe, self.plain = recipe_of(config, self.data), recipe_of(config, self.data, recipe="none")
        self.data, self.kept = split(self.data, self.recipe, config.held_out, config.seed)
        self.loader, self.test_loader = self._loader(self.data.train), self._loader(self.data.test, shuffle=False)
        self.rows: int = math.ceil(len(self.data.train) / accelerator.num_processes)  # type: ignore[arg-type]
        self.total = config.epochs * len(self.loader)
        self.switch = self.total if config.mix_until is None else round(config.mix_until * len(self.loader))

        torch.manual_seed(key_of(config.seed, "initial weights") >> 1)
        self.model = net_of(config, self.data, pretrained=config.init == "pretrained") if model is None else model
        self.model.to(accelerator.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        first = self._placed(next(self.loader.epoch(0)))
        self.shown = replace(
            first,
            images=first.images[:COUNT],
            labels=first.labels[:COUNT],
            index=None if first.index is None else first.index[:COUNT],
            extras={name: value[:COUNT] for name, value in first.extras.items()},
        )
        notes = []
        if config.init not in (None, "pretrained"):
            notes.append(load_init(self.model, str(config.init), self.data.num_classes))
        self._check(first)
        self.reporter = Reporter(progress and accelerator.is_main_process, config.epochs, self.total)
        if prepared:
            self._prepare()
        kept = None if self.kept is None else self._loader(self.kept)
        self.recipe.use_data(
            train=partial(self._loader(self.data.train, shuffle=False).epoch, 0),
            held_out=None if kept is None else partial(kept.epoch, 0),
        )
        self.recipe.bind(self.model, first.images).to(accelerator.device)
        self.plain.to(accelerator.device)
        groups = self.recipe.parameter_groups(self.model)
        updates = math.ceil(len(self.loader) / config.accumulate)
        self.steppers = steppers(config, groups, self.model, updates)
        # Copied before hooks and compiled code are put into the network.
        self.ema = None if config.ema is None else ModelEmaV3(self.model, config.ema, use_warmup=True)
        if config.compile:
            self.recipe.install_hooks(self.model)
            try:
                self.model.compile(backend=config.compile_backend)
            except RuntimeError as error:
                known = torch._dynamo.list_backends(exclude_tags=())
                raise ParameterError(f"compile_backend: {error}; {closest(config.compile_backend, known)}") from error

        self.step = self.updates = 0
        self.seconds = 0.0
        self.meters = Meters()
        self.history: list[dict[str, Any]] = []
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.stop: Callable[[Mapping[str, Any]], bool] | None = None
        self._scaler_state: dict[str, Any] | None = None
        for note in notes:
            self.reporter.note(note)

    def _loader(self, part: Dataset[Any], *, shuffle: bool = True) -> Loader:
        config, accelerator = self.config, self.accelerator
        return Loader(
            part,
            config.batch_size,
            pixels=self.data.pixels,
            seed=config.seed,
            shuffle=shuffle,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=config.workers,
        )

    def _check(self, batch: Batch) -> None:
        """See that data and network fit, before anything is written."""
        check_images(batch.images, True)
        check_labels(batch, self.data.num_classes, True, rows_sum_to_1=False)
        name = type(self.model).__name__
        try:
            with untouched(self.model), torch.no_grad(), self.accelerator.autocast():
                logits = logits_of(self.model(batch.images[:2]))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(
                f"{name} cannot take images of shape {tuple(batch.images.shape[1:])} ({self.data.name}): {error}. "
                "Choose data_options (size, channels) or model_options that fit."
            ) from error
        wanted = (len(batch.images[:2]), self.data.num_classes)
        if tuple(logits.shape) != wanted:
            raise ModelError(
                f"{name} must return logits {wanted} for {self.data.name}, got {tuple(logits.shape)}. "
                f"Build it for {self.data.num_classes} classes."
            )

    def _prepare(self) -> None:
        """Let the first process make or load what the recipe needs; the others then load it."""

        def make() -> None:
            prepare(
                self.recipe,
                self.data,
                device=self.accelerator.device,
                workers=self.config.workers,
                progress=self.reporter.making,
            )

        try:
            _on_main(self.accelerator, make)
            if not self.accelerator.is_main_process:
                make()
        finally:
            self.reporter.close()

    def _placed(self, batch: Batch) -> Batch:
        if self.accelerator.device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(self.accelerator.device, non_blocking=True, channels_last=self.config.channels_last)

    # A run

    def run(self) -> Result:
        """Train to the end, or to where `stop` says so."""
        run = _on_main(self.accelerator, self._open)
        if state := _on_main(self.accelerator, lambda: self.folder.state() if self.folder.has_state else None):
            self._restore(state)
        try:
            self._greet(run)
            self._train()
            if self.step < self.total:
                return _result(self._values(), self.folder.path, self.history)
            return self._finish(run)
        except KeyboardInterrupt:
            self.reporter.note(f"Interrupted. {self._remains()}")
            raise
        except Exception:
            if self.accelerator.is_main_process:
                self.folder.discard()
            raise
        finally:
            self.reporter.close()

    def recall(self, finished: Result) -> Result:
        """Put the weights of the finished run into the network that was given."""
        weights = _on_main(self.accelerator, lambda: self.folder.weights("weights.safetensors"))
        self.recipe.predictor(self.model).load_state_dict(weights)
        self.reporter.note(f"{self.folder.path} is finished; the network has its weights.")
        return finished

    def _open(self) -> dict[str, Any]:
        """What run.json says, made if it is not there."""
        data = self.data
        facts = {
            "data": f"{data.name}: {len(data.train)} + {len(data.test)} images {data.shape}",  # type: ignore[arg-type]
            "processes": self.accelerator.num_processes,
        }
        if not self.folder.exists:
            run = {
                "status": "running",
                "identity": self.identity,
                "config": self.config.to_json(),
                "hash": self.config.hash,
                "seed": self.config.seed,
                "facts": facts,
                **here(self.accelerator.device),
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            }
            self.folder.begin(run)
            return run
        run = self.folder.run()
        _same(self.folder, run["facts"], facts)
        self.folder.begin(run)
        return run

    def _greet(self, run: dict[str, Any]) -> None:
        self.reporter.start(self.step)
        if self.step:
            self.reporter.note(f"Resumes {self.folder.path} at {self._place()}.")
            if moved := changes(here(self.accelerator.device), run):
                self.reporter.note(f"It may not end bit for bit as it would have: {'; '.join(moved)}.")
        if self.config.tracker is not None:
            flat = {name: value for name, value in self.identity.items() if isinstance(value, int | float | str)}
            self.accelerator.init_trackers("mixwell", config=flat)

    def _train(self) -> None:
        config, batches = self.config, len(self.loader)
        self.model.train()
        for stepper in self.steppers.values():
            stepper.optimizer = self.accelerator.prepare(stepper.optimizer)
        if self._scaler_state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._scaler_state)
        trainee: nn.Module | None = None
        while self.step < self.total:
            epoch, start = divmod(self.step, batches)
            begun, before = time.monotonic(), self.seconds
            if not start and self.step < self.switch:
                clock = Clock(self.step, self.total, epoch, next(iter(self.steppers.values())).lr)
                self.recipe.before_epoch(self.model, clock)
            for index, batch in enumerate(self.loader.epoch(epoch, start), start):
                if trainee is None or self.step == self.switch:
                    trainee = self.accelerator.prepare(Trainee(self.model, self._acting))
                group = index - index % config.accumulate
                last = index + 1 == min(group + config.accumulate, batches)
                share = len(batch) / self._rows_of(group, min(group + config.accumulate, batches))
                self._step(trainee, self._placed(batch), epoch, share, first=index == group, last=last)
                self.seconds = before + time.monotonic() - begun
                speed = self._rows_of(0, index + 1) / max(self.seconds, 1e-9)
                self.reporter.step(epoch, index + 1, batches, self.step, speed, self.meters.means)
                if self.step % _LOOK == 0:
                    self._look()
                if last and index + 1 < batches and self._due():
                    self._save()
            self._end_epoch(epoch)
            if self.step < self.total and self._stops():
                return

    def _stops(self) -> bool:
        stop, record = self.stop, self.history[-1]
        return stop is not None and _on_main(self.accelerator, lambda: stop(record))

    @property
    def _acting(self) -> Recipe:
        return self.recipe if self.step < self.switch else self.plain

    def _rows_of(self, start: int, stop: int) -> int:
        """Images of this process in the batches start … stop - 1 of an epoch."""
        return min(stop * self.config.batch_size, self.rows) - start * self.config.batch_size

    def _step(self, trainee: nn.Module, batch: Batch, epoch: int, share: float, *, first: bool, last: bool) -> None:
        """One batch; `share` is its part in the gradient of the optimiser's next step."""
        accelerator = self.accelerator
        for stepper in self.steppers.values():
            stepper.schedule(self.updates)
        lr = next(iter(self.steppers.values())).lr
        clock = Clock(self.step, self.total, epoch, lr)
        # Dropout and the like: keyed, so that a resumed run needs no saved generator.
        torch.manual_seed(key_of(self.config.seed, "torch", accelerator.process_index, self.step) >> 1)
        asked: Batch | None = batch
        with nullcontext() if last else accelerator.no_sync(trainee):
            while True:
                turn = trainee(asked, clock)
                stepper = self.steppers[turn.group]
                if first:
                    stepper.optimizer.zero_grad()
                with stepper.alone([other for other in self.steppers.values() if other is not stepper]):
                    accelerator.backward(turn.loss * share if share != 1 else turn.loss)
                if last:
                    stepper.step(accelerator)
                self._count(turn, len(batch))
                if turn.last:
                    break
                asked = None
        self.step += 1
        if last:
            self.updates += 1
            self.recipe.after_step(self.model, clock)
            if self.ema is not None:
                self.ema.update(self.model, self.updates)

    def _count(self, turn: Any, rows: int) -> None:
        prefix = "" if turn.group == "main" else f"{turn.group}/"
        values = {f"{prefix}loss": turn.loss}
        if turn.logits is not None and turn.targets is not None:
            values[f"{prefix}mixed_accuracy"] = turn.targets.accuracy(turn.logits)
        values.update({f"{prefix}parts/{name}": value for name, value in turn.parts.items()})
        self.meters.add(rows, values)

    def _look(self) -> None:
        """Raise if the loss is not finite."""
        bad = [name for name, value in self.meters.means().items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"{bad[0]} is not finite at step {self.step} (looked at every {_LOOK} steps) with the recipe "
                f"{self._acting!s}. Lower lr={self.config.lr:g}, set clip=1, or change the precision."
            )

    def _end_epoch(self, epoch: int) -> None:
        self._look()
        means = self.meters.means(self.accelerator)
        begun = time.monotonic()
        tested = self._evaluate(self.model)
        averaged = None if self.ema is None else self._evaluate(self.ema.module)
        parts = {name.replace("parts/", ""): value for name, value in means.items() if "parts/" in name}
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": next(iter(self.steppers.values())).lr,
            **{name: value for name, value in means.items() if "parts/" not in name},
            "parts": parts,
            **asdict(tested),
            **({} if averaged is None else {"ema": asdict(averaged)}),
            "images_per_second": self.accelerator.num_processes * self.rows / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "evaluation_seconds": time.monotonic() - begun,
        }
        if renders(self.recipe) and self.step <= self.switch and self.accelerator.is_main_process:
            clock = Clock(self.step, self.total, epoch, record["lr"])
            self.folder.write_sample(epoch + 1, samples(self.recipe, self.model, self.shown, clock))
        self.history.append(record)
        self.meters, self.seconds = Meters(), 0.0
        if self.accelerator.is_main_process:
            self.folder.write_history(self.history)
        self._save()
        self.reporter.epoch(record)
        if self.config.tracker is not None:
            self.accelerator.log(_flat(record), step=self.step)

    def _evaluate(self, net: nn.Module) -> Evaluation:
        predictor = self.recipe.predictor(net)
        if self.accelerator.num_processes > 1:
            # Statistics of BatchNorm are each process's own between two steps.
            for buffer in predictor.buffers():
                torch.distributed.broadcast(buffer, 0)
        found = evaluate(
            predictor,
            self.test_loader,
            self.accelerator,
            images=self.recipe.eval_images,
            channels_last=self.config.channels_last,
        )
        if not math.isfinite(found.nll):
            raise RunError(
                f"The network's outputs on the test set are not finite after step {self.step} with the recipe "
                f"{self._acting!s}. Lower lr={self.config.lr:g} or set clip=1."
            )
        return found

    def _values(self) -> dict[str, Any]:
        """What the training came to so far."""
        seconds = sorted(record["seconds"] for record in self.history)
        last = self.history[-1]
        values = {name: last[name] for name in ("accuracy", "nll", "ece")}
        return {**values, "ema": last.get("ema"), "seconds_per_epoch": seconds[len(seconds) // 2]}

    def _finish(self, run: dict[str, Any]) -> Result:
        values = self._values()
        if self.accelerator.is_main_process:
            nets = {
                "weights.safetensors": self.model,
                **({} if self.ema is None else {"ema.safetensors": self.ema.module}),
            }
            files = {
                name: self.folder.write_weights(name, self.recipe.predictor(net).state_dict())
                for name, net in nets.items()
            }
            if self.recipe.owns:
                own = self.recipe.state_dict()
                files["recipe.safetensors"] = self.folder.write_weights("recipe.safetensors", own)
            self.folder.describe({**run, "status": "finished", "result": values, "files": files})
            self.folder.drop_state()
        if self.config.tracker is not None:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        return _result(values, self.folder.path, self.history)

    # Resumable state

    def _due(self) -> bool:
        config = self.config
        if config.checkpoint_steps is not None and self.step - self.saved_step >= config.checkpoint_steps:
            return True
        late = time.monotonic() - self.saved_at >= config.checkpoint_seconds
        if self.accelerator.num_processes == 1:
            return late
        return self.step % _AGREE == 0 and _on_main(self.accelerator, lambda: late)

    def _save(self) -> None:
        """Write the resumable state: all that the steps to come depend on, besides the config and the clock."""
        self._look()
        own = gather_object([{"recipe": self.recipe.state_dict(), "meters": self.meters.state_dict()}])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "updates": self.updates,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "optimizers": {turn: stepper.optimizer.state_dict() for turn, stepper in self.steppers.items()},
                "scaler": None if scaler is None else scaler.state_dict(),
                "ranks": own,
                "history": json.dumps(self.history),
            }
            self.folder.write_state(f"{self.step:09}", state)
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def _restore(self, data: bytes) -> None:
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise RunError(
                f"The state in {self.folder.path / 'state'} cannot be read: {error}. Delete the folder to train anew."
            ) from error
        own = state["ranks"][self.accelerator.process_index]
        self.step, self.updates, self.seconds = state["step"], state["updates"], state["seconds"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.recipe.load_state_dict(own["recipe"])
        for turn, stepper in self.steppers.items():
            stepper.optimizer.load_state_dict(state["optimizers"][turn])
        self._scaler_state = state["scaler"]
        self.meters.load_state_dict(own["meters"], self.accelerator.device)
        self.history = json.loads(state["history"])
        self.saved_step = self.step
        if self.accelerator.is_main_process:
            self.folder.write_history(self.history)

    def _place(self) -> str:
        epoch, batch = divmod(self.step, len(self.loader))
        return f"epoch {epoch + 1}, batch {batch + 1} of {len(self.loader)}"

    def _remains(self) -> str:
        if not self.folder.has_state:
            return "Nothing was saved yet; the same command starts again."
        return f"The state of step {self.saved_step} is saved in {self.folder.path}; the same command resumes there."


def _on_main(accelerator: Accelerator, action: Callable[[], _T]) -> _T:
    """What `action` gives or raises on the first process, on all of them."""
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = action()
        except MixwellError as error:
            if accelerator.num_processes == 1:
                raise
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    answer: _T = told[0]
    return answer


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
