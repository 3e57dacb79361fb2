"""H-DenseUNet: a densely connected network on slices passes its features to one in 3-D; both decide (Li 2018).

Written after the paper and a description of the authors' code; no published weights fit. Ours is trained from one
image for both parts, in one go: in training mode it also gives the prediction of the slices alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets.slicewise import SlicewiseNet, conv_norm, kernel_size

__all__ = ["HDenseUNet"]

_WIDTHS_2D, _WIDTHS_3D = (768, 384, 96, 96, 64), (504, 224, 192, 96, 64)


class HDenseUNet(SlicewiseNet):
    """Dense U-Net on slices of three neighbours each, a shallower one in 3-D on image and scores, and their fusion.

    The slices see their neighbours as further channels, the outermost one itself twice. The 3-D part keeps half of the
    depth where the plane is halved five times, as published.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    width
        Channels of the first convolution, and to which the decoders' widths are in proportion. Published: 96.
    growth, growth_3d
        Channels that a layer adds. Published: 48 and 32.
    blocks, blocks_3d
        Layers of the four dense blocks. Published: 6, 12, 36, 24 and 3, 4, 12, 8.
    dropout
        Before the last layers.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        width: int = 96,
        growth: int = 48,
        growth_3d: int = 32,
        blocks: Sequence[int] = (6, 12, 36, 24),
        blocks_3d: Sequence[int] = (3, 4, 12, 8),
        dropout: float = 0.3,
    ) -> None:
        if len(blocks) != 4 or len(blocks_3d) != 4 or min(*blocks, *blocks_3d, width, growth, growth_3d) < 1:
            raise UnknownModel(
                f"HDenseUNet needs four dense blocks each and channels, not {tuple(blocks)} and {tuple(blocks_3d)}, "
                f"width={width}, growth={growth} and {growth_3d}."
            )
        super().__init__(in_channels, n_classes, 2, (4, 32, 32))
        scaled = [[max(1, w * width // 96) for w in widths] for widths in (_WIDTHS_2D, _WIDTHS_3D)]
        self.planar = _DenseUNet(3 * in_channels, width, growth, blocks, scaled[0], 2)
        self.score = nn.Sequential(nn.Dropout(dropout), nn.Conv3d(scaled[0][-1], n_classes, 1))
        self.spatial = _DenseUNet(in_channels + n_classes, width, growth_3d, blocks_3d, scaled[1], 3)
        self.bring = nn.Conv3d(scaled[1][-1], scaled[0][-1], 1) if scaled[0][-1] != scaled[1][-1] else nn.Identity()
        fused = scaled[0][-1]
        self.fuse = nn.Sequential(
            nn.Conv3d(fused, fused, 3, padding=1), nn.Dropout(dropout), nn.BatchNorm3d(fused), nn.ReLU(),
            nn.Conv3d(fused, n_classes, 1),
        )  # fmt: skip

    def forward_padded(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits of a volume whose sizes fit; in training mode those of the slices, too."""
        ends = F.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate")
        seen = self.planar(torch.cat([ends[:, :, :-2], x, ends[:, :, 2:]], 1))
        scores = self.score(seen)
        deep = self.bring(self.spatial(torch.cat([x, scores], 1)))
        out: Tensor = self.fuse(seen + deep)
        return (out, scores) if self.training else out


class _DenseUNet(nn.Module):
    """Dense blocks that halve the plane five times, and a decoder without skips, as in the hybrid code."""

    def __init__(
        self, ins: int, width: int, growth: int, blocks: Sequence[int], widths: Sequence[int], dims: int
    ) -> None:
        super().__init__()
        two = kernel_size(2, dims)
        first = nn.Conv3d(ins, width, kernel_size(7, dims), two, kernel_size(3, dims, 0), bias=False)
        pool = nn.MaxPool3d(kernel_size(3, dims), two, kernel_size(1, dims, 0))
        layers: list[nn.Module] = [first, nn.BatchNorm3d(width), nn.ReLU(), pool]
        channels = width
        for i, n in enumerate(blocks):
            layers.append(_DenseBlock(channels, growth, n, dims))
            channels += n * growth
            layers += [nn.BatchNorm3d(channels), nn.ReLU()]
            if i < 3:
                layers += [nn.Conv3d(channels, channels // 2, 1, bias=False), _HalvedPlane()]
                channels //= 2
        self.encoder = nn.Sequential(*layers)
        larger: list[nn.Module] = []
        for i, outs in enumerate(widths):
            factor = (1.0, 2.0, 2.0) if i < 3 or dims == 2 else (2.0, 2.0, 2.0)
            larger += [nn.Upsample(scale_factor=factor), *conv_norm(channels, outs, 3, dims)]
            channels = outs
        self.decoder = nn.Sequential(*larger)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x))
        return out


class _HalvedPlane(nn.Module):
    """Means of 2 x 2 voxels of a slice, in float32: torch's processor code knows no bfloat16 here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x.float(), (1, 2, 2)).to(x.dtype)


class _DenseBlock(nn.Module):
    """Layers that each see all before them."""

    def __init__(self, ins: int, growth: int, n: int, dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm3d(ins + i * growth), nn.ReLU(), nn.Conv3d(ins + i * growth, 4 * growth, 1, bias=False),
                nn.BatchNorm3d(4 * growth), nn.ReLU(),
                nn.Conv3d(4 * growth, growth, kernel_size(3, dims), padding=kernel_size(1, dims, 0), bias=False),
            )
            for i in range(n)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x
