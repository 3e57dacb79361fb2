"""Guided boundary and cross-region attention (MA3DSeg)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import UnknownModel

__all__ = ["CrossRegionAttention", "GuidedBoundary"]


class GuidedBoundary(nn.Module):
    """Sharpen features where a guiding map and the features change together (SDM).

    Written after a description of a loose part of the public code of MA3DSeg, whose networks do not use it.

    Parameters
    ----------
    channels, guiding
        Channels of the features and of the guiding map.
    """

    def __init__(self, channels: int, guiding: int) -> None:
        super().__init__()
        self.sdc1 = _GuidedDifference(channels, guiding)
        self.bn = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Return features of the size of `x`; `guide` (b, guiding, z, y, x) lies on the same grid."""
        return x + F.relu(self.bn(self.sdc1(x, guide)))


class _GuidedDifference(nn.Module):
    def __init__(self, channels: int, guiding: int) -> None:
        super().__init__()

        self.x_kernel_diff = nn.Parameter(_corners(channels))
        self.guidance_kernel_diff = nn.Parameter(_corners(channels))
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(
            nn.Conv3d(guiding, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels)
        )  # fmt: skip

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        change = self._depthwise(self.conv1(guide), self.guidance_kernel_diff)
        out: Tensor = self.conv(self._depthwise(x, self.x_kernel_diff) * change.square())
        return out

    def _depthwise(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv3d(x, kernel, padding=1, groups=len(kernel))


def _corners(channels: int) -> Tensor:
    """Draw depthwise kernels (channels, 1, 3, 3, 3): normal values, and at the corners -1 or 1 by their parity."""
    kernels = torch.randn(channels, 1, 3, 3, 3)
    for corner in range(8):
        z, y, x = (2 * (corner >> axis & 1) for axis in range(3))
        kernels[:, :, z, y, x] = 1 if corner.bit_count() % 2 else -1
    return kernels


class CrossRegionAttention(nn.Module):
    """Attention among regions of a token list, through a few summaries of each region (CR-MSA).

    Written after a description of a loose part of the public code of MA3DSeg, whose networks do not use it; unlike
    there, the items of a batch do not mix.

    Parameters
    ----------
    channels
        Of a token.
    heads
        Of the attention.
    regions
        Along each side of the square on which the tokens are laid.
    summaries
        Per region.
    """

    def __init__(self, channels: int, heads: int = 8, regions: int = 4, summaries: int = 3) -> None:
        super().__init__()
        if channels % heads:
            raise UnknownModel(f"The channels ({channels}) must be a multiple of the heads ({heads}).")
        self.regions = regions
        self.phi = nn.Parameter(torch.empty(channels, summaries))
        nn.init.kaiming_uniform_(self.phi, a=5**0.5)
        self.attn = _SelfAttention(channels, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, n, channels) for tokens (b, n, channels)."""
        n = tokens.shape[1]
        side = -(-int(-(-(n**0.5) // 1)) // self.regions) * self.regions
        x = F.pad(tokens, (0, 0, 0, side * side - n))
        part = side // self.regions
        x = x.view(len(x), self.regions, part, self.regions, part, -1).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)  # (b, regions, tokens, c)
        scores = (x @ self.phi).transpose(2, 3)  # (b, regions, summaries, tokens)
        summaries = scores.softmax(-1) @ x  # (b, regions, summaries, c)
        mixed = self.attn(summaries.transpose(1, 2)).transpose(1, 2)
        low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
        spread = (scores - low) / (high - low + 1e-8) * scores.softmax(2)
        x = spread.transpose(2, 3) @ mixed  # (b, regions, tokens, c)
        x = x.view(len(x), self.regions, self.regions, part, part, -1).transpose(2, 3)
        out: Tensor = x.flatten(1, 4)[:, :n]
        return out


class _SelfAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Compute attention among the tokens (b, lists, n, c) of each list."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))
        return out
