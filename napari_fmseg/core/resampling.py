"""Volumes on another grid of the same patient, and several of them as the channels of one; needs no torch.

Axis-aligned resampling is three small matrix products, one per axis. The matrices hold the interpolation weights, so
that any shift, zoom and anti-aliasing costs the same and gives exact places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

__all__ = ["axis_weights", "resample", "stack_channels"]


def axis_weights(n_in: int, n_out: int, start: float, step: float) -> npt.NDArray[np.float32]:
    """Return the interpolation weights along one axis.

    Output voxel j reads the input at ``start + j * step``. The kernel is a triangle, one voxel wide when
    zooming in (linear interpolation) and `step` wide when zooming out (anti-aliasing). The edge is repeated.

    Returns
    -------
    numpy.ndarray
        (n_out, n_in) float32; every row sums to 1.
    """
    centre = np.clip(start + step * np.arange(n_out, dtype=np.float64), 0, n_in - 1)
    distance = np.abs(np.arange(n_in, dtype=np.float64)[None] - centre[:, None])
    weights = np.maximum(1 - distance / max(1.0, step), 0)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def resample(volume: Volume, grid: Geometry, *, order: int = 1, outside: float = 0) -> Volume:
    """Read `volume` on another grid of the same patient.

    Parameters
    ----------
    volume
        Intensities (z, y, x) or (c, z, y, x), or labels (z, y, x).
    grid
        Where to read it. Its axes must run along the volume's (any order, any sense).
    order
        0 nearest (labels), 1 linear, anti-aliased when the grid is coarser.
    outside
        Value where the volume does not reach.

    Returns
    -------
    Volume
        On `grid`, of the same class; same dtype for order 0, float32 otherwise.

    Raises
    ------
    GeometryMismatch
        If the axes differ in direction by more than 1e-3.
    """
    to_source = np.linalg.inv(volume.geometry.affine) @ grid.affine
    turn = to_source[:3, :3]
    axes = np.abs(turn).argmax(0)  # for each axis of grid the axis of the volume
    rest = turn.copy()
    rest[axes, range(3)] = 0
    if sorted(axes) != [0, 1, 2] or np.abs(rest / np.linalg.norm(turn, axis=0)).max() > 1e-3:
        raise GeometryMismatch(
            "The two grids are turned against each other, so that one cannot be read on the other along its axes. "
            "Expected directions equal within 1e-3; resample one of them with an image viewer first."
        )
    data = volume.channels.transpose(0, *(int(a) + 1 for a in axes))
    data = data if order == 0 else data.astype(np.float32)
    beyond = np.zeros(grid.shape, bool)
    for i, axis in enumerate(axes):
        step, start, n_in = float(turn[axis, i]), float(to_source[axis, 3]), data.shape[i + 1]
        places = start + step * np.arange(grid.shape[i], dtype=np.float64)
        shape = [1, 1, 1]
        shape[i] = -1
        beyond |= ~((places > -0.5 - 1e-6) & (places < n_in - 0.5 + 1e-6)).reshape(shape)
        if order == 0:
            data = data.take(np.rint(places).astype(np.int64).clip(0, n_in - 1), i + 1)
        elif step > 0:
            data = _along(data, axis_weights(n_in, grid.shape[i], start, step), i)
        else:
            data = _along(np.flip(data, i + 1), axis_weights(n_in, grid.shape[i], n_in - 1 - start, -step), i)
    data = np.ascontiguousarray(data)
    data[:, beyond] = outside
    array = data if volume.data.ndim == 4 else data[0]
    if isinstance(volume, LabelMap):
        return LabelMap(array, grid, volume.meta, volume.names, volume.colors)
    return Volume(array, grid, volume.meta)


def _along(data: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Apply (n_out, n_in) to one of the last three axes of (c, z, y, x)."""
    if axis == 2:
        return data @ weights.T
    if axis == 1:
        return weights @ data
    c, _, y, x = data.shape
    return (weights @ data.reshape(c, -1, y * x)).reshape(c, -1, y, x)


def stack_channels(volumes: Sequence[Volume], names: Sequence[str] = (), *, grid: Geometry | None = None) -> Volume:
    """Stack several volumes of one patient, such as CT and PET, as the channels of one.

    Parameters
    ----------
    volumes
        One each for every channel, in the order that the model wants.
    names
        Of the channels, for what is told; else they are counted.
    grid
        Where they are read; by default the grid of the first. Others are resampled onto it, linearly; where they do
        not reach they have their own lowest value.

    Returns
    -------
    Volume
        (c, z, y, x). Its ``meta`` is what all have in common; "channels", "channel_units" and "channel_modalities" tell
        of each, and "warnings" which of them were resampled, and how far they reach.

    Raises
    ------
    GeometryMismatch
        If there is no volume, one has several channels already, the names do not fit, two grids are turned against each
        other, or do not overlap.
    """
    names = list(names) or [f"channel {i}" for i in range(1, len(volumes) + 1)]
    many = [name for name, volume in zip(names, volumes, strict=False) if volume.n_channels > 1]
    if not volumes or len(names) != len(volumes) or many:
        trouble = f"{many[0]!r} has several channels itself" if many else f"there are {len(volumes)} volumes"
        raise GeometryMismatch(f"Channels are one volume for each of {', '.join(names) or 'them'}, but {trouble}.")
    where = grid or volumes[0].geometry
    warnings: list[str] = []
    planes = []
    for name, volume in zip(names, volumes, strict=True):
        warnings += [text for text in volume.meta.get("warnings", ()) if text not in warnings]
        planes.append(_on(volume, where, name, warnings))
    common = dict(volumes[0].meta)
    for volume in volumes[1:]:
        common = {key: value for key, value in common.items() if volume.meta.get(key) == value}
    meta = {
        **common,
        "channels": tuple(names),
        "channel_units": tuple(str(v.meta.get("units", "")) for v in volumes),
        "channel_modalities": tuple(str(v.meta.get("modality", "")) for v in volumes),
        "warnings": warnings,
        "repaired": [text for volume in volumes for text in volume.meta.get("repaired", ())],
    }
    return Volume(np.stack(planes), where, meta)


def _on(volume: Volume, grid: Geometry, name: str, warnings: list[str]) -> npt.NDArray[Any]:
    """Return a volume's values on a grid, with a warning if that took resampling."""
    data: npt.NDArray[Any] = volume.channels[0]
    if volume.geometry.matches(grid, atol_mm=0.01):
        return data
    low = float(data.min())
    read: npt.NDArray[Any] = resample(Volume(data, volume.geometry), grid, outside=low).data
    inside = Volume(np.ones(data.shape, np.uint8), volume.geometry)
    share = float(resample(inside, grid, order=0).data.mean())
    if not share:
        raise GeometryMismatch(
            f"{name!r} lies beside the other images: their grids do not overlap. Are they of one patient and one visit?"
        )
    have, want = (" x ".join(f"{s:.3g}" for s in g.spacing) for g in (volume.geometry, grid))
    reach = "" if share > 0.999 else f" It covers {100 * share:.0f} % of it; the rest is {low:.4g}."
    warnings.append(f"{name} was resampled from voxels of {have} mm to {want} mm, the grid of the result.{reach}")
    return read
