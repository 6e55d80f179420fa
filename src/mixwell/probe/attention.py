"""Reading self-attention without switching off its fused kernel: queries and keys are taken from the pass itself, and
only the rows that somebody asked for are multiplied out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mixwell.core.errors import ModelError

__all__ = [
    "Heads",
    "attention_rows",
    "class_row",
    "is_attention",
    "is_positioned",
    "is_windowed",
    "received",
    "watch_heads",
]


def attention_rows(
    q: Float[Tensor, "b heads q d"],
    k: Float[Tensor, "b heads n d"],
    scale: float,
    bias: Float[Tensor, "#b #heads #q n"] | None = None,
) -> Float[Tensor, "b heads q n"]:
    """softmax(q·kᵀ·scale + bias) over the keys in fp32, detached, autocast off."""
    with torch.autocast(q.device.type, enabled=False), torch.no_grad():
        products = q.detach().float() * scale @ k.detach().float().transpose(-2, -1)
        return (products if bias is None else products + bias.detach().float()).softmax(-1)


@dataclass(eq=False)
class Heads:
    """What an attention looks with in one pass.

    Attributes:
        q, k: (B, heads, N, D) queries and keys, detached, as they are multiplied.
        scale: the factor on their product.
        bias: what is added to it, broadcastable to (B, heads, N, N), or None.
    """

    q: Float[Tensor, "b heads n d"]
    k: Float[Tensor, "b heads n d"]
    scale: float
    bias: Float[Tensor, "#b #heads n n"] | None = None

    def rows(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "b heads q n"]:
        """How much the queries `start … stop - 1` look at each key: rows of the softmax in fp32, detached."""
        queries = slice(start, stop)
        bias = None if self.bias is None else self.bias[:, :, queries]
        return attention_rows(self.q[:, :, queries], self.k, self.scale, bias)

    def carry(self, values: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        """What each token gathers of values that the tokens have: the mean over heads of softmax·values, in fp32.

        Runs as attention with these values, so that no N×N matrix is kept where the kernel needs none.
        """
        with torch.autocast(self.q.device.type, enabled=False), torch.no_grad():
            given = values.float().transpose(1, 2)[:, None].expand(-1, self.q.shape[1], -1, -1)
            bias = None if self.bias is None else self.bias.float()
            found = F.scaled_dot_product_attention(
                self.q.float(), self.k.float(), given, attn_mask=bias, scale=self.scale
            )
            return found.mean(1).transpose(1, 2)


def is_attention(module: nn.Module) -> bool:
    """Whether the module is a self-attention whose queries and keys can be read."""
    return _joint(module) or _separate(module) or _positioned(module) or _torch(module)


def is_positioned(module: nn.Module) -> bool:
    """Whether the attention knows the places of its tokens, so that it can be given no more of them."""
    return _positioned(module) and not (_joint(module) or _separate(module))


def is_windowed(module: nn.Module) -> bool:
    """Whether the attention is between the tokens of a window, as Swin's is, and not between all."""
    return hasattr(module, "window_area") and "mask" in inspect.signature(module.forward).parameters


def class_row(attention: Float[Tensor, "b heads q n"], prefix: int) -> Float[Tensor, "b p"]:
    """How much the first token looks at each patch: mean over heads, without prefix columns, not renormalised."""
    return attention[:, :, 0, prefix:].mean(1)


def received(attention: Float[Tensor, "b heads q n"], prefix: int) -> Float[Tensor, "b p"]:
    """How much each patch is looked at by the given queries: mean over heads and queries, not renormalised."""
    return attention[..., prefix:].mean((1, 2))


