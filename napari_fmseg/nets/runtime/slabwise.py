"""EfficientSegmentation's networks in a fraction of the memory, and faster: every layer some planes at a time.

The same sums in another order. Maps lie as (z, y, x, channel). A layer reads planes of its input, convolves them, and
only what is needed later is kept. What saves memory and time:

- The second convolution of a residual unit writes over its input.
- Norm, ReLU, upsampling and joining with a skip happen to planes that are in the cache, just before they are used; a
  normalised, an enlarged or a joined map never exists.
- The shortcut of a unit is computed twice (for its mean and deviation, then for its sum) and never kept.
- In float32 on a CPU, wide convolutions use Winograd's minimal filtering along z; see
  `napari_fmseg.nets.runtime.convolution`.
- A map is given back as soon as nobody needs it; what its parts have left in the C library's heap, too, before the
  next map is made.

At the finest level two maps are alive at once, where layer by layer there are six. Nothing here keeps gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.allocator import trim_heap
from napari_fmseg.core.resampling_torch import linear_weights
from napari_fmseg.nets.efficientseg import decoder_name, standardise
from napari_fmseg.nets.layers.blocks import ConvNorm, resize
from napari_fmseg.nets.runtime.channel_norm import ChannelStatistics
from napari_fmseg.nets.runtime.convolution import PlaneConvolution, PlaneReader, ReadPlanes, slabs

__all__ = ["SlabwiseUNet"]


@dataclass(frozen=True)
class _Map:
    """A map whose planes are there, or `made` on request: `read(a, b)` gives (b - a, y, x, c)."""

    read: ReadPlanes
    size: tuple[int, int, int, int]
    made: bool = True

    @classmethod
    def of(cls, x: Tensor) -> _Map:
        """Return a tensor (z, y, x, c) as a map."""
        z, y, x_, c = x.shape
        return cls(lambda a, b: x[a:b], (z, y, x_, c), made=False)

    def in_order(self, like: Tensor) -> ReadPlanes:
        """Return what reads planes in order and makes each once, in the type and on the device of `like`."""
        if not self.made:
            return self.read

        def make(a: int, b: int, out: Tensor) -> None:
            if b > a:
                out.copy_(self.read(a, b))

        return PlaneReader(make, self.size[1:], like)


class _Norm(ChannelStatistics):
    """Instance norm of planes (z, y, x, c), whose mean and deviation are gathered first."""

    @classmethod
    def of(cls, x: Tensor) -> _Norm:
        """Return the norm of a whole map."""
        norm = cls()
        norm.update(x)
        return norm

    def apply(self, x: Tensor, out: Tensor) -> Tensor:
        """Normalise planes into `out`."""
        factor, summand = self.factors(1e-5)
        if out.dtype == torch.float32:
            return torch.addcmul(summand, x, factor, out=out)
        return out.copy_(torch.addcmul(summand, x.float(), factor))


class SlabwiseUNet:
    """The evaluation of a `BaseUNet`, `ContextUNet` or `EfficientSegNet` in little memory.

    Parameters
    ----------
    net
        The network; later changes of its weights are not seen.
    dtype, device
        In which and where it runs.

    Notes
    -----
    Call it as the network is called in evaluation mode. Sizes may differ from call to call.
    """

    def __init__(
        self,
        net: nn.Module,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._net: Any = net.to(device, dtype)
        self._dtype, self._device = dtype, torch.device(device)
        self._convolutions: dict[nn.Module, PlaneConvolution] = {}

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of images (b, in_channels, z, y, x)."""
        self._net.check(x)
        return torch.cat([self._one(image[None].to(self._device, self._dtype)) for image in x])

    def _one(self, image: Tensor) -> Tensor:
        net, size = self._net, image.shape[2:]
        if net.grid is not None:
            image = resize(image, net.grid)
        if net.window is not None:
            image = standardise(image, net.window)
        x = _planes(image)
        del image
        skips: list[Tensor] = []
        for level in range(len(net.channels)):
            x = self._down(level, x)
            skips.append(x)
        del x  # so that each map is alive in one place only, and goes when it was used
        while len(skips) > 1:
            skips.append(self._up(len(skips) - 2, skips))
        logits = _logits(net.final, skips.pop())
        return resize(logits, size) if net.native else logits

    def _down(self, level: int, x: Tensor) -> Tensor:
        net = self._net
        stage = getattr(net, f"conv{level}_0")
        x = self._stage(stage, _Map.of(_planes(net.pool(_batch(x))) if level else x), x)
        last = net.context_block is not None and level == len(net.channels) - 1
        return _planes(net.context_block(_batch(x).contiguous())) if last else x

    def _up(self, level: int, skips: list[Tensor]) -> Tensor:
        net, x, skip = self._net, skips.pop(), skips.pop()
        if net.has_strides:
            x = _planes(getattr(net, f"trans_{level + 1}")(_batch(x)))
        z, y, x_, c = skip.shape
        matrix = linear_weights(len(x), z).to(x)

        def read(a: int, b: int) -> Tensor:
            enlarged = _enlarge(x, matrix[a:b], (y, x_))
            return enlarged.add_(skip[a:b]) if net.has_strides else torch.cat([skip[a:b], enlarged], 3)

        joined = _Map(read, (z, y, x_, c + (0 if net.has_strides else x.shape[3])))
        return self._stage(getattr(net, decoder_name(level)), joined, skip)

    def _stage(self, stage: nn.Module, x: _Map, like: Tensor) -> Tensor:
        """Run all residual units of a stage; the result has the type of `like`."""
        units: list[tuple[Any, Any]] = []
        for block in stage if isinstance(stage, nn.Sequential) else [stage]:
            own: Any = block
            if hasattr(own, "residual_unit"):
                units.append((own.residual_unit, own.shortcut_unit))
            else:
                units += [(own.residual_unit_1, own.shortcut_unit_1), (own.residual_unit_2, None)]
        out = like
        for unit, shortcut in units:
            out = self._residual(unit[0], unit[1], shortcut, x, like)
            x = _Map.of(out)
        return out

    def _residual(self, first: ConvNorm, second: ConvNorm, shortcut: ConvNorm | None, x: _Map, like: Tensor) -> Tensor:
        """Return two convolutions beside a shortcut, each with its norm: added, then ReLU."""
        _tidy(like)
        convolution, outs = self._convolution(first.conv), first.conv.out_channels
        h = like.new_empty((*convolution.size_after(x.size[:3]), outs))
        convolution.run(x.in_order(h), x.size[0], h)
        norm = _Norm.of(h)
        _tidy(like)

        def finish(a: int, b: int, out: Tensor) -> None:
            norm.apply(h[a:b], out).relu_()

        self._convolution(second.conv).run(PlaneReader(finish, h.shape[1:], h), len(h), h)
        after, norm_beside = _Norm.of(h), _Norm()
        if shortcut is not None:
            for _, part in _beside(shortcut.conv, x, h):
                norm_beside.update(part)
        _tidy(like)
        for planes, part in _beside(None if shortcut is None else shortcut.conv, x, h):
            if shortcut is not None:
                norm_beside.apply(part, part)
            after.apply(h[planes], h[planes]).add_(part).relu_()
        return h

    def _convolution(self, conv: nn.Conv3d) -> PlaneConvolution:
        """Return a layer of the network for planes; made once."""
        if conv not in self._convolutions:
            padding: Any = conv.padding
            self._convolutions[conv] = PlaneConvolution(conv.weight, None, conv.stride, padding)
        return self._convolutions[conv]


