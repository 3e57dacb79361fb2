"""FastUNet: a small U-Net that learns from few cases in minutes on a CPU, the network that Teach proposes.

The first layer moves blocks of voxels into channels and the last one moves them back (space-to-depth, Shi et al.,
arXiv:1609.05158), so that no convolution runs on the full grid; between them lies a U-Net with strided and transposed
convolutions, instance norm and leaky ReLU (Isensee et al., Nat. Methods 18, 2021). Axes along which voxels are coarse
are not reduced: see `fastunet_strides`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets.layers.blocks import (
    ACTIVATIONS,
    InstanceNorm,
    check_channels,
    check_choice,
    check_image,
    join,
)

__all__ = ["FastUNet", "fastunet_strides"]

_SLOPE = 0.01
_LEAST = 3
"""Voxels along a reduced axis of the deepest level: torch 2.13 computes bfloat16 gradients wrongly at a depth of 2."""


def fastunet_strides(
    grid: Sequence[float], spacing_mm: Sequence[float], levels: int = 4
) -> tuple[tuple[int, int, int], ...]:
    """Return the reductions (z, y, x) of each level for a grid: an axis waits while its voxels are coarser.

    Parameters
    ----------
    grid
        Voxels (z, y, x) of the network's input.
    spacing_mm
        Of these voxels.
    levels
        How many, the first of them the move of voxels into channels.
    """
    size, pitch, found = [float(n) for n in grid], [float(s) for s in spacing_mm], []
    for _ in range(levels):
        finest = min(pitch)
        step = [2 if p <= 1.6 * finest and n / 2 >= _LEAST else 1 for n, p in zip(size, pitch, strict=True)]
        size = [n / s for n, s in zip(size, step, strict=True)]
        pitch = [p * s for p, s in zip(pitch, step, strict=True)]
        found.append((step[0], step[1], step[2]))
    return tuple(found)


class FastUNet(nn.Module):
    """A U-Net between space-to-depth and depth-to-space.

    Parameters
    ----------
    in_channels, n_classes
        Of the image; classes with the background.
    widths
        Channels of each level.
    strides
        Reduction (z, y, x) of each level; the first one is the move of voxels into channels.
    maps
        Channels of a second input on the same grid, such as an attention map; 0 for none.
    activation
        ``"softmax"``, or ``"sigmoid"`` for structures that may overlap, without the background.
    """

    trains_channels_last = False
    trains_in_bfloat16 = True

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 4,
        maps: int = 0,
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        check_channels("FastUNet", in_channels, n_classes)
        check_choice("FastUNet", "activation", activation, ACTIVATIONS)
        if len(widths) != len(strides) or any(len(step) != 3 or min(step) < 1 for step in strides):
            raise ValueError(f"each of the {len(widths)} widths needs three strides of at least 1, not {strides!r}")
        self.in_channels, self.activation = in_channels, activation
        self.map_channels = (maps,) if maps else ()
        self.strides = tuple((int(z), int(y), int(x)) for z, y, x in strides)
        self.first = _Layer((in_channels + maps) * math.prod(self.strides[0]), widths[0])
        pairs = list(zip(widths, widths[1:], self.strides[1:], strict=False))
        self.down = nn.ModuleList(_Layer(a, b, step) for a, b, step in pairs)
        self.encode = nn.ModuleList(_Layer(width, width) for width in widths)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, step, step, bias=False) for a, b, step in pairs)
        self.decode = nn.ModuleList(_Layer(2 * a, a) for a, _, _ in pairs)
        self.head = _Head(widths[0], n_classes - (activation == "sigmoid"), self.strides[0])

    def forward(self, image: Tensor, *maps: Tensor) -> Tensor:
        """Return logits (b, classes, z, y, x) on the grid of the image (b, c, z, y, x), of any size."""
        check_image("FastUNet", image, self.in_channels)
        size = image.shape[2:]
        x = torch.cat([image, *maps], 1) if maps else image
        missing = [-n % math.prod(steps) for n, steps in zip(size, zip(*self.strides, strict=True), strict=True)]
        if any(missing):
            x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
        x = self.encode[0](self.first(_space_to_depth(x, self.strides[0])))
        skips = []
        for down, encode in zip(self.down, self.encode[1:], strict=True):
            skips.append(x)
            x = encode(down(x))
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            x = join(decode, skip, up(x), like=skip)
        out: Tensor = self.head(x)
        return out[:, :, : size[0], : size[1], : size[2]]

    def fit_levels(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a FastUNet with fewer levels, under the names that these have here: the deepest ones.

        So a network that looks at single voxels starts from one that began with blocks of them.
        """
        levels = len({name.split(".")[1] for name in state if name.startswith("encode.")})
        more = len(self.encode) - levels
        if more <= 0:
            return dict(state)
        found = {}
        for name, weight in state.items():
            part, level, *rest = name.split(".")
            if level.isdecimal():
                found[".".join((part, str(int(level) + more), *rest))] = weight
        return found

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the weights: He's for leaky ReLU; the head starts near even probabilities."""
        gain = math.sqrt(2 / (1 + _SLOPE**2))
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv3d):
                    fan_in = module.weight[0].numel()
                    module.weight.normal_(0, gain / math.sqrt(fan_in), generator=generator)
                elif isinstance(module, nn.ConvTranspose3d):
                    module.weight.normal_(0, 1 / math.sqrt(module.weight.shape[0]), generator=generator)
                elif isinstance(module, nn.GroupNorm):
                    module.weight.fill_(1)
                    module.bias.zero_()
                elif isinstance(module, _Head):
                    module.weight.normal_(0, 0.02, generator=generator)
                    module.bias.zero_()


class _Layer(nn.Sequential):
    """A convolution of 3 x 3 x 3, instance norm and leaky ReLU."""

    def __init__(self, n_in: int, n_out: int, step: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__()
        z, y, x = step
        self.conv = nn.Conv3d(n_in, n_out, 3, (z, y, x), 1, bias=False)
        self.norm = InstanceNorm(n_out)
        self.activation = nn.LeakyReLU(_SLOPE, inplace=True)


class _Head(nn.Module):
    """A convolution of 1 x 1 x 1 to the classes of every voxel of a block; one row of weights per class."""

    def __init__(self, n_in: int, n_out: int, block: tuple[int, int, int]) -> None:
        super().__init__()
        self.block = block
        self.weight = nn.Parameter(torch.randn(n_out, math.prod(block), n_in) * 0.02)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        classes, voxels, n_in = self.weight.shape
        bias = self.bias.repeat_interleave(voxels)
        return _depth_to_space(F.conv3d(x, self.weight.reshape(classes * voxels, n_in, 1, 1, 1), bias), self.block)


def _space_to_depth(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """Move blocks of voxels into channels: (b, c, z, y, x) to (b, c * block, z / block, ...)."""
    (b, c, z, y, w), (i, j, k) = x.shape, block
    parts = x.reshape(b, c, z // i, i, y // j, j, w // k, k).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return parts.reshape(b, c * i * j * k, z // i, y // j, w // k)


def _depth_to_space(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """Move channels into blocks of voxels: the inverse of `_space_to_depth`."""
    (b, c, z, y, w), (i, j, k) = x.shape, block
    parts = x.reshape(b, c // (i * j * k), i, j, k, z, y, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(b, c // (i * j * k), z * i, y * j, w * k)
