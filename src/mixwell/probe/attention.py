"""Reading self-attention without switching off its fused kernel: queries and keys are taken from the pass itself, and
only the rows that somebody asked for are multiplied out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mixwell.core.errors import ModelError

__all__ = ["attention_rows", "class_row", "is_attention", "watch_heads"]

Heads = tuple[Float[Tensor, "b heads n d"], Float[Tensor, "b heads n d"], float]
"""Queries, keys, and the factor on their product."""


def is_attention(module: nn.Module) -> bool:
    """Whether the module is a self-attention whose queries and keys can be read."""
    return _joint(module) or _separate(module) or _torch(module)


def attention_rows(
    q: Float[Tensor, "b heads q d"], k: Float[Tensor, "b heads n d"], scale: float
) -> Float[Tensor, "b heads q n"]:
    """softmax(q·kᵀ·scale) over the keys in fp32, detached, autocast off."""
    with torch.autocast(q.device.type, enabled=False), torch.no_grad():
        return (q.detach().float() * scale @ k.detach().float().transpose(-2, -1)).softmax(-1)


def class_row(attention: Float[Tensor, "b heads q n"], prefix: int) -> Float[Tensor, "b p"]:
    """How much the first token looks at each patch: mean over heads, without prefix columns, not renormalised."""
    return attention[:, :, 0, prefix:].mean(1)


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
    if _torch(module):
        return [
            module.register_forward_pre_hook(
                lambda attention, args, kwargs: tell(_torch_heads(attention, args, kwargs)), with_kwargs=True
            )
        ]
    raise ModelError(f"{name} ({type(module).__name__}) is no self-attention that can be read.")


def _child(module: nn.Module, name: str) -> nn.Module:
    child = getattr(module, name)
    if not isinstance(child, nn.Module):
        raise ModelError(f"Expected {type(module).__name__}.{name} to be a module, got {type(child).__name__}.")
    return child


# What makes attention another function than softmax(q·kᵀ): biases and rotations by position, talking heads, differences
# of two attentions, attention over channels.
_OTHER_FORMS = (
    *("q_bias", "relative_position_bias_table", "relative_position_bias", "rel_pos", "rope"),
    *("proj_l", "proj_w", "temperature", "lambda_q1"),
)


def _plain(module: nn.Module) -> bool:
    return (
        all(getattr(module, name, None) is None for name in _OTHER_FORMS)
        and "rope" not in inspect.signature(module.forward).parameters
    )


# One linear layer for queries, keys and values: timm's VisionTransformer and DeiT, and nets written like them.


def _joint(module: nn.Module) -> bool:
    qkv = getattr(module, "qkv", None)
    return (
        isinstance(qkv, nn.Linear)
        and isinstance(getattr(module, "num_heads", None), int)
        and qkv.out_features == 3 * qkv.in_features
        and _plain(module)
    )


def _joint_heads(module: Any, output: Tensor) -> Heads:
    b, n, width = output.shape
    q, k, _ = output.detach().view(b, n, 3, module.num_heads, width // 3 // module.num_heads).permute(2, 0, 3, 1, 4)
    for name in ("q_norm", "k_norm"):
        norm = getattr(module, name, None)
        if isinstance(norm, nn.Module):
            with torch.no_grad():
                q, k = (norm(q), k) if name == "q_norm" else (q, norm(k))
    scale = getattr(module, "scale", None)
    return q, k, float(scale) if isinstance(scale, int | float) else q.shape[-1] ** -0.5


# Three linear layers: Hugging Face's ViT, DeiT and relatives.


def _separate_names(module: nn.Module) -> tuple[str, str]:
    return ("query", "key") if hasattr(module, "query") else ("q_proj", "k_proj")


def _separate(module: nn.Module) -> bool:
    query, key = _separate_names(module)
    heads = getattr(module, "num_attention_heads", getattr(module, "num_heads", None))
    same = isinstance(getattr(module, query, None), nn.Linear) and isinstance(getattr(module, key, None), nn.Linear)
    return same and isinstance(heads, int) and _plain(module)


def _separate_heads(module: Any, q: Tensor, k: Tensor) -> Heads:
    heads = getattr(module, "num_attention_heads", None) or module.num_heads
    b, n, width = q.shape
    q, k = (part.detach().view(b, n, heads, width // heads).transpose(1, 2) for part in (q, k))
    return q, k, (width // heads) ** -0.5


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
    return q, k, (width // heads) ** -0.5
