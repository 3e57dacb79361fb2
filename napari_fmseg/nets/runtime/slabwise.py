"""EfficientSegmentation's networks with less than half of the memory: every layer a few planes at a time.

The same sums in another order. A layer reads planes of its input, convolves them, and only what is needed later is
kept. What saves memory and time:

- The second convolution of a residual unit writes over its input; what it still needs of it, it has set aside.
- Norm, ReLU, upsampling and joining with a skip happen to planes that are in the cache, just before they are used; a
  normalised, an enlarged or a joined map never exists.
- The shortcut of a unit is computed twice (for its mean and deviation, then for its sum) and never kept.
- A map is given back as soon as nobody needs it; what its parts have left in the C library's heap, too, before the
  next map is made.

At the finest level two maps are alive at once, where layer by layer there are six. Nothing here keeps gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.allocator import trim_heap
from napari_fmseg.nets.efficientseg import decoder_name, standardise
from napari_fmseg.nets.layers.blocks import ConvNorm, resize

__all__ = ["SlabwiseUNet"]

# Values of a map in one step; and how many rows of how many planes of how many channels a convolution must see: with no
# more than that torch takes another way on the CPU, ten times slower and with ten times the memory.
_VALUES = 4_000_000
_ROWS = 20_480

Read: TypeAlias = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class _Map:
    """A map (c, z, y, x) whose planes are computed on request: `read(first, last)` gives (1, c, planes, y, x)."""

    read: Read
    channels: int
    size: tuple[int, int, int]

    @classmethod
    def of(cls, x: Tensor) -> _Map:
        """Return a tensor (1, c, z, y, x) as a map."""
        z, y, x_ = x.shape[2:]
        return cls(lambda a, b: x[:, :, a:b], x.shape[1], (z, y, x_))

    def pad(self, first: int, last: int) -> Tensor:
        """Return planes; those beyond the border are 0."""
        a, b = max(first, 0), min(last, self.size[0])
        x = self.read(a, b)
        return x if (a, b) == (first, last) else F.pad(x, (0, 0, 0, 0, a - first, last - b))


class _Norm:
    """Mean and deviation of every channel, gathered plane by plane, as instance norm wants them."""

    def __init__(self) -> None:
        self._n = 0
        self._mean = self._squares = torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Add planes (1, c, z, y, x) to the statistics."""
        flat = x[0].flatten(1).float()
        n, mean = flat.shape[1], flat.mean(1)
        # Ten times faster than torch.var_mean.
        apart = [torch.linalg.vector_norm(channel - middle) for channel, middle in zip(flat, mean, strict=True)]
        squares = torch.stack(apart).cpu().double() ** 2
        mean = mean.cpu().double()
        if self._n:
            step = mean - self._mean
            squares = squares + self._squares + step**2 * (self._n * n / (self._n + n))
            mean = self._mean + step * (n / (self._n + n))
        self._n, self._mean, self._squares = self._n + n, mean, squares

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise planes into `out`, or into new memory in the type of `x`."""
        scale = ((self._squares / self._n + 1e-5) ** -0.5).float()
        shift = -self._mean.float() * scale
        scale, shift = (v.to(x.device)[:, None, None, None] for v in (scale, shift))
        return torch.addcmul(shift, x.float(), scale, out=torch.empty_like(x) if out is None else out)


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

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of images (b, in_channels, z, y, x)."""
        self._net.check(x)
        return torch.cat([self._one(image[None].to(self._device, self._dtype)) for image in x])

    def _one(self, x: Tensor) -> Tensor:
        net, size = self._net, x.shape[2:]
        if net.grid is not None:
            x = resize(x, net.grid)
        if net.window is not None:
            x = standardise(x, net.window)
        skips: list[Tensor] = []
        for level in range(len(net.channels)):
            x = self._down(level, x)
            skips.append(x)
        del x  # so that each map is alive in one place only, and goes when it was used
        while len(skips) > 1:
            skips.append(self._up(len(skips) - 2, skips))
        logits = _pointwise(net.final, skips.pop())
        return resize(logits, size) if net.native else logits

    def _down(self, level: int, x: Tensor) -> Tensor:
        net = self._net
        stage = getattr(net, f"conv{level}_0")
        x = _stage(stage, _Map.of(net.pool(x) if level else x))
        return x if net.context_block is None or level < len(net.channels) - 1 else net.context_block(x)

    def _up(self, level: int, skips: list[Tensor]) -> Tensor:
        net, x, skip = self._net, skips.pop(), skips.pop()
        if net.has_strides:
            x = getattr(net, f"trans_{level + 1}")(x)
        up = _enlarge(x, skip)

        def read(a: int, b: int) -> Tensor:
            enlarged = up(a, b)
            return enlarged.add_(skip[:, :, a:b]) if net.has_strides else torch.cat([skip[:, :, a:b], enlarged], 1)

        z, y, x_ = skip.shape[2:]
        channels = skip.shape[1] + (0 if net.has_strides else x.shape[1])
        return _stage(getattr(net, decoder_name(level)), _Map(read, channels, (z, y, x_)))


def _pointwise(last: nn.Module, x: Tensor) -> Tensor:
    """Run a layer that acts on every voxel by itself."""
    out = torch.zeros(())
    depth = _depth(_Map.of(x).size, x.shape[1])
    for a in range(0, x.shape[2], depth):
        part = last(x[:, :, a : a + depth])
        if out.ndim == 0:
            out = part.new_empty((1, part.shape[1], *x.shape[2:]))
        out[:, :, a : a + depth] = part
    return out


