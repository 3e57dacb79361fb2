"""The U-Nets of nnU-Net on a CPU: the same layers, but no map lives longer than it is needed.

A module keeps its input alive until it returns, and the input of a decoder's stage is the largest map of all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from napari_fmseg.nets.nnunet import PlainConvUNet

__all__ = ["NNUNetCpu"]


class NNUNetCpu:
    """The evaluation of a `PlainConvUNet` or `ResidualEncoderUNet`.

    Parameters
    ----------
    net
        The network; later changes of its weights are not seen.
    dtype
        torch.float32, or torch.bfloat16 where the processor computes with it.
    """

    def __init__(self, net: PlainConvUNet, dtype: torch.dtype = torch.float32) -> None:
        # In bfloat16 only the kernels of channels last sum up in float32; in float32 they are the slower ones.
        self._format = torch.contiguous_format if dtype == torch.float32 else torch.channels_last_3d
        whole: Any = copy.deepcopy(net).eval().requires_grad_(False)
        first = whole.encoder.stem.convs if whole.residual else whole.encoder.stages[0][0].convs
        self._first = first[0]
        own: Any = whole if dtype == torch.float32 else copy.deepcopy(whole)
        self._net: Any = own.to(dtype).to(memory_format=self._format)
        self._dtype = dtype

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return logits; see `PlainConvUNet.forward`."""
        net, slices = self._net, x.shape[2]
        net.check(x)
        # The image itself in float32: few channels, and 8 bits of an intensity are too few.
        held = [self._first(net.as_slices(x.float())).to(self._dtype, memory_format=self._format)]
        del x
        begun = True
        if hasattr(net.encoder, "stem"):
            _run(net.encoder.stem.convs[1:], held)
            begun = False
        skips: list[Tensor] = []
        for stage in net.encoder.stages:
            if net.residual:
                for block in stage.blocks:
                    held.append(block(held.pop()))
            else:
                _run(stage[0].convs[1:] if begun else stage[0].convs, held)
                begun = False
            skips.append(held[0])
        skips.pop()
        for up, stage in zip(net.decoder.transpconvs, net.decoder.stages, strict=True):
            held.append(up(held.pop()))
            held.append(torch.cat([held.pop(), skips.pop()], 1))
            _run(stage.convs, held)
        logits: Tensor = net.from_slices(net.decoder.seg_layers[-1](held.pop()), slices)
        return logits


def _run(units: Iterable[Any], held: list[Tensor]) -> None:
    """Replace the only map in `held` by what units in a row make of it."""
    for unit in units:
        held.append(unit.conv(held.pop()))
        held.append(unit.finish(held.pop()))
