"""From grid to grid on the device: crop, resample, paste.

Resampling is three small matrix products, one per axis (see `regrid`), which run alike on CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core import resampling
from napari_fmseg.core.volume import Box, Geometry, Volume

__all__ = [
    "bounding_box",
    "box_above",
    "box_in",
    "canonical_view",
    "from_canonical",
    "linear_weights",
    "resize",
    "slabs",
    "to_canonical",
    "to_tensor",
    "zoom",
]

_SLAB_VOXELS = 4_000_000
_BOX_VOXELS = 1_000_000
"""Looked at together: they stay in the processor's cache between the two looks."""


def to_tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Move an array to the device, sharing memory where torch can.

    Unsigned 16 and 32 bit integers, which torch can hardly compute with, become the next larger signed type.
    """
    wider = {"u2": np.int32, "u4": np.int64, "u8": np.int64, "b1": np.uint8}
    kind = array.dtype.kind + str(array.dtype.itemsize)
    array = np.ascontiguousarray(array, wider.get(kind, array.dtype.newbyteorder("=")))
    # torch warns of read-only memory even when nobody writes, and refuses an axis that runs backwards, which numpy
    # calls contiguous where it has one voxel.
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array).to(device)


def to_canonical(volume: Volume) -> tuple[np.ndarray, Geometry]:
    """Reorder the voxels so that z runs to superior, y to posterior and x to left; nothing is interpolated.

    Returns
    -------
    tuple
        (c, z, y, x), a view where possible, and its geometry.
    """
    geometry, order, flips = volume.geometry.canonical()
    data = volume.channels.transpose(0, *(i + 1 for i in order))
    return np.flip(data, tuple(f + 1 for f in flips)), geometry


def canonical_view(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return a view of an array (z, y, x) on `geometry` as canonical voxels; writing to it writes to the array."""
    _, order, flips = geometry.canonical()
    return np.flip(array.transpose(order), flips)


