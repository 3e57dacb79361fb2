"""Spread the correction of a few slices through a volume: what changed at a border there changes beside them, too."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box, label_boxes
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Box
from napari_fmseg.pipelines.correction.distances import Distances, signed_distance
from napari_fmseg.pipelines.correction.edit import Edit, is_free
from napari_fmseg.pipelines.correction.interpolation import check_slices, in_plane

__all__ = ["CorrectionSpread", "changed_slices", "spread_correction"]

Labels = npt.NDArray[Any]
Window = tuple[slice, slice]
LEAST_WEIGHT = 0.05
"""A correction that has faded to less than this is spread no further."""
NEAR_MM = 6.0
"""Distances count up to here, so that a part that was added or removed weighs the same however far others are."""
GAP = 8.0
"""Between two corrected slices a correction fades so many times more slowly than beyond them."""


def changed_slices(corrected: Labels, predicted: Labels, axis: int) -> list[int]:
    """Return the slices along an axis in which the labels are not those that the model predicted."""
    _check_same_grid(corrected, predicted)
    others = tuple(k for k in range(3) if k != axis)
    return [int(k) for k in np.flatnonzero((corrected != predicted).any(axis=others))]


def spread_correction(
    corrected: Labels,
    predicted: Labels,
    slices: Iterable[int],
    axis: int,
    spacing: Sequence[float],
    *,
    values: Collection[int] | None = None,
    fade: float = 2.0,
    protected: Collection[int] = (),
    plane: int | None = None,
) -> Edit:
    """Correct the slices beside and between corrected ones in the same way.

    Parameters
    ----------
    corrected
        Labels (z, y, x) in which some slices were corrected.
    predicted
        The model's labels, as they were before.
    slices
        The corrected slices along `axis`; they stay as they are.
    axis
        Along which the slices lie: 0, 1 or 2.
    spacing
        Distance of voxels in mm along (z, y, x).
    values
        Classes whose correction is spread; None: all that were changed in these slices.
    fade
        Number of slices beyond the first and the last corrected one after which the correction has faded to 1/e.
        Between corrected slices it fades eight times more slowly, so that it reaches across all but wide gaps.
    protected
        Classes that are finished: none of their voxels is overwritten.
    plane
        Only this slice along `axis`, in a fraction of the time: for what is visible.

    Returns
    -------
    Edit
        Relative to `corrected`. In a corrected slice, D is the signed distance to the corrected border less that to
        the predicted one, both up to 6 mm. Elsewhere the interpolated D is added to the signed distance to the
        predicted border; where several classes reach a voxel, the one deepest inside keeps it.

    Raises
    ------
    FmsegError
        If no slice was corrected, one lies outside the volume, or `fade` is negative.
    GeometryMismatch
        If the two label maps do not lie on the same grid.
    """
    spread = CorrectionSpread(corrected, predicted, slices, axis, spacing, values=values, protected=protected)
    return spread.edit(fade, plane)


class CorrectionSpread:
    """A correction that is about to be spread: measured once, shown for any `fade` (see `spread_correction`)."""

    def __init__(
        self,
        corrected: Labels,
        predicted: Labels,
        slices: Iterable[int],
        axis: int,
        spacing: Sequence[float],
        *,
        values: Collection[int] | None = None,
        protected: Collection[int] = (),
    ) -> None:
        _check_same_grid(corrected, predicted)
        self._labels = corrected
        self._corrected, self._predicted = (np.moveaxis(labels, axis, 0) for labels in (corrected, predicted))
        self._slices = check_slices(slices, len(self._corrected))
        if not self._slices:
            raise FmsegError("No slice was corrected. Correct one or more slices first, then spread the correction.")
        self._axis, self._spacing, self._protected = axis, in_plane(spacing, axis), protected
        self.values = sorted(self._changed_values(values) - {0, *protected})
        half = max(self._spacing) / 2
        self._margin = tuple(math.ceil((NEAR_MM + half) / mm) + 1 for mm in self._spacing)
        self._windows = {k: found for k in self._slices if (found := dict(self._changed_windows(k)))}
        self._changes: dict[tuple[int, int], Distances] = {}

    def edit(self, fade: float = 2.0, plane: int | None = None) -> Edit:
        """Return the whole edit, or that of one slice."""
        planes = [k for k in self._reach(fade) if k not in self._slices and plane in (None, k)]
        if not planes or not self._windows:
            return Edit.nothing(self._labels)
        window = _union(window for windows in self._windows.values() for window in windows.values())
        span = slice(planes[0], planes[-1] + 1)
        values = self._corrected[(span, *window)].copy()
        for k in planes:
            new = values[k - span.start]
            spread = self._plane(k, self._weights(k, fade), window)
            touched = np.isin(new, self.values) | np.isin(spread, self.values)
            touched &= is_free(new, self._protected) & is_free(spread, self._protected)
            new[touched] = spread[touched]
        box = [span, *window]
        box.insert(self._axis, box.pop(0))
        return Edit.between(self._labels, tuple(box), np.moveaxis(values, 0, self._axis))  # type: ignore[arg-type]

    def planes(self, fade: float = 2.0, first: int = 0) -> Iterator[Edit]:
        """Yield the edit slice by slice, from `first` outwards; slices without a change are left out."""
        for k in sorted(self._reach(fade), key=lambda k: abs(k - first)):
            edit = self.edit(fade, k)
            if not edit.is_empty:
                yield edit

    def _reach(self, fade: float) -> range:
        """Return the slices that the correction reaches, the corrected ones among them."""
        if not 0 <= fade < math.inf:
            raise FmsegError(f"The correction is to fade over {fade} slices. Expected 0 or more.")
        reach = math.floor(fade * math.sqrt(-math.log(LEAST_WEIGHT)))
        return range(max(self._slices[0] - reach, 0), min(self._slices[-1] + reach + 1, len(self._corrected)))

    def _weights(self, k: int, fade: float) -> dict[int, float]:
        """Return how much of the change of each corrected slice counts in slice `k`."""
        at = bisect_left(self._slices, k)
        if 0 < at < len(self._slices):
            below, above = self._slices[at - 1], self._slices[at]
            share = (k - below) / (above - below)
            kept = _remainder(min(k - below, above - k), GAP * fade)
            return {below: (1 - share) * kept, above: share * kept}
        end = self._slices[-1 if at else 0]
        return {end: _remainder(abs(k - end), fade)}

    def _plane(self, k: int, weights: dict[int, float], window: Window) -> Labels:
        """Return the labels of a slice after the correction was added."""
        changes = [(source, w) for source, w in weights.items() if w > 0 and source in self._windows]
        predicted = self._predicted[(k, *window)]
        if not changes:
            return predicted
        part = _union(w for source, _ in changes for w in self._windows[source].values())
        inner = _within(part, window)
        new = predicted.copy()
        new[inner], best = 0, np.zeros(new[inner].shape, np.float32)
        present = {int(v): _shift(box, part) for v, box in label_boxes(predicted[inner][None])}
        for value in sorted({*present, *self.values}):
            moved = [(source, w) for source, w in changes if value in self._windows[source]]
            boxes = [self._windows[source][value] for source, _ in moved]
            boxes += [present[value]] if value in present else []
            if not boxes:
                continue
            own = _union(boxes)
            depth = self._distance(self._predicted, value, k, own)
            for source, weight in moved:
                place = self._windows[source][value]
                depth[_within(place, own)] += np.float32(weight) * self._change(value, source)
            deepest, there = best[_within(own, part)], new[inner][_within(own, part)]
            wins = depth > deepest
            deepest[wins] = depth[wins]
            there[wins] = value
        return new

    def _change(self, value: int, k: int) -> Distances:
        """Return how far the border of a class was moved in a corrected slice, in the window where it was."""
        if (value, k) not in self._changes:
            window = self._windows[k][value]
            predicted = self._distance(self._predicted, value, k, window)
            self._changes[value, k] = self._distance(self._corrected, value, k, window) - predicted
        return self._changes[value, k]

    def _distance(self, stack: Labels, value: int, k: int, window: Window) -> Distances:
        """Return signed distances in a window; what lies further than they count is not looked at."""
        around = self._widen(window)
        distances = signed_distance(stack[(k, *around)] == value, self._spacing)[_within(window, around)]
        return np.clip(distances, -NEAR_MM, NEAR_MM)

    def _changed_values(self, values: Collection[int] | None) -> set[int]:
        if values is not None:
            return {int(value) for value in values}
        found: set[int] = set()
        for k in self._slices:
            different = self._corrected[k] != self._predicted[k]
            for stack in (self._corrected, self._predicted):
                found.update(int(value) for value in np.unique(stack[k][different]))
        return found

    def _changed_windows(self, k: int) -> Iterator[tuple[int, Window]]:
        """Yield the classes that were changed in a slice, each with the window in which its distances differ."""
        box = bounding_box((self._corrected[k] != self._predicted[k])[None])
        if box is None:
            return
        window: Window = box[1:]
        corrected, predicted = self._corrected[(k, *window)], self._predicted[(k, *window)]
        for value in self.values:
            found = bounding_box(((corrected == value) != (predicted == value))[None])
            if found is not None:
                yield value, self._widen(_shift(found, window))

    def _widen(self, window: Window) -> Window:
        shape = self._corrected.shape[1:]
        rows, columns = (
            slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(window, self._margin, shape, strict=True)
        )
        return rows, columns


def _remainder(distance: int, fade: float) -> float:
    """Return how much of a change is left so many slices away."""
    return math.exp(-((distance / fade) ** 2)) if fade else 0.0


def _union(windows: Iterable[Window]) -> Window:
    """Return the smallest window that holds all of these."""
    rows, columns = (
        slice(min(s.start for s in parts), max(s.stop for s in parts)) for parts in zip(*windows, strict=True)
    )
    return rows, columns


def _within(window: Window, outer: Window) -> Window:
    """Return a window as counted from the corner of another."""
    rows, columns = (slice(w.start - o.start, w.stop - o.start) for w, o in zip(window, outer, strict=True))
    return rows, columns


def _shift(box: Box, outer: Window) -> Window:
    """Return the window of a box that was found in another window."""
    rows, columns = (slice(b.start + o.start, b.stop + o.start) for b, o in zip(box[1:], outer, strict=True))
    return rows, columns


def _check_same_grid(corrected: Labels, predicted: Labels) -> None:
    if corrected.shape != predicted.shape:
        raise GeometryMismatch(
            f"The corrected labels have {corrected.shape} voxels and the predicted ones {predicted.shape}. "
            "Expected both on the same grid."
        )
