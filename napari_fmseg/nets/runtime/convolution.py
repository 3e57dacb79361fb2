"""Convolutions on a CPU with channels last: by oneDNN, and by Winograd's minimal filtering along z.

F(4, 3) makes four slices of a 3x3x3 convolution out of six plane convolutions instead of twelve, so with half of the
multiplications. (Winograd, Arithmetic complexity of computations, 1980; Lavin and Gray, arXiv 1509.09308.) In float32
its rounding is about three times that of the plain sum, some 4e-6 of the largest value. What it puts before and after
is the product of a small matrix and of all voxels of six planes, one pass over memory each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Winograd", "convolve"]

_INPUT = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float32,
)  # fmt: skip
_WEIGHTS = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]).double() / 24
_OUTPUT = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).float()


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int] = ()
) -> Tensor:
    """Convolve maps (b, c, ...) with channels last; by oneDNN also where torch itself would not ask it."""
    ones = (1,) * (x.ndim - 2)
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return torch.mkldnn_convolution(x, weight, bias, padding, stride or ones, ones, 1)
    call = F.conv3d if x.ndim == 5 else F.conv2d
    return call(x, weight, bias, tuple(stride or ones), tuple(padding))


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
        return is_cube and weight.dtype == torch.float32 and min(weight.shape[:2]) >= 16

    @classmethod
    def pays(cls, weight: Tensor, stride: Sequence[int], size: Sequence[int]) -> bool:
        """Return whether it is faster for maps of `size` (z, y, x): not small ones with large kernels."""
        return cls.fits(weight, stride) and size[0] >= 8 and 54 * min(weight.shape[:2]) <= 4 * math.prod(size)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve `x` (z, y, x, c)."""
        out = x.new_empty((*x.shape[:3], len(self._weights[0])))
        self.run(lambda a, b: x[a:b], out)
        return out

    def run(self, read: Callable[[int, int], Tensor], out: Tensor) -> None:
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

    def _factors(self, read: Callable[[int, int], Tensor], first: int, n: int) -> Tensor:
        """Return the six factors (6, y, x, c) of four slices; outside of the map are zeros."""
        low, high = max(0, first - 1), min(n, first + 5)
        planes = read(low, high)
        columns = _INPUT[:, low - first + 1 : high - first + 1]
        return torch.mm(columns, planes.reshape(high - low, -1)).view(6, *planes.shape[1:])
