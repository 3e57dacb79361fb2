"""The U-Nets of nnU-Net on a CPU: the same layers with channels last, where no map lives longer than it is needed.

The largest maps are those of the finest level. A module keeps its input alive until it returns, and a norm, a
concatenation and a transposed convolution of torch each make one map more; here norms work in place, and what is
brought up is written beside the skip. A window of few channels goes to oneDNN, too, which torch itself leaves to a
convolution that is many times slower and unfolds its input.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from napari_fmseg.nets.nnunet import PlainConvUNet

__all__ = ["NNUNetCpu"]

_LAST = torch.channels_last_3d
_IN_CACHE = 1 << 18
"""Numbers that are worked on at once."""


class NNUNetCpu:
    """The evaluation of a `PlainConvUNet` or `ResidualEncoderUNet`.

    Parameters
    ----------
    net
        The network; its weights are used as they are where they have the type.
    dtype
        torch.float32, or torch.bfloat16 where the processor computes with it. The first convolution, the norms and the
        last layer are computed in float32 in any case: 8 bits of an intensity or of a logit are too few.
    """

    def __init__(self, net: PlainConvUNet, dtype: torch.dtype = torch.float32) -> None:
        own: Any = net
        self._net, self._dtype = net, dtype
        stages = [
            [_Residual.of(block, dtype) for block in stage.blocks]
            if net.residual
            else [_Unit.of(unit, dtype) for unit in stage[0].convs]
            for stage in own.encoder.stages
        ]
        start = own.encoder.stem.convs if net.residual else own.encoder.stages[0][0].convs
        self._first = _Unit.of(start[0], torch.float32)
        stages[0] = [*(_Unit.of(unit, dtype) for unit in start[1:]), *stages[0]] if net.residual else stages[0][1:]
        self._down: list[list[Any]] = stages
        self._up = [
            (up.weight.detach().to(dtype), up.bias if up.bias is None else up.bias.detach().to(dtype), up.stride,
             [_Unit.of(unit, dtype) for unit in stage.convs])
            for up, stage in zip(own.decoder.transpconvs, own.decoder.stages, strict=True)
        ]  # fmt: skip
        self._last: nn.Conv3d = own.decoder.seg_layers[-1]

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return logits, float32 or, of a network in 16 bit, float16; see `PlainConvUNet.forward`."""
        net, slices = self._net, x.shape[2]
        net.check(x)
        held = [self._first.run(net.as_slices(x.float())).to(self._dtype)]
        del x
        skips: list[Tensor] = []
        for stage in self._down:
            for part in stage:
                held.append(part.run(held.pop()))
            skips.append(held[0])
        skips.pop()
        for weight, bias, stride, units in self._up:
            held.append(_join(held.pop(), weight, bias, stride, skips.pop()))
            for unit in units:
                held.append(unit.run(held.pop()))
        return net.from_slices(_logits(held.pop(), self._last), slices)


@dataclass(frozen=True)
class _Unit:
    """Convolution, norm, leaky ReLU; see `napari_fmseg.nets.nnunet`."""

    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    norm: nn.Module
    slope: float | None
    slope_first: bool

    @classmethod
    def of(cls, unit: Any, dtype: torch.dtype) -> _Unit:
        """Take the weights of a unit."""
        conv = unit.conv
        bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        weight = conv.weight.detach().to(dtype)
        return cls(weight, bias, conv.stride, conv.padding, unit.norm, unit.slope, unit.slope_first)

    def run(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x), channels last."""
        x = x.contiguous(memory_format=_LAST)
        if torch.backends.mkldnn.is_available():
            x = torch.mkldnn_convolution(x, self.weight, self.bias, self.padding, self.stride, (1, 1, 1), 1)
        else:
            x = F.conv3d(x, self.weight, self.bias, tuple(self.stride), tuple(self.padding))
        x = x.contiguous(memory_format=_LAST)
        before, after = (self.slope, None) if self.slope_first else (None, self.slope)
        if isinstance(self.norm, nn.BatchNorm3d):
            factor, summand = _of_running_statistics(self.norm)
            for part in _parts(x):
                _change(part, factor, summand, before, after)
            return x
        for sample in x.split(1):
            if before is not None:
                for part in _parts(sample):
                    F.leaky_relu_(part, before)
            factor, summand = _of_statistics(sample, self.norm)
            for part in _parts(sample):
                _change(part, factor, summand, None, after)
        return x


@dataclass(frozen=True)
class _Residual:
    """Units beside a skip, added before the last leaky ReLU."""

    units: Sequence[_Unit]
    mean: nn.Module | None
    skip: _Unit | None
    slope: float

    @classmethod
    def of(cls, block: Any, dtype: torch.dtype) -> _Residual:
        """Take the weights of a block."""
        units = [_Unit.of(getattr(block, f"conv{i}"), dtype) for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        mean = next((part for part in block.skip if not hasattr(part, "conv")), None)
        skip = next((_Unit.of(part, dtype) for part in block.skip if hasattr(part, "conv")), None)
        return cls(units, mean, skip, block.slope)

    def run(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x), channels last."""
        beside = x if self.mean is None else self.mean(x)
        if self.skip is not None:
            beside = self.skip.run(beside)
        for unit in self.units:
            x = unit.run(x)
        return F.leaky_relu_(x.add_(beside), self.slope)


