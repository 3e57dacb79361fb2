"""The networks of EfficientSegmentation: BaseUNet, ContextUNet and EfficientSegNet.

Written after a description of the public code (github.com/Shanghai-Aitrox-Technology/EfficientSegmentation, paper
arXiv 2109.10601); state dicts carry the published names. They give LOGITS. Instance norm has no parameters, no
convolution has a bias. Any number of channels and any size that leaves the deepest map two voxels; the published
code wanted one channel and multiples of 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.blocks import (
    ACTIVATIONS,
    ConvNorm,
    Kernel,
    check_channels,
    check_choice,
    check_image,
    default_init,
    resize,
    tracing,
)
from napari_fmseg.nets.layers.strip_pooling import StripPooling, _three

__all__ = ["BaseUNet", "ContextUNet", "EfficientSegNet", "standardise"]

COARSE = (8, 16, 32, 64, 128)

FINE = (16, 32, 64, 128, 256)

_CUBE: tuple[Kernel, Kernel] = ((3, 3, 3), (3, 3, 3))

# The published order: the plane kernel runs over z and y, the line kernel over x. Trained weights rely on it.
_PLANE_AND_LINE: tuple[Kernel, Kernel] = ((3, 3, 1), (1, 1, 3))

_STAGES = {"residual": _CUBE, "anisotropic": _PLANE_AND_LINE}

Maps: TypeAlias = Tensor | tuple[Tensor, ...]


def standardise(x: Tensor, window: tuple[float, float]) -> Tensor:
    """Clip images to a window, then take off the mean and divide by the standard deviation, of each image alone.

    Parameters
    ----------
    x
        (b, c, z, y, x).
    window
        Lowest and highest intensity; published: -325 and 325 HU.
    """
    x = x.clamp(*window)
    axes = (2, 3, 4)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # The unbiased deviation is what the published network computes.
    mean, deviation = wide.mean(axes, keepdim=True), wide.std(axes, keepdim=True)
    return ((wide - mean) / (deviation + 1e-5)).to(x.dtype)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut: added, then ReLU."""

    def __init__(
        self, ins: int, outs: int, kernels: tuple[Kernel, Kernel], stride: int, same: bool, dropout: float
    ) -> None:
        super().__init__()
        self.residual_unit = nn.Sequential(
            ConvNorm(ins, outs, kernels[0], stride=stride, dropout=dropout), ConvNorm(outs, outs, kernels[1])
        )
        self.shortcut_unit = None if same else ConvNorm(ins, outs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.shortcut_unit is None else self.shortcut_unit(x)
        return F.relu(self.residual_unit(x) + beside, inplace=True)


class _Double(nn.Module):
    """Two residual units in a row; only the first has a convolution in its shortcut."""

    def __init__(self, ins: int, outs: int, dropout: float) -> None:
        super().__init__()
        self.residual_unit_1 = nn.Sequential(ConvNorm(ins, outs, dropout=dropout), ConvNorm(outs, outs))
        self.residual_unit_2 = nn.Sequential(ConvNorm(outs, outs, dropout=dropout), ConvNorm(outs, outs))
        self.shortcut_unit_1 = ConvNorm(ins, outs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.residual_unit_1(x) + self.shortcut_unit_1(x), inplace=True)
        return F.relu(self.residual_unit_2(x) + x, inplace=True)


def _stage(ins: int, outs: int, n_blocks: int, kind: str, dropout: float, stride: int = 1) -> nn.Sequential:
    kernels = _STAGES[kind]
    first = _Residual(ins, outs, kernels, stride, False, dropout)
    return nn.Sequential(first, *(_Residual(outs, outs, kernels, 1, True, dropout) for _ in range(n_blocks - 1)))


def _layers(ins: int, outs: int, n_layers: int, dropout: float) -> nn.Module:
    return _Double(ins, outs, dropout) if n_layers == 4 else _Residual(ins, outs, _CUBE, 1, False, dropout)


class _ResidualUNet(nn.Module):
    """Down and up again with a skip at every level; what the three networks share."""

    low_memory_form = "napari_fmseg.nets.runtime.slabwise:SlabwiseUNet"
    has_strides = False
    """Whether convolutions with a stride lead down, and skips are added instead of joined."""

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        channels: Sequence[int],
        activation: str,
        auxiliary: int,
        grid: Sequence[int] | None,
        window: Sequence[float] | None,
        native: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_channels(name, in_channels, n_classes)
        check_choice(name, "activation", activation, ACTIVATIONS)
        self.context_block: StripPooling | None = None  # on the deepest map
        if len(channels) not in (5, 6) or min(channels) < 1:
            raise UnknownModel(f"{name} has five levels or six: give five or six channels, not {tuple(channels)}.")
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.channels = tuple(channels)
        self.activation = activation
        self.grid = None if grid is None else _three(grid)
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.native = native
        self._auxiliary = auxiliary

    def _add_heads(self, dropout: float) -> None:
        """Register the last layers and draw all weights (Kaiming normal for ReLU)."""
        outs = self.n_classes - (self.activation == "sigmoid")
        self.final = nn.Conv3d(self.channels[0], outs, 1, bias=False)
        if self._auxiliary:
            wide = self.channels[2]
            last = nn.Conv3d(wide, self._auxiliary, 1, bias=False)
            self.final1 = nn.Sequential(ConvNorm(wide, wide, dropout=dropout), last)
        default_init(self, slope=0)

    @property
    def _depth(self) -> int:
        return len(self.channels) - 1

    def forward(self, x: Tensor) -> Maps:
        """Return logits (b, n_classes, z, y, x), one channel less with a sigmoid, of images that pass `check`.

        In training mode the outputs of `heads` if there is an auxiliary one. They lie on the grid of `x`, or on `grid`
        if one was given without `native`.
        """
        heads = self.heads(x)
        return heads if self.training and self._auxiliary else heads[0]

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and, if there is an auxiliary head, its logits at a quarter of the size."""
        size = x.shape[2:]
        self.check(x)
        if self.grid is not None:
            x = resize(x, self.grid)
        if self.window is not None:
            x = standardise(x, self.window)
        finest, quarter = self._decode(self._encode(x))
        logits = self.final(finest)
        outputs = [resize(logits, size) if self.native else logits]
        if self._auxiliary:
            outputs.append(self.final1(quarter))
        return tuple(outputs)

    def check(self, x: Tensor) -> None:
        """Refuse an image that is too small or has other channels, with `GeometryMismatch`."""
        if tracing():
            return
        name = type(self).__name__
        check_image(name, x, self.in_channels)
        size = self.grid or x.shape[2:]
        deepest = [self._deepest(n) for n in size]
        if min(deepest) < self._least or max(deepest) < 2 * self._least:
            raise GeometryMismatch(
                f"{name} normalises its deepest map, {2**self._depth} times smaller than its input, and needs at least "
                f"{self._smallest(self._least)} voxels along each axis and {self._smallest(2 * self._least)} along "
                f"one, not {tuple(size)}. Resample or pad the volume."
            )

    def _deepest(self, n: int) -> int:
        """Return the size of the deepest map for a size of the image along one axis."""
        for _ in range(self._depth):
            n = -(-n // 2)  # a stride of 2 rounds up
        return n

    _least = 1

    def _smallest(self, deepest: int) -> int:
        """Return the smallest size of the image whose deepest map has the size `deepest`."""
        return (deepest - 1) * int(2**self._depth) + 1

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels, finest first."""
        maps: list[Tensor] = []
        for level in range(len(self.channels)):
            x = self._down(level, x)
            maps.append(x)
        return maps

    def _decode(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the finest map and that at a quarter of the size."""
        x = quarter = maps.pop()
        for level in reversed(range(self._depth)):
            x = self._up(level, maps.pop(), x)
            if level == 2:
                quarter = x
        return x, quarter

    def pool(self, x: Tensor) -> Tensor:
        """Return a map at half the size, or as it is where the next level has strides."""
        return x if self.has_strides else F.max_pool3d(x, 2)

    def _down(self, level: int, x: Tensor) -> Tensor:
        x = getattr(self, f"conv{level}_0")(self.pool(x) if level else x)
        return x if self.context_block is None or level < self._depth else self.context_block(x)

    def _up(self, level: int, skip: Tensor, x: Tensor) -> Tensor:
        out: Tensor = getattr(self, decoder_name(level))(torch.cat([skip, resize(x, skip.shape[2:])], 1))
        return out


class BaseUNet(_ResidualUNet):
    """U-Net of residual units with maximum pooling; the published coarse network.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background, which is class 0.
    channels
        Of the levels, finest first: five, or six for one more level.
    encoder, decoder
        Convolutions per level: 2 or 4.
    activation
        How the logits are to be read. ``"sigmoid"`` (published): structures may overlap, the background has no channel;
        ``"softmax"``: the background has one.
    auxiliary
        Channels of a second head at a quarter of the size, for heat maps; 0: none.
    grid
        Resize the image to (z, y, x) first; None: take it as it is.
    window
        Then clip to this window and standardise, see `standardise`; None: do not.
    native
        Resize the logits back to the image's size.
    dropout
        Share of channels dropped in training.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 5,
        channels: Sequence[int] = COARSE,
        encoder: int = 4,
        decoder: int = 2,
        activation: str = "sigmoid",
        auxiliary: int = 0,
        grid: Sequence[int] | None = None,
        window: Sequence[float] | None = None,
        native: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(in_channels, n_classes, channels, activation, auxiliary, grid, window, native)
        check_choice("BaseUNet", "encoder", encoder, (2, 4))
        check_choice("BaseUNet", "decoder", decoder, (2, 4))
        for level, (ins, outs) in enumerate(zip([in_channels, *channels], channels, strict=False)):
            self.add_module(f"conv{level}_0", _layers(ins, outs, encoder, dropout))
        for level in reversed(range(self._depth)):
            here, below = channels[level : level + 2]
            self.add_module(decoder_name(level), _layers(here + below, here, decoder, dropout))
        self._add_heads(dropout)

    def pool(self, x: Tensor) -> Tensor:
        """Return a map at half the size."""
        return F.max_pool3d(x, 3, stride=2, padding=1)


class _Staged(_ResidualUNet):
    """What ContextUNet and EfficientSegNet share: stages of blocks, and a context block on the deepest map."""

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 5,
        channels: Sequence[int] = FINE,
        encoder: str = "residual",
        decoder: str = "anisotropic",
        encoder_blocks: Sequence[int] = (2, 2, 2, 2, 2),
        decoder_blocks: int = 1,
        context: str = "average",
        nominal: Sequence[int] | None = None,
        activation: str = "sigmoid",
        auxiliary: int = 0,
        grid: Sequence[int] | None = None,
        window: Sequence[float] | None = None,
        native: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(in_channels, n_classes, channels, activation, auxiliary, grid, window, native)
        name = type(self).__name__
        check_choice(name, "encoder", encoder, tuple(_STAGES))
        check_choice(name, "decoder", decoder, tuple(_STAGES))
        check_choice(name, "context", context, ("average", "maximum", "none"))
        if len(encoder_blocks) != len(channels) or min(encoder_blocks) < 1 or decoder_blocks < 1:
            raise UnknownModel(
                f"{name} has {len(channels)} levels and needs as many counts of encoder blocks, each at least 1, "
                f"not {tuple(encoder_blocks)} (decoder blocks: {decoder_blocks})."
            )
        for level, (ins, outs) in enumerate(zip([in_channels, *channels], channels, strict=False)):
            stride = 2 if self.has_strides and level else 1
            stage = _stage(ins, outs, encoder_blocks[level], encoder, dropout, stride)
            self.add_module(f"conv{level}_0", stage)
        if context != "none":
            strips = None if nominal is None else _three([n // 2**self._depth for n in nominal])
            self.context_block = StripPooling(channels[-1], strips, maximum=context == "maximum", dropout=dropout)
            self._least = 4
        if self.has_strides:
            for level in reversed(range(self._depth)):
                narrowing = ConvNorm(channels[level + 1], channels[level], 1, dropout=dropout)
                self.add_module(f"trans_{level + 1}", narrowing)
        for level in reversed(range(self._depth)):
            here, below = channels[level : level + 2]
            stage = _stage(here + (0 if self.has_strides else below), here, decoder_blocks, decoder, dropout)
            self.add_module(decoder_name(level), stage)
        self._add_heads(dropout)

    def check(self, x: Tensor) -> None:
        """Refuse an image that is too small, also for the strips, or has other channels, with `GeometryMismatch`."""
        super().check(x)
        strips = None if self.context_block is None else self.context_block.kernel
        if tracing() or strips is None:
            return
        size = self.grid or x.shape[2:]
        if any(self._deepest(n) < k for n, k in zip(size, strips, strict=True)):
            nominal = tuple(k * 2**self._depth for k in strips)
            raise GeometryMismatch(
                f"{type(self).__name__} pools strips of a nominal size of {nominal} voxels, and the volume has "
                f"{tuple(size)}. Resample or pad the volume, or build the network without `nominal`."
            )


class ContextUNet(_Staged):
    """U-Net of residual stages with maximum pooling and a context block.

    Parameters
    ----------
    in_channels, n_classes, channels, activation, auxiliary, grid, window, native, dropout
        As in `BaseUNet`.
    encoder, decoder
        Blocks of the stages: ``"residual"`` (two cubes) or ``"anisotropic"`` (a plane, then a line).
    encoder_blocks
        Blocks per level, finest first. The published settings name four numbers, of which the first counts for
        two levels.
    decoder_blocks
        Blocks per level on the way up.
    context
        ``"average"``, ``"maximum"`` or ``"none"``, see `StripPooling`.
    nominal
        Size (z, y, x) of the images in training, which sets the length of the strips; None: the strips are as
        long as the image.
    """

    def _deepest(self, n: int) -> int:
        return int(n // 2**self._depth)  # pooling by 2 rounds down

    def _smallest(self, deepest: int) -> int:
        return deepest * int(2**self._depth)


class EfficientSegNet(_Staged):
    """The published fine network: strided residual stages, added skips, an anisotropic decoder.

    Parameters
    ----------
    in_channels, n_classes, channels, activation, auxiliary, grid, window, native, dropout
        As in `BaseUNet`.
    encoder, decoder, encoder_blocks, decoder_blocks, context, nominal
        As in `ContextUNet`.
    """

    has_strides = True

    def _up(self, level: int, skip: Tensor, x: Tensor) -> Tensor:
        x = resize(getattr(self, f"trans_{level + 1}")(x), skip.shape[2:])  # fewer channels first, then more voxels
        out: Tensor = getattr(self, decoder_name(level))(x + skip)
        return out


def decoder_name(level: int) -> str:
    """Return the published name of the decoder at a level: conv0_4, conv1_3, conv2_2, conv3_1, conv4_1."""
    return f"conv{level}_{max(4 - level, 1)}"
