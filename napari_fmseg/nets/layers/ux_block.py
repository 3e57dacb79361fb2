"""Blocks of 3D UX-Net and MA3DSeg: depth-wise convolutions of large kernels with channel scaling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets.layers.blocks import sequence

__all__ = ["DXBlock", "UXBlock"]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel, with a scale and a shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c, z, y, x)."""
        moved = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-6)
        return moved.movedim(-1, 1)


class UXBlock(nn.Module):
    """Block of 3D UX-Net: a large depthwise kernel, norm, and two channelwise scalings, added to the input.

    Parameters
    ----------
    channels
        Of input and output.
    kernel
        Odd size of the depthwise kernel.
    gamma
        First value of the learned weight of the branch.
    """

    def __init__(self, channels: int, kernel: int = 7, gamma: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), gamma))
        self.dwconv = nn.Conv3d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.pwconv1 = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.pwconv2 = nn.Conv3d(4 * channels, channels, 1, groups=channels)

    def _mix(self, x: Tensor) -> Tensor:
        out: Tensor = self.dwconv(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c, z, y, x)."""
        branch = self.pwconv2(F.gelu(self.pwconv1(self.norm(self._mix(x)))))
        out: Tensor = x + self.gamma.view(-1, 1, 1, 1) * branch
        return out


class DXBlock(UXBlock):
    """3D-DX block: `UXBlock` whose large kernel is followed by a convolution across the channels.

    Parameters
    ----------
    channels, kernel, gamma
        As in `UXBlock`.
    published
        Keep the unused entries ``dwconv`` of the public code, so that its files fit.
    """

    def __init__(self, channels: int, kernel: int = 7, gamma: float = 1e-6, *, published: bool = False) -> None:
        super().__init__(channels, kernel, gamma)
        if not published:
            del self.dwconv
        large = nn.Conv3d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.separable_conv = sequence(conv1=large, pointwise=nn.Conv3d(channels, channels, 1, bias=False))

    def _mix(self, x: Tensor) -> Tensor:
        out: Tensor = self.separable_conv(x)
        return out
