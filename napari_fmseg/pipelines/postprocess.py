"""Tidy a label map: small parts removed, the largest part kept, holes filled, for all labels in one pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box, components, fill_cavities, label_boxes
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap

__all__ = ["clean", "keep_largest_components"]


def clean(
    labels: LabelMap,
    *,
    keep_largest: bool | Collection[int | str] = False,
    min_component_ml: float = 0.0,
    fill_holes: bool = False,
    together: bool = False,
    neighbours: int = 26,
) -> LabelMap:
    """Remove stray parts of every label and fill its holes.

    Parameters
    ----------
    labels
        Integers (z, y, x); 0 is background.
    keep_largest
        Keep only the largest connected part of every label (True), or of these labels (ids or names). Of two equally
        large parts the one that comes first in z, y, x stays.
    min_component_ml
        Remove parts smaller than this many millilitres.
    fill_holes
        Fill background that one label encloses on all sides. Another label inside is no hole and stays.
    together
        Parts are those of all labels together: with `keep_largest` only the largest component of any foreground stays.
    neighbours
        26: voxels are connected through faces, edges and corners. 6: through faces, as MIS-FM does it.

    Returns
    -------
    LabelMap
        On the same grid, same type and names; the input itself where nothing is requested. Parts are removed first,
        then holes are filled. An empty map stays empty.

    Raises
    ------
    FmsegError
        If `keep_largest` names a label that the map does not have, `min_component_ml` is negative, or
        `neighbours` is neither 6 nor 26.
    """
    if not min_component_ml >= 0:
        raise FmsegError(f"min_component_ml is {min_component_ml}. Expected a volume of 0 ml or more.")
    if neighbours not in (6, 26):
        raise FmsegError(f"A voxel has 6 neighbours through faces or 26 in all, not {neighbours}.")
    chosen = _ids_to_keep(labels, keep_largest)
    if not (keep_largest or min_component_ml or fill_holes):
        return labels
    box = bounding_box(labels.data)
    if box is None:
        return labels
    data = labels.data.copy()
    part = data[box]  # a view: what is written here is written to data
    if keep_largest or min_component_ml:
        mask = (part != 0).astype(np.uint8) if together else part
        _remove_parts(
            part,
            mask,
            lambda value: int((together and keep_largest is not False) or chosen is None or value in chosen),
            min_component_ml / labels.geometry.voxel_ml,
            neighbours,
        )
    if fill_holes:
        _fill(part)
    return dataclasses.replace(labels, data=data)


def keep_largest_components(labels: LabelMap, counts: Sequence[int], least_ml: float = 0.0) -> LabelMap:
    """Keep the largest connected parts (26 neighbours) of every class, as many as a model's card states.

    Parameters
    ----------
    labels
        Integers (z, y, x); 0 is background.
    counts
        Parts to keep per class, from class 1 on, or one number for all classes; 0, or nothing, keeps all.
    least_ml
        Parts up to this many millilitres are removed.

    Returns
    -------
    LabelMap
        On the same grid; the input itself where nothing is to be removed.
    """
    if not (any(counts) or least_ml > 0):
        return labels
    box = bounding_box(labels.data)
    if box is None:
        return labels

    def keeps(value: int) -> int:
        return counts[0] if len(counts) == 1 else counts[value - 1] if value <= len(counts) else 0

    data = labels.data.copy()
    least = math.floor(least_ml / labels.geometry.voxel_ml + 1e-9) + 1
    _remove_parts(data[box], data[box], keeps, least, 26)
    return dataclasses.replace(labels, data=data)


def _ids_to_keep(labels: LabelMap, keep_largest: bool | Collection[int | str]) -> set[int] | None:
    """Return the ids whose largest part is kept; None for all."""
    if isinstance(keep_largest, bool):
        return None if keep_largest else set()
    ids = {name: value for value, name in labels.names.items()}
    surplus = [k for k in keep_largest if isinstance(k, str) and k not in ids]
    if surplus:
        raise FmsegError(f"There is no label {surplus[0]!r} to keep the largest part of. Labels here: {sorted(ids)}.")
    return {ids[k] if isinstance(k, str) else int(k) for k in keep_largest}


def _remove_parts(
    data: npt.NDArray[Any],
    kinds: npt.NDArray[Any],
    keeps: Callable[[int], int],
    min_voxels: float,
    neighbours: int,
) -> None:
    """Set to 0, in place, what is too small or not among the largest of its kind; `keeps` is how many, 0 for all."""
    parts = components(kinds, neighbours)
    where = parts != 0
    flat = parts[where]  # the foreground alone: a label map is mostly background
    sizes = np.bincount(flat)
    values = np.zeros(len(sizes), kinds.dtype)
    values[flat] = kinds[where]  # all voxels of a part have one value, so any of them may be the last
    keep = sizes >= min_voxels * (1 - 1e-9)
    for value in np.unique(values[1:]):
        n = keeps(int(value))
        own = np.flatnonzero(values == value)
        own = own[own > 0]
        if 0 < n < len(own):
            keep[_smaller(own, sizes, flat, n)] = False
    keep[0] = True
    if not keep.all():
        data[where] = np.where(keep[flat], data[where], 0)


def _smaller(own: npt.NDArray[Any], sizes: npt.NDArray[Any], flat: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return all but the `n` largest parts; of equally large ones those that come later in z, y, x."""
    order = own[np.argsort(-sizes[own], kind="stable")]
    if sizes[order[n - 1]] == sizes[order[n]]:
        equal = order[sizes[order] == sizes[order[n]]]
        found, first = np.unique(flat[np.isin(flat, equal)], return_index=True)
        order[np.isin(order, equal)] = found[np.argsort(first)]
    return np.asarray(order[n:])


def _fill(data: npt.NDArray[Any]) -> None:
    """Fill the holes of every label in place; only background is written."""
    for value, box in label_boxes(data):
        part = data[box]
        mask = part == value
        part[fill_cavities(mask) & ~mask & (part == 0)] = value
