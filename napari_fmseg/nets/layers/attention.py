"""Attention modules for maps (b, c, z, y, x): each gives its input back, weighted by where or what matters.

Definitions after the papers and a description of the public code of AttentionBased-MIS
(github.com/Puzzled-Hui/AttentionBased-MIS), whose names the state dicts carry where it has the module. Slice attention
has a room of its own, `napari_fmseg.nets.layers.slice_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets.layers.blocks import Unit, check_choice, resize

__all__ = [
    "CBAM",
    "POOLINGS",
    "AttentionGate",
    "ChannelAttention",
    "DualAttention",
    "ProjectExcite",
    "SpaceChannelAttention",
    "SpatialAttention",
    "SpatialTransformer",
    "SplitAttention",
    "inverse",
    "warp",
]

POOLINGS = ("avg", "max", "avg_and_max")
"""How a map becomes one number: its mean, its maximum, or both, added before the sigmoid."""

_SPACE = (2, 3, 4)
_OPEN = 3.0


class ChannelAttention(nn.Module):
    """Channel squeeze and excitation (cSE): each channel is weighted by the mean of all channels.

    Parameters
    ----------
    channels
        Of the map.
    reduction
        The hidden layer has `channels` / `reduction` units, at least one.
    pooling
        One of `POOLINGS`.
    """

    def __init__(self, channels: int, reduction: int = 8, pooling: str = "avg") -> None:
        super().__init__()
        check_choice("ChannelAttention", "pooling", pooling, POOLINGS)
        self.pooling = pooling
        self.fc = two_layers(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        if self.pooling == "max":
            return x * spread(self.fc(x.amax(_SPACE)))
        logits = self.fc(x.mean(_SPACE))
        return x * spread(logits if self.pooling == "avg" else logits + self.fc(x.amax(_SPACE)))


class SpatialAttention(nn.Module):
    """Spatial squeeze and excitation (sSE): each voxel is weighted by its channels.

    Parameters
    ----------
    channels
        Of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        out: Tensor = x * self.conv(x).sigmoid()
        return out


class SpaceChannelAttention(nn.Module):
    """Concurrent spatial and channel attention (scSE), combined voxel by voxel.

    Parameters
    ----------
    channels, reduction
        As in `ChannelAttention`.
    combine
        ``"max"`` (its authors' choice) or ``"sum"``.
    """

    def __init__(self, channels: int, reduction: int = 8, combine: str = "max") -> None:
        super().__init__()
        check_choice("SpaceChannelAttention", "combine", combine, ("max", "sum"))
        self.combine = combine
        self.channel = ChannelAttention(channels, reduction)
        self.space = SpatialAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        a, b = self.channel(x), self.space(x)
        return torch.maximum(a, b) if self.combine == "max" else a + b