def from_canonical(data: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Reorder canonical voxels (z, y, x) in the order of `geometry` again: the inverse of `to_canonical`."""
    _, order, flips = geometry.canonical()
    return np.ascontiguousarray(np.flip(data, flips).transpose(np.argsort(order)))


def axis_weights(n_in: int, n_out: int, start: float, step: float) -> Tensor:
    """Return `napari_fmseg.core.resampling.axis_weights` as a tensor (n_out, n_in) float32."""
    return torch.from_numpy(resampling.axis_weights(n_in, n_out, start, step))


def linear_weights(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) of linear interpolation with aligned corners, float64.

    Unlike `axis_weights` it does not smooth where there are fewer new values than old ones.
    """
    place = torch.arange(new, dtype=torch.float64) * ((old - 1) / max(new - 1, 1))
    return (1 - (place[:, None] - torch.arange(old)).abs()).clamp_min(0)


def _along(data: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Apply (n_out, n_in) to one of the last three axes of (c, z, y, x)."""
    weights = weights.to(data.device, data.dtype)
    if axis == 2:
        return torch.matmul(data, weights.T)
    if axis == 1:
        return torch.matmul(weights, data)
    c, z, y, x = data.shape
    return torch.matmul(weights, data.reshape(c, z, y * x)).reshape(c, -1, y, x)


def resize(data: Tensor, shape: Sequence[int]) -> Tensor:
    """Return (c, z, y, x) on a grid of `shape`, edge to edge, linear and anti-aliased, as floats."""
    return zoom(data, [(0, n) for n in data.shape[1:]], shape)


def zoom(data: Tensor, spans: Sequence[tuple[float, float]], shape: Sequence[int]) -> Tensor:
    """Read the part of (c, z, y, x) between the edges `spans` on a grid of `shape`, linear and anti-aliased.

    Parameters
    ----------
    data
        (c, z, y, x).
    spans
        First and last edge along z, y, x; voxel i reaches from i to i + 1. Parts of voxels are allowed, and beyond
        the border the outermost voxel is repeated.
    shape
        Voxels of the result.

    Returns
    -------
    Tensor
        (c, z, y, x) of `shape`, float.
    """
    data = data if data.is_floating_point() else data.float()
    # The strongest reduction first, so that the later products are small.
    for axis in sorted(range(3), key=lambda i: shape[i] / data.shape[i + 1]):
        n_in, n_out, (first, last) = data.shape[axis + 1], int(shape[axis]), spans[axis]
        if (first, last) == (0, n_in) and n_in == n_out:
            continue
        step = (last - first) / n_out
        data = _along(data, axis_weights(n_in, n_out, first + (step - 1) / 2, step), axis)
    return data


def bounding_box(mask: Tensor | np.ndarray) -> Box | None:
    """Return the smallest box around what is not 0 in (z, y, x), or None if there is nothing."""
    mask = torch.as_tensor(mask)
    parts = ((planes, mask[planes]) for planes in slabs(mask.shape, voxels=_BOX_VOXELS))
    marked = ((planes, (part if part.dtype == torch.bool else part != 0).view(torch.uint8)) for planes, part in parts)
    return _box_around(mask.shape, marked, 0, mask.device)


def box_above(image: Tensor | np.ndarray, value: float, change: Callable[[Tensor], Tensor] | None = None) -> Box | None:
    """Return the smallest box around voxels of (c, z, y, x) that exceed `value` in any channel, or None.

    An array may be a view with flipped or exchanged axes; `change` maps the voxels, some planes at a time, first.

    It is ``bounding_box((image > value).any(0))`` in a thirtieth of the time: no copy of the volume is made. NaN, which
    no volume that was read has, hides its row.
    """
    shape = image.shape[1:]
    parts = ((planes, image[:, planes]) for planes in slabs(shape, len(image), voxels=_BOX_VOXELS))
    there = ((planes, to_tensor(part) if isinstance(part, np.ndarray) else part) for planes, part in parts)
    mapped = ((planes, change(part) if change else part) for planes, part in there)
    shown = ((planes, part[0] if len(part) == 1 else part.amax(0)) for planes, part in mapped)
    return _box_around(shape, shown, value, image.device if isinstance(image, Tensor) else torch.device("cpu"))


def _box_around(
    shape: Sequence[int], parts: Iterable[tuple[slice, Tensor]], value: float, device: torch.device
) -> Box | None:
    """Return the box around what exceeds `value` in parts (z, y, x) of the whole, each with its planes."""
    if 0 in shape:
        return None
    rows = torch.zeros(tuple(shape[:2]), dtype=torch.bool, device=device)
    columns = torch.zeros(shape[2], dtype=torch.bool, device=device)
    for planes, part in parts:
        rows[planes] = part.amax(2) > value
        columns |= part.amax((0, 1)) > value
    if not columns.any():
        return None
    z, y, x = (hits.nonzero().flatten() for hits in (rows.any(1), rows.any(0), columns))
    return slice(int(z[0]), int(z[-1]) + 1), slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)


def box_in(box: Box, shape: Sequence[int], target: Sequence[int]) -> Box:
    """Map a box from a grid of `shape` to one of `target` with the same field of view, rounded outwards."""
    z, y, x = (
        slice(int(s.start * t // n), int(min(t, -(-s.stop * t // n))))
        for s, n, t in zip(box, shape, target, strict=True)
    )
    return z, y, x


def slabs(shape: Sequence[int], n_channels: int = 1, *, voxels: int = _SLAB_VOXELS) -> Iterator[slice]:
    """Cut the z axis so that a slab of all channels holds at most `voxels` values."""
    depth = max(1, voxels // max(1, n_channels * shape[1] * shape[2]))
    for start in range(0, shape[0], depth):
        yield slice(start, min(shape[0], start + depth))


def resize_slab(data: Tensor, shape: Sequence[int], planes: slice, rows: slice | None = None) -> Tensor:
    """Compute only some planes and rows (along z and y) of ``resize(data, shape)``, from what they need of the input.

    On a finer grid torch's linear kernel gives the same along x, in a fifth of the time.
    """
    finer = all(n <= m for n, m in zip(data.shape[1:], shape, strict=True))
    data = data.float()
    if not finer:
        data = zoom(data, [(0, n) for n in data.shape[1:]], (*data.shape[1:3], shape[2]))
    for axis, part in enumerate((planes, rows or slice(0, shape[1]))):
        n_in, step = data.shape[axis + 1], data.shape[axis + 1] / shape[axis]
        weights = axis_weights(n_in, shape[axis], (step - 1) / 2, step)[part]
        used = weights.any(0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        data = _along(data.narrow(axis + 1, first, last - first), weights[:, first:last], axis)
    if not finer:
        return data
    c, z, y, _ = data.shape
    return F.interpolate(data.flatten(1, 2), shape[2], mode="linear", align_corners=False).view(c, z, y, shape[2])
