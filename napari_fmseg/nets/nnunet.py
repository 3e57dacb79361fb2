"""The U-Nets that nnU-Net v2 trains: plain, and with a residual encoder; of any depth, kernels and strides.

State dicts carry nnU-Net's names, every tensor once: its files repeat the encoder below ``decoder.encoder`` and each
layer below ``all_modules``. A network of two dimensions has kernels one slice deep and sees every slice alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.blocks import ACTIVATIONS, check_channels, check_choice, check_image, tracing

__all__ = ["PlainConvUNet", "ResidualEncoderUNet"]

Triple = tuple[int, int, int]
NORMS = ("instance", "batch")


class _Unit(nn.Module):
    """Convolution, norm, leaky ReLU; the last two in either order, or without the ReLU."""

    def __init__(self, ins: int, outs: int, kernel: Triple, stride: Triple, style: _Style, active: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(ins, outs, kernel, stride, padding, bias=style.bias)
        self.norm = style.norm(outs)
        self.slope, self.slope_first = style.slope if active else None, style.nonlin_first

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x)."""
        x = self.conv(x)
        if self.slope_first:
            return self.norm(_leak(x, self.slope))  # type: ignore[no-any-return]
        return _leak(self.norm(x), self.slope)


@dataclass(frozen=True)
class _Style:
    """What all units of a network share."""

    norm_name: str
    bias: bool
    slope: float
    nonlin_first: bool

    def norm(self, width: int) -> nn.Module:
        return nn.BatchNorm3d(width) if self.norm_name == "batch" else nn.InstanceNorm3d(width, affine=True)


def _leak(x: Tensor, slope: float | None) -> Tensor:
    return x if slope is None else F.leaky_relu(x, slope, inplace=True)


