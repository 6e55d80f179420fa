"""One pass through a network, with what was asked for seen and what was asked for changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mixwell.core.errors import ModelError, SiteError
from mixwell.probe.alignment import Alignment, Start
from mixwell.probe.anatomy import Anatomy, Site, unwrapped
from mixwell.probe.attention import Heads, class_row, is_windowed, received, watch_heads

__all__ = ["Act", "Edit", "Outputs", "Probe", "Want"]

Edit = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""(map (R, C, h, w), prefix tokens (R, P, C) or None) → the same, changed."""


@dataclass(eq=False)
class Act:
    """What is done around a transformer block in one pass, to its tokens (R, N, C) with their prefix.

    Attributes:
        block: its number, from 0.
        enter: (tokens, attend) → the tokens to give the block instead, also more of them, or None. `attend()` tells how
            salient each patch is to the block, (R, patches) fp32 detached, as `Probe.attention_here`.
        leave: what the block gives → what to go on with, or None.
    """

    block: int
    enter: Callable[[Tensor, Callable[[], Tensor]], Tensor | None] = lambda tokens, attend: None
    leave: Callable[[Tensor], Tensor | None] = lambda tokens: None


@dataclass(frozen=True)
class Want:
    """Something to be seen of a pass.

    Attributes:
        kind: "features": the map (R, C, h, w) of a site (a stage number, -1 the last, or a module's name).
            "class_attention": (R, h·w) softmaxed attention of the class token to each patch, the mean over heads,
                detached; class and register columns are dropped and the rest not renormalised; the site is a block's
                number, -1 the last.
            "patch_attention": (R, h·w) the same of the patches: the mean over heads and over the patches that look.
            "alignment": (R, K) what of each source of the mix arrives at the class token, see `Alignment`; on the pass
                over a mix only.
            "logits": (R, C), so that the clean batch is looked at for them before training moves the network; other
                passes always have them.
            "gradient": (R, ...) of the loss with respect to the images (site "input"), or (R, C, h, w) to the map of
                another site; on clean batches only.
        site: where.
    """

    kind: Literal["features", "class_attention", "patch_attention", "alignment", "logits", "gradient"]
    site: int | str = -1


@dataclass(eq=False)
class Outputs:
    """What a pass returned.

    Attributes:
        logits: (R, C), of the first view.
        seen: what was asked for; read it as `outputs[want]`.
        others: (R, C) logits of each further view.
    """

    logits: Float[Tensor, "r c"]
    seen: dict[Want, Tensor] = field(default_factory=dict)
    others: tuple[Float[Tensor, "r c"], ...] = ()

    def __getitem__(self, want: Want) -> Tensor:
        return self.seen[want]

    def split(self, views: int) -> Outputs:
        """A pass over several views, one after the other along the rows, taken apart."""
        if views == 1:
            return self
        first, *others = self.logits.chunk(views)
        return Outputs(first, {want: tensor.chunk(views)[0] for want, tensor in self.seen.items()}, tuple(others))


_Key = Want | str | int | None
"""What a hook is for: seeing something, changing a site, acting around a block, or (None) replacing the classifier."""


def _ordered(wants: Iterable[Want], sites: Iterable[str], blocks: Iterable[int], *, head: bool) -> list[_Key]:
    """Edits before wants, so that a want at an edited site sees what the rest of the network sees."""
    return [*sites, *blocks, *([None] if head else []), *wants]


class _Enough(Exception):
    """Ends a pass through a block whose attention is known."""


@dataclass(eq=False)
class _Pass:
    """What the hooks work for while a pass runs."""

    wants: frozenset[Want]
    edits: Mapping[str, Edit]
    acts: Mapping[int, Sequence[Act]]
    head: nn.Module | None
    rows: int
    aspect: float
    alignment: Alignment | None = None
    seen: dict[Want, Tensor] = field(default_factory=dict)
    here: tuple[int, Callable[[Tensor, Tensor | None], Tensor]] | None = None
    given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)