def _rows(x: Tensor) -> Tensor:
    """Return a view (voxels, c) of maps (b, c, z, y, x) with channels last."""
    return x.permute(0, 2, 3, 4, 1).view(-1, x.shape[1])


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Return views (voxels, c) of maps with channels last, each small enough for the cache."""
    return _rows(x).split(max(1, _IN_CACHE // x.shape[1]))


def _change(part: Tensor, factor: Tensor, summand: Tensor, before: float | None, after: float | None) -> None:
    """Multiply and add channel by channel, in place, with a leaky ReLU before or after."""
    if before is not None:
        F.leaky_relu_(part, before)
    is_float = part.dtype == torch.float32
    out = torch.addcmul(summand, part if is_float else part.float(), factor, out=part if is_float else None)
    if after is not None:
        F.leaky_relu_(out, after)
    if not is_float:
        part.copy_(out)


def _of_running_statistics(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return by what a batch norm multiplies each channel and what it adds."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


def _of_statistics(x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Return by what an instance norm multiplies each channel of one sample and what it adds."""
    total = squares = torch.zeros((), dtype=torch.float64)
    middle: Tensor | None = None
    n = 0
    for part in _parts(x):
        values = part.float()
        middle = values.mean(0) if middle is None else middle  # near the mean, so that no digits are lost
        values = values - middle
        total = total + values.sum(0)
        squares = squares + torch.linalg.vecdot(values, values, dim=0)
        n += len(part)
    assert middle is not None
    off = total / n
    factor = norm.weight / torch.sqrt(squares / n - off * off + norm.eps)
    return factor.float(), (norm.bias - (middle + off) * factor).float()


def _join(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], skip: Tensor) -> Tensor:
    """Return the transposed convolution of `x`, whose kernel is its stride, and the skip behind it."""
    outs = weight.shape[1]
    both = torch.empty(
        (len(x), outs + skip.shape[1], *skip.shape[2:]), dtype=x.dtype, memory_format=_LAST
    )  # not zeros: all of it is written
    both[:, outs:] = skip
    del skip
    rows = _rows(x.contiguous(memory_format=_LAST))
    for at in itertools.product(*(range(step) for step in stride)):
        part = rows @ weight[(..., *at)] if bias is None else torch.addmm(bias, rows, weight[(..., *at)])
        where = tuple(slice(first, None, step) for first, step in zip(at, stride, strict=True))
        both[(slice(None), slice(outs), *where)] = part.view(len(x), *x.shape[2:], outs).movedim(-1, 1)
    return both


def _logits(x: Tensor, last: nn.Conv3d) -> Tensor:
    """Return the last layer's (b, heads, z, y, x), channels first."""
    weight, bias = last.weight.detach().flatten(1).float(), last.bias
    kind = torch.float32 if x.dtype == torch.float32 else torch.float16
    out = torch.empty((len(x), len(weight), x[0, 0].numel()), dtype=kind)
    for sample, own in zip(x.split(1), out, strict=True):
        first = 0
        for part in _parts(sample):
            seen = slice(first, first + len(part))
            found = weight @ part.float().T
            own[:, seen] = found if bias is None else found.add_(bias.detach()[:, None])
            first = seen.stop
    return out.view(len(x), len(weight), *x.shape[2:])
