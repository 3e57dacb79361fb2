"""Layers of any network on a CPU that lie channels last and compute the same sums faster and in less memory.

torch leaves many convolutions to a form of its own that is several times slower than oneDNN, and brings what an
instance norm takes to channels first. Wide convolutions in float32 use Winograd's minimal filtering, see
`napari_fmseg.nets.runtime.convolution`. In a sequence of layers nobody else has what one passes to the next: norms and
activations write over it, and where a convolution follows them, they happen to the planes that it is about to read, so
that the normalised map never exists. So it is with maps that a decoder joins (`napari_fmseg.nets.layers.blocks.join`).
Nothing here keeps gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.allocator import trim_heap
from napari_fmseg.nets.layers.blocks import InstanceNorm
from napari_fmseg.nets.layers.ux_block import DXBlock, UXBlock
from napari_fmseg.nets.runtime.channel_norm import ChannelStatistics, rows_in_cache
from napari_fmseg.nets.runtime.convolution import PlaneConvolution, PlaneReader, Winograd, convolve
from napari_fmseg.nets.runtime.joined_maps import JoinedMaps

__all__ = ["use_fast_layers"]

_LAST = torch.channels_last_3d

_FEW_BYTES, _MANY_BYTES = 8 << 20, 96 << 20

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.SiLU, nn.GELU)

_Factors: TypeAlias = tuple[Tensor, Tensor]
_Maps: TypeAlias = Tensor | JoinedMaps


def use_fast_layers(net: nn.Module) -> nn.Module:
    """Replace layers and sequences of a network, in place, and lay the weights of its convolutions channels last.

    The network is in evaluation mode, on the CPU, and is called without gradients. Large weights stay where they are:
    oneDNN lays them as it wants at every call anyway, and they may be shared with the network that is trained.
    """
    for module in net.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = _Conv3d
            if module.weight.nbytes <= _FEW_BYTES:
                laid = torch.empty_like(module.weight, memory_format=_LAST)  # also where one channel is both layouts
                module.weight = nn.Parameter(laid.copy_(module.weight), requires_grad=False)
        elif type(module) is nn.InstanceNorm3d and not module.track_running_stats:
            module.__class__ = _InstanceNorm3d
        elif type(module) in (nn.GroupNorm, InstanceNorm) and module.num_groups == module.num_channels:
            module.__class__ = _GroupNorm
        elif type(module) in (UXBlock, DXBlock):
            module.__class__ = _UXBlock if type(module) is UXBlock else _DXBlock
        elif type(module).forward is nn.Sequential.forward:
            module.__class__ = _chain_of(type(module))  # type: ignore[arg-type]  # mypy: a type may not be hashable
    return net


class _TakesJoined(nn.Module):
    """A layer that is given maps which are joined before it, see `napari_fmseg.nets.layers.blocks.join`."""

    def take_joined(self, maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool) -> Tensor:
        """Return the result for maps on a grid of `size` (z, y, x), some of which are resized first."""
        joined = JoinedMaps(maps, size, mode, align_corners)
        if all(_is_last(one) for one in maps):
            return _run([self], joined, True)[0]
        out: Tensor = self(joined.whole())
        return out


class _Conv3d(_TakesJoined, nn.Conv3d):
    _by_planes: PlaneConvolution | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim != 5:
            out: Tensor = super()._conv_forward(input, weight, bias)
            return out
        x, padding = input.contiguous(memory_format=_LAST), [int(p) for p in self.padding]
        alone = self.groups == 1 and padding == [1, 1, 1] == list(self.dilation)
        if not alone or not Winograd.pays(weight, self.stride, x.shape[2:]):
            return convolve(x, weight, bias, padding, self.stride, self.dilation, self.groups)
        result = _new_maps((len(x), len(weight), *x.shape[2:]), x)
        self.by_planes.run_maps(x, result)
        return result

    @property
    def by_planes(self) -> PlaneConvolution:
        """Return the same convolution, some planes at a time; without groups and dilation."""
        if self._by_planes is None:
            padding = [int(p) for p in self.padding]
            self._by_planes = PlaneConvolution(self.weight, self.bias, self.stride, padding)
        return self._by_planes


class _InstanceNorm3d(nn.InstanceNorm3d):
    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _normalise(self, input) if _is_last(input) else super().forward(input)
        return out


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input) if _is_last(input) else super().forward(input)


class _Chain(_TakesJoined, nn.Sequential):
    """A sequence that writes over what only it has."""

    def forward(self, input: Tensor) -> Tensor:
        return _run(list(self), input, False)[0]


@cache
def _chain_of(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a kind of sequence that has what another kind adds, too."""
    return _Chain if kind is nn.Sequential else type(kind.__name__, (_Chain, kind), {})


