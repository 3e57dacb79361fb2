"""Voxel values that were read: rescaled faithfully, made finite, with warnings where they look odd."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import DeviceMemory, UnreadableVolume
from napari_fmseg.core.memory import free_bytes
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

__all__ = [
    "REVERSED",
    "as_label_map",
    "check_memory",
    "replace_non_finite",
    "rescale",
    "sanitise_voxels",
    "smallest_integer",
    "span",
    "split_channel_axis",
]

REVERSED = np.ix_([2, 1, 0, 3], [2, 1, 0, 3])
"""Turns an affine over (x, y, z, 1) into one over (z, y, x, 1), and back."""

_NEVER_MUCH = 256 << 20
_NEAR_INTEGER = 0.01
_INCREDIBLE = 1e12
_INTEGERS = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


def check_memory(n_bytes: int, path: Path) -> None:
    """Raise `DeviceMemory` before allocation if less than `n_bytes` of this machine's memory are free."""
    if n_bytes < _NEVER_MUCH:
        return
    free = free_bytes()
    if n_bytes > free:
        raise DeviceMemory(
            f"{path.name} takes {n_bytes / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB of memory are free. Close other "
            "programs, or read it on a machine with more memory."
        )


def split_channel_axis(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """Reduce the axes of a file, (..., z, y, x), to (z, y, x) or (c, z, y, x); `UnreadableVolume` if there are more."""
    if len(shape) < 3:
        raise UnreadableVolume(
            f"{path.name} is {len(shape)}-D (sizes {shape[::-1]}), but a volume has three axes of space. "
            "Stack the slices into one volume, or choose the folder of the whole series."
        )
    extra = [n for n in shape[:-3] if n > 1]
    if len(extra) > 1:
        raise UnreadableVolume(
            f"{path.name} has {len(shape)} axes (sizes {shape[::-1]}). Expected three of space and at most "
            "one more for channels or time. Save one time point or one component."
        )
    return (*extra, *shape[-3:])


def smallest_integer(low: float, high: float, *, n_bytes: int = 1) -> np.dtype[Any]:
    """Return the smallest integer type of at least `n_bytes` that holds `low` and `high`, both whole numbers."""
    for kind in _INTEGERS:
        if np.dtype(kind).itemsize >= n_bytes and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float64)


