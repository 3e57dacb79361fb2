"""Paint within a range of intensities, and swap, merge or copy whole classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Box
from napari_fmseg.pipelines.correction.edit import Edit, check_unprotected, is_free

__all__ = ["brush", "copy_class", "merge_classes", "paint_within_range", "swap_classes"]

Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def brush(
    position: Sequence[float], radius_mm: float, spacing: Sequence[float], shape: Sequence[int],
    axis: int | None = None,
) -> tuple[Box, Mask]:  # fmt: skip
    """Return the box of a round brush and, inside it, the voxels that it covers.

    Parameters
    ----------
    position
        Its centre (z, y, x) in voxels.
    radius_mm
        Its radius. The voxel nearest to the centre is always covered.
    spacing
        Distance of voxels in mm along (z, y, x).
    shape
        Of the labels.
    axis
        A disc in the slice across this axis; None: a ball.
    """
    centre = [min(max(round(p), 0), n - 1) for p, n in zip(position, shape, strict=True)]
    reach = [0 if k == axis else math.floor(radius_mm / mm) + 1 for k, mm in enumerate(spacing)]
    z, y, x = (slice(max(c - r, 0), min(c + r + 1, n)) for c, r, n in zip(centre, reach, shape, strict=True))
    offsets = np.ogrid[z, y, x]
    squares = sum(
        ((o - p) * mm) ** 2 for k, (o, p, mm) in enumerate(zip(offsets, position, spacing, strict=True)) if k != axis
    )
    inside = np.broadcast_to(squares <= radius_mm**2, [s.stop - s.start for s in (z, y, x)]).copy()
    inside[tuple(c - s.start for c, s in zip(centre, (z, y, x), strict=True))] = True
    return (z, y, x), inside


def paint_within_range(
    labels: Labels,
    where: Mask | Box,
    image: npt.NDArray[Any],
    low: float,
    high: float,
    value: int,
    *,
    brush: Mask | None = None,
    only_in: int | Collection[int] | None = None,
    protected: Collection[int] = (),
) -> Edit:
    """Paint a class, but only on voxels whose intensity is within a range.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    where
        The painted voxels as a mask in the shape of the labels, or a box.
    image
        Intensities on the grid of the labels.
    low, high
        The range, both ends included; infinite ends are allowed, and nan is in no range.
    value
        The class; 0 erases.
    brush
        With a box: the voxels of it that are painted. None: all.
    only_in
        Paint only over this class, or these (0: only over background). None: over all.
    protected
        Classes that are finished: none of their voxels is overwritten.

    Raises
    ------
    GeometryMismatch
        If the image does not lie on the grid of the labels.
    FmsegError
        If the class is finished.
    """
    check_unprotected(value, protected)
    if image.shape != labels.shape:
        raise GeometryMismatch(
            f"The image has {image.shape} voxels and the labels {labels.shape}. Expected an image on the same grid."
        )
    if isinstance(where, np.ndarray):
        found = bounding_box(where)
        box = (slice(0, 0),) * 3 if found is None else found
        brush = where[box]
    else:
        box = where
    part, intensity = labels[box], image[box]
    painted = (intensity >= low) & (intensity <= high) & is_free(part, protected)
    if brush is not None:
        painted &= brush
    if only_in is not None:
        painted &= np.isin(part, [only_in] if isinstance(only_in, int) else list(only_in))
    return Edit.between(labels, box, np.where(painted, np.asarray(value, labels.dtype), part))


def swap_classes(labels: Labels, a: int, b: int, *, protected: Collection[int] = ()) -> Edit:
    """Exchange two classes; `FmsegError` if one of them is finished."""
    check_unprotected(a, protected)
    check_unprotected(b, protected)
    return _map(labels, {a: b, b: a})


def merge_classes(labels: Labels, source: int, into: int, *, protected: Collection[int] = ()) -> Edit:
    """Merge one class into another; `FmsegError` if one of them is finished."""
    check_unprotected(source, protected)
    check_unprotected(into, protected)
    return _map(labels, {source: into})


def copy_class(
    source_labels: Labels, value: int, labels: Labels, into: int, *, protected: Collection[int] = ()
) -> Edit:  # fmt: skip
    """Copy a class of one label map into another on the same grid; what `into` has there already stays.

    Raises
    ------
    GeometryMismatch
        If the two do not lie on the same grid.
    FmsegError
        If the class is finished.
    """
    check_unprotected(into, protected)
    if source_labels.shape != labels.shape:
        raise GeometryMismatch(
            f"The class lies on {source_labels.shape} voxels and the labels have {labels.shape}. "
            "Expected labels on the same grid."
        )
    mask = source_labels == value
    box = bounding_box(mask)
    if box is None:
        return _map(labels, {})
    part = labels[box]
    new = np.where(mask[box] & is_free(part, protected), np.asarray(into, labels.dtype), part)
    return Edit.between(labels, box, new)


def _map(labels: Labels, values: dict[int, int]) -> Edit:
    found = np.zeros(labels.shape, bool)
    for old in values:
        found |= labels == old
    box = bounding_box(found)
    if box is None:
        return Edit.nothing(labels)
    part = labels[box]
    new = part.copy()
    for old, value in values.items():
        new[part == old] = value
    return Edit.between(labels, box, new)
