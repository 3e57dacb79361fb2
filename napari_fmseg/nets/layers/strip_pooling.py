"""Strip pooling along each axis (EfficientSegmentation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets.layers.blocks import ConvNorm, Kernel, resize

__all__ = ["StripPooling"]


class StripPooling(nn.Module):
    """Context block: takes the deepest map whole, in pooled cubes and in pooled strips.

    Parameters
    ----------
    channels
        Of the map; a quarter of them is used inside.
    kernel
        Pooling along (z, y, x) of the strips; None follows the map, which is the same at the nominal size.
    maximum
        Maximum instead of average, as one published variant has it, with its paddings on the wrong axis.
    dropout
        As in `ConvNorm`.
    """

    def __init__(
        self, channels: int, kernel: Kernel | None = None, *, maximum: bool = False, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.maximum = maximum
        inner = max(channels // 4, 1)

        def unit(kernel: int, ins: int = inner) -> ConvNorm:
            return ConvNorm(ins, inner, kernel, dropout=dropout)

        self.trans_layer = unit(1, channels)
        self.conv1_1, self.conv1_2 = unit(1), unit(1)
        self.conv2_0, self.conv2_1, self.conv2_2 = (ConvNorm(inner, inner) for _ in range(3))
        strips = []
        for axis in range(3):
            kernel_, padding = [1, 1, 1], [0, 0, 0]
            kernel_[axis] = 3
            padding[axis] = 1
            if maximum:  # planes instead of lines; the padding stays where it was
                kernel_ = [4 - k for k in kernel_]
            strips.append(ConvNorm(inner, inner, _three(kernel_), padding=_three(padding)))
        self.conv2_3, self.conv2_4, self.conv2_5 = strips
        self.conv2_6, self.conv2_7 = unit(3), unit(3)
        self.conv3 = ConvNorm(2 * inner, inner, 1)
        self.score_layer = nn.Sequential(unit(3), nn.Conv3d(inner, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the size and channels of `x`."""
        size = x.shape[2:]
        x = self.trans_layer(x)
        cubes, strips = self._cubes(self.conv1_1(x)), self._strips(self.conv1_2(x), _three(self.kernel or size))
        both = torch.cat([self.conv2_6(F.relu(cubes)), self.conv2_7(F.relu(strips))], 1)
        out: Tensor = self.score_layer(F.relu(x + self.conv3(both)))
        return out

    def _cubes(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        out: Tensor = self.conv2_0(x)
        for conv, k in ((self.conv2_1, 2), (self.conv2_2, 4)):
            out = out + resize(conv(self._pool(x, (k, k, k))), size)
        return out

    def _strips(self, x: Tensor, kernel: Kernel) -> Tensor:
        size = x.shape[2:]
        parts = []
        for axis, conv in enumerate((self.conv2_3, self.conv2_4, self.conv2_5)):
            # The average runs over the two other axes, the maximum over this one.
            pooled = _three([k if (i == axis) == self.maximum else 1 for i, k in enumerate(kernel)])
            parts.append(resize(conv(self._pool(x, pooled)), size))
        return parts[0] + parts[1] + parts[2]

    def _pool(self, x: Tensor, kernel: Kernel) -> Tensor:
        if self.maximum:
            return F.max_pool3d(x, kernel)
        return F.avg_pool3d(x.float(), kernel).to(x.dtype)  # torch has no bfloat16 average on the CPU


def _three(values: Sequence[int]) -> Kernel:
    z, y, x = (int(v) for v in values)
    return z, y, x
