"""3D UX-Net, its 3D-DX block, and MA3DSeg: large depthwise kernels, attention over scales.

3D UX-Net and the 3D-DX block are written after descriptions of the public code (github.com/MASILab/3DUX-Net, arXiv
2209.15076; github.com/Lincen811/MA3DSeg); their state dicts carry the published names. The network MA3DSeg itself was
never published: `MA3DSeg` is our RECONSTRUCTION from what is known of it, and no published weights fit. All give
LOGITS.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.blocks import (
    ACTIVATIONS,
    check_channels,
    check_choice,
    check_image,
    draw_as_torch,
    join,
    resize,
    sequence,
    tracing,
)
from napari_fmseg.nets.layers.region_attention import GuidedBoundary
from napari_fmseg.nets.layers.ux_block import ChannelNorm, DXBlock, UXBlock

__all__ = ["MA3DSeg", "UXNet"]

WIDTHS = (48, 96, 192, 384)

_BLOCKS = ("ux", "dx")


class _Encoder(nn.Module):
    """Four stages of blocks, at 1/2, 1/4, 1/8 and 1/16 of the size."""

    def __init__(
        self, in_channels: int, widths: Sequence[int], depths: Sequence[int], block: str, kernel: int, published: bool
    ) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv3d(in_channels, widths[0], 7, stride=2, padding=3), ChannelNorm(widths[0]))
        others = [nn.Sequential(ChannelNorm(ins), nn.Conv3d(ins, outs, 2, stride=2)) for ins, outs in pairwise(widths)]
        self.downsample_layers = nn.ModuleList([first, *others])
        self.stages = nn.ModuleList(
            nn.Sequential(*(_block(block, width, kernel, published=published) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        for level, width in enumerate(widths):
            self.add_module(f"norm{level}", ChannelNorm(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for level, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(down(x))
            maps.append(getattr(self, f"norm{level}")(x))
        return maps


def _block(kind: str, channels: int, kernel: int, gamma: float = 1e-6, *, published: bool = False) -> UXBlock:
    return DXBlock(channels, kernel, gamma, published=published) if kind == "dx" else UXBlock(channels, kernel, gamma)


class _Residual(nn.Module):
    """Two convolutions with instance norm beside a shortcut, LeakyReLU."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv1 = sequence(conv=nn.Conv3d(ins, outs, 3, padding=1, bias=False))
        self.conv2 = sequence(conv=nn.Conv3d(outs, outs, 3, padding=1, bias=False))
        self.conv3 = None if ins == outs else sequence(conv=nn.Conv3d(ins, outs, 1, bias=False))
        self.norm = nn.InstanceNorm3d(outs)  # without parameters

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv2(F.leaky_relu(self.norm(self.conv1(x)), 0.01, inplace=True)))
        return F.leaky_relu(y + (x if self.conv3 is None else self.norm(self.conv3(x))), 0.01, inplace=True)


