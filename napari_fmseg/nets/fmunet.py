"""FMUNet: the residual U-Net that was pretrained by Volume Fusion.

Written after the public description of MIS-FM (github.com/openmedlab/MIS-FM); state dicts carry the published names.
It gives LOGITS. Every normalisation is per sample and channel, so nothing is remembered between batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.blocks import (
    check_channels,
    check_image,
    conv,
    default_init,
    join,
    sequence,
    stride,
    tracing,
)

__all__ = ["FMUNet"]


class FMUNet(nn.Module):
    """U-Net of five levels with residual blocks; takes any size.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background, which is class 0.
    widths
        Channels of the five levels, finest first. Published: 32, 64, 128, 256, 512.
    dropout
        Share of features dropped in the three deepest levels while training.
    depth
        Convolutions per block.
    flat_levels
        How many of the finest levels (0, 1 or 2) convolve within slices only and keep their number: for thick slices.
    """

    activation = "softmax"

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        dropout: float = 0.2,
        depth: int = 2,
        flat_levels: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 1 or flat_levels not in (0, 1, 2) or depth < 1:
            raise UnknownModel(
                f"FMUNet has five levels, of which 0, 1 or 2 are flat, and blocks of one convolution or more; "
                f"not widths={tuple(widths)}, flat_levels={flat_levels}, depth={depth}."
            )
        check_channels("FMUNet", in_channels, n_classes)
        self.in_channels, self.n_classes = in_channels, n_classes
        flat = [level < flat_levels for level in range(5)]
        self.steps = [stride(f) for f in flat[:4]]
        self.project = conv(in_channels, widths[0], flat[0])
        self.encoder = _Encoder(widths, flat, dropout, depth)
        self.decoder = _Decoder(widths, flat, dropout, depth)
        self.out_layers = nn.ModuleList(
            nn.Sequential(_norm(c), nn.LeakyReLU(), conv(c, n_classes, f))
            for c, f in zip(widths[:4], flat[:4], strict=True)
        )
        default_init(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (b, n_classes, z, y, x) float32 of images that pass `check`; in training `training_heads`."""
        if self.training:
            return self.training_heads(x)
        out: Tensor = self.out_layers[0](self._features(x)[0]).float()
        return out

    def training_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what training compares: logits at full size, 1/2, 1/4 and 1/8."""
        return tuple(head(f).float() for head, f in zip(self.out_layers, self._features(x), strict=True))

    def check(self, x: Tensor) -> None:
        """Refuse, with `GeometryMismatch`, an image that leaves no more than one voxel at the deepest level."""
        check_image("FMUNet", x, self.in_channels)
        if tracing():
            return
        by = [math.prod(along) for along in zip(*self.steps, strict=True)]
        if all(n <= b for n, b in zip(x.shape[2:], by, strict=True)):
            raise GeometryMismatch(
                f"FMUNet normalises its deepest map, which must have more than one voxel: it needs more than "
                f"{by[0]} x {by[1]} x {by[2]} voxels along one axis at least, not {tuple(x.shape[2:])}. "
                "Resample or pad the volume."
            )

    def _features(self, x: Tensor) -> list[Tensor]:
        """Return the decoder's maps, finest first: full size, 1/2, 1/4, 1/8."""
        self.check(x)
        out: list[Tensor] = self.decoder(self.encoder(self.project(x)))
        return out


class _Encoder(nn.Module):
    en_conv0: nn.Module

    def __init__(self, widths: Sequence[int], flat: Sequence[bool], dropout: float, depth: int) -> None:
        super().__init__()
        for level in range(5):
            setattr(self, f"en_conv{level}", _Residual(widths[level], flat[level], dropout * (level > 1), depth))
        for level in range(4):
            halve = conv(widths[level], widths[level + 1], flat[level], halve=True)
            self.add_module(f"down{level}", sequence(down=nn.Sequential(_norm(widths[level]), nn.LeakyReLU(), halve)))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.en_conv0(x)]
        for level in range(4):
            x = getattr(self, f"down{level}")(maps[-1])  # (b, widths[level + 1], half the size, rounded up)
            maps.append(getattr(self, f"en_conv{level + 1}")(x))
        return maps


class _Decoder(nn.Module):
    de_conv4: nn.Module

    def __init__(self, widths: Sequence[int], flat: Sequence[bool], dropout: float, depth: int) -> None:
        super().__init__()
        for level in range(4):
            setattr(self, f"upcat{level}", _UpCat(widths[level], widths[level + 1], flat[level]))
        for level in range(5):
            setattr(self, f"de_conv{level}", _Residual(widths[level], flat[level], dropout * (level > 1), depth))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = self.de_conv4(maps[4])  # the deepest map passes a second block, as published
        out = []
        for level in (3, 2, 1, 0):
            x = getattr(self, f"de_conv{level}")(getattr(self, f"upcat{level}")(maps[level], x))
            out.append(x)
        return out[::-1]


class _Residual(nn.Module):
    """x + conv(dropout(act(norm(x)))), `depth` times."""

    def __init__(self, width: int, flat: bool, dropout: float, depth: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            nn.Sequential(_norm(width), nn.LeakyReLU(), nn.Dropout(dropout), conv(width, width, flat))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for step in self.conv_list:
            x = x + step(x)
        return x


class _UpCat(nn.Module):
    """Brings the deeper map to the skip's size and merges the two."""

    def __init__(self, width: int, deeper: int, flat: bool) -> None:
        super().__init__()
        self.up = nn.Sequential(_norm(deeper), nn.LeakyReLU(), nn.Conv3d(deeper, width, 1))
        self.conv = nn.Sequential(_norm(2 * width), nn.LeakyReLU(), conv(2 * width, width, flat))

    def forward(self, skip: Tensor, deeper: Tensor) -> Tensor:
        return join(self.conv, skip, self.up(deeper), like=skip)


def _norm(width: int) -> nn.Module:
    return nn.InstanceNorm3d(width, affine=True)