def rescale(data: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """Apply ``slope * data + intercept`` in the smallest type that holds the result faithfully.

    Whole slopes and intercepts on whole numbers stay whole: a CT in int16 with slope 1 remains int16, and where the
    size of the type remains, so does the memory: `data` is changed in place. Anything
    else is computed in double precision and kept in float32, or in float64 where the stored type is wider.
    """
    if slope == 1 and intercept == 0:
        return data
    if data.dtype.kind in "ui" and float(slope).is_integer() and float(intercept).is_integer():
        ends = sorted(slope * float(end) + intercept for end in span(data))
        if max(abs(end) for end in ends) < 2**53:
            fits = np.iinfo(data.dtype).min <= ends[0] and ends[1] <= np.iinfo(data.dtype).max
            # Steps in between may wrap around, which is right modulo 2^n because the result fits.
            kind = data.dtype if fits else smallest_integer(*ends, n_bytes=data.itemsize)
            whole = data.view(kind) if kind.itemsize == data.itemsize else data.astype(kind)
            if slope != 1:
                whole *= np.int64(slope).astype(kind)
            whole += np.int64(intercept).astype(kind)
            return whole
    wide = data.dtype.itemsize > 4 or (data.dtype.kind in "ui" and data.dtype.itemsize > 2)
    result = np.empty(data.shape, np.float64 if wide else np.float32)
    for stored, out in zip(data.reshape(-1, data.shape[-1]), result.reshape(-1, data.shape[-1]), strict=True):
        np.add(np.multiply(stored, slope, dtype=np.float64), intercept, out=out, casting="same_kind")
    return result


def span(data: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Return the least and the greatest value, plane by plane, so that each plane is fetched from memory once.

    Both are NaN if there is a NaN.
    """
    ends = np.array([(plane.min(), plane.max()) for plane in data])
    return ends.min(), ends.max()


def sanitise_voxels(
    data: npt.NDArray[Any], geometry: Geometry, meta: Mapping[str, Any], path: Path, *, is_image: bool = True
) -> Volume:
    """Make a `Volume` whose values are finite, and record in ``meta`` what was repaired or looks odd.

    An image of one value or one slice looks odd; a label map may well be empty or thin (`is_image` False). What is NaN
    in a label map is background, whatever its least label is. ``meta["repaired"]`` and ``meta["warnings"]`` are lists
    of sentences for the user, empty when all is well.

    Raises
    ------
    UnreadableVolume
        If no voxel has a finite value, or a label map has an infinite one.
    """
    repaired = list(meta.get("repaired", ()))
    warnings = list(meta.get("warnings", ()))
    channels = data if data.ndim == 4 else data[None]
    for number, channel in enumerate(channels, 1):
        which = f"Channel {number}" if len(channels) > 1 else "The volume"
        low, high = map(float, span(channel))
        if not (math.isfinite(low) and math.isfinite(high)):
            repaired.append((_replace_non_finite if is_image else _nan_as_background)(channel, which, path))
            low, high = float(channel.min()), float(channel.max())
        if not is_image:
            continue
        if low == high:
            warnings.append(f"{which} has the same value {low:g} everywhere: there is nothing to see in it.")
        elif max(-low, high) > _INCREDIBLE:
            warnings.append(f"{which} has values up to {max(-low, high):.3g}, which no scanner gives.")
    warnings += _thin(geometry) if is_image else []
    return Volume(data, geometry, {**meta, "repaired": repaired, "warnings": warnings})


def replace_non_finite(volume: Volume) -> Volume:
    """Return an image whose values are finite: itself or, of an array that nobody read from a file, a repaired copy.

    Raises
    ------
    UnreadableVolume
        If no voxel of a channel has a finite value.
    """
    with np.errstate(all="ignore"):  # a sum that overflows only costs the closer look
        if volume.data.dtype.kind != "f" or np.isfinite(volume.data.sum()) or np.isfinite(volume.data).all():
            return volume
    copy = Volume(volume.data.copy(), volume.geometry)
    repaired = [
        _replace_non_finite(channel, f"Channel {number}" if copy.n_channels > 1 else "The volume", Path("The volume"))
        for number, channel in enumerate(copy.channels, 1) if not np.isfinite(channel).all()
    ]  # fmt: skip
    return Volume(
        copy.data, volume.geometry, {**volume.meta, "repaired": [*volume.meta.get("repaired", ()), *repaired]}
    )


def _replace_non_finite(channel: npt.NDArray[Any], which: str, path: Path) -> str:
    """Replace, in place, NaN and -inf by the least finite value and +inf by the greatest; return the sentence."""
    finite = np.isfinite(channel)
    count = int(channel.size - np.count_nonzero(finite))
    if count == channel.size:
        raise _nothing_finite(which, path)
    low, high = float(channel.min(where=finite, initial=np.inf)), float(channel.max(where=finite, initial=-np.inf))
    np.nan_to_num(channel, copy=False, nan=low, posinf=high, neginf=low)
    return (
        f"{which} had {count:,} voxels that were NaN or infinite. NaN and -inf became the least finite value {low:g}, "
        f"+inf the greatest {high:g}."
    )


def _nan_as_background(channel: npt.NDArray[Any], which: str, path: Path) -> str:
    """Replace NaN by 0 in a label map, in place; return the sentence."""
    if np.isinf(channel).any():
        raise UnreadableVolume(
            f"{path.name} is no label map: {int(np.isinf(channel).sum()):,} voxels are infinite. Expected whole "
            "numbers, 0 for background. Export it again from its source."
        )
    missing = np.isnan(channel)
    count = int(np.count_nonzero(missing))
    if count == channel.size:
        raise _nothing_finite(which, path)
    channel[missing] = 0
    return f"{which} had {count:,} voxels without a number (NaN), which were taken for background."


def _nothing_finite(which: str, path: Path) -> UnreadableVolume:
    return UnreadableVolume(
        f"{path.name}: {which.lower()} holds no finite number, only NaN or infinity. "
        "The file was damaged or a calculation before it failed. Export it again from its source."
    )


def _thin(geometry: Geometry) -> list[str]:
    return [
        f"The volume is one voxel thick along {axis}: there is no depth to segment in."
        for axis, n in zip("zyx", geometry.shape, strict=True)
        if n == 1
    ]


def as_label_map(
    volume: Volume, path: Path, names: Mapping[int, str], colors: Mapping[int, tuple[float, float, float]]
) -> LabelMap:
    """Round the values of `volume` to labels, in the smallest integer type where they were not whole numbers.

    Raises
    ------
    UnreadableVolume
        If there are several channels, or values that are not near whole numbers.
    """
    data = volume.data
    if data.ndim == 4:
        raise UnreadableVolume(
            f"{path.name} holds {len(data)} channels or time points, but a label map has one. "
            "Save the one you need as a 3-D file; overlapping structures need one file each."
        )
    if data.dtype.kind == "f":
        data = _round(data, path)
    return LabelMap(data, volume.geometry, volume.meta, dict(names), dict(colors))


def _round(data: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    whole = np.rint(data)
    off = np.abs(data - whole)
    n_off = int(np.count_nonzero(off > _NEAR_INTEGER))
    if n_off:
        example = float(data.flat[int(off.argmax())])
        raise UnreadableVolume(
            f"{path.name} is no label map: {n_off:,} voxels are not whole numbers, such as {example:.4g}. "
            "A probability map needs a threshold first; a resampled label map, nearest-neighbour interpolation."
        )
    kind = smallest_integer(float(whole.min()), float(whole.max()))
    if kind.kind == "f":
        raise UnreadableVolume(
            f"{path.name} holds values up to {whole.max():g}, which no integer type can hold as labels."
        )
    labels: npt.NDArray[Any] = whole.astype(kind)
    return labels
