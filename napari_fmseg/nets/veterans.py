"""Networks that made the field and that no kept library has: DeepMedic, VoxResNet, AnatomyNet.

Written after their papers. No published weights fit; where a paper leaves something open, the docstring says what we
chose. All give LOGITS on the grid of the image, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.errors import UnknownModel
from napari_fmseg.nets.blocks import check_channels, check_image, resize

__all__ = ["AnatomyNet", "DeepMedic", "VoxResNet"]


class _Veteran(nn.Module):
    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        check_channels(type(self).__name__, in_channels, n_classes)
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, "softmax"

    def check(self, x: Tensor) -> None:
        """Refuse an image with another number of channels, or smaller than 8 voxels along an axis."""
        check_image(type(self).__name__, x, self.in_channels, 8)


class DeepMedic(_Veteran):
    """Two pathways of small kernels, one of them on the image at a third of the resolution (Kamnitsas 2017).

    The borders are filled up with zeros, so that the whole volume is answered; the paper cuts them off. The coarse
    pathway sees means of 3 x 3 x 3 voxels.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    widths
        Channels of the convolutions of a pathway.
    hidden
        Channels of the two layers that join the pathways.
    residual
        Add the map of two convolutions before at the fourth, sixth and eighth, as in the version for brain tumours.
    dropout
        In the last two layers.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        widths: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        hidden: int = 150,
        residual: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, n_classes)
        if not widths or min([*widths, hidden]) < 1:
            raise UnknownModel(f"DeepMedic needs convolutions with channels, not {tuple(widths)} and {hidden}.")
        self.fine = _Pathway(in_channels, widths, residual)
        self.coarse = _Pathway(in_channels, widths, residual)
        joined = 2 * widths[-1]
        self.join = nn.Sequential(
            *_activated(joined, hidden, 1, 0.0), *_activated(hidden, hidden, 1, dropout),
            *_activated(hidden, n_classes, 1, dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (b, n_classes, z, y, x) for images (b, in_channels, z, y, x)."""
        self.check(x)
        size = x.shape[2:]
        missing = [(-n) % 3 for n in size]
        whole = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
        third = F.avg_pool3d(whole.float(), 3).to(x.dtype)
        coarse = F.interpolate(self.coarse(third), scale_factor=3, mode="nearest")
        coarse = coarse[:, :, : size[0], : size[1], : size[2]]
        out: Tensor = self.join(torch.cat([self.fine(x), coarse], 1))
        return out


class _Pathway(nn.Module):
    """Convolutions without padding, on an image that is filled up first."""

    def __init__(self, ins: int, widths: Sequence[int], residual: bool) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv3d(ins, widths[0], 3, bias=False))
        others = [nn.Sequential(*_activated(a, b, 3, 0.0)) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList([first, *others])
        self._added = (4, 6, 8) if residual else ()

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (len(self.layers),) * 6)
        before: list[Tensor] = []
        for i, layer in enumerate(self.layers, 1):
            x = layer(x)
            if i in self._added:
                old = before[-2][:, :, 2:-2, 2:-2, 2:-2]
                x = x + F.pad(old, (0, 0, 0, 0, 0, 0, 0, x.shape[1] - old.shape[1]))
            before.append(x)
        return x


def _activated(ins: int, outs: int, kernel: int, dropout: float) -> list[nn.Module]:
    return [nn.BatchNorm3d(ins), nn.PReLU(ins), nn.Dropout(dropout), nn.Conv3d(ins, outs, kernel)]


class VoxResNet(_Veteran):
    """Residual units at three resolutions, each of four levels answered at full size and added (Chen 2018).

    The paper leaves the width of the enlarged maps open; ours have `side` channels.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    width
        Channels of the units; half of them at full size. Published: 64.
    side
        Channels of the enlarged maps.
    """

    def __init__(self, in_channels: int = 1, n_classes: int = 2, width: int = 64, side: int = 16) -> None:
        super().__init__(in_channels, n_classes)
        half = max(width // 2, 1)
        first = (nn.Conv3d(in_channels, half, 3, padding=1), nn.BatchNorm3d(half), nn.ReLU())
        levels = [nn.Sequential(*first, nn.Conv3d(half, half, 3, padding=1))]
        for ins in (half, width, width):
            down = (nn.BatchNorm3d(ins), nn.ReLU(), nn.Conv3d(ins, width, 3, stride=2, padding=1))
            levels.append(nn.Sequential(*down, _VoxRes(width), _VoxRes(width)))
        self.levels = nn.ModuleList(levels)
        self.sides = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose3d(half if step == 1 else width, side, step + 2, stride=step, padding=1),
                nn.ReLU(),
                nn.Conv3d(side, n_classes, 1),
            )
            for step in (1, 2, 4, 8)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Give logits (b, n_classes, z, y, x); in training mode these and those of the four levels."""
        self.check(x)
        size = x.shape[2:]
        parts: list[Tensor] = []
        for level, side in zip(self.levels, self.sides, strict=True):
            x = level(x)
            parts.append(side(x)[:, :, : size[0], : size[1], : size[2]])
        total = parts[0] + parts[1] + parts[2] + parts[3]
        return (total, *parts) if self.training else total


class _VoxRes(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm3d(width), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class AnatomyNet(_Veteran):
    """Squeeze-and-excitation residual units at half the resolution, halved once only (Zhu 2019, head and neck).

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    widths
        Channels at half size, from first to deepest stage.
    blocks
        Units per stage.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        widths: Sequence[int] = (28, 30, 32, 34),
        blocks: int = 2,
    ) -> None:
        super().__init__(in_channels, n_classes)
        if len(widths) < 2 or min(*widths, blocks) < 1:
            raise UnknownModel(f"AnatomyNet needs two stages or more with channels, not {tuple(widths)}.")
        w = list(widths)
        first = nn.Conv3d(in_channels, w[0], 3, stride=2, padding=1, bias=False)
        self.first = nn.Sequential(first, nn.BatchNorm3d(w[0]), nn.LeakyReLU(0.01))
        self.down = nn.ModuleList(_units(w[i], w[i + 1], blocks, 15) for i in range(len(w) - 1))
        self.up = nn.ModuleList(_units(w[i + 1] + w[i], w[i], blocks, 16) for i in reversed(range(len(w) - 1)))
        half = max(w[0] // 2, 1)
        self.enlarge = nn.ConvTranspose3d(w[0], half, 2, stride=2)
        self.last = nn.Sequential(_SEUnit(half + in_channels, half, 16), nn.Conv3d(half, n_classes, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (b, n_classes, z, y, x) for images (b, in_channels, z, y, x)."""
        self.check(x)
        image, size = x, x.shape[2:]
        x = self.first(x)
        skips = []
        for stage in self.down:
            skips.append(x)
            x = stage(x)
        for stage in self.up:
            x = stage(torch.cat([x, skips.pop()], 1))
        x = resize(self.enlarge(x)[:, :, : size[0], : size[1], : size[2]], size)
        out: Tensor = self.last(torch.cat([x, image], 1))
        return out


def _units(ins: int, outs: int, n: int, reduction: int) -> nn.Sequential:
    return nn.Sequential(*(_SEUnit(outs if i else ins, outs, reduction) for i in range(n)))


class _SEUnit(nn.Module):
    """Residual unit whose branch is weighted by channel."""

    def __init__(self, ins: int, outs: int, reduction: int) -> None:
        super().__init__()
        few = max(outs // reduction, 1)
        self.branch = nn.Sequential(
            *(nn.Conv3d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm3d(outs), nn.LeakyReLU(0.01)),
            *(nn.Conv3d(outs, outs, 3, padding=1, bias=False), nn.BatchNorm3d(outs)),
        )
        self.squeeze = nn.Sequential(nn.Linear(outs, few), nn.LeakyReLU(0.01), nn.Linear(few, outs), nn.Sigmoid())
        beside = (nn.Conv3d(ins, outs, 1, bias=False), nn.BatchNorm3d(outs))
        self.shortcut = None if ins == outs else nn.Sequential(*beside)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y = y * self.squeeze(y.mean((2, 3, 4)))[:, :, None, None, None]
        return F.leaky_relu(y + (x if self.shortcut is None else self.shortcut(x)), 0.01)