class CBAM(nn.Module):
    """Convolutional block attention in three dimensions: channels first, then voxels.

    Parameters
    ----------
    channels
        Of the map.
    reduction
        As in `ChannelAttention`; published: 16.
    kernel
        Odd size of the convolution over mean and maximum of the channels; published: 7.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction, "avg_and_max")
        self.conv = nn.Conv3d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm3d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        x = self.channel(x)
        seen = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        out: Tensor = x * self.norm(self.conv(seen)).sigmoid()
        return out


class ProjectExcite(nn.Module):
    """Project and excite: each voxel is weighted by the means of its plane along every axis.

    Parameters
    ----------
    channels
        Of the map.
    reduction
        Published: 2.
    original
        True: the sum of the three projections and ReLU, as in the paper (arXiv 1906.04649). False: their mean and
        a learned slope, as in the public code of AttentionBased-MIS.
    """

    def __init__(self, channels: int, reduction: int = 2, *, original: bool = False) -> None:
        super().__init__()
        few = max(channels // reduction, 1)
        self.original = original
        self.relu = nn.ReLU() if original else nn.PReLU(few)
        self.conv_c = nn.Conv3d(channels, few, 1)
        self.conv_cT = nn.Conv3d(few, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        planes = x.mean((3, 4), keepdim=True) + x.mean((2, 4), keepdim=True) + x.mean((2, 3), keepdim=True)
        planes = planes if self.original else planes / 3
        out: Tensor = x * self.conv_cT(self.relu(self.conv_c(planes))).sigmoid()
        return out


class AttentionGate(nn.Module):
    """Gate on a skip (Oktay): a deeper map weights its voxels.

    Parameters
    ----------
    channels, deeper
        Channels of the skip and of the deeper map.
    inner
        Channels in which the two are compared; by default half of the skip's.
    """

    def __init__(self, channels: int, deeper: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or max(channels // 2, 1)
        self.theta = nn.Conv3d(channels, inner, 2, stride=2, bias=False)
        self.phi = nn.Conv3d(deeper, inner, 1)
        self.psi = nn.Conv3d(inner, 1, 1)
        norm = nn.InstanceNorm3d(channels, affine=True)
        self.final_conv = nn.Sequential(nn.Conv3d(channels, channels, 1), norm)

    def forward(self, x: Tensor, deeper: Tensor) -> Tensor:
        """Return the skip `x` (b, channels, z, y, x), gated by `deeper` (b, deeper, any size)."""
        out: Tensor = self.final_conv(x * self.gate(x, deeper))
        return out

    def gate(self, x: Tensor, deeper: Tensor) -> Tensor:
        """Return the gate (b, 1, z, y, x), from 0 to 1."""
        theta = self.theta(x)
        phi = resize(self.phi(deeper), theta.shape[2:], align_corners=False)
        return resize(self.psi(F.relu(theta + phi)).sigmoid(), x.shape[2:], align_corners=False)


class SplitAttention(nn.Module):
    """Split attention convolution (ResNeSt): several convolutions, and for each channel a choice among them.

    Parameters
    ----------
    ins, outs
        Channels.
    kernel
        Odd.
    radix
        Convolutions to choose from.
    groups
        Each makes its own choice.
    pooling
        ``"avg"`` as in the paper; ``"max"`` as in the public code of AttentionBased-MIS.
    """

    def __init__(
        self, ins: int, outs: int, kernel: int = 3, *, radix: int = 2, groups: int = 1, pooling: str = "avg"
    ) -> None:
        super().__init__()
        check_choice("SplitAttention", "pooling", pooling, ("avg", "max"))
        if ins % (groups * radix) or outs % groups:
            raise UnknownModel(
                f"Split attention of {radix} x {groups} needs channels that can be divided so, not {ins} and {outs}."
            )
        self.radix, self.groups, self.pooling = radix, groups, pooling
        few = max(ins * radix // 4, 32)
        self.conv = nn.Conv3d(ins, outs * radix, kernel, padding=kernel // 2, groups=groups * radix, bias=False)
        self.fc1 = nn.Conv3d(outs, few, 1, groups=groups)
        self.fc2 = nn.Conv3d(few, outs * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x)."""
        splits = F.relu(self.conv(x)).unflatten(1, (self.radix, -1))  # type: ignore[no-untyped-call]
        total = splits.sum(1)  # (b, outs, z, y, x)
        pooled = total.amax(_SPACE, keepdim=True) if self.pooling == "max" else total.mean(_SPACE, keepdim=True)
        logits = self.fc2(F.relu(self.fc1(pooled))).unflatten(1, (self.groups, self.radix, -1))
        shares = logits.softmax(2).transpose(1, 2).flatten(2, 3)  # (b, radix, outs, 1, 1, 1)
        out: Tensor = (splits * shares).sum(1)
        return out


