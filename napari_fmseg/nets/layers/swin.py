"""Attention within windows of a 3-D grid of tokens, shifted in every other block (Swin), for grids of any size.

Windows differ only at the far end of an axis, where they are cut by the border or joined to the other side by the
shift. So they are grouped by how they are cut, and each group is one fused attention with one small mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import WeightsMismatch
from napari_fmseg.nets.layers.blocks import sequence

__all__ = ["WindowedTransformer", "relative_position_index"]

Run = tuple[slice, tuple[int, ...]]
"""Neighbouring windows along an axis, and the part of the axis that each of their tokens belongs to."""

_PADDED = -1


def relative_position_index(window: int, legacy: bool = False) -> Tensor:
    """Return the row of the bias table for each pair of tokens in a cube of `window` tokens.

    Parameters
    ----------
    window
        Tokens along each axis.
    legacy
        Number the offsets as the published weights need it: by 3 w - 1 along z, where (2 w - 1)^2 would tell all
        offsets apart. Different offsets then share a row, and most rows are never read.

    Returns
    -------
    Tensor
        (window^3, window^3) int64, query by key.
    """
    along = torch.arange(window)
    place = torch.stack(torch.meshgrid(along, along, along, indexing="ij")).flatten(1)  # (3, window^3)
    offset = place[:, :, None] - place[:, None, :] + window - 1
    wide = 2 * window - 1
    return offset[0] * (3 * window - 1 if legacy else wide * wide) + offset[1] * wide + offset[2]


class WindowedTransformer(nn.Module):
    """A row of transformer blocks whose attention stays within windows.

    Parameters
    ----------
    width
        Channels of a token.
    depth, heads
        Blocks, and heads of each.
    window
        Tokens along each axis of a window.
    shifted
        Whether every other block shifts its windows by half.
    dropout
        Share of tokens' features dropped at the entry while training.
    legacy
        As the published weights need it: see `relative_position_index`; tokens that only fill a window up take part.
    """

    def __init__(
        self, width: int, depth: int, heads: int, window: int, *, shifted: bool, dropout: float, legacy: bool
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(width, heads, window, window // 2 if shifted and i % 2 else 0, legacy) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform (b, width, z, y, x)."""
        tokens: Tensor = self.drop(x.movedim(1, -1))  # (b, z, y, x, width)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.movedim(-1, 1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int, legacy: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width, heads, window, shift, legacy)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = sequence(fc1=nn.Linear(width, 4 * width), gelu=nn.GELU(), fc2=nn.Linear(4 * width, width))
        self.skip = _SkipSamples(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.skip(self.attn(self.norm1(x)))
        out: Tensor = x + self.skip(self.mlp(self.norm2(x)))
        return out


class _SkipSamples(nn.Dropout):
    """Leaves a branch out for some samples while training (stochastic depth)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class _WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int, shift: int, legacy: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.legacy = heads, window, shift, legacy
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window, legacy))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows: (b, z, y, x, width) to the same."""
        size = x.shape[1:4]
        # A short axis needs no window of its own: one as long as the axis sees the same, without filling up.
        window = [self.window if self.legacy else min(self.window, n) for n in size]
        shift = [self.shift if (min(size) if self.legacy else n) > self.window else 0 for n in size]
        filled = [n + -n % w for n, w in zip(size, window, strict=True)]
        padding = [p for n, f in reversed(list(zip(size, filled, strict=True))) for p in (0, f - n)]
        if any(padding):
            x = F.pad(x, (0, 0, *padding))
        if any(shift):
            x = x.roll([-s for s in shift], (1, 2, 3))
        x = self._attend(x, window, [self._runs(*along) for along in zip(size, filled, window, shift, strict=True)])
        if any(shift):
            x = x.roll(shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]

    def _runs(self, n: int, filled: int, window: int, shift: int) -> list[Run]:
        """Group the windows along an axis of `n` tokens, `filled` up to whole windows and rolled by `shift`."""
        part = [0] * (filled - window) + [1] * (window - shift) + [2] * shift if shift else [0] * filled
        if not self.legacy:  # the published network lets them take part
            for i in range(n, filled):
                part[(i - shift) % filled] = _PADDED
        rows = [tuple(part[i : i + window]) for i in range(0, filled, window)]
        runs, first = [], 0
        for row, group in itertools.groupby(rows):
            last = first + len(list(group))
            # Only what belongs together matters, not its number.
            runs.append((slice(first, last), row if len(set(row)) > 1 else (0,) * window))
            first = last
        return runs

    def _attend(self, x: Tensor, window: Sequence[int], runs: Sequence[list[Run]]) -> Tensor:
        b, *filled, width = x.shape
        n = [f // w for f, w in zip(filled, window, strict=True)]
        split = (b, n[0], window[0], n[1], window[1], n[2], window[2])
        qkv = self.qkv(x).reshape(*split, 3, self.heads, width // self.heads)
        qkv = qkv.permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)  # (3, b, windows z, y, x, heads, z, y, x, channels of a head)
        bias = self._bias(window)  # (1, heads, tokens, tokens)
        out = x.new_empty(b, *n, self.heads, *window, width // self.heads)
        pieces = []
        for (z, zs), (y, ys), (xs, row) in itertools.product(*runs):
            q, k, v = qkv[:, :, z, y, xs].flatten(6, 8).flatten(1, 4)  # (windows, heads, tokens, channels) each
            piece = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(bias, zs, ys, row))
            pieces.append(((slice(None), z, y, xs), piece))
        if len(pieces) == 1:
            out = pieces[0][1].reshape(out.shape)
        else:
            for where, piece in pieces:
                out[where] = piece.reshape(out[where].shape)
        out = out.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(b, *filled, width)
        projected: Tensor = self.proj(out)
        return projected

    def _bias(self, window: Sequence[int]) -> Tensor:
        w = self.window
        z, y, x = window
        index = self.relative_position_index.view(w, w, w, w, w, w)[:z, :y, :x, :z, :y, :x]
        table = self.relative_position_bias_table[index.reshape(-1)]
        return table.reshape(z * y * x, z * y * x, self.heads).permute(2, 0, 1)[None]

    def _mask(self, bias: Tensor, *parts: Sequence[int]) -> Tensor:
        """Keep tokens apart that became neighbours by the shift only, or that only fill a window up."""
        if not any(any(row) for row in parts):
            return bias
        z, y, x = (torch.tensor(row, device=bias.device) for row in parts)
        one = ((z[:, None, None] + 1) * 16 + (y[:, None] + 1) * 4 + x + 1).flatten()  # a number per part of space
        apart = one[:, None] != one[None]
        # The published network subtracts 100; nothing is left of that either, unless a bias is as large.
        return bias - 100 * apart.to(bias.dtype) if self.legacy else bias.masked_fill(apart, float("-inf"))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        index = state_dict.get(f"{prefix}relative_position_index")
        own = self.relative_position_index
        if index is not None and index.shape == own.shape and not torch.equal(index.to(own), own):
            raise WeightsMismatch(
                f"The weights number their positions {'correctly' if self.legacy else 'as the published PCT-Net does'}"
                f", but the network was built with legacy={self.legacy}. Build it with legacy={not self.legacy}."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
