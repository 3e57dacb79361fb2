"""Networks that made the field and that no kept library has: DeepMedic, VoxResNet, AnatomyNet.

Written after their papers. No published weights fit; where a paper leaves something open, the docstring states what we
chose. All give LOGITS on the grid of the image, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets.layers.blocks import check_channels, check_image

__all__ = ["DeepMedic"]


class _CheckedNet(nn.Module):
    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        check_channels(type(self).__name__, in_channels, n_classes)
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, "softmax"

    def check(self, x: Tensor) -> None:
        """Refuse an image with another number of channels, or smaller than 8 voxels along an axis."""
        check_image(type(self).__name__, x, self.in_channels, 8)


class DeepMedic(_CheckedNet):
    """Two pathways of small kernels, one of them on the image at a third of the resolution (Kamnitsas 2017).

    The borders are filled up with zeros, so that the whole volume is answered; the paper cuts them off. The coarse
    pathway takes means of 3 x 3 x 3 voxels.

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
            *_unit(joined, hidden, 1, 0.0), *_unit(hidden, hidden, 1, dropout),
            *_unit(hidden, n_classes, 1, dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, n_classes, z, y, x) for images (b, in_channels, z, y, x)."""
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
        others = [nn.Sequential(*_unit(a, b, 3, 0.0)) for a, b in pairwise(widths)]
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


def _unit(ins: int, outs: int, kernel: int, dropout: float) -> list[nn.Module]:
    return [nn.BatchNorm3d(ins), nn.PReLU(ins), nn.Dropout(dropout), nn.Conv3d(ins, outs, kernel)]