class DualAttention(nn.Module):
    """Dual attention: among the positions of a plane, and among the channels, added.

    Parameters
    ----------
    ins, outs
        Channels.
    reduction
        Inside, `ins` / `reduction` channels are used.
    """

    def __init__(self, ins: int, outs: int, reduction: int = 16) -> None:
        super().__init__()
        few = max(ins // reduction, 1)

        def unit(ins: int, outs: int) -> nn.Sequential:
            return nn.Sequential(Unit(ins, outs))

        self.conv_p1, self.conv_c1 = unit(ins, few), unit(ins, few)
        self.PAM, self.CAM = _PositionAttention(few), _ChannelMixing()
        self.conv_p2, self.conv_c2 = unit(few, few), unit(few, few)
        self.final_conv = nn.Sequential(nn.Dropout(0.1), Unit(few, outs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x)."""
        places, channels = self.PAM(self.conv_p1(x)), self.CAM(self.conv_c1(x))
        out: Tensor = self.final_conv(self.conv_p2(places) + self.conv_c2(channels))
        return out


class _PositionAttention(nn.Module):
    """The positions (y, x) of a volume attend to each other; all slices count as channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = max(channels // 8, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query_conv, self.key_conv = nn.Conv3d(channels, few, 1), nn.Conv3d(channels, few, 1)
        self.value_conv = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (conv(x).flatten(3).flatten(1, 2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        shares = (q.transpose(1, 2) @ k).softmax(-1)  # (b, yx, yx)
        mixed = v @ shares.transpose(1, 2)
        out: Tensor = self.gamma * mixed.reshape(x.shape) + x
        return out


class _ChannelMixing(nn.Module):
    """The channels attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        shares = (flat @ flat.transpose(1, 2)).softmax(-1)  # (b, c, c)
        return self.gamma * (shares @ flat).reshape(x.shape) + x


class SpatialTransformer(nn.Module):
    """Turn, shift, scale and shear a map as a small network predicts; it starts with no change at all.

    Parameters
    ----------
    channels
        Of the map.
    width
        Channels of the network that looks.
    """

    def __init__(self, channels: int, width: int = 8) -> None:
        super().__init__()
        self.look = nn.Sequential(
            *(nn.Conv3d(channels, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv3d(width, width, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten()),
        )
        self.last = nn.Linear(8 * width, 12)
        self.draw_own()

    def draw_own(self, generator: torch.Generator | None = None) -> None:
        """Start with no change, however the other weights are drawn."""
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            self.last.bias.copy_(torch.eye(3, 4).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), resampled on the grid that was chosen; 0 outside."""
        return warp(x, self.matrix(x))

    def matrix(self, x: Tensor) -> Tensor:
        """Return the chosen matrices (b, 3, 4) in torch's order: x, y, z from -1 to 1."""
        out: Tensor = self.last(self.look(x)).view(-1, 3, 4)
        return out


def warp(x: Tensor, matrix: Tensor, *, outside: str = "zeros") -> Tensor:
    """Resample `x` (b, c, z, y, x) where affine matrices (b, 3, 4) in torch's order point.

    Computed in float32: half precision cannot tell neighbouring voxels apart.
    """
    grid = F.affine_grid(matrix.float(), list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode=outside, align_corners=False).to(x.dtype)


def inverse(matrix: Tensor) -> Tensor:
    """Invert affine matrices (b, 3, 4), in float32."""
    wide = matrix.float()
    back = torch.linalg.inv(wide[:, :, :3])
    return torch.cat([back, -back @ wide[:, :, 3:]], 2)


def spread(logits: Tensor) -> Tensor:
    """Turn logits (b, c) into weights (b, c, 1, 1, 1) from 0 to 1."""
    return logits.sigmoid()[:, :, None, None, None]


class _TwoLayers(nn.Sequential):
    """A perceptron whose sigmoid weights a map."""

    def draw_own(self, generator: torch.Generator | None = None) -> None:
        """Start nearly open, with weights of 0.95, so that a network begins as it would without attention.

        Half open, as a bias of 0 leaves it, a U-Net with PAM needed twice the steps.
        """
        last: Any = self[-1]
        nn.init.constant_(last.bias, _OPEN)


def two_layers(size: int, reduction: int) -> nn.Sequential:
    """Make a perceptron from `size` through `size` / `reduction` units (at least one) back to `size`."""
    few = max(size // max(reduction, 1), 1)
    return _TwoLayers(nn.Linear(size, few), nn.ReLU(), nn.Linear(few, size))
