"""AnatomyNet (Zhu et al., Medical Physics 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets.comparison.deepmedic import _CheckedNet
from napari_fmseg.nets.layers.blocks import resize

__all__ = ["AnatomyNet"]


class AnatomyNet(_CheckedNet):
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
        """Return logits (b, n_classes, z, y, x) for images (b, in_channels, z, y, x)."""
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