class Probe:
    """The hooks of one network.

    Hooks are there only while a pass runs, unless `install` was called (torch.compile must see them before it traces).
    """

    def __init__(self, net: nn.Module, example: Tensor | None = None) -> None:
        self.net = unwrapped(net)
        self.anatomy = Anatomy(net, example)
        self._pass: _Pass | None = None
        self._installed: set[_Key] = set()

    def belongs_to(self, model: nn.Module) -> bool:
        """Whether `model` is this probe's network, or a wrapper of it."""
        return unwrapped(model) is self.net

    def check(self, want: Want) -> None:
        """See that the network offers what is wanted.

        Raises:
            ModelError, SiteError: it does not.
        """
        if want.kind == "features" or (want.kind == "gradient" and want.site != "input"):
            self.anatomy.site(want.site)
        elif want.kind == "alignment":
            self.anatomy.attention(-1)
        elif want.kind in ("class_attention", "patch_attention"):
            if not isinstance(want.site, int):
                raise ModelError(f"Attention is asked for by block number, got {want.site!r}.")
            if is_windowed(self.anatomy.attention(want.site)[1]):
                raise ModelError(
                    f"{type(self.net).__name__} attends within windows, and this recipe reads how the whole image is "
                    "attended to. Take a transformer such as 'vit-s' or timm's 'deit_small_patch16_224'."
                )
            if want.kind == "class_attention" and not self.anatomy.class_token:
                raise ModelError(
                    f"{type(self.net).__name__} has no class token, whose attention this recipe reads. Take a "
                    "transformer with one, such as 'vit-s' or timm's 'deit_small_patch16_224'."
                )

    def install(
        self, wants: Iterable[Want], sites: Iterable[str], blocks: Iterable[int] = (), *, head: bool = False
    ) -> None:
        """Put hooks in place for good, for networks that are to be compiled: wants, editable sites, blocks, the
        classifier.

        Also tells torch.compile to look at hooks when it reuses compiled code, as it must where some of several equal
        blocks have hooks.
        """
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        for key in _ordered(wants, sites, blocks, head=head):
            if key not in self._installed:
                self._hook(key, torch.compiler.disable)
                self._installed.add(key)

    def run(
        self,
        images: Tensor,
        *,
        wants: Iterable[Want] = (),
        edits: Mapping[str, Edit] | None = None,
        acts: Sequence[Act] = (),
        start: Start | None = None,
        head: nn.Module | None = None,
        call: Callable[[Tensor], Any] | None = None,
    ) -> Outputs:
        """One forward pass.

        Args:
            images: (R, ...) input of the network.
            wants: what to see.
            edits: what to change, by the site's name.
            acts: what to do around blocks; after an edit of what the same block is given.
            start: the sources' shares of each token, for the want of an alignment.
            head: a classifier to use in place of the network's.
            call: the callable to run, if it is not the network itself (a wrapper of it).

        Raises:
            ModelError: the network returned no logits, or passed by something that was asked for.
        """
        wants, edits = frozenset(wants), edits or {}
        aspect = images.shape[-2] / images.shape[-1] if images.ndim == 4 else 1.0
        around: dict[int, list[Act]] = {}
        for act in acts:
            around.setdefault(self.anatomy.block_number(act.block), []).append(act)
        aligned = [want for want in wants if want.kind == "alignment"]
        folded = Alignment(start, self.anatomy.prefix, self.anatomy.class_token) if aligned and start else None
        task = _Pass(wants, edits, around, head, len(images), aspect, folded)
        with self._hooks(task):
            logits = logits_of((self.net if call is None else call)(images))
        if folded is not None and (shares := folded.shares) is not None:
            task.seen.update(dict.fromkeys(aligned, shares))
        if missed := [want for want in wants if want not in task.seen]:
            raise ModelError(
                f"{type(self.net).__name__} did not pass through "
                f"{', '.join(f'{w.kind} at {w.site!r}' for w in missed)}. Its forward does not call that module; "
                "choose another site."
            )
        return Outputs(logits, seen=task.seen)

    def attention_here(self, hidden: Float[Tensor, "r c h w"], prefix: Tensor | None) -> Float[Tensor, "r p"]:
        """How salient each patch is to the block that is about to be given these tokens; to be called within an edit.

        The class token's attention to each patch, or without one the mean over the patches that look; mean over heads,
        fp32, detached. Computes the block up to its attention, and nothing else.

        Raises:
            SiteError: the edit's site is not what a block is given.
        """
        if self._pass is None or self._pass.here is None:
            raise SiteError(
                "Attention of a block is known where its tokens are: at the sites 'block:0', 'block:1', … of a "
                "transformer. Choose one of them."
            )
        block, back = self._pass.here
        return self._attention_of(block, back(hidden, prefix))

    def _attention_of(self, block: int, tokens: Tensor) -> Tensor:
        name, attention = self.anatomy.attention(block)
        found: list[Tensor] = []

        def tell(heads: Heads) -> None:
            found.append(self._saliency(heads))
            raise _Enough

        outer, self._pass = self._pass, None  # the hooks of the pass have nothing to do with this look
        args, kwargs = ((), {}) if outer is None else outer.given.get(block, ((), {}))
        handles = watch_heads(name, attention, tell)
        try:
            with torch.no_grad():
                self.anatomy.modules[self.anatomy.blocks[block]].forward(tokens.detach(), *args, **kwargs)
        except _Enough:
            pass
        finally:
            self._pass = outer
            for handle in handles:
                handle.remove()
        if not found:
            raise ModelError(f"Block {block} of {type(self.net).__name__} does not use its attention {name!r}.")
        return found[0]

    def _saliency(self, heads: Heads) -> Tensor:
        prefix = self.anatomy.prefix
        if self.anatomy.class_token:
            return class_row(heads.rows(0, 1), prefix)
        return received(heads.rows(prefix), prefix)

    @contextmanager
    def _hooks(self, task: _Pass) -> Iterator[None]:
        keys = _ordered(task.wants, task.edits, task.acts, head=task.head is not None)
        handles = [handle for key in keys if key not in self._installed for handle in self._hook(key)]
        outer, self._pass = self._pass, task
        try:
            yield
        finally:
            self._pass = outer
            for handle in handles:
                handle.remove()

    def _hook(self, key: _Key, guard: Callable[[Any], Any] = lambda hook: hook) -> list[RemovableHandle]:
        """Register the hooks of a key; `guard` wraps what they run."""
        if key is None:
            return [self.anatomy.modules[self.anatomy.classifier].register_forward_hook(guard(self._other_head))]
        if isinstance(key, str):
            site = self.anatomy.site(key)
            block = (
                self.anatomy.blocks.index(site.module) if site.before and site.module in self.anatomy.blocks else None
            )
            noted = [] if block is None else [self._note(block, guard)]
            return [*noted, site.watch(self.anatomy.modules, partial(self._edit, site, block), guard)]
        if isinstance(key, int):
            module = self.anatomy.modules[self.anatomy.blocks[key]]
            return [
                self._note(key, guard),
                module.register_forward_pre_hook(guard(partial(self._enter, key))),
                module.register_forward_hook(guard(partial(self._leave, key)), prepend=True),
            ]
        if key.kind == "features":
            site = self.anatomy.site(key.site)
            return [site.watch(self.anatomy.modules, partial(self._see, key, site), guard)]
        if key.kind in ("class_attention", "patch_attention") and isinstance(key.site, int):
            name, module = self.anatomy.attention(key.site)
            return watch_heads(name, module, guard(partial(self._see_attention, key)))
        if key.kind == "alignment":
            return self._watch_all(guard)
        raise ModelError(f"A pass cannot show {key.kind!r}.")

    def _watch_all(self, guard: Callable[[Any], Any]) -> list[RemovableHandle]:
        """Hooks for an alignment: every block's attention, and the grid of what blocks with windows are given."""
        handles: list[RemovableHandle] = []
        for number, (block, name) in enumerate(zip(self.anatomy.blocks, self.anatomy.attentions, strict=True)):
            module, attention = self.anatomy.modules[block], self.anatomy.modules[name]
            grid: list[tuple[int, int]] = []

            def see_grid(_: nn.Module, args: Any, grid: list[tuple[int, int]] = grid) -> None:
                grid[:] = [(args[0].shape[1], args[0].shape[2])]

            def tell(
                heads: Heads, number: int = number, block: nn.Module = module, grid: list[tuple[int, int]] = grid
            ) -> None:
                if self._pass is not None and self._pass.alignment is not None:
                    self._pass.alignment.meet(number, block, heads, grid[0] if grid else None)

            if is_windowed(attention):
                handles.append(module.register_forward_pre_hook(guard(see_grid)))
            handles += watch_heads(name, attention, guard(tell))
        return handles

    def _note(self, block: int, guard: Callable[[Any], Any]) -> RemovableHandle:
        """Remember what else a block is given, for a look at its attention."""

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._pass is not None:
                self._pass.given[block] = (args[1:], kwargs)

        module = self.anatomy.modules[self.anatomy.blocks[block]]
        return module.register_forward_pre_hook(guard(note), with_kwargs=True)

    def _edit(self, site: Site, block: int | None, output: Tensor) -> Tensor | None:
        if self._pass is None or site.name not in self._pass.edits:
            return None
        site.check_rows(output, self._pass.rows)
        shown, prefix, back = site.show(output, self._pass.aspect)
        outer, self._pass.here = self._pass.here, None if block is None else (block, back)
        try:
            return back(*self._pass.edits[site.name](shown, prefix))
        finally:
            self._pass.here = outer

    def _enter(self, block: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        tokens: Tensor = args[0]
        if self._pass is not None:
            self._pass.tokens[block] = tokens.shape[1]
        for act in () if self._pass is None else self._pass.acts.get(block, ()):
            changed = act.enter(tokens, partial(self._attention_of, block, tokens))
            tokens = tokens if changed is None else changed
        return None if tokens is args[0] else (tokens, *args[1:])

    def _leave(self, block: int, module: nn.Module, args: Any, output: Any) -> Any:
        first = tokens = output if isinstance(output, Tensor) else output[0]
        for act in () if self._pass is None else self._pass.acts.get(block, ()):
            changed = act.leave(tokens)
            tokens = tokens if changed is None else changed
        if tokens is first:
            return None
        return tokens if isinstance(output, Tensor) else type(output)((tokens, *output[1:]))

    def _other_head(self, module: nn.Module, args: Any, output: Any) -> Any:
        return None if self._pass is None or self._pass.head is None else self._pass.head(args[0])

    def _see(self, want: Want, site: Site, output: Tensor) -> None:
        if self._pass is not None and want in self._pass.wants:
            # A copy, since the network may go on in place.
            self._pass.seen[want] = site.show(output, self._pass.aspect)[0].clone()

    def _see_attention(self, want: Want, heads: Heads) -> None:
        if self._pass is not None and want in self._pass.wants:
            own = self._pass.tokens.get(self.anatomy.block_number(cast(int, want.site)))  # an act may have given more
            prefix = self.anatomy.prefix
            if want.kind == "class_attention":
                self._pass.seen[want] = class_row(heads.rows(0, 1)[..., :own], prefix)
            else:
                self._pass.seen[want] = received(heads.rows(prefix, own)[..., :own], prefix)


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returned: a tensor, or an object with `.logits`, or a tuple that starts with them.

    Raises:
        ModelError: there are none.
    """
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, Tensor):
        raise ModelError(
            f"The network must return logits (B, C), or an object with .logits; got {type(output).__name__}."
        )
    return found