class _Residual(nn.Module):
    """Two convolutions (three with a bottleneck) beside a skip, added before the last leaky ReLU."""

    def __init__(
        self, ins: int, outs: int, kernel: Triple, stride: Triple, bottleneck: int | None, style: _Style
    ) -> None:
        super().__init__()
        one = (1, 1, 1)
        if bottleneck:
            self.conv1 = _Unit(ins, bottleneck, one, one, style)
            self.conv2 = _Unit(bottleneck, bottleneck, kernel, stride, style)
            self.conv3 = _Unit(bottleneck, outs, one, one, style, active=False)
        else:
            self.conv1 = _Unit(ins, outs, kernel, stride, style)
            self.conv2 = _Unit(outs, outs, kernel, one, style, active=False)
        skip: list[nn.Module] = []
        if max(stride) > 1:
            skip.append(_Mean(stride))
        if ins != outs:
            skip.append(_Unit(ins, outs, one, one, replace(style, bias=False), active=False))
        self.skip = nn.Sequential(*skip)
        self.slope = style.slope

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x)."""
        out = self.conv2(self.conv1(x))
        if hasattr(self, "conv3"):
            out = self.conv3(out)
        return _leak(out + self.skip(x), self.slope)


class _Mean(nn.Module):
    """Mean over blocks of voxels, in float32: a CPU has no other."""

    def __init__(self, stride: Triple) -> None:
        super().__init__()
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x.float(), self._stride, self._stride).to(x.dtype)


class _Named(nn.Module):
    """A list of parts in a row, registered below the name that the files have."""

    def __init__(self, name: str, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self._name = name
        self.add_module(name, nn.ModuleList(parts))

    def forward(self, x: Tensor) -> Tensor:
        for part in getattr(self, self._name):
            x = part(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None) -> None:
        super().__init__()
        if stem is not None:
            self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        if hasattr(self, "stem"):
            x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class _Decoder(nn.Module):
    def __init__(
        self, features: Sequence[int], kernels: Sequence[Triple], strides: Sequence[Triple], convs: Sequence[int],
        heads: int, bias: bool, style: _Style,
    ) -> None:  # fmt: skip
        super().__init__()
        ups, stages, lasts = [], [], []
        for below, here, n in zip(
            range(len(features) - 1, 0, -1), range(len(features) - 2, -1, -1), convs, strict=True
        ):
            width, stride = features[here], strides[below]
            ups.append(nn.ConvTranspose3d(features[below], width, stride, stride, bias=bias))
            ins = [2 * width, *[width] * (n - 1)]
            stages.append(_Named("convs", [_Unit(i, width, kernels[here], (1, 1, 1), style) for i in ins]))
            lasts.append(nn.Conv3d(width, heads, 1))
        self.transpconvs, self.stages, self.seg_layers = (nn.ModuleList(parts) for parts in (ups, stages, lasts))

    def forward(self, skips: list[Tensor], every_head: bool) -> list[Tensor]:
        x, heads = skips.pop(), []
        for up, stage, last in zip(self.transpconvs, self.stages, self.seg_layers, strict=True):
            x = up(x)
            x = stage(torch.cat([x, skips.pop()], 1))
            if every_head or not skips:
                heads.append(last(x))
        return heads[::-1]


class PlainConvUNet(nn.Module):
    """The plain U-Net of nnU-Net v2.

    Parameters
    ----------
    in_channels
        Channels of the image, with those of an earlier stage in a cascade.
    n_classes
        Classes with background, which is class 0.
    features
        Channels of the stages, finest first.
    kernels, strides
        Of each stage along (z, y, x); the first stage has stride 1. Three numbers, or one for all axes.
    convs, decoder_convs
        Convolutions of each stage on the way down (residual blocks, where the encoder has them), and on the way up,
        from the bottom.
    stem, bottleneck
        Channels of the first convolution and of each stage's bottleneck; only with a residual encoder. 0 and an empty
        list: as the stage, and none.
    norm
        ``"instance"``, or ``"batch"``.
    bias
        Whether convolutions have one.
    slope
        Of the leaky ReLU; 0 is a ReLU.
    nonlin_first
        The leaky ReLU stands before the norm.
    slicewise
        A network of two dimensions: kernels and strides along z are 1, and slices do not share their statistics.
    supervised
        Training gives the logits of every level of the decoder, finest first.
    activation
        How the logits are to be read: ``"softmax"``, or ``"sigmoid"`` with a channel less and no background.
    """

    residual = False
    cpu_form = "napari_fmseg.nets.runtime.nnunet_cpu:NNUNetCpu"

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        features: Sequence[int] = (16, 32, 64, 128),
        kernels: Sequence[Sequence[int] | int] = (3,),
        strides: Sequence[Sequence[int] | int] = (1, 2, 2, 2),
        convs: Sequence[int] = (2,),
        decoder_convs: Sequence[int] = (2,),
        stem: int = 0,
        bottleneck: Sequence[int] = (),
        norm: str = "instance",
        bias: bool = True,
        slope: float = 0.01,
        nonlin_first: bool = False,
        slicewise: bool = False,
        supervised: bool = False,
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, len(features)
        check_channels(name, in_channels, n_classes)
        check_choice(name, "activation", activation, ACTIVATIONS)
        check_choice(name, "norm", norm, NORMS)
        kernel, stride = ([_triple(one) for one in _each(name, values, n)] for values in (kernels, strides))
        down, up = _each(name, convs, n), _each(name, decoder_convs, n - 1)
        if n < 2 or any(k % 2 == 0 for one in kernel for k in one) or stride[0] != (1, 1, 1) or min(up) < 1:
            raise UnknownModel(
                f"{name} needs two stages or more, odd kernels, a first stride of 1 and a convolution in every stage, "
                f"not features={list(features)}, kernels={kernel}, strides={stride}, decoder_convs={up}."
            )
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, activation
        self._steps = tuple(math.prod(one[axis] for one in stride) for axis in range(3))
        self.sees_slices, self._supervised = slicewise, supervised
        style = _Style(norm, bias, slope, nonlin_first)
        first, stages = None, []
        before = in_channels
        if self.residual:
            before = stem or features[0]
            first = _Named("convs", [_Unit(in_channels, before, kernel[0], (1, 1, 1), style)])
        for s, width in enumerate(features):
            parts: list[Any] = []
            for i in range(down[s]):
                ins, step = (before, stride[s]) if i == 0 else (width, (1, 1, 1))
                if self.residual:
                    parts.append(_Residual(ins, width, kernel[s], step, bottleneck[s] if bottleneck else None, style))
                else:
                    parts.append(_Unit(ins, width, kernel[s], step, style))
            row = _Named("blocks" if self.residual else "convs", parts)
            stages.append(row if self.residual else nn.Sequential(row))
            before = width
        self.encoder = _Encoder(stages, first)
        self.decoder = _Decoder(features, kernel, stride, up, n_classes - (activation == "sigmoid"), bias, style)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Segment a batch of images.

        Parameters
        ----------
        x
            (b, in_channels, z, y, x), a multiple of the strides along each axis.

        Returns
        -------
        Tensor
            Logits (b, n_classes, z, y, x), with `activation` ``"sigmoid"`` one channel less; in training, where it is
            supervised, a tuple of those of all levels.

        Raises
        ------
        GeometryMismatch
            If the image has another size or number of channels.
        """
        self.check(x)
        slices = x.shape[2]
        heads = self.decoder(self.encoder(self.as_slices(x)), self.training and self._supervised)
        heads = [self.from_slices(head, slices) for head in heads]
        return tuple(heads) if len(heads) > 1 else heads[0]

    def as_slices(self, x: Tensor) -> Tensor:
        """Return (b * z, c, 1, y, x) where slices are seen alone."""
        return x.movedim(2, 1).flatten(0, 1)[:, :, None] if self.sees_slices else x

    def from_slices(self, x: Tensor, slices: int) -> Tensor:
        """Return (b, c, z, y, x) of that many slices again: the inverse of `as_slices`."""
        return x.reshape(-1, slices, x.shape[1], *x.shape[3:]).movedim(2, 1) if self.sees_slices else x

    def check(self, x: Tensor) -> None:
        """Refuse an image that the network cannot take.

        Raises
        ------
        GeometryMismatch
            If it is no multiple of the strides, or has another number of channels.
        """
        name, size = type(self).__name__, tuple(x.shape[2:])
        check_image(name, x, self.in_channels)
        if tracing():
            return
        steps = " x ".join(map(str, self._steps if len(set(self._steps)) > 1 else self._steps[:1]))
        if any(n < step for n, step in zip(size, self._steps, strict=True)):
            raise GeometryMismatch(f"{name} needs at least {steps} voxels along each axis, not {size}. Pad the volume.")
        plane = slice(1 if self.sees_slices else 0, 3)
        deepest = math.prod(n // step for n, step in zip(size[plane], self._steps[plane], strict=True))
        if any(n % step for n, step in zip(size, self._steps, strict=True)) or deepest < 2:
            raise GeometryMismatch(
                f"{name} needs multiples of {steps} voxels, and twice as many along one axis, not {size}. Pad the "
                "volume."
            )


class ResidualEncoderUNet(PlainConvUNet):
    """The U-Net of nnU-Net v2 with residual blocks on the way down; its arguments are those of `PlainConvUNet`."""

    residual = True


def _each(name: str, values: Sequence[Any], n: int) -> list[Any]:
    """Return a value for each stage; one stands for all."""
    if len(values) not in (1, n):
        raise UnknownModel(f"{name} needs one value for each of {n} stages, or one for all, not {list(values)}.")
    return [*values] * (n if len(values) == 1 else 1)


def _triple(value: Sequence[int] | int) -> tuple[int, int, int]:
    z, y, x = (value,) * 3 if isinstance(value, int) else value
    return (z, y, x)
