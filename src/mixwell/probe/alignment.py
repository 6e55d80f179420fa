"""What of each source of a mix arrives at the class token, if labels are mixed as attention mixes tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.probe.attention import Heads

__all__ = ["Alignment", "Start"]

Start = Callable[[int, int], Tensor | None]
"""(prefix tokens, patches) → (R, K, prefix + patches) shares of each source in each token, or None before the mix."""


class Alignment:
    """The shares of a mix's sources in every token of one pass, carried from block to block.

    Each block replaces a token's shares by the mean of its own and of those that it gathers: r ← ½(Ā·r + r), with Ā the
    mean of the heads' attention. In windows (Swin) tokens gather within theirs, and where patches are merged their
    shares are averaged.

    Args:
        start: the shares at the first block after the mix.
        prefix: tokens before the patches.
        class_token: whether the first of them is one.
    """

    def __init__(self, start: Start, prefix: int, class_token: bool) -> None:
        self._start, self._prefix, self._class_token = start, prefix, class_token
        self._shares: Tensor | None = None
        self._grid = (0, 0)
        self._next = 0

    def meet(self, number: int, block: nn.Module, heads: Heads, grid: tuple[int, int] | None) -> None:
        """Pass through the attention of block `number`; a block that is computed again counts once.

        Args:
            grid: rows and columns of the tokens that the block is given, where it attends in windows; else None.
        """
        if number < self._next:
            return
        self._next = number + 1
        tokens = heads.q.shape[2] - self._prefix if grid is None else grid[0] * grid[1]
        if self._shares is None:
            found = self._start(0 if grid is not None else self._prefix, tokens)
            if found is None:
                return
            self._shares = found.detach().float()
            self._grid = grid or (0, 0)
        if grid is None:
            gathered = heads.carry(self._shares)
        else:
            if grid != self._grid:
                before = self._shares.view(*self._shares.shape[:2], *self._grid)
                self._shares, self._grid = F.adaptive_avg_pool2d(before, grid).flatten(2), grid
            gathered = _in_windows(self._shares.view(*self._shares.shape[:2], *grid), block, heads).flatten(2)
        self._shares = (gathered + self._shares) / 2

    @property
    def shares(self) -> Float[Tensor, "r k"] | None:
        """What has arrived at the class token, or on the mean at all tokens; None if nothing was mixed."""
        if self._shares is None:  # no block came after the mix, so that a token before the patches is as it began
            begun = self._start(1, 1)
            return None if begun is None else begun[:, :, 0].detach().float()
        return self._shares[:, :, 0] if self._class_token else self._shares[:, :, self._prefix :].mean(2)


def _in_windows(shares: Float[Tensor, "r k h w"], block: Any, heads: Heads) -> Float[Tensor, "r k h w"]:
    """What each token gathers within its window of a Swin block, whose windows are shifted and padded."""
    rows, sources, h, w = shares.shape
    (tall, wide), shift = block.window_size, tuple(block.shift_size)
    moved = torch.roll(shares, (-shift[0], -shift[1]), (2, 3))
    moved = F.pad(moved, (0, -w % wide, 0, -h % tall))
    down, across = moved.shape[2] // tall, moved.shape[3] // wide
    windows = moved.view(rows, sources, down, tall, across, wide).permute(0, 2, 4, 1, 3, 5)
    found = heads.carry(windows.reshape(rows * down * across, sources, tall * wide))
    found = found.view(rows, down, across, sources, tall, wide).permute(0, 3, 1, 4, 2, 5)
    back = torch.roll(found.reshape(moved.shape)[:, :, :h, :w], shift, (2, 3))
    if moved.shape == shares.shape:
        return back
    # What is gathered from padding is of no source.
    return back * (shares.sum(1, keepdim=True) / back.sum(1, keepdim=True))
