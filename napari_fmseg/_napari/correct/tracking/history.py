"""A labels layer's undo steps: what a step changed, and how a tool makes one; the one place that knows napari's form.

A step is a list of changes, which napari applies together. A change is ``(index, old, new)`` with any index that numpy
has, or since napari 0.9 a box with a mask. Tools record boxes: they are written fast, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.pipelines.correction import Edit

__all__ = ["Change", "changes_of", "commit", "lines_of", "revert", "steps_of"]

Array = npt.NDArray[Any]
_PER_INDEX = 8  # bytes that one changed voxel costs with an index of its own


@dataclass(frozen=True, eq=False)
class Change:
    """Part of a step.

    Parameters
    ----------
    index
        Into the label array: slices, or arrays of indices.
    old, new
        Values there, before and after.
    """

    index: tuple[Any, ...]
    old: Array
    new: Any


def lines_of(step: Iterable[Any]) -> Iterator[Change]:
    """Yield the changes of one step of a layer's history."""
    for line in step:
        if hasattr(line, "slice_key"):
            if line.mask is None:
                yield Change(line.slice_key, np.asarray(line.old_values), line.new_value)
            else:
                starts = [part.start for part in line.slice_key]
                index = tuple(found + start for found, start in zip(np.nonzero(line.mask), starts, strict=True))
                yield Change(index, np.asarray(line.old_values), line.new_value)
        else:
            index, old, new = line
            yield Change(tuple(index), np.asarray(old), new)


def steps_of(layer: Any) -> list[list[Any]]:
    """List the steps of a layer that can be undone, the oldest first."""
    return list(getattr(layer, "_undo_history", ()))


def revert(labels: Array, steps: Iterable[Iterable[Any]]) -> None:
    """Write the values that voxels had before `steps`, which are listed from the oldest on."""
    for step in reversed([list(lines_of(step)) for step in steps]):
        for change in reversed(step):
            labels[change.index] = change.old


def changes_of(labels: Array, edit: Edit) -> list[Change]:
    """Return what an edit changes in `labels`, in as little memory as napari's history can be given it.

    Parameters
    ----------
    labels
        As they are now.
    edit
        What a tool computed from them.
    """
    found = []
    for i in range(edit.values.shape[0] if edit.values.size else 0):
        z = slice(edit.box[0].start + i, edit.box[0].start + i + 1)
        old, new = labels[(z, *edit.box[1:])][0], edit.values[i]
        where = old != new
        if not where.any():
            continue
        rows, columns = (np.flatnonzero(where.any(axis)) for axis in (1, 0))
        part = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        y, x = (slice(edit.box[k + 1].start + s.start, edit.box[k + 1].start + s.stop) for k, s in enumerate(part))
        if np.count_nonzero(where) * _PER_INDEX < 2 * old[part].nbytes:
            at = tuple((n + edit.box[k + 1].start).astype(np.uint32) for k, n in enumerate(np.nonzero(where)))
            index = (np.full(at[0].shape, z.start, np.uint32), *at)
            found.append(Change(index, old[where], new[where].astype(labels.dtype)))
        else:
            found.append(Change((z, y, x), old[part][None].copy(), new[part][None].astype(labels.dtype)))
    return found


def commit(layer: Any, changes: list[Change]) -> None:
    """Write changes into a layer as one step that can be undone, and draw it anew."""
    if not changes:
        return
    with layer.block_history():
        for change in changes:
            if hasattr(layer, "_save_history"):
                layer._save_history((change.index, change.old, change.new))
                layer.data[change.index] = change.new
            else:
                layer.data_setitem(_as_arrays(change), np.ravel(change.new))
    layer.refresh(extent=False)


def _as_arrays(change: Change) -> tuple[Array, ...]:
    """Return the index of a change as arrays of whole numbers."""
    if all(isinstance(part, slice) for part in change.index):
        return tuple(part.ravel() for part in np.mgrid[change.index])
    return change.index
