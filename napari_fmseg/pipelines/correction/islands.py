"""Islands of a class: keep or remove the one under the cursor, or split it by a painted cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box, components
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Box
from napari_fmseg.pipelines.correction.edit import Edit, check_unprotected

__all__ = ["keep_component", "remove_component", "split_component"]

Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def keep_component(labels: Labels, position: Sequence[int], *, protected: Collection[int] = ()) -> Edit:
    """Keep the island under the cursor and remove all others of its class.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    position
        Voxel (z, y, x) of the island. Voxels are connected through faces, edges and corners.
    protected
        Classes that are finished.

    Raises
    ------
    FmsegError
        If there is background at the position, it is outside the volume, or the class is finished.
    """
    box, parts, own = _component_at(labels, position, protected)
    new = labels[box].copy()
    new[(parts != 0) & (parts != own)] = 0
    return Edit.between(labels, box, new)


def remove_component(labels: Labels, position: Sequence[int], *, protected: Collection[int] = ()) -> Edit:
    """Remove the island under the cursor; for the parameters see `keep_component`."""
    box, parts, own = _component_at(labels, position, protected)
    new = labels[box].copy()
    new[parts == own] = 0
    return Edit.between(labels, box, new)


def split_component(
    labels: Labels,
    position: Sequence[int],
    cut: Mask,
    new_value: int,
    *,
    through: int | None = None,
    protected: Collection[int] = (),
) -> Edit:
    """Split an island along a painted cut: the part under the cursor gets another class.

    Parameters
    ----------
    labels
        Labels (z, y, x); 0 is background.
    position
        Voxel (z, y, x) of the part that is to change, beside the cut.
    cut
        Where the cut was painted, in the shape of the labels.
    new_value
        Class of the part under the cursor; 0 removes it. The rest keeps its class, and the voxels of the cut go to the
        nearest part.
    through
        Axis along which the cut runs through the whole volume: a line painted in one slice is enough. None: the cut is
        what was painted.
    protected
        Classes that are finished.

    Raises
    ------
    FmsegError
        If there is background or the cut at the position, the cut does not divide the island, or a class is finished.
    """
    from scipy import ndimage

    check_unprotected(new_value, protected)
    box, parts, own = _component_at(labels, position, protected)
    island = parts == own
    divider = cut[box] if through is None else np.broadcast_to(_through(cut, box, through), island.shape)
    parts = components(island & ~divider)
    here = tuple(p - part.start for p, part in zip(position, box, strict=True))
    if not parts[here]:
        raise FmsegError("The cursor is on the cut. Point at the part beside it that is to get the other class.")
    if parts.max() < 2:
        raise FmsegError("The cut does not divide the island. Paint it from border to border, in every slice.")
    moved = parts == parts[here]
    where = bounding_box(island & divider)
    if where is not None:
        z, y, x = (slice(max(s.start - 1, 0), s.stop + 1) for s in where)
        near = parts[z, y, x]
        nearest = ndimage.distance_transform_edt(near == 0, return_distances=False, return_indices=True)
        moved[z, y, x] |= island[z, y, x] & (near[tuple(nearest)] == parts[here])
    new = labels[box].copy()
    new[moved] = new_value
    return Edit.between(labels, box, new)


def _through(cut: Mask, box: Box, axis: int) -> Mask:
    """Return the cut of a box as seen along an axis, wherever along it something was painted."""
    whole = list(box)
    whole[axis] = slice(None)
    return np.asarray(cut[tuple(whole)].any(axis=axis, keepdims=True))


def _component_at(
    labels: Labels, position: Sequence[int], protected: Collection[int]
) -> tuple[Box, npt.NDArray[Any], int]:
    """Return the box of the class at a position, its components there, and the number of the one at the position."""
    if len(position) != 3 or not all(0 <= p < n for p, n in zip(position, labels.shape, strict=True)):
        raise FmsegError(f"The cursor is at {tuple(position)}, outside the labels. Point at an island inside.")
    place = tuple(int(p) for p in position)
    value = int(labels[place])
    if not value:
        raise FmsegError("There is background under the cursor. Point at an island of a class.")
    check_unprotected(value, protected)
    mask = labels == value
    box = bounding_box(mask)
    assert box is not None
    parts = components(mask[box])
    return box, parts, int(parts[tuple(p - part.start for p, part in zip(place, box, strict=True))])