def _run(todo: list[nn.Module], x: _Maps, is_own: bool) -> tuple[Tensor, bool]:
    """Return the result of layers one after the other, and whether nobody else has it; `is_own` tells that of `x`."""
    while todo:
        layer = todo.pop(0)
        if isinstance(layer, _Chain) and not _has_hooks(layer):
            x, is_own = _run(list(layer), x, is_own)
        elif _has_hooks(layer) or not _is_last(x):
            x, is_own = layer(_whole(x)), False
        elif _gives_factors(layer):
            activation = todo.pop(0) if todo and _is_activation(todo[0]) else None
            while activation and todo and isinstance(todo[0], nn.Dropout):
                todo.pop(0)
            if todo and _reads_planes(todo[0]):
                x, is_own = _convolve_planes(todo.pop(0), x, layer, activation), True
            else:
                x = _whole(x)
                x, is_own = _normalise(layer, x, activation, x if is_own else None), True
        elif isinstance(x, JoinedMaps) and _reads_planes(layer):
            x, is_own = _convolve_planes(layer, x), True
        elif _is_activation(layer) and is_own:
            x = _whole(x)
            _activate(layer, x)
        elif not isinstance(layer, nn.Dropout):
            x, is_own = layer(_whole(x)), isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
    return _whole(x), is_own


class _Branch(UXBlock):
    """A block whose norm and channels are computed for some voxels at a time: each of them needs itself alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_last(x):
            return super().forward(x)
        out = self._mix(x).contiguous(memory_format=_LAST)
        first, last = (layer.weight.view(x.shape[1], 4) for layer in (self.pwconv1, self.pwconv2))
        summand, last_summand = (layer.bias for layer in (self.pwconv1, self.pwconv2))
        assert summand is not None
        assert last_summand is not None
        norm, summand = self.norm, summand.view(-1, 4)
        for seen, made in zip(x, out, strict=True):
            before, after = (rows_in_cache(_rows(one), 4) for one in (seen, made))
            for part, mixed in zip(before, after, strict=True):
                narrow = F.layer_norm(mixed, norm.weight.shape, norm.weight, norm.bias, 1e-6)
                wide = F.gelu(torch.addcmul(summand, narrow[:, :, None], first))
                branch = wide.mul_(last).sum(2).add_(last_summand)
                torch.addcmul(part, branch, self.gamma, out=mixed)
        return out


class _UXBlock(_Branch, UXBlock):
    pass


class _DXBlock(_Branch, DXBlock):
    pass


def _is_last(x: _Maps) -> bool:
    return isinstance(x, JoinedMaps) or (x.ndim == 5 and x.is_contiguous(memory_format=_LAST))


def _whole(x: _Maps) -> Tensor:
    return x.whole() if isinstance(x, JoinedMaps) else x


def _has_hooks(layer: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())


def _gives_factors(layer: nn.Module) -> bool:
    """Return whether a layer multiplies each channel and adds to it."""
    is_batch_norm = type(layer) is nn.BatchNorm3d and layer.running_mean is not None
    return is_batch_norm or isinstance(layer, _InstanceNorm3d | _GroupNorm)


def _is_activation(layer: nn.Module) -> bool:
    return type(layer) in _ACTIVATIONS and not _has_hooks(layer)


def _reads_planes(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution that can be given its input plane by plane."""
    return isinstance(layer, _Conv3d) and layer.groups == 1 == max(layer.dilation) and not _has_hooks(layer)


