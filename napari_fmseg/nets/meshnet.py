"""MeshNet: dilated convolutions at full resolution, fewer than 200,000 weights for a whole head.

Fedorov et al., IJCNN 2017 (arXiv:1612.00940), in the form that brainchop publishes: no pooling, no skips and no norms;
the dilation grows to 16 and shrinks again, so that every voxel receives 93 x 93 x 93 others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets.layers.blocks import check_channels, check_image

__all__ = ["MeshNet", "MeshNetInPlace"]

_PLANES = 32
"""Planes of a map that one step computes."""


class MeshNet(nn.Module):
    """Dilated 3 x 3 x 3 convolutions with ELU between them, then a convolution of 1 x 1 x 1 to the classes.

    Parameters
    ----------
    in_channels, n_classes
        Of the image; classes with the background.
    width
        Channels of every layer. Published for 17 structures: 30.
    dilations
        Of each layer, in voxels.
    """

    activation = "softmax"
    low_memory_form = "napari_fmseg.nets.meshnet:MeshNetInPlace"

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        width: int = 30,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 8, 4, 2, 1),
    ) -> None:
        super().__init__()
        check_channels("MeshNet", in_channels, n_classes)
        if width < 1 or not dilations or min(dilations) < 1:
            raise ValueError(f"width and every dilation are at least 1, not {width} and {list(dilations)}")
        self.in_channels, self.n_classes = in_channels, n_classes
        widths = [in_channels, *[width] * len(dilations)]
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, 3, padding=d, dilation=d) for a, b, d in zip(widths, widths[1:], dilations, strict=False)
        )
        self.head = nn.Conv3d(width, n_classes, 1)

    def check(self, x: Tensor) -> None:
        """Refuse an image with other channels, with `GeometryMismatch`; any size is right."""
        check_image("MeshNet", x, self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, classes, z, y, x) of images (b, c, z, y, x) of any size."""
        self.check(x)
        for layer in self.layers:
            x = F.elu(layer(x), inplace=True)
        out: Tensor = self.head(x)
        return out


class MeshNetInPlace:
    """The evaluation of a `MeshNet` with one map in memory, where layer by layer there are two, and the library's own.

    A layer writes its planes over those of its input; what later planes still need of the input is set aside. The same
    sums, in another order.

    Parameters
    ----------
    net
        The network; later changes of its weights are not seen.
    dtype, device
        In which and where it runs.
    """

    def __init__(self, net: MeshNet, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self._net = net.to(device, dtype)
        self._dtype, self._device = dtype, torch.device(device)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of images (b, in_channels, z, y, x)."""
        self._net.check(x)
        return torch.cat([self._one(image[None].to(self._device, self._dtype)) for image in x])

    def _one(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self._net.layers)
        x = _run(layers[0], x, x.new_empty((1, self._net.head.in_channels, *x.shape[2:])))
        for layer in layers[1:]:
            x = _run(layer, x, x)
        out = x.new_empty((1, self._net.n_classes, *x.shape[2:]))
        for a in range(0, x.shape[2], _PLANES):
            out[:, :, a : a + _PLANES] = self._net.head(x[:, :, a : a + _PLANES])
        return out


def _run(layer: nn.Conv3d, x: Tensor, out: Tensor) -> Tensor:
    """Write the ELU of a convolution into `out`, plane by plane; `out` may be the input itself."""
    reach = int(layer.dilation[0])
    n = x.shape[2]
    before = x.new_zeros((1, x.shape[1], reach, *x.shape[3:]))  # of the input, which may be overwritten by now
    for a in range(0, n, _PLANES):
        b = min(a + _PLANES, n)
        planes = torch.cat([before, x[:, :, a : min(b + reach, n)]], 2)
        before = planes[:, :, b - a : b - a + reach].clone()
        missing = b - a + 2 * reach - planes.shape[2]
        if missing:
            planes = F.pad(planes, (0, 0, 0, 0, 0, missing))
        part = F.conv3d(planes, layer.weight, layer.bias, padding=(0, reach, reach), dilation=reach)
        out[:, :, a:b] = F.elu_(part)
    return out
