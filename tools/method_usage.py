"""The lines of Python and of the shell that train with a method, found by trying what its recipe asks for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from functools import cache

import torch

import mixwell
from mixwell.core.recipe import Recipe
from mixwell.nets import create_net

__all__ = ["asks_of", "usage"]

SIGNS = {
    "pixels": "raw pixels",
    "prepare": "recipe.prepare(",
    "train": "use_data(train=",
    "held_out": "use_data(held_out=",
    "epoch": "recipe.before_epoch(",
    "turns": "recipe.turns(",
}
"""What a recipe asks for, by words of the error that it raises without."""
SHORT = {"teacher_epochs": 1, "epochs": 1}
"""Parameters under which a trial's preparation is short."""
WORDS = {
    "pixels": "`pixels` says how the images were normalised: `mixwell.Pixels(mean, std)`.",
    "batches": "`batches` and `held_out` are functions that give a pass over the training images, and over others that "
    "are kept from training, as `mixwell.Batch(images, labels)`.",
    "turns": "`turn.group` says whose parameters a loss is for; see [your own loop](../guides/loop.md).",
    "owned": "The recipe has parameters of its own, which the optimiser must get.",
    "eval": "At evaluation the network is fed `recipe.eval_images(images)`.",
}


def usage(slug: str, text: str) -> str:
    """Python and shell for the recipe `text`, by which `slug` is shown."""
    asks = asks_of(slug, text)
    pixels = ", pixels=pixels" if "pixels" in asks else ""
    lines = ["import mixwell", "", f"recipe = mixwell.create({json.dumps(text)}, num_classes=10{pixels})"]
    if "prepare" in asks:
        lines.append('recipe.prepare(batches, "name of the data")  # once')
    if given := [f"{name}={value}" for name, value in (("train", "batches"), ("held_out", "held_out")) if name in asks]:
        lines.append(f"recipe.use_data({', '.join(given)})")
    whole = bool({"owned", "predictor", "turns"} & set(asks))
    if whole:
        lines += [
            "recipe.bind(model, images)",
            "optimizer = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)",
            "",
        ]
        lines[:1] = ["import torch", "", "import mixwell"]
    if "epoch" in asks:
        lines.append("recipe.before_epoch(model)  # at the start of each epoch")
    lines += _step("turns" in asks) if whole else ["loss = recipe(model, images, labels)"]
    if "predictor" in asks:
        lines.append("predictor = recipe.predictor(model)  # the network to evaluate and keep")
    tokens = " --model vit-s" if mixwell.create(text, 10).needs_tokens else ""
    shell = f"```sh\nmixwell train --recipe {shlex.quote(text)}{tokens}\n```"
    return "\n\n".join(["```python\n" + "\n".join(lines) + "\n```", *_words(asks), shell])


def _step(turns: bool) -> list[str]:
    """One step of a loop."""
    body = ["optimizer.zero_grad()", "{}.backward()", "optimizer.step()"]
    if turns:
        lines = ["for turn in recipe.turns(model, images, labels):", *("    " + line for line in body)]
    else:
        lines = ["loss = recipe(model, images, labels)", *body]
    return [*(line.format("turn.loss" if turns else "loss") for line in lines), "recipe.after_step(model)"]


def _words(asks: Collection[str]) -> list[str]:
    said = [name for name in ("pixels", "turns", "owned", "eval") if name in asks]
    if {"prepare", "train", "held_out"} & set(asks):
        said.insert(0, "batches")
    return [" ".join(WORDS[name] for name in said)] if said else []


@cache
def asks_of(slug: str, text: str) -> frozenset[str]:
    """What a loop must do for the recipe: keys of `SIGNS`, and "owned", "predictor", "eval".

    The recipe is tried on random images, and always mixes.
    """
    asks: set[str] = set()
    for _ in range(len(SIGNS) + 1):
        try:
            return frozenset(asks | _beyond(_try(_trial_text(slug, text), asks)))
        except mixwell.MixwellError as error:
            found = [name for name, words in SIGNS.items() if name not in asks and words in str(error)]
            if not found:
                raise
            asks.add(found[0])
    raise AssertionError(f"{text} asks for more than {sorted(asks)}")


def _trial_text(slug: str, text: str) -> str:
    entry = mixwell.method_of(slug)
    given = [f"{name}={value}" for name, value in SHORT.items() if name in entry.parameters]
    if entry.gate and entry.build().prob < 1:
        given.append(f"{entry.gate}=1.0")
    return text.replace(slug, f"{slug}({', '.join(given)})") if given else text


def _try(text: str, asks: Collection[str]) -> tuple[Recipe, torch.nn.Module]:
    recipe = mixwell.create(text, 4, pixels=mixwell.Pixels((0.5,), (0.5,)) if "pixels" in asks else None)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net, images = create_net("vit-s" if recipe.needs_tokens else "cnn-s", 4), torch.rand(4, 3, 32, 32)
    batch = mixwell.Batch(images, torch.arange(4), index=torch.arange(4))
    if "prepare" in asks:
        recipe.prepare(lambda: [batch], "random numbers for the documentation")
    recipe.use_data(**{name: lambda: [batch] for name in ("train", "held_out") if name in asks})
    recipe.bind(net, images)
    if "epoch" in asks:
        recipe.before_epoch(net)
    if "turns" in asks:
        for turn in recipe.turns(net, batch):
            turn.loss.backward()
    else:
        recipe(net, batch)
    return recipe, net


def _beyond(tried: tuple[Recipe, torch.nn.Module]) -> set[str]:
    recipe, net = tried
    images = torch.rand(2, 3, 32, 32)
    found = {
        "owned": len(recipe.parameter_groups(net)) > 1,
        "predictor": recipe.predictor(net) is not net,
        "eval": recipe.eval_images(images) is not images,
    }
    return {name for name, applies in found.items() if applies}
