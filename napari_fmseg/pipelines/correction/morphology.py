"""Smooth, grow, shrink and fill a class, in mm on any spacing."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box, fill_cavities
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Box
from napari_fmseg.pipelines.correction.distances import within_reach
from napari_fmseg.pipelines.correction.edit import Edit, check_unprotected, is_free

__all__ = ["fill_holes", "grow", "smooth"]

Labels = npt.NDArray[Any]
Plane = tuple[int, int]
BALL = 1.5382
"""Radius, in standard deviations, of the ball that holds half of a Gaussian in three dimensions."""


def smooth(
    labels: Labels,
    value: int,
    radius_mm: float,
    spacing: Sequence[float],
    *,
    protected: Collection[int] = (),
    plane: Plane | None = None,
) -> Edit:
    """Smooth the surface of a class: a ball up to this radius disappears, a dent of that size is filled.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    value
        The class.
    radius_mm
        Size of what is smoothed away. The class is filtered by a Gaussian in mm and cut at one half.
    spacing
        Distance of voxels in mm along (z, y, x).
    protected
        Classes that are finished: none of their voxels is overwritten. Any other class gives way.
    plane
        An axis and a slice: only this one, in a fraction of the time.

    Returns
    -------
    Edit
        What the class loses goes to the nearest other class that is not finished, or to the background.

    Raises
    ------
    FmsegError
        If the radius is negative or the class is finished.
    """
    from scipy import ndimage

    check_unprotected(value, protected)
    _check_mm(radius_mm)
    sigma = [radius_mm / BALL / mm for mm in spacing]
    inner, outer = _boxes(labels, value, [math.ceil(4 * s) for s in sigma], plane)
    if inner is None or not radius_mm:
        return Edit.nothing(labels)
    share = ndimage.gaussian_filter((labels[outer] == value).astype(np.float32), sigma, mode="nearest", truncate=4.0)
    return _replace(labels, value, inner, share[_within(inner, outer)] > 0.5, spacing, protected)


def grow(
    labels: Labels,
    value: int,
    distance_mm: float,
    spacing: Sequence[float],
    *,
    protected: Collection[int] = (),
    plane: Plane | None = None,
) -> Edit:
    """Grow a class by a distance on all sides, or shrink it.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    value
        The class.
    distance_mm
        Voxels whose centre lies within this distance of a voxel of the class join it. Negative: voxels of the class
        within this distance of a voxel outside become background; the border of the volume is no outside.
    spacing
        Distance of voxels in mm along (z, y, x).
    protected
        Classes that are finished: none of their voxels is overwritten. Any other class gives way.
    plane
        An axis and a slice: only this one, in a fraction of the time.

    Raises
    ------
    FmsegError
        If the distance is not finite or the class is finished.
    """
    check_unprotected(value, protected)
    reach = abs(distance_mm)
    _check_mm(reach)
    inner, outer = _boxes(labels, value, [math.floor(reach / mm) + 1 for mm in spacing], plane)
    if inner is None or not distance_mm:
        return Edit.nothing(labels)
    mask = labels[outer] == value
    part = labels[inner]
    new = part.copy()
    near = within_reach(mask if distance_mm > 0 else ~mask, reach, spacing)[_within(inner, outer)]
    if distance_mm > 0:
        new[near & is_free(part, protected)] = value
    else:
        new[near & (part == value)] = 0
    return Edit.between(labels, inner, new)


def fill_holes(
    labels: Labels, value: int, *, axis: int | None = None, protected: Collection[int] = (), plane: Plane | None = None
) -> Edit:
    """Fill background that a class encloses on all sides; another class inside is no hole and stays.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    value
        The class.
    axis
        Holes are those of the slices along this axis, each on its own (or of `plane` alone); None: enclosed in all
        three dimensions.
    protected
        Classes that are finished.
    plane
        An axis and a slice: only this one.

    Raises
    ------
    FmsegError
        If the class is finished.
    """
    check_unprotected(value, protected)
    mask = labels == value
    box = bounding_box(mask)
    if box is None:
        return Edit.nothing(labels)
    inner = box if plane is None else _cut(box, plane)
    if axis is None:
        filled = fill_cavities(mask[box])[_within(inner, box)]
    else:
        slices = np.moveaxis(mask[inner], axis, 0)
        filled = np.moveaxis(np.array([fill_cavities(part) for part in slices], bool).reshape(slices.shape), 0, axis)
    new = labels[inner].copy()
    new[filled & (new == 0)] = value
    return Edit.between(labels, inner, new)


def _check_mm(distance_mm: float) -> None:
    if not 0 <= distance_mm < math.inf:
        raise FmsegError(f"The distance is {distance_mm} mm. Expected a finite number of 0 mm or more.")


def _boxes(labels: Labels, value: int, margin: Sequence[int], plane: Plane | None) -> tuple[Box | None, Box]:
    """Return the box in which a class may change, by a margin around it, and the box that this depends on."""
    region = [slice(0, n) for n in labels.shape]
    if plane is not None:
        axis, k = plane
        region[axis] = slice(max(k - margin[axis], 0), min(k + margin[axis] + 1, labels.shape[axis]))
    found = bounding_box(labels[tuple(region)] == value)
    if found is None:
        return None, (slice(0, 0),) * 3
    z, y, x = (
        slice(max(r.start + f.start - m, r.start), min(r.start + f.stop + m, r.stop))
        for r, f, m in zip(region, found, margin, strict=True)
    )
    return ((z, y, x) if plane is None else _cut((z, y, x), plane)), (z, y, x)


def _cut(box: Sequence[slice], plane: Plane) -> Box:
    """Return the part of a box that lies in a plane; empty if the plane misses it."""
    axis, k = plane
    parts = list(box)
    inside = parts[axis].start <= k < parts[axis].stop
    parts[axis] = slice(k, k + 1) if inside else slice(k, k)
    z, y, x = parts
    return z, y, x


def _within(inner: Box, outer: Box) -> Box:
    z, y, x = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return z, y, x


def _replace(
    labels: Labels, value: int, box: Box, inside: npt.NDArray[np.bool_], spacing: Sequence[float],
    protected: Collection[int],
) -> Edit:  # fmt: skip
    """Return the edit that gives a class this shape; what it loses goes to the nearest other class."""
    part = labels[box]
    new = part.copy()
    new[inside & is_free(part, protected)] = value
    lost = (part == value) & ~inside
    if lost.any():
        new[lost] = _nearest_others(part, value, lost, spacing, protected)
    return Edit.between(labels, box, new)


def _nearest_others(
    part: Labels, value: int, lost: npt.NDArray[np.bool_], spacing: Sequence[float], protected: Collection[int]
) -> npt.NDArray[Any]:
    """Return, for the voxels that a class loses, the nearest class that it is not; finished ones count as background.

    The nearest voxel of another class touches the class with a face, so only such voxels are compared.
    """
    from scipy import ndimage, spatial

    own = part == value
    around = np.argwhere(ndimage.binary_dilation(own) & ~own)
    if not len(around):
        return np.zeros(int(lost.sum()), part.dtype)
    _, nearest = spatial.cKDTree(around * np.asarray(spacing)).query(np.argwhere(lost) * np.asarray(spacing))
    others = part[tuple(around[nearest].T)]
    return np.where(np.isin(others, list(protected)), 0, others)
