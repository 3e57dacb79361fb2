"""Fill a class between slices that were painted: shapes are interpolated by their signed distances in mm."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box, components
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines.correction.distances import Distances, signed_distance
from napari_fmseg.pipelines.correction.edit import Edit, check_unprotected, is_free

__all__ = ["InterpolatedShape", "check_slices", "fill_between_slices", "in_plane", "window_around"]

Mask = npt.NDArray[np.bool_]
Window = tuple[slice, slice]


def fill_between_slices(
    labels: npt.NDArray[Any],
    value: int,
    slices: Iterable[int],
    axis: int,
    spacing: Sequence[float],
    *,
    protected: Collection[int] = (),
    plane: int | None = None,
) -> Edit:
    """Interpolate the shape of a class between painted slices.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    value
        The class.
    slices
        The painted slices along `axis`, two at least. One that was painted empty on purpose counts: the class ends
        halfway to it. Slices outside the first and the last stay as they are.
    axis
        Along which the slices lie: 0, 1 or 2.
    spacing
        Distance of voxels in mm along (z, y, x).
    protected
        Classes that are finished: none of their voxels is overwritten. Any other class gives way.
    plane
        Only this slice along `axis`, in a fraction of the time: for what is visible.

    Returns
    -------
    Edit
        The class between the slices is replaced by the interpolated shape. Parts and holes that overlap in
        neighbouring slices run into each other; one without a counterpart ends halfway.

    Raises
    ------
    FmsegError
        If there are fewer than two slices, one lies outside the volume, or the class is finished.
    """
    check_unprotected(value, protected)
    stack = np.moveaxis(labels, axis, 0)
    painted = check_slices(slices, len(stack))
    if len(painted) < 2:
        raise FmsegError(
            f"There is {len(painted)} painted slice of class {value}. Filling needs two or more: paint another one."
        )
    gaps = [(a, b) for a, b in pairwise(painted) if b - a > 1 and (plane is None or a < plane < b)]
    if not gaps:
        return Edit.nothing(labels)
    planes = slice(gaps[0][0] + 1, gaps[-1][1]) if plane is None else slice(plane, plane + 1)
    window = _window([stack[planes], *(stack[[k]] for k in {k for gap in gaps for k in gap})], value)
    if window[0].stop == 0:
        return Edit.nothing(labels)
    part = stack[(planes, *window)]
    values = part.copy()
    free = is_free(part, protected)
    for below, above in gaps:
        shape = InterpolatedShape(stack[(below, *window)] == value, stack[(above, *window)] == value,
                                  in_plane(spacing, axis))  # fmt: skip
        for k in range(max(below + 1, planes.start), min(above, planes.stop)):
            inside = shape.at((k - below) / (above - below))
            new = values[k - planes.start]
            new[(new == value) & ~inside] = 0
            new[inside & free[k - planes.start]] = value
    box = [planes, *window]
    box.insert(axis, box.pop(0))
    return Edit.between(labels, tuple(box), np.moveaxis(values, 0, axis))  # type: ignore[arg-type]


def check_slices(slices: Iterable[int], n: int) -> list[int]:
    """Return slice numbers once each and in order; `FmsegError` if one is outside the `n` slices there are."""
    found = sorted({int(k) for k in slices})
    if found and not 0 <= found[0] <= found[-1] < n:
        raise FmsegError(f"Slices {found[0]} to {found[-1]} were chosen. Expected slices from 0 to {n - 1}.")
    return found


def in_plane(spacing: Sequence[float], axis: int) -> tuple[float, float]:
    """Return the spacing in mm of the two other axes."""
    first, second = (float(mm) for k, mm in enumerate(spacing) if k != axis)
    return first, second


class _Part(NamedTuple):
    """A shape of the window `box` that is interpolated on its own: signed distances in both slices."""

    box: Window
    below: Distances
    above: Distances


class InterpolatedShape:
    """A shape between two slices, at any place between them.

    Parameters
    ----------
    below, above
        The shape in the two slices.
    spacing
        Distance of pixels in mm.
    """

    def __init__(self, below: Mask, above: Mask, spacing: tuple[float, float]) -> None:
        holes_below, holes_above = _ending(~below, ~above, 6), _ending(~above, ~below, 6)
        below, above = below | holes_below, above | holes_above
        self._size = below.shape
        self._parts = list(_parts(below, above, spacing))
        nothing = np.zeros_like(below)
        self._holes = [*_parts(holes_below, nothing, spacing), *_parts(nothing, holes_above, spacing)]

    def at(self, share: float) -> Mask:
        """Return the shape at a share, 0 to 1, of the way from below to above."""
        found = np.zeros(self._size, bool)
        for parts, inside in ((self._parts, True), (self._holes, False)):
            for part in parts:
                found[part.box][(1 - share) * part.below + share * part.above > 0] = inside
        return found


def _ending(shape: Mask, other: Mask, neighbours: int) -> Mask:
    """Return the components of a shape that have no counterpart in the other slice."""
    parts = components(shape[None], neighbours)[0]
    ends = np.ones(int(parts.max()) + 1, bool)
    ends[parts[other]] = False
    ends[0] = False
    return np.asarray(ends[parts])


def _parts(below: Mask, above: Mask, spacing: tuple[float, float]) -> Iterable[_Part]:
    """Yield groups of components that overlap, each with its distances."""
    from scipy import ndimage

    groups = components((below | above)[None])[0]
    for number, (rows, columns) in enumerate(ndimage.find_objects(groups), 1):
        box = (slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1))
        group = groups[box] == number
        yield _Part(box, *_comparable(*(signed_distance(m[box] & group, spacing) for m in (below, above))))


def _comparable(below: Distances, above: Distances) -> tuple[Distances, Distances]:
    """Replace the infinite distances of an empty (or full) shape so that it is reached halfway."""
    return _finite(below, above), _finite(above, below)


def _finite(distances: Distances, other: Distances) -> Distances:
    if np.isfinite(distances[0, 0]):
        return distances
    if not np.isfinite(other[0, 0]):
        return np.sign(distances)
    return np.full_like(distances, -other.max() if distances[0, 0] < 0 else -other.min())


def _window(planes: Iterable[npt.NDArray[Any]], value: int) -> Window:
    """Return the part of the plane in which the class occurs in any of these stacks."""
    seen: Mask | None = None
    for stack in planes:
        found = (stack == value).any(axis=0)
        seen = found if seen is None else seen | found
    assert seen is not None
    return window_around(seen)


def window_around(mask: Mask) -> Window:
    """Return the smallest window that holds a shape and the border around it; empty for an empty shape."""
    box = bounding_box(mask[None])
    if box is None:
        return slice(0, 0), slice(0, 0)
    _, rows, columns = box
    return slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1)
