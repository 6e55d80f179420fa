"""What a network is made of: stages, transformer blocks, tokens and the classifier, found from its structure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mixwell.core.errors import ModelError, SiteError, closest
from mixwell.ops.tokens import grid_of
from mixwell.probe.attention import is_attention
from mixwell.probe.trace import untouched

__all__ = ["Anatomy", "Site", "unwrapped"]

_STAGE = re.compile(r"layer[1-9]\d*")
_BLOCK = re.compile(r"block:(-?\d+)")
_PATCH_EMBEDDINGS = ("patch_embed", "patch_embeddings", "patch_embedding", "to_patch_embedding", "conv_proj")


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel and torch.compile's wrappers."""
    while True:
        inner = getattr(net, "_orig_mod", None)
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = net.module
        if not isinstance(inner, nn.Module):
            return net
        net = inner


@dataclass(frozen=True)
class Site:
    """A place in the network whose tensor can be seen and changed: what a module gives, or what it is given.

    Attributes:
        name: what recipes call it: "stem", "embedding", "patches", "tokens", "block:2", or the module's path in the
            network (`named_modules`).
        module: the module's path.
        before: whether it is what the module is given.
        tokens: whether a 3-D output is (B, N, C) tokens rather than (B, C, L) signals.
        prefix: class, distillation and register tokens in front of the patches.
        channels_last: whether a 4-D output is (B, H, W, C).
    """

    name: str
    module: str
    before: bool = False
    tokens: bool = False
    prefix: int = 0
    channels_last: bool = False

    def watch(
        self, modules: Mapping[str, nn.Module], act: Callable[[Tensor], Tensor | None], guard: Callable[[Any], Any]
    ) -> RemovableHandle:
        """Have `act` see the site's tensor in every pass, and put in its place what it returns if that is a tensor.

        Args:
            guard: wraps the hook.
        """

        def first_in(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args or not isinstance(args[0], Tensor):
                raise SiteError(
                    f"Site {self.name!r} is what {self.module!r} is given, but it is not given a tensor as its first "
                    "argument. Choose another site."
                )
            changed = act(args[0])
            return None if changed is None else (changed, *args[1:])

        def first_out(module: nn.Module, args: Any, output: Any) -> Any:
            changed = act(output if isinstance(output, Tensor) else output[0])
            if changed is None:
                return None
            return changed if isinstance(output, Tensor) else type(output)((changed, *output[1:]))

        module = modules[self.module]
        if self.before:
            return module.register_forward_pre_hook(guard(first_in))
        return module.register_forward_hook(guard(first_out))

    def check_rows(self, output: Tensor, rows: int) -> None:
        """See that the output's first axis is the batch.

        Raises:
            SiteError: it is not.
        """
        if output.shape[0] != rows:
            raise SiteError(
                f"Site {self.name!r} gives a tensor of shape {tuple(output.shape)} for {rows} images; its first axis "
                "must be the batch. Choose another site."
            )

    def show(
        self, output: Tensor, aspect: float = 1.0
    ) -> tuple[Float[Tensor, "r c h w"], Float[Tensor, "r p c"] | None, Callable[[Tensor, Tensor | None], Tensor]]:
        """The output as a map (R, C, h, w) and its prefix tokens, and the way back to its own layout.

        Args:
            aspect: height / width of the input images; tells the token grid.

        Raises:
            SiteError: the output cannot be read as a map.
        """
        if output.ndim == 4 and self.channels_last:
            return output.permute(0, 3, 1, 2), None, lambda hidden, _: hidden.permute(0, 2, 3, 1)
        if output.ndim == 4:
            return output, None, lambda hidden, _: hidden
        if output.ndim == 3 and self.tokens:
            rows, count = output.shape[1] - self.prefix, output.shape[2]
            h, w = grid_of(rows, aspect, self.name)
            patches = output[:, self.prefix :].transpose(1, 2).reshape(output.shape[0], count, h, w)
            front = output[:, : self.prefix] if self.prefix else None

            def back(hidden: Tensor, prefix: Tensor | None) -> Tensor:
                tokens = hidden.flatten(2).transpose(1, 2)
                return tokens if prefix is None else torch.cat((prefix, tokens), 1)

            return patches, front, back
        if output.ndim == 3:
            return output[:, :, None], None, lambda hidden, _: hidden[:, :, 0]
        if output.ndim == 2:
            return output[:, :, None, None], None, lambda hidden, _: hidden[:, :, 0, 0]
        raise SiteError(
            f"Site {self.name!r} gives a tensor of shape {tuple(output.shape)}; expected (B, C, h, w), (B, N, C), (B, "
            "C, L) or (B, C). Choose another site."
        )


class Anatomy:
    """The parts of one network, by their names.

    Attributes:
        blocks: transformer blocks, first to last.
        attentions: the self-attention inside each block.
        prefix: number of class, distillation and register tokens.
        class_token: whether the first token is a class token.
        example: the first two of the images that the network was bound with, or None.
    """

    def __init__(self, net: nn.Module, example: Tensor | None = None) -> None:
        self.net = unwrapped(net)
        self.example = None if example is None else example[:2].detach().clone()
        self.modules: dict[str, nn.Module] = {name: module for name, module in self.net.named_modules() if name}
        self.blocks, self.attentions = _blocks_of(self.modules)
        self.prefix, self.class_token = _prefix_of(self.net)

    @property
    def has_tokens(self) -> bool:
        """Whether 3-D maps are tokens."""
        return bool(self.blocks)

    def example_for(self, what: str) -> Tensor:
        """The example images, for a piece that is built for the network's feature maps.

        Args:
            what: the piece, as the subject of the message.

        Raises:
            ModelError: there are none.
        """
        if self.example is None:
            raise ModelError(
                f"{what} is built for the network's feature maps, which are not known yet. Call "
                "recipe.bind(model, example=images) with some images before building the optimiser."
            )
        return self.example

    def site(self, which: int | str) -> Site:
        """A place in the network.

        Args:
            which: a stage's number (1 is the first, -1 the last), "stem" (what the first stage is given), "embedding"
                (what the classifier is given), "patches" (what the patch embedding gives, before class token and
                positions), "block:2" (what transformer block 2 is given, counted from 0, or from the end if negative),
                "tokens" (patch tokens after the last norm; of networks without tokens the last stage), or a module's
                name.

        Raises:
            SiteError: it does not exist; lists those that do.
        """
        if which == "stem" and which not in self.modules:
            return self._site("stem", *self._stem)
        if which == "embedding" and which not in self.modules:
            return Site("embedding", self.classifier, before=True)
        if which == "patches" and which not in self.modules:
            return Site("patches", self._patch_embedding, tokens=True, channels_last=self._patches_last)
        if which == "tokens" and which not in self.modules:
            return replace(self._site("tokens", self._last_norm) if self.blocks else self.site(-1), name="tokens")
        if isinstance(which, str) and (numbered := _BLOCK.fullmatch(which)) and which not in self.modules:
            number = self.block_number(int(numbered[1]))
            return self._site(f"block:{number}", self.blocks[number], before=True)
        if isinstance(which, bool) or not isinstance(which, int | str):
            raise SiteError(f"A site is a stage number or a module's name, got {which!r}.")
        if isinstance(which, int):
            number = which + 1 + len(self.stages) if which < 0 else which
            if not 1 <= number <= len(self.stages):
                raise SiteError(
                    f"Stage {which} does not exist: {type(self.net).__name__} has {len(self.stages)} stages "
                    f"({', '.join(self.stages) or 'none found; name modules instead'}). Choose sites=(...) among them, "
                    "0 for the input, or any module's name."
                )
            which = self.stages[number - 1]
        if which not in self.modules:
            raise SiteError(
                f"Site {which!r} does not exist in {type(self.net).__name__}; {closest(which, self.modules)} "
                f"Its stages are {', '.join(self.stages) or 'not known'}."
            )
        return self._site(which, which)

    def _site(self, name: str, module: str, before: bool = False) -> Site:
        return Site(name, module, before, self.has_tokens, self.prefix, _is_channels_last(self.net))

    @cached_property
    def _stem(self) -> tuple[str, bool]:
        """The module whose input or output the first stage works on, and whether it is its input.

        Raises:
            SiteError: the network's stages are not known.
        """
        if not self.stages:
            raise SiteError(
                f"Site 'stem' does not exist in {type(self.net).__name__}, whose stages are not known. Name modules "
                "instead, or call recipe.bind(model, example=images) with some images."
            )
        if self.stages[0] in self.blocks:
            return self.blocks[0], True
        if self.stages == self._declared_stages:
            return self.stages[0], True
        trunk = self.stages[0].rpartition(".")[0]
        return next(name for name in self.modules if name.rpartition(".")[0] == trunk), False

    def try_out(self, site: Site) -> None:
        """See what a site gives for one image, so that an axis of tokens is not taken for the batch.

        Raises:
            SiteError: the first axis of its output is not the batch.
        """
        if self.example is None:
            return

        handle = site.watch(self.modules, lambda tensor: site.check_rows(tensor, 1), lambda hook: hook)
        try:
            with untouched(self.net), torch.no_grad():
                self.net(self.example[:1])
        finally:
            handle.remove()

    @cached_property
    def classifier(self) -> str:
        """Name of the last linear layer.

        Raises:
            ModelError: there is none.
        """
        found = [name for name, module in self.modules.items() if isinstance(module, nn.Linear)]
        if not found:
            raise ModelError(
                f"{type(self.net).__name__} has no linear classifier, which this recipe replaces or copies."
            )
        return found[-1]

    def attention(self, block: int) -> tuple[str, nn.Module]:
        """Name and module of the self-attention of a block (-1 is the last).

        Raises:
            ModelError: the network has no attention that can be read.
        """
        name = self.attentions[self.block_number(block)]
        return name, self.modules[name]

    def block_number(self, block: int) -> int:
        """The number of a block counted from 0, which may be given from the end.

        Raises:
            ModelError: it does not exist, or no block's attention can be read.
        """
        if not self.attentions:
            raise ModelError(
                f"{type(self.net).__name__} has no self-attention, which this recipe needs. Take a transformer such as "
                "'vit-s', timm's 'vit_small_patch16_224' or 'deit_small_patch16_224', torchvision's 'vit_b_16', or a "
                "recipe without an attention label."
            )
        if not -len(self.attentions) <= block < len(self.attentions):
            raise ModelError(
                f"Block {block} does not exist: {type(self.net).__name__} has {len(self.attentions)} blocks."
            )
        return block % len(self.attentions)

    @cached_property
    def _patch_embedding(self) -> str:
        """Name of the module that makes tokens of pixels.

        Raises:
            SiteError: there is none.
        """
        found = [name for name in self.modules if name.rpartition(".")[2] in _PATCH_EMBEDDINGS]
        if not found:
            raise SiteError(
                f"Site 'patches' does not exist in {type(self.net).__name__}, which has no patch embedding (a module "
                f"called {', '.join(_PATCH_EMBEDDINGS)}). Take a transformer such as 'vit-s', or name a module."
            )
        return found[0]

    @property
    def _patches_last(self) -> bool:
        """Whether the patch embedding gives (B, h, w, C)."""
        module = self.modules[self._patch_embedding]
        return str(getattr(module, "output_fmt", "")).endswith("NHWC") or _is_channels_last(self.net)

    @cached_property
    def _last_norm(self) -> str:
        """Name of the norm after the last block, or of that block if there is none."""
        names, last = list(self.modules), self.blocks[-1]
        after = [name for name in names[names.index(last) + 1 :] if not name.startswith(f"{last}.")]
        norms = (n for n in after if "Norm" in type(self.modules[n]).__name__ and n.rpartition(".")[2] != "fc_norm")
        return next(norms, last)

    @cached_property
    def _declared_stages(self) -> tuple[str, ...]:
        """Stages that have the usual names, or that the network lists itself."""
        named = [name for name, _ in self.net.named_children() if _STAGE.fullmatch(name)]
        if named:
            return tuple(sorted(named, key=lambda name: int(name.removeprefix("layer"))))
        if self.blocks and len({name.rpartition(".")[0] for name in self.blocks}) == 1:
            return ()
        info = getattr(self.net, "feature_info", None)
        return tuple(entry["module"] for entry in _entries(info) if entry.get("module") in self.modules)

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Outputs after which the resolution changes, first to last.

        Of isotropic transformers, the ends of four equally deep groups of blocks. Where no name tells them, they are
        found by a pass over the example images.
        """
        if self._declared_stages:
            return self._declared_stages
        if self.blocks and len({name.rpartition(".")[0] for name in self.blocks}) == 1:
            depth = len(self.blocks)
            ends = sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)})
            return tuple(self.blocks[end - 1] for end in ends)
        return () if self.example is None else _traced_stages(self.net, self.example)


def _entries(info: object) -> Sequence[Mapping[str, Any]]:
    """timm's description of a network's stages, whichever form it has."""
    entries = getattr(info, "info", info)
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, Sequence) else []


def _blocks_of(modules: Mapping[str, nn.Module]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Blocks are the elements of a list of equal modules that each hold a self-attention."""
    blocks, attentions = [], []
    for name, module in modules.items():
        if not is_attention(module):
            continue
        parts = name.split(".")
        ends = [i for i, part in enumerate(parts) if i and _is_list(modules.get(".".join(parts[:i])), part)]
        if ends:
            blocks.append(".".join(parts[: ends[-1] + 1]))
            attentions.append(name)
    return tuple(blocks), tuple(attentions)


def _is_list(parent: nn.Module | None, child: str) -> bool:
    return isinstance(parent, nn.ModuleList | nn.Sequential) and child in parent._modules


def _prefix_of(net: nn.Module) -> tuple[int, bool]:
    """How many tokens stand before the patches, and whether the first is a class token."""
    sizes = {name.rpartition(".")[2]: parameter.shape for name, parameter in net.named_parameters()}
    class_token = any(name in sizes for name in ("cls_token", "class_token"))
    declared = getattr(net, "num_prefix_tokens", None)
    if isinstance(declared, int):
        return declared, class_token and declared > 0
    others = sum(name in sizes for name in ("dist_token", "distillation_token"))
    registers = [sizes[name][1] for name in ("reg_token", "register_tokens") if name in sizes]
    return int(class_token) + others + sum(registers), class_token


def _is_channels_last(net: nn.Module) -> bool:
    """Whether the network's maps are (B, H, W, C), as Swin's are."""
    return str(getattr(net, "output_fmt", "")).endswith("NHWC") or type(net).__name__ == "SwinTransformer"


def _traced_stages(net: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The last of the network's trunk modules at each resolution, seen in one forward pass that leaves no trace."""
    trunk, prefix = net, ""
    while True:
        children = dict(trunk.named_children())
        inner = children.get("features") or (next(iter(children.values())) if len(children) == 1 else None)
        if not isinstance(inner, nn.Module) or not dict(inner.named_children()):
            break
        name = next(key for key, value in children.items() if value is inner)
        trunk, prefix = inner, f"{prefix}{name}."
    seen: dict[tuple[int, ...], str] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1:
                seen[tuple(output.shape[-2:])] = name

        return hook

    handles = [module.register_forward_hook(note(prefix + name)) for name, module in trunk.named_children()]
    try:
        with untouched(net), torch.no_grad():
            net(example)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen.values())