def watch_heads(name: str, module: nn.Module, tell: Callable[[Heads], None]) -> list[RemovableHandle]:
    """Hook an attention module so that each of its passes tells its queries and keys.

    Raises:
        ModelError: the module is no attention that can be read.
    """
    if _joint(module):
        return [_child(module, "qkv").register_forward_hook(lambda _, args, output: tell(_joint_heads(module, output)))]
    if _separate(module):
        halves: dict[str, Tensor] = {}

        def keep(which: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(_: nn.Module, args: Any, output: Tensor) -> None:
                halves[which] = output
                if len(halves) == 2:
                    tell(_separate_heads(module, halves.pop("q"), halves.pop("k")))

            return hook

        query, key = _separate_names(module)
        return [
            _child(module, query).register_forward_hook(keep("q")),
            _child(module, key).register_forward_hook(keep("k")),
        ]
    if _positioned(module):
        return [_watch_input(module, lambda args, kwargs: tell(_positioned_heads(module, args, kwargs)))]
    if _torch(module):
        return [_watch_input(module, lambda args, kwargs: tell(_torch_heads(module, args, kwargs)))]
    raise ModelError(f"{name} ({type(module).__name__}) is no self-attention that can be read.")


def _watch_input(module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _, args, kwargs: see(args, kwargs), with_kwargs=True)


def _child(module: nn.Module, name: str) -> nn.Module:
    child = getattr(module, name)
    if not isinstance(child, nn.Module):
        raise ModelError(f"Expected {type(module).__name__}.{name} to be a module, got {type(child).__name__}.")
    return child


# What makes attention another function than softmax(q·kᵀ + bias): positions that are added or turned elsewhere, talking
# heads, differences of two attentions, attention over channels, angles in place of products.
_OTHER_FORMS = (
    *("relative_position_bias", "rel_pos", "rope", "proj_l", "proj_w"),
    *("temperature", "lambda_q1", "logit_scale", "cpb_mlp"),
)
_POSITIONS = ("q_bias", "relative_position_bias_table")
"""Parameters beside the projection, or beside the product."""


def _has(module: nn.Module, names: tuple[str, ...]) -> bool:
    return any(getattr(module, name, None) is not None for name in names)


def _plain(module: nn.Module) -> bool:
    given = inspect.signature(module.forward).parameters
    return not _has(module, _OTHER_FORMS + _POSITIONS) and not {"rope", "position_embeddings"} & set(given)


def _is_joint(module: nn.Module) -> bool:
    qkv = getattr(module, "qkv", None)
    return (
        isinstance(qkv, nn.Linear)
        and isinstance(getattr(module, "num_heads", None), int)
        and qkv.out_features == 3 * qkv.in_features
    )


def _normed(module: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys after the norms that some networks give them."""
    for name in ("q_norm", "k_norm"):
        norm = getattr(module, name, None)
        if isinstance(norm, nn.Module):
            with torch.no_grad():
                q, k = (norm(q), k) if name == "q_norm" else (q, norm(k))
    return q, k


def _scale_of(module: Any, width: int) -> float:
    scale = getattr(module, "scale", None)
    return float(scale) if isinstance(scale, int | float) else width**-0.5


# One linear layer for queries, keys and values: timm's VisionTransformer and DeiT, and nets written like them.


def _joint(module: nn.Module) -> bool:
    return _is_joint(module) and _plain(module)


def _joint_heads(module: Any, output: Tensor) -> Heads:
    b, n, width = output.shape
    q, k, _ = output.detach().view(b, n, 3, module.num_heads, width // 3 // module.num_heads).permute(2, 0, 3, 1, 4)
    q, k = _normed(module, q, k)
    return Heads(q, k, _scale_of(module, q.shape[-1]))


# Three linear layers: Hugging Face's ViT, DeiT and relatives.


def _separate_names(module: nn.Module) -> tuple[str, str]:
    return ("query", "key") if hasattr(module, "query") else ("q_proj", "k_proj")


def _are_separate(module: nn.Module) -> bool:
    query, key = _separate_names(module)
    heads = getattr(module, "num_attention_heads", getattr(module, "num_heads", None))
    same = isinstance(getattr(module, query, None), nn.Linear) and isinstance(getattr(module, key, None), nn.Linear)
    return same and isinstance(heads, int)


def _separate(module: nn.Module) -> bool:
    return _are_separate(module) and _plain(module)


def _separate_heads(module: Any, q: Tensor, k: Tensor) -> Heads:
    heads = getattr(module, "num_attention_heads", None) or module.num_heads
    b, n, width = q.shape
    q, k = (part.detach().view(b, n, heads, width // heads).transpose(1, 2) for part in (q, k))
    return Heads(q, k, (width // heads) ** -0.5)


# With a place in the product: timm's EVA (rotary positions), BEiT and Swin (a bias by relative position, and in shifted
# windows a mask). Their projections' biases are no part of a module, so that they are computed again.


def _positioned(module: nn.Module) -> bool:
    if not (_is_joint(module) or _are_separate(module)) or _has(module, _OTHER_FORMS):
        return False
    given = set(inspect.signature(module.forward).parameters)
    table = getattr(module, "relative_position_bias_table", None)
    known = type(module).__module__.startswith("timm.") and "position_embeddings" not in given
    return (
        known
        and (table is None or callable(getattr(module, "_get_rel_pos_bias", None)))
        and getattr(module, "num_kv_groups", 1) == 1
    )


def _positioned_heads(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Heads:
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    x = given["x"].detach()
    with torch.no_grad():
        q, k = _normed(module, *_projected(module, x))
        if (rope := given.get("rope")) is not None:
            turn = _rotation()
            front, half = module.num_prefix_tokens, getattr(module, "rotate_half", False)
            q, k = (
                torch.cat((part[:, :, :front], turn(part[:, :, front:], rope, half=half)), 2).type_as(part)
                for part in (q, k)
            )
        biases = [
            module._get_rel_pos_bias() if getattr(module, "relative_position_bias_table", None) is not None else None,
            given.get("shared_rel_pos_bias"),
            _added(given.get("attn_mask")),
            None if (mask := given.get("mask")) is None else mask.repeat(len(x) // len(mask), 1, 1)[:, None],
        ]
        found = [bias.detach() for bias in biases if bias is not None]
        bias = None
        for part in found:
            bias = part if bias is None else bias + part
    return Heads(q, k, _scale_of(module, q.shape[-1]), bias)


def _projected(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, heads, N, D) queries and keys of the module's input."""
    b, n, _ = x.shape
    joint = getattr(module, "qkv", None)
    if joint is None:
        q, k = module.q_proj(x), module.k_proj(x)
    else:
        width = joint.weight.shape[0] // 3
        own = getattr(module, "q_bias", None)
        bias = None if joint.bias is None else joint.bias[: 2 * width]
        if own is not None:
            bias = torch.cat((own, torch.zeros_like(own)))
        q, k = F.linear(x, joint.weight[: 2 * width], bias).chunk(2, -1)
    q, k = (part.view(b, n, module.num_heads, -1).transpose(1, 2) for part in (q, k))
    return q, k


def _rotation() -> Callable[..., Tensor]:
    """timm's turning of queries and keys by their places."""
    from timm.layers import apply_rot_embed_cat

    turn: Callable[..., Tensor] = apply_rot_embed_cat
    return turn


def _added(mask: Tensor | None) -> Tensor | None:
    """A mask as numbers that are added."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))


# torch.nn.MultiheadAttention (torchvision's ViT, nn.TransformerEncoder): its projection is no module; computed again.


def _torch(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None


def _torch_heads(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Heads:
    given = dict(zip(("query", "key"), args, strict=False)) | kwargs
    if given["key"] is not given["query"]:
        raise ModelError(
            "The attention that this recipe reads is no self-attention: its keys are not its queries' tokens."
        )
    x = given["query"].detach()
    x = x if module.batch_first else x.transpose(0, 1)
    width, heads = module.embed_dim, module.num_heads
    bias = module.in_proj_bias
    with torch.no_grad():
        qk = F.linear(x, module.in_proj_weight[: 2 * width], None if bias is None else bias[: 2 * width])
    q, k = qk.view(x.shape[0], x.shape[1], 2, heads, width // heads).permute(2, 0, 3, 1, 4)
    return Heads(q, k, (width // heads) ** -0.5)
