"""Convolutions on a CPU with channels last: by oneDNN, and by Winograd's minimal filtering along z.

F(4, 3) makes four slices of a 3x3x3 convolution out of six plane convolutions instead of twelve, so with half of the
multiplications. (Winograd, Arithmetic complexity of computations, 1980; Lavin and Gray, arXiv 1509.09308.) In float32
its rounding is about three times that of the plain sum, some 4e-6 of the largest value. What it puts before and after
is the product of a small matrix and of all voxels of six planes, one pass over memory each.

`PlaneConvolution` convolves some planes at a time, whose input is made only then and may lie where the result goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PlaneConvolution", "PlaneReader", "ReadPlanes", "Winograd", "convolve", "slabs"]

ReadPlanes: TypeAlias = Callable[[int, int], Tensor]
"""Gives planes a to b (b - a, y, x, c) of a map; neither may be smaller than at the call before."""

_SLAB_BYTES = 8 << 20
"""Of the planes that are convolved at once, about."""

_INPUT = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float32,
)  # fmt: skip
_WEIGHTS = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]).double() / 24
_OUTPUT = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).float()


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
) -> Tensor:
    """Convolve maps (b, c, ...) with channels last; by oneDNN also where torch itself would not ask it."""
    ones = (1,) * (x.ndim - 2)
    if x.device.type == "cpu" and _onednn_takes(x.dtype):
        return torch.mkldnn_convolution(x, weight, bias, padding, stride or ones, dilation or ones, groups)
    call = F.conv3d if x.ndim == 5 else F.conv2d
    return call(x, weight, bias, tuple(stride or ones), tuple(padding), tuple(dilation or ones), groups)


def _onednn_takes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN convolves numbers of this type here: of half precision it needs instructions for it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class Winograd:
    """A 3x3x3 convolution with padding 1 and stride 1 in float32, on planes (z, y, x, c).

    Parameters
    ----------
    weight
        (out, in, 3, 3, 3).
    bias
        (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._bias = bias
        own = weight.double()
        planes = (torch.einsum("z,oczyx->ocyx", row, own).to(weight.dtype) for row in _WEIGHTS)
        self._weights = [plane.contiguous(memory_format=torch.channels_last) for plane in planes]

    @staticmethod
    def fits(weight: Tensor, stride: Sequence[int] = (1,)) -> bool:
        """Return whether a convolution can be computed so, and has channels enough to be faster then."""
        is_cube = tuple(weight.shape[2:]) == (3, 3, 3) and max(stride) == 1
        is_float = weight.dtype == torch.float32 and weight.device.type == "cpu"
        return is_cube and is_float and min(weight.shape[:2]) >= 16

    @classmethod
    def pays(cls, weight: Tensor, stride: Sequence[int], size: Sequence[int]) -> bool:
        """Return whether it is faster for maps of `size` (z, y, x): not small ones with large kernels."""
        return cls.fits(weight, stride) and size[0] >= 8 and 54 * min(weight.shape[:2]) <= 4 * math.prod(size)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve `x` (z, y, x, c)."""
        out = x.new_empty((*x.shape[:3], len(self._weights[0])))
        self.run(lambda a, b: x[a:b], out)
        return out

    def run(self, read: ReadPlanes, out: Tensor) -> None:
        """Write the result to `out` (z, y, x, out).

        `read` gives planes a to b of the input. It is called in order, and for planes next to those of
        `out` before these are written, so that it may give views of `out` itself.
        """
        n = len(out)
        held = [self._factors(read, 0, n)]
        for first in range(0, n, 4):
            products = self._products(held.pop())
            if first + 4 < n:
                held.append(self._factors(read, first + 4, n))
            few = out[first : first + 4]
            torch.mm(_OUTPUT[: len(few)], products.view(6, -1), out=few.view(len(few), -1))

    def _products(self, factors: Tensor) -> Tensor:
        """Return the six products (6, y, x, out); a bias in the second one reaches all four slices once."""
        products = [
            convolve(factor[None].permute(0, 3, 1, 2), weight, self._bias if i == 1 else None, (1, 1))
            for i, (factor, weight) in enumerate(zip(factors, self._weights, strict=True))
        ]
        return torch.stack([product[0].permute(1, 2, 0) for product in products])

    def _factors(self, read: ReadPlanes, first: int, n: int) -> Tensor:
        """Return the six factors (6, y, x, c) of four slices; outside of the map are zeros."""
        low, high = max(0, first - 1), min(n, first + 5)
        planes = read(low, high)
        columns = _INPUT[:, low - first + 1 : high - first + 1]
        return torch.mm(columns, planes.reshape(high - low, -1)).view(6, *planes.shape[1:])


class PlaneReader:
    """Reads planes (planes, y, x, c) of a map that are made when they are asked for, each once.

    So those behind may be written over meanwhile.

    Parameters
    ----------
    make
        Writes planes a to b into a tensor.
    size
        (y, x, c) of a plane.
    like
        A tensor of the type and on the device of the planes.
    """

    def __init__(self, make: Callable[[int, int, Tensor], None], size: Sequence[int], like: Tensor) -> None:
        self._make = make
        self._held, self._until = like.new_empty((0, *size)), 0

    def __call__(self, a: int, b: int) -> Tensor:
        """Return planes a to b; neither may be smaller than at the call before."""
        planes = self._held.new_empty((b - a, *self._held.shape[1:]))
        old = max(0, self._until - a)  # none where a stride leaves planes out
        planes[:old] = self._held[len(self._held) - old :]
        self._make(a + old, b, planes[old:])
        self._held, self._until = planes, b
        return planes


class PlaneConvolution:
    """A convolution of planes (z, y, x, c), some of them at a time.

    Parameters
    ----------
    weight
        (out, in, z, y, x).
    bias
        (out,), or None.
    stride, padding
        Along (z, y, x).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> None:
        self._weight, self._bias, self._stride, self._padding = weight, bias, stride, padding

    def size_after(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Return the size (z, y, x) that a map of `size` has afterwards."""
        sides = zip(size, self._weight.shape[2:], self._stride, self._padding, strict=True)
        z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
        return z, y, x

    @cached_property
    def _winograd(self) -> Winograd:
        return Winograd(self._weight, self._bias)

    def run_maps(self, x: Tensor, out: Tensor) -> None:
        """Write the convolution of maps (b, c, z, y, x) with channels last into `out`, which may be `x`."""
        for seen, made in zip(x, out, strict=True):
            planes, results = (one.permute(1, 2, 3, 0) for one in (seen, made))
            read: ReadPlanes = partial(_view, planes)
            if out is x and not self._takes_winograd(results):
                read = PlaneReader(partial(_copy, planes), planes.shape[1:], planes)
            self.run(read, len(planes), results)

    def _takes_winograd(self, out: Tensor) -> bool:
        padded_by_one = list(self._padding) == [1, 1, 1]
        return padded_by_one and Winograd.pays(self._weight, self._stride, out.shape[:3])

    def run(self, read: ReadPlanes, n: int, out: Tensor) -> None:
        """Write the convolution of a map of `n` planes into `out` (z, y, x, c).

        `read` is called in order, and for all planes that a part needs before that part is written: a `PlaneReader` may
        read from `out` itself.
        """
        if self._takes_winograd(out):
            self._winograd.run(read, out)
            return
        kernel, stride, (deep, *plane) = self._weight.shape[2], self._stride[0], self._padding
        for some in slabs(out, max(self._weight.shape[:2])):
            low, high = some.start * stride - deep, (some.stop - 1) * stride - deep + kernel
            part = read(max(0, low), min(n, high))
            if low < 0 or high > n:
                part = F.pad(part, (0, 0, 0, 0, 0, 0, max(0, -low), max(0, high - n)))
            made = convolve(part[None].permute(0, 4, 1, 2, 3), self._weight, self._bias, (0, *plane), self._stride)
            out[some] = made[0].permute(1, 2, 3, 0)


def _view(x: Tensor, a: int, b: int) -> Tensor:
    return x[a:b]


def _copy(x: Tensor, a: int, b: int, out: Tensor) -> None:
    out.copy_(x[a:b])


def slabs(planes: Tensor, channels: int) -> list[slice]:
    """Return which of some planes (z, y, x, c) are convolved at once, where one of both maps has so many channels."""
    depth, y, x = planes.shape[:3]
    n = max(1, round(depth * channels * y * x * planes.element_size() / _SLAB_BYTES))
    step = -(-depth // n)
    return [slice(first, min(first + step, depth)) for first in range(0, depth, step)]
