"""One pass through a network, with what was asked for seen and what was asked for changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mixwell.core.errors import ModelError
from mixwell.probe.anatomy import Anatomy, Site, unwrapped
from mixwell.probe.attention import Heads, attention_rows, class_row, watch_heads

__all__ = ["Edit", "Outputs", "Probe", "Want"]

Edit = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""(map (R, C, h, w), prefix tokens (R, P, C) or None) → the same, changed."""


@dataclass(frozen=True)
class Want:
    """Something to be seen of a pass.

    Attributes:
        kind: "features": the map (R, C, h, w) of a site (a stage number, -1 the last, or a module's name).
            "class_attention": (R, h·w) softmaxed attention of the class token to each patch, the mean over heads,
                detached; class
            and register columns are dropped and the rest not renormalised; the site is a block's number, -1 the last.
            "gradient": (R, ...) of the loss with respect to the images (site "input"), or (R, C, h, w) to the map of
                another site; on clean batches only.
        site: where.
    """

    kind: Literal["features", "class_attention", "gradient"]
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


_Key = Want | str | None
"""What a hook is for: seeing something, changing a site, or (None) replacing the classifier."""


def _ordered(wants: Iterable[Want], sites: Iterable[str], *, head: bool) -> list[_Key]:
    """Edits before wants, so that a want at an edited site sees what the rest of the network sees."""
    return [*sites, *([None] if head else []), *wants]


@dataclass(eq=False)
class _Pass:
    """What the hooks work for while a pass runs."""

    wants: frozenset[Want]
    edits: Mapping[str, Edit]
    head: nn.Module | None
    rows: int
    aspect: float
    seen: dict[Want, Tensor] = field(default_factory=dict)


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
        elif want.kind == "class_attention":
            if not isinstance(want.site, int):
                raise ModelError(f"Attention is asked for by block number, got {want.site!r}.")
            self.anatomy.attention(want.site)
            if not self.anatomy.class_token:
                raise ModelError(
                    f"{type(self.net).__name__} has no class token, whose attention this recipe reads. Take a "
                    "transformer with one, such as 'vit-s' or timm's 'deit_small_patch16_224'."
                )

    def install(self, wants: Iterable[Want], sites: Iterable[str], *, head: bool = False) -> None:
        """Put hooks in place for good, for networks that are to be compiled: wants, editable sites, the classifier.

        Also tells torch.compile to look at hooks when it reuses compiled code, as it must where some of several equal
        blocks have hooks.
        """
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        for key in _ordered(wants, sites, head=head):
            if key not in self._installed:
                self._hook(key, torch.compiler.disable)
                self._installed.add(key)

    def run(
        self,
        images: Tensor,
        *,
        wants: Iterable[Want] = (),
        edits: Mapping[str, Edit] | None = None,
        head: nn.Module | None = None,
        call: Callable[[Tensor], Any] | None = None,
    ) -> Outputs:
        """One forward pass.

        Args:
            images: (R, ...) input of the network.
            wants: what to see.
            edits: what to change, by the site's name.
            head: a classifier to use in place of the network's.
            call: the callable to run, if it is not the network itself (a wrapper of it).

        Raises:
            ModelError: the network returned no logits, or passed by something that was asked for.
        """
        wants, edits = frozenset(wants), edits or {}
        aspect = images.shape[-2] / images.shape[-1] if images.ndim == 4 else 1.0
        task = _Pass(wants, edits, head, len(images), aspect)
        with self._hooks(task):
            logits = logits_of((self.net if call is None else call)(images))
        if missed := [want for want in wants if want not in task.seen]:
            raise ModelError(
                f"{type(self.net).__name__} did not pass through "
                f"{', '.join(f'{w.kind} at {w.site!r}' for w in missed)}. Its forward does not call that module; "
                "choose another site."
            )
        return Outputs(logits, seen=task.seen)

    @contextmanager
    def _hooks(self, task: _Pass) -> Iterator[None]:
        keys = _ordered(task.wants, task.edits, head=task.head is not None)
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
            return [site.watch(self.anatomy.modules, partial(self._edit, site), guard)]
        if key.kind == "features":
            site = self.anatomy.site(key.site)
            return [site.watch(self.anatomy.modules, partial(self._see, key, site), guard)]
        if key.kind == "class_attention" and isinstance(key.site, int):
            name, module = self.anatomy.attention(key.site)
            return watch_heads(name, module, guard(partial(self._see_class_row, key)))
        raise ModelError(f"A pass cannot show {key.kind!r}.")

    def _edit(self, site: Site, output: Tensor) -> Tensor | None:
        if self._pass is None or site.name not in self._pass.edits:
            return None
        site.check_rows(output, self._pass.rows)
        shown, prefix, back = site.show(output, self._pass.aspect)
        return back(*self._pass.edits[site.name](shown, prefix))

    def _other_head(self, module: nn.Module, args: Any, output: Any) -> Any:
        return None if self._pass is None or self._pass.head is None else self._pass.head(args[0])

    def _see(self, want: Want, site: Site, output: Tensor) -> None:
        if self._pass is not None and want in self._pass.wants:
            # A copy, since the network may go on in place.
            self._pass.seen[want] = site.show(output, self._pass.aspect)[0].clone()

    def _see_class_row(self, want: Want, heads: Heads) -> None:
        if self._pass is not None and want in self._pass.wants:
            q, k, scale = heads
            self._pass.seen[want] = class_row(attention_rows(q[:, :, :1], k, scale), self.anatomy.prefix)


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