def _beside(conv: nn.Conv3d | None, x: _Map, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield planes of `x`, or of its convolution with a kernel of one voxel, and which of `like` they are."""
    for planes in slabs(like, max(x.size[3], like.shape[3])):
        if conv is None:
            yield planes, x.read(planes.start, planes.stop)
            continue
        step_z, step_y, step_x = conv.stride
        part = x.read(planes.start * step_z, (planes.stop - 1) * step_z + 1)[::step_z, ::step_y, ::step_x]
        yield planes, part @ conv.weight.flatten(1).T


def _logits(last: nn.Conv3d, x: Tensor) -> Tensor:
    """Return what the last layer, whose kernel is one voxel, makes of a map (z, y, x, c): (1, classes, z, y, x)."""
    weight = last.weight.flatten(1)
    out = x.new_empty((1, len(weight), *x.shape[:3]))
    for planes in slabs(x, x.shape[3]):
        part = x[planes]
        out[0, :, planes] = (weight @ part.reshape(-1, x.shape[3]).T).view(-1, *part.shape[:3])
    return out


def _tidy(x: Tensor) -> None:
    """Pass back the pages that parts have left; without it they add up to a seventh of the peak."""
    if x.device.type == "cpu":
        trim_heap()


def _batch(x: Tensor) -> Tensor:
    """View (z, y, x, c) as a batch of one with channels last."""
    return x[None].permute(0, 4, 1, 2, 3)


def _planes(x: Tensor) -> Tensor:
    """Return a batch of one as (z, y, x, c), which it is already with channels last."""
    return x[0].permute(1, 2, 3, 0).contiguous()


def _enlarge(x: Tensor, rows: Tensor, size: Sequence[int]) -> Tensor:
    """Return planes of `x` (z, y, x, c) enlarged to `size` (y, x) with aligned corners, mixed along z by `rows`."""
    mixed = (rows @ x.flatten(1)).view(len(rows), *x.shape[1:])
    enlarged = F.interpolate(mixed.permute(0, 3, 1, 2), size=tuple(size), mode="bilinear", align_corners=True)
    return enlarged.permute(0, 2, 3, 1)
