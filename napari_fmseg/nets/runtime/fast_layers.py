"""Layers of any network on a CPU that lie channels last and compute the same sums faster.

torch leaves many convolutions to a form of its own that is several times slower than oneDNN, and brings what an
instance norm takes to channels first. Wide convolutions in float32 use Winograd's minimal filtering, see
`napari_fmseg.nets.runtime.convolution`. Nothing here keeps gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from napari_fmseg.nets.runtime.channel_norm import ChannelStatistics, rows_in_cache
from napari_fmseg.nets.runtime.convolution import PlaneConvolution, Winograd, convolve

__all__ = ["use_fast_layers"]

_LAST = torch.channels_last_3d


def use_fast_layers(net: nn.Module) -> nn.Module:
    """Replace the convolutions and instance norms of a network, in place, and lay its weights channels last.

    The network is in evaluation mode, on the CPU, and is called without gradients.
    """
    for module in net.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = _Conv3d
        elif type(module) is nn.InstanceNorm3d and not module.track_running_stats:
            module.__class__ = _InstanceNorm3d
        elif type(module) is nn.GroupNorm and module.num_groups == module.num_channels:
            module.__class__ = _GroupNorm
    laid: nn.Module = net.to(memory_format=_LAST)  # type: ignore[call-overload]
    return laid


class _Conv3d(nn.Conv3d):
    _by_planes: PlaneConvolution | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim != 5:
            out: Tensor = super()._conv_forward(input, weight, bias)
            return out
        x, padding = input.contiguous(memory_format=_LAST), [int(p) for p in self.padding]
        alone = self.groups == 1 and padding == [1, 1, 1] == list(self.dilation)
        if not alone or not Winograd.pays(weight, self.stride, x.shape[2:]):
            return convolve(x, weight, bias, padding, self.stride, self.dilation, self.groups)
        result = torch.empty((len(x), len(weight), *x.shape[2:]), dtype=x.dtype, memory_format=_LAST)
        if self._by_planes is None:
            self._by_planes = PlaneConvolution(weight, bias, self.stride, padding)
        self._by_planes.run_maps(x, result)
        return result


class _InstanceNorm3d(nn.InstanceNorm3d):
    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _normalise(self, input) if _is_last(input) else super().forward(input)
        return out


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input) if _is_last(input) else super().forward(input)


def _is_last(x: Tensor) -> bool:
    return x.ndim == 5 and x.is_contiguous(memory_format=_LAST)


def _normalise(norm: Any, x: Tensor) -> Tensor:
    """Return the instance norm of maps (b, c, z, y, x) with channels last."""
    out = torch.empty_like(x)
    for seen, made in zip(x, out, strict=True):
        rows, results = (one.permute(1, 2, 3, 0).view(-1, x.shape[1]) for one in (seen, made))
        statistics = ChannelStatistics()
        statistics.update(rows)
        factor, summand = statistics.factors(norm.eps, norm.weight, norm.bias)
        for part, result in zip(rows_in_cache(rows), rows_in_cache(results), strict=True):
            if x.dtype == torch.float32:
                torch.addcmul(summand, part, factor, out=result)
            else:
                result.copy_(torch.addcmul(summand, part.float(), factor))
    return out