class _Join(nn.Module):
    """Twice the size by a transposed convolution, beside the skip, then a residual block."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.transp_conv = sequence(conv=nn.ConvTranspose3d(ins, outs, 2, stride=2, bias=False))
        self.conv_block = _Residual(2 * outs, outs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.conv_block(torch.cat([self.transp_conv(x), skip], 1))
        return out


class UXNet(nn.Module):
    """3D UX-Net: an encoder of large depthwise kernels, a decoder of residual blocks.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background, which is class 0.
    block
        ``"ux"``: 3D UX-Net as published. ``"dx"``: with 3D-DX blocks, as in the public code of MA3DSeg.
    widths, depths
        Channels and blocks of the four stages.
    hidden
        Channels of the deepest map.
    activation
        How the logits are to be read: ``"softmax"``, or ``"sigmoid"`` with a channel less and no background.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        block: str = "ux",
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = (2, 2, 2, 2),
        hidden: int = 768,
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        _check("UXNet", in_channels, n_classes, block, activation, widths, depths)
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, activation
        self.uxnet_3d = _Encoder(in_channels, widths, depths, block, 7, published=True)
        wide = [*widths, hidden]
        for i, (ins, outs) in enumerate(zip([in_channels, *widths], wide, strict=True), 1):
            self.add_module(f"encoder{i}", sequence(layer=_Residual(ins, outs)))
        for i in (5, 4, 3, 2):
            self.add_module(f"decoder{i}", _Join(wide[i - 1], wide[i - 2]))
        self.decoder1 = sequence(layer=_Residual(wide[0], wide[0]))
        self.out = sequence(conv=sequence(conv=nn.Conv3d(wide[0], n_classes - (activation == "sigmoid"), 1)))

    def draw_own(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, as they are when the network is built.

        With biases of 0, air (0 in every channel) has no length that a norm over the channels could divide by, and each
        such norm makes the gradient there a thousand times larger.
        """
        draw_as_torch(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, n_classes, z, y, x), one channel less with a sigmoid, of images that pass `check`."""
        self.check(x)
        maps = self.uxnet_3d(x)
        skips = [getattr(self, f"encoder{i}")(m) for i, m in enumerate([x, *maps], 1)]
        x = skips.pop()
        for i in (5, 4, 3, 2):
            x = getattr(self, f"decoder{i}")(x, skips.pop())
        out: Tensor = self.out(self.decoder1(x))
        return out

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's maps, at 1/2, 1/4, 1/8 and 1/16 of the size."""
        self.check(x)
        maps: list[Tensor] = self.uxnet_3d(x)
        return maps

    def check(self, x: Tensor) -> None:
        """Refuse an image whose axes are shorter than 32 or no multiples of 16, with `GeometryMismatch`."""
        check_image("UXNet", x, self.in_channels, 32)
        if not tracing() and any(n % 16 for n in x.shape[2:]):
            raise GeometryMismatch(
                f"UXNet halves its input four times and needs multiples of 16 voxels, not {tuple(x.shape[2:])}. "
                "Resample or pad the volume."
            )


class _Gate(nn.Module):
    """One scale of the guided path: three dilated views, a choice among them, a gate from the scale below."""

    def __init__(self, channels: int, guided: bool) -> None:
        super().__init__()
        few = max(channels // 4, 8)
        self.branches = nn.ModuleList(
            nn.Conv3d(channels, channels, 3, padding=d, dilation=d, groups=channels, bias=False) for d in (1, 2, 3)
        )
        self.choice = nn.Sequential(
            nn.Conv3d(channels, few, 1), nn.LeakyReLU(0.01), nn.Conv3d(few, 3 * channels, 1)
        )  # fmt: skip
        self.mix = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm = nn.InstanceNorm3d(channels)
        self.gate = nn.Conv3d(3 if guided else 2, 1, 3, padding=1)

    def forward(self, x: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the guided map and its gate (b, 1, z, y, x)."""
        views = [branch(x) for branch in self.branches]
        total = views[0] + views[1] + views[2]
        shares = self.choice(total.mean((2, 3, 4), keepdim=True)).unflatten(1, (3, -1)).softmax(1)  # (b, 3, c, 1, 1, 1)
        chosen = views[0] * shares[:, 0] + views[1] * shares[:, 1] + views[2] * shares[:, 2]
        mixed = F.leaky_relu(self.norm(self.mix(chosen)), 0.01)
        seen = [mixed.mean(1, keepdim=True), mixed.amax(1, keepdim=True)]
        if below is not None:
            seen.append(resize(below, x.shape[2:], align_corners=False))
        gate = self.gate(torch.cat(seen, 1)).sigmoid()
        return x + gate * mixed, gate


class _LightJoin(nn.Module):
    """Up to the skip's size, beside it, narrowed to its channels, one small block."""

    def __init__(self, ins: int, skip: int, block: str) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(ins + skip, skip, 1, bias=False)
        self.norm = nn.InstanceNorm3d(skip)
        self.block = _block(block, skip, 3, 1.0)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        narrow = join(self.narrow, x, skip, like=skip, align_corners=False)
        out: Tensor = self.block(F.leaky_relu(self.norm(narrow), 0.01))
        return out


class MA3DSeg(nn.Module):
    """MA3DSeg as we reconstruct it: 3D-DX encoder, an attention-guided path over four scales, a light decoder.

    Not the authors' network, which was never published. What is known of it is kept (blocks, scales); the guided path
    and the decoder are ours. It has a twentieth of the parameters of 3D UX-Net.

    Parameters
    ----------
    in_channels, n_classes, widths, depths, activation
        As in `UXNet`.
    block
        ``"dx"``, or ``"ux"`` to see what the block is worth.
    guided
        False leaves the attention-guided path out.
    boundary
        Sharpen the skips with the coarse probabilities by a `GuidedBoundary` each.
    stem
        Channels at full size.
    supervised
        Heads at 1/2, 1/4 and 1/8 of the size too, for training.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        block: str = "dx",
        guided: bool = True,
        boundary: bool = False,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = (2, 2, 2, 2),
        stem: int = 24,
        supervised: bool = False,
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        _check("MA3DSeg", in_channels, n_classes, block, activation, widths, depths)
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, activation
        outs = n_classes - (activation == "sigmoid")
        self.encoder = _Encoder(in_channels, widths, depths, block, 7, published=False)
        self.stem = nn.Conv3d(in_channels, stem, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(stem)
        self.gates = nn.ModuleList(_Gate(w, i < len(widths) - 1) for i, w in enumerate(widths)) if guided else None
        wide = [stem, *widths]
        self.joins = nn.ModuleList(_LightJoin(wide[i + 1], wide[i], block) for i in range(4))
        self.head = nn.Conv3d(stem, outs, 1)
        self.side_heads = nn.ModuleList(nn.Conv3d(w, outs, 1) for w in widths[:3]) if supervised else None
        self.guide = nn.Conv3d(widths[3], outs, 1) if boundary else None
        self.boundaries = nn.ModuleList(GuidedBoundary(w, outs) for w in widths[:3]) if boundary else None

    def draw_own(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew; see `UXNet.draw_own`."""
        draw_as_torch(self, generator)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (b, n_classes, z, y, x), one channel less with a sigmoid, of images that pass `check`.

        In training mode with `supervised` also those at 1/2, 1/4 and 1/8 of the size.
        """
        self.check(x)
        maps = self.encoder(x)  # at 1/2, 1/4, 1/8, 1/16
        if self.gates is not None:
            maps = self._guide(maps)
        skips = [F.leaky_relu(self.norm(self.stem(x)), 0.01), *maps[:3]]
        if self.guide is not None and self.boundaries is not None:
            logits = self.guide(maps[3])
            guide = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
            for i, sharpen in enumerate(self.boundaries, 1):
                skips[i] = sharpen(skips[i], resize(guide, skips[i].shape[2:], align_corners=False))
        x = maps[3]
        sides: list[Tensor] = []
        for i in (3, 2, 1, 0):
            x = self.joins[i](x, skips[i])
            if i and self.side_heads is not None and self.training:
                sides.insert(0, self.side_heads[i - 1](x))
        logits = self.head(x)
        return (logits, *sides) if sides else logits

    def _guide(self, maps: list[Tensor]) -> list[Tensor]:
        gate: Tensor | None = None
        guided: list[Tensor] = []
        for part, x in zip(reversed(list(self.gates or [])), reversed(maps), strict=True):
            y, gate = part(x, gate)
            guided.insert(0, y)
        return guided

    def check(self, x: Tensor) -> None:
        """Refuse an image smaller than 16 along an axis or 32 along all, with `GeometryMismatch`."""
        check_image("MA3DSeg", x, self.in_channels, 16)
        if not tracing() and max(x.shape[2:]) < 32:
            raise GeometryMismatch(
                f"MA3DSeg normalises maps of a 16th of the size and needs 32 voxels along one axis, "
                f"not {tuple(x.shape[2:])}. Resample or pad the volume."
            )


def _check(
    name: str,
    in_channels: int,
    n_classes: int,
    block: str,
    activation: str,
    widths: Sequence[int],
    depths: Sequence[int],
) -> None:
    check_channels(name, in_channels, n_classes)
    check_choice(name, "block", block, _BLOCKS)
    check_choice(name, "activation", activation, ACTIVATIONS)
    if len(widths) != 4 or len(depths) != 4 or min(*widths, *depths) < 1:
        raise UnknownModel(f"{name} has four stages, each with channels and blocks, not {widths} and {depths}.")