def _new_maps(size: Sequence[int], like: Tensor) -> Tensor:
    """Return new maps; what smaller maps have left in the C library's heap is given back before large ones."""
    if math.prod(size) * like.element_size() > _MANY_BYTES:
        trim_heap()
    return torch.empty(tuple(size), dtype=like.dtype, memory_format=_LAST)


def _rows(x: Tensor) -> Tensor:
    """View a map (c, z, y, x) with channels last as (voxels, c)."""
    return x.permute(1, 2, 3, 0).reshape(-1, len(x))


def _factors(norm: Any, parts: Iterable[Tensor]) -> _Factors:
    """Return by what a norm multiplies each channel of a map, whose voxels are rows (n, c), and what it adds."""
    if isinstance(norm, nn.BatchNorm3d):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        factor = (variance.double() + norm.eps) ** -0.5
        factor = factor if norm.weight is None else factor * norm.weight
        summand = -mean.double() * factor
        summand = summand if norm.bias is None else summand + norm.bias
        return factor.float(), summand.float()
    statistics = ChannelStatistics()
    for rows in parts:
        statistics.update(rows)
    return statistics.factors(norm.eps, norm.weight, norm.bias)


def _normalise(norm: Any, x: Tensor, activation: nn.Module | None = None, out: Tensor | None = None) -> Tensor:
    """Return the norm of maps (b, c, z, y, x) with channels last, and an activation; `out` may be `x`."""
    out = torch.empty_like(x) if out is None else out
    for seen, made in zip(x, out, strict=True):
        _finish(_rows(seen), _rows(made), _factors(norm, [_rows(seen)]), activation)
    return out


def _finish(rows: Tensor, results: Tensor, factors: _Factors, activation: nn.Module | None) -> None:
    """Write what a norm and an activation make of rows (n, c) to others, some of them at a time."""
    factor, summand = factors
    for part, result in zip(rows_in_cache(rows), rows_in_cache(results), strict=True):
        if part.dtype == torch.float32:
            torch.addcmul(summand, part, factor, out=result)
        else:
            result.copy_(torch.addcmul(summand, part.float(), factor))
        if activation is not None:
            _write_over(activation, result)


def _activate(activation: nn.Module, x: Tensor) -> None:
    """Write over maps what an activation makes of them."""
    for one in x:
        for part in rows_in_cache(_rows(one)):
            _write_over(activation, part)


def _write_over(activation: nn.Module, part: Tensor) -> None:
    if isinstance(activation, nn.ReLU):
        part.relu_()
    elif isinstance(activation, nn.LeakyReLU):
        F.leaky_relu(part, activation.negative_slope, inplace=True)
    else:
        part.copy_(activation(part))


def _convolve_planes(
    conv: nn.Module, x: _Maps, norm: nn.Module | None = None, activation: nn.Module | None = None
) -> Tensor:
    """Return a convolution of maps, or of their norm and an activation, made for some planes at a time."""
    assert isinstance(conv, _Conv3d)
    convolution, size = conv.by_planes, x.shape[2:]
    like = x.like if isinstance(x, JoinedMaps) else x
    out = _new_maps((x.shape[0], conv.out_channels, *convolution.size_after(size)), like)
    for i, made in enumerate(out):
        parts = x.parts(i) if isinstance(x, JoinedMaps) else [_rows(x[i])]
        make = partial(_make_planes, x, i, _factors(norm, parts) if norm else None, activation)
        convolution.run(PlaneReader(make, (*size[1:], x.shape[1]), like), size[0], made.permute(1, 2, 3, 0))
    return out


def _make_planes(
    x: _Maps, i: int, factors: _Factors | None, activation: nn.Module | None, a: int, b: int, out: Tensor
) -> None:
    """Write planes a to b of map `i` to `out` (b - a, y, x, c)."""
    if a == b:
        return
    rows = out.view(-1, out.shape[-1])
    if isinstance(x, JoinedMaps):
        x.write(i, a, b, out)
        seen = rows
    else:
        seen = x[i].permute(1, 2, 3, 0)[a:b].reshape(rows.shape)
    if factors:
        _finish(seen, rows, factors, activation)
