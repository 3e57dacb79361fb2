"""The U-Nets of nnU-Net on a CPU: the same layers with channels last, in little more memory than their largest map.

A convolution that keeps the size of its input writes over it, some planes at a time; what a decoder's stage brings up
from below exists for these planes only, and the result takes the place of the skip. Norms work in place. A window of
few channels goes to oneDNN, too, which torch itself leaves to a convolution that is many times slower and unfolds its
input.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets.runtime.channel_norm import ChannelStatistics, rows_in_cache
from napari_fmseg.nets.runtime.convolution import PlaneConvolution, PlaneReader, Winograd, convolve, slabs

if TYPE_CHECKING:
    from napari_fmseg.nets.nnunet import PlainConvUNet

__all__ = ["NNUNetCpu"]

_LAST = torch.channels_last_3d
_SLAB_BYTES = 8 << 20
"""Of the logits that are given away at once, about."""


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
        self._net, self._dtype, self._slicewise = net, dtype, own.sees_slices
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
            (_Raise.of(up, dtype), [_Unit.of(unit, dtype) for unit in stage.convs])
            for up, stage in zip(own.decoder.transpconvs, own.decoder.stages, strict=True)
        ]
        self._last: nn.Conv3d = own.decoder.seg_layers[-1]
        self._map: Tensor | None = None  # the largest: made anew for every window, it would leave the heap in pieces

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return logits, float32; see `PlainConvUNet.forward`."""
        out: list[Tensor] = []
        for number, planes, logits in self._run(x):
            if not out:
                depth, n = (1, len(x) * x.shape[2]) if self._slicewise else (x.shape[2], len(x))
                out.append(torch.empty((n, len(logits), depth, *x.shape[3:])))
            out[0][number, :, planes] = logits
        return self._net.from_slices(out[0], x.shape[2])

    @torch.inference_mode()
    def stream(self, x: Tensor, take: Callable[[slice, Tensor], None]) -> None:
        """Call `take` with planes of one image and their logits (heads, planes, y, x), float32, some at a time."""
        for number, planes, logits in self._run(x):
            take(slice(number, number + 1) if self._slicewise else planes, logits)

    def _run(self, x: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        net = self._net
        net.check(x)
        x = net.as_slices(x.float())
        held = [self._first.run_into(self._largest_map(x), x)]
        del x
        skips: list[Tensor] = []
        for stage in self._down:
            is_skip = bool(skips)
            for part in stage:
                held.append(part.run(held.pop(), keep=is_skip))
                is_skip = False
            skips.append(held[0])
        skips.pop()
        for up, units in self._up:
            held.append(units[0].convolve_over(skips.pop(), up, held.pop()))
            for before, unit in itertools.pairwise(units):
                held.append(unit.convolve(before.finish(held.pop())))
            if skips:
                units[-1].finish(held[0])
        yield from _logits(held.pop(), self._up[-1][1][-1], self._last)

    def _largest_map(self, x: Tensor) -> Tensor:
        """Return memory for the first convolution of an image."""
        size = x.shape[2:]
        if self._map is None or self._map.shape[2:] != size or len(self._map) != len(x):
            self._map = None  # free before the next one is made
            self._map = torch.empty((len(x), len(self._first.weight), *size), dtype=self._dtype, memory_format=_LAST)
        return self._map


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
        """Return a unit with the weights of a module."""
        conv = unit.conv
        bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        weight = conv.weight.detach().to(dtype)
        return cls(weight, bias, conv.stride, conv.padding, unit.norm, unit.slope, unit.slope_first)

    def run(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Return (b, outs, z, y, x), channels last; may be written over `x`, unless it is to be kept."""
        return self.finish(self.convolve(x, keep=keep))

    def convolve(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Return what `run` does before norm and leaky ReLU."""
        x = x.contiguous(memory_format=_LAST)
        outs, ins = self.weight.shape[:2]
        over = not keep and ins == outs and max(self.stride) == 1
        if Winograd.pays(self.weight, self.stride, x.shape[2:]):
            out = x if over else torch.empty((len(x), outs, *x.shape[2:]), dtype=x.dtype, memory_format=_LAST)
            self.by_planes.run_maps(x, out)
            return out
        if over and len(slabs(_planes(x[0]), ins)) > 1:
            return self.convolve_over(x)
        return convolve(x, self.weight, self.bias, self.padding, self.stride).contiguous(memory_format=_LAST)

    @cached_property
    def by_planes(self) -> PlaneConvolution:
        """The convolution of some planes at a time."""
        return PlaneConvolution(self.weight, self.bias, self.stride, self.padding)

    def run_into(self, out: Tensor, x: Tensor) -> Tensor:
        """Write (b, outs, z, y, x), channels last, in another type than `x` has."""
        deep, *plane = self.padding
        x = F.pad(x, (0, 0, 0, 0, deep, deep)).contiguous(memory_format=_LAST)
        for planes in slabs(_planes(out[0]), len(self.weight)):
            part = x[:, :, planes.start : planes.stop + 2 * deep]
            out[:, :, planes] = convolve(part, self.weight, self.bias, (0, *plane))
        return self.finish(out)

    def convolve_over(self, x: Tensor, up: _Raise | None = None, below: Tensor | None = None) -> Tensor:
        """Write the result of `convolve` over `x`, before whose channels stand those that `up` makes of `below`."""
        below = None if below is None else below.contiguous(memory_format=_LAST)
        for i in range(len(x)):
            own = _planes(x[i])
            read = _reader(own, up, None if below is None else _planes(below[i]))
            self.by_planes.run(read, len(own), own)
        return x

    def finish(self, x: Tensor) -> Tensor:
        """Apply norm and leaky ReLU in place."""
        for part, out in self.finish_parts(x):
            if out is not part:
                part.copy_(out)
        return x

    def finish_parts(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield voxels (n, outs) and what norm and leaky ReLU make of them, float32; in place where `x` is so, too."""
        for sample in torch.split(x, 1):
            if self.slope_first and self.slope is not None:
                for part in _parts(sample):
                    F.leaky_relu_(part, self.slope)
            batch = isinstance(self.norm, nn.BatchNorm3d)
            factor, summand = _batch_factors(self.norm) if batch else _instance_factors(sample, self.norm)
            for part in _parts(sample):
                is_float = part.dtype == torch.float32
                values, own = (part, part) if is_float else (part.float(), None)
                out = torch.addcmul(summand, values, factor, out=own)
                if self.slope is not None and not self.slope_first:
                    F.leaky_relu_(out, self.slope)
                yield part, out


@dataclass(frozen=True)
class _Residual:
    """Units beside a skip, added before the last leaky ReLU."""

    units: Sequence[_Unit]
    mean: nn.Module | None
    skip: _Unit | None
    slope: float

    @classmethod
    def of(cls, block: Any, dtype: torch.dtype) -> _Residual:
        """Return a block with the weights of a module."""
        units = [_Unit.of(getattr(block, f"conv{i}"), dtype) for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        mean = next((part for part in block.skip if not hasattr(part, "conv")), None)
        skip = next((_Unit.of(part, dtype) for part in block.skip if hasattr(part, "conv")), None)
        return cls(units, mean, skip, block.slope)

    def run(self, x: Tensor, *, keep: bool = False) -> Tensor:
        """Return (b, outs, z, y, x), channels last; may be written over `x`, unless it is to be kept."""
        beside: Tensor = x if self.mean is None else self.mean(x)
        if self.skip is not None:
            beside = self.skip.run(beside, keep=True)
        for i, unit in enumerate(self.units):
            x = unit.run(x, keep=i == 0)
        is_kept = keep and self.mean is None and self.skip is None
        total = x.add_(beside) if is_kept else beside.add_(x)
        return F.leaky_relu_(total, self.slope)


@dataclass(frozen=True)
class _Raise:
    """A transposed convolution whose kernel is its stride: every voxel becomes a block."""

    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]

    @classmethod
    def of(cls, up: Any, dtype: torch.dtype) -> _Raise:
        """Return it with the weights of a module."""
        weight = up.weight.detach().to(dtype).permute(2, 3, 0, 4, 1).flatten(3).contiguous()
        return cls(weight, None if up.bias is None else up.bias.detach().to(dtype).repeat(up.stride[2]), up.stride)

    def raise_planes(self, x: Tensor, first: int, out: Tensor) -> None:
        """Write planes of the result of `x` (z, y, x, c) from the `first` on into `out` (planes, y, x, outs)."""
        deep, high, _ = self.stride
        for down, back in itertools.product(range(deep), range(high)):
            begin = (first - down + deep - 1) // deep  # the first plane below that gives one of those wanted
            where = out[begin * deep + down - first :: deep, back::high]
            rows, weight = x[begin : begin + len(where)].flatten(0, 2), self.weight[down, back]
            made = rows @ weight if self.bias is None else torch.addmm(self.bias, rows, weight)
            where.copy_(made.view(where.shape))


def _planes(x: Tensor) -> Tensor:
    """Return a view (z, y, x, c) of one sample (c, z, y, x) with channels last."""
    return x.permute(1, 2, 3, 0)


def _rows(x: Tensor) -> Tensor:
    """Return a view (voxels, c) of maps (b, c, z, y, x) with channels last."""
    return x.permute(0, 2, 3, 4, 1).view(-1, x.shape[1])


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Return views (voxels, c) of maps with channels last, each small enough for the cache."""
    return rows_in_cache(_rows(x))


def _batch_factors(norm: Any) -> tuple[Tensor, Tensor]:
    """Return by what a batch norm multiplies each channel and what it adds."""
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


def _instance_factors(x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Return by what an instance norm multiplies each channel of one sample and what it adds."""
    statistics = ChannelStatistics()
    statistics.update(_rows(x))
    return statistics.factors(norm.eps, norm.weight, norm.bias)


def _reader(x: Tensor, up: _Raise | None, below: Tensor | None) -> PlaneReader:
    """Return what reads planes of `x` (z, y, x, c), before whose channels stand those that `up` makes of `below`."""
    extra = 0 if up is None else up.weight.shape[3] // up.stride[2]

    def make(a: int, b: int, out: Tensor) -> None:
        out[..., extra:] = x[a:b]
        if up is not None and below is not None:
            up.raise_planes(below, a, out[..., :extra])

    return PlaneReader(make, (*x.shape[1:3], extra + x.shape[3]), x)


def _logits(x: Tensor, unit: _Unit, last: nn.Conv3d) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield the last layer's logits (heads, planes, y, x) of what the last unit has convolved, some planes at a time.

    Each is overwritten by the next.
    """
    weight = last.weight.detach().flatten(1).float()
    bias = 0 if last.bias is None else last.bias.detach()[:, None]
    plane = x.shape[3] * x.shape[4]
    n = min(x.shape[2], max(1, _SLAB_BYTES // (4 * len(weight) * plane)))
    room = torch.empty((len(weight), n * plane))
    for number, sample in enumerate(torch.split(x, 1)):
        first, filled = 0, 0
        for _, values in unit.finish_parts(sample):
            while len(values):
                some = values[: room.shape[1] - filled]
                room[:, filled : filled + len(some)] = (weight @ some.T).add_(bias)
                filled, values = filled + len(some), values[len(some) :]
                planes = slice(first, first + filled // plane)
                if filled == room.shape[1] or planes.stop == x.shape[2]:
                    shape = (len(weight), planes.stop - first, *x.shape[3:])
                    yield number, planes, room[:, :filled].view(shape)
                    first, filled = planes.stop, 0