def _depth(size: tuple[int, int, int], channels: int) -> int:
    """Return how many planes a part has; a convolution of three planes reads two more."""
    return max(1, _ROWS // (channels * size[1]) - 1, _VALUES // (channels * size[1] * size[2]))


def _stage(stage: nn.Module, x: _Map) -> Tensor:
    """Run all residual units of a stage."""
    units: list[tuple[Any, Any]] = []
    for block in stage if isinstance(stage, nn.Sequential) else [stage]:
        own: Any = block
        if hasattr(own, "residual_unit"):
            units.append((own.residual_unit, own.shortcut_unit))
        else:
            units += [(own.residual_unit_1, own.shortcut_unit_1), (own.residual_unit_2, None)]
    out = torch.zeros(())
    for unit, shortcut in units:
        out = _residual(unit[0], unit[1], shortcut, x)
        x = _Map.of(out)
    return out


def _residual(first: ConvNorm, second: ConvNorm, shortcut: ConvNorm | None, x: _Map) -> Tensor:
    """Return two convolutions beside a shortcut, each with its norm: added, then ReLU."""
    norm, norm_beside = _Norm(), _Norm()
    size = _size_after(first.conv, x.size)
    depth = _depth(size, max(x.channels, first.conv.out_channels))
    h = torch.zeros(())
    _tidy(first.conv.weight)
    for a in range(0, size[0], depth):
        b = min(a + depth, size[0])
        part = _convolve(first.conv, x, a, b)
        norm.update(part)
        if h.ndim == 0:
            h = part.new_empty((1, part.shape[1], *size))
        h[:, :, a:b] = part
        if shortcut is not None:
            norm_beside.update(_convolve(shortcut.conv, x, a, b))
    _tidy(h)
    norm = _convolve_over(second.conv, h, norm)
    _tidy(h)
    for a in range(0, size[0], depth):
        b = min(a + depth, size[0])
        beside = x.read(a, b) if shortcut is None else norm_beside(_convolve(shortcut.conv, x, a, b))
        h[:, :, a:b] = norm(h[:, :, a:b]).add_(beside).relu_()
    return h


def _tidy(x: Tensor) -> None:
    """Pass back the pages that parts have left; without it they add up to a seventh of the peak."""
    if x.device.type == "cpu":
        trim_heap()


def _convolve_over(conv: nn.Conv3d, h: Tensor, norm: _Norm) -> _Norm:
    """Replace `h` by the convolution of its normalised ReLU, in place; gives the norm of what is there now."""
    after = _Norm()
    reach, n, depth = int(conv.padding[0]), h.shape[2], _depth(_Map.of(h).size, h.shape[1])
    ready = h.new_zeros((1, h.shape[1], depth + 2 * reach, *h.shape[3:]))  # from `reach` planes before the part on
    for a in range(0, n, depth):
        b = min(a + depth, n)
        first, last = a + reach if a else 0, min(b + reach, n)
        if a:  # planes that were overwritten, or are ready already
            ready[:, :, : 2 * reach] = ready[:, :, depth : depth + 2 * reach].clone()
        norm(h[:, :, first:last], out=ready[:, :, first - a + reach : last - a + reach]).relu_()
        ready[:, :, last - a + reach :] = 0
        part = F.conv3d(ready[:, :, : b - a + 2 * reach], conv.weight, padding=(0, *conv.padding[1:]))
        after.update(part)
        h[:, :, a:b] = part
    return after


def _convolve(conv: nn.Conv3d, x: _Map, a: int, b: int) -> Tensor:
    """Return output planes a to b of a convolution with its padding and stride."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    planes = x.pad(a * stride - padding, (b - 1) * stride - padding + kernel)
    return F.conv3d(planes, conv.weight, stride=conv.stride, padding=(0, *conv.padding[1:]))


def _size_after(conv: nn.Conv3d, size: tuple[int, int, int]) -> tuple[int, int, int]:
    padding: Any = conv.padding
    sides = zip(size, conv.kernel_size, conv.stride, padding, strict=True)
    z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
    return z, y, x


def _enlarge(x: Tensor, like: Tensor) -> Read:
    """Return a function that reads planes of `x`, enlarged to the size of `like` with aligned corners."""
    z, size = like.shape[2], like.shape[3:]
    place = torch.arange(z, dtype=torch.float64) * ((x.shape[2] - 1) / max(z - 1, 1))
    old = torch.arange(x.shape[2], dtype=torch.float64)
    weights = (1 - (place[:, None] - old).abs()).clamp_min(0).to(x.dtype)  # (new planes, old planes)

    def read(a: int, b: int) -> Tensor:
        first, last = int(place[a]), min(int(place[b - 1]) + 2, x.shape[2])
        rows = weights[a:b, first:last].to(x.device)
        out = x.new_empty((1, x.shape[1], b - a, *size))
        for channel, planes in zip(out[0], x[0, :, first:last], strict=True):  # one at a time takes little room
            enlarged = F.interpolate(planes[None], size=tuple(size), mode="bilinear", align_corners=True)[0]
            torch.mm(rows, enlarged.flatten(1), out=channel.view(b - a, -1))
        return out

    return read
