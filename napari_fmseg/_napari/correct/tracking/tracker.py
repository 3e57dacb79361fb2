"""What the user corrected since the model's answer: recorded for every labels layer of a viewer, from the first stroke.

Strokes are recorded under the axis that was across the screen. The model's answer is what a layer held before its first
stroke; it is kept compressed. Both lie in the layer's metadata, so that they go wherever the layer is saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QObject, QTimer, Signal

from napari_fmseg._napari.common.job import start_job
from napari_fmseg._napari.common.viewer_window import history_of, unwrap_viewer, window_of
from napari_fmseg._napari.correct.shown_slice import axis_on_screen
from napari_fmseg._napari.correct.tracking.guard import protect, put_back_finished, rules_of, write_again
from napari_fmseg._napari.correct.tracking.history import Change, commit, lines_of, revert, steps_of
from napari_fmseg._napari.correct.tracking.packed_labels import ANSWER, PackedLabels
from napari_fmseg._napari.correct.tracking.slice_record import CORRECTED, FINISHED, SliceRecord, Stroke
from napari_fmseg._napari.layer_transform import TOOL, add_metadata, fmseg_metadata
from napari_fmseg.core.errors import FmsegError, GeometryMismatch

__all__ = ["Tracker"]


class Tracker(QObject):
    """Records the corrected slices of the labels layers of one viewer.

    Attributes
    ----------
    changed
        Signal with a layer whose corrected slices, or whose finished classes, are others now.
    edited
        Signal with a layer whose voxels changed, whoever changed them.
    """

    changed = Signal(object)
    edited = Signal(object)

    @classmethod
    def of(cls, viewer: Any) -> Tracker:
        """Return the one of `viewer`, and make it if there is none."""
        viewer = unwrap_viewer(viewer)
        window = window_of(viewer)
        found = window.findChild(cls) if window is not None else None
        return found if found is not None else cls(viewer, window)

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._records: dict[Any, SliceRecord] = {}
        self._slots: dict[Any, list[tuple[Any, Any]]] = {}
        self._before: dict[Any, npt.NDArray[Any]] = {}  # the models' answers, as arrays
        self._versions: dict[Any, int] = {}
        self._own: Stroke | None = None  # what the step that comes corrects, if it is a tool's
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        for layer in viewer.layers:
            self._watch(layer)
        if parent is not None:
            parent.destroyed.connect(self.close)

    def close(self) -> None:
        """Disconnect from all layers."""
        for layer in list(self._slots):
            self._unwatch(layer)

    # --- what is known of a layer

    def record(self, layer: Any) -> SliceRecord:
        """Return the corrected slices of a layer."""
        return self._records.get(layer) or SliceRecord()

    def version(self, layer: Any) -> int:
        """Count the changes of a layer's voxels, to find out whether there was another one."""
        return self._versions.get(layer, 0)

    def answer(self, layer: Any) -> npt.NDArray[Any] | None:
        """Return what a layer held before it was corrected; None if it was not. It may take a second."""
        packed = fmseg_metadata(layer).get(ANSWER)
        if layer not in self._before and isinstance(packed, PackedLabels):
            self._before[layer] = packed.unpack()  # kept: tools need it again and again
        return self._before.get(layer)

    def has_answer(self, layer: Any) -> bool:
        """Return whether there is something that the corrections can be compared with."""
        return layer in self._before or isinstance(fmseg_metadata(layer).get(ANSWER), PackedLabels)

    # --- what the dock does

    def commit(self, layer: Any, changes: list[Change], corrected: Stroke | None = None) -> None:
        """Write a tool's changes as one step; `corrected` are slices that count as corrected by it."""
        self._own = corrected or Stroke()
        try:
            commit(layer, changes)
        finally:
            self._own = None

    def mark(self, layer: Any, axis: int, index: int) -> None:
        """Count a slice as corrected, such as one that is right as it is."""
        self._keep_answer(layer, [])
        self.record(layer).mark(axis, (index,))
        self._note(layer)

    def drop(self, layer: Any, axis: int, index: int) -> None:
        """Count a slice as not corrected."""
        self.record(layer).drop(axis, index)
        self._note(layer)

    def finish(self, layer: Any, classes: Iterable[int]) -> None:
        """Mark these classes of a layer as finished, and no others: nothing writes over them or with them."""
        protect(layer, classes)
        add_metadata(layer, **{FINISHED: tuple(sorted(rules_of(layer).finished))})
        self.changed.emit(layer)

    # --- what happens to layers

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)

    def _on_removed(self, event: Any) -> None:
        self._unwatch(event.value)

    def _watch(self, layer: Any) -> None:
        if (
            not hasattr(layer.events, "labels_update")
            or layer in self._slots
            or fmseg_metadata(layer).get("role") == TOOL
        ):
            return
        known = fmseg_metadata(layer)
        self._records[layer] = SliceRecord.from_facts(known.get(CORRECTED))
        slots = [
            (layer.events.paint, partial(self._on_paint, layer)),
            (layer.events.set_data, partial(self._on_redrawn, layer)),
            (layer.events.data, partial(self._on_replaced, layer)),
        ]
        for emitter, slot in slots:
            emitter.connect(slot)
        self._slots[layer] = slots
        protect(layer, known.get(FINISHED) or ())
        self._catch_up(layer)

    def _unwatch(self, layer: Any) -> None:
        for emitter, slot in self._slots.pop(layer, ()):
            emitter.disconnect(slot)
        for known in (self._records, self._before, self._versions):
            known.pop(layer, None)

    def _catch_up(self, layer: Any) -> None:
        """Record what was painted before anybody watched, as far as it can be undone."""
        steps = steps_of(layer)
        if not steps or not isinstance(layer.data, np.ndarray):
            return
        for i, step in enumerate(steps):
            self._records[layer].add(self._stroke(layer, step), i + 1)
        self._keep_answer(layer, steps)
        self._note(layer)

    def _on_paint(self, layer: Any, event: Any) -> None:
        step = event.value
        if self._own is None and put_back_finished(layer, step):
            QTimer.singleShot(0, partial(write_again, layer, list(step)))
        self._keep_answer(layer, [step])
        stroke = self._stroke(layer, step) if self._own is None else self._own
        self._records[layer].add(stroke, history_of(layer)[0])
        self._on_edit(layer)
        self._note(layer)

    def _on_redrawn(self, layer: Any, _event: Any = None) -> None:
        n_undo, n_redo = history_of(layer)
        record = self._records[layer]
        if record.follow(n_undo, n_redo):
            self._on_edit(layer)
            self._note(layer)

    def _on_replaced(self, layer: Any, _event: Any = None) -> None:
        """Forget the corrections of other labels: the layer has got a new answer."""
        self._records[layer].clear()
        self._before.pop(layer, None)
        if {CORRECTED, ANSWER} & fmseg_metadata(layer).keys():
            add_metadata(layer, **{CORRECTED: [], ANSWER: None})
        rules_of(layer).forget_image()
        self._on_edit(layer)
        self.changed.emit(layer)

    def _on_edit(self, layer: Any) -> None:
        self._versions[layer] = self.version(layer) + 1
        self.edited.emit(layer)

    def _note(self, layer: Any) -> None:
        add_metadata(layer, **{CORRECTED: self.record(layer).facts()})
        self.changed.emit(layer)

    def _stroke(self, layer: Any, step: Iterable[Any]) -> Stroke:
        """Return which slices a step of the user changed, along the axis that it was painted across."""
        found: dict[int, set[int]] = {}
        axis = -1
        for change in lines_of(step):
            if axis < 0:
                axis = self._axis_across(layer, change)
            for index, values in _values_by_slice(change, axis):
                found.setdefault(index, set()).update(values)
        return Stroke(max(axis, 0), {index: frozenset(values - {0}) for index, values in found.items()})

    def _axis_across(self, layer: Any, change: Change) -> int:
        """Return the axis across the slice that was painted in; of what is not flat, the one across the screen."""
        thin = [axis for axis in range(len(change.index)) if _extent(change.index[axis]) == 1]
        try:
            shown = axis_on_screen(self._viewer, layer)
        except GeometryMismatch:
            shown = 0
        return shown if shown in thin or not thin else thin[0]

    # --- the model's answer

    def _keep_answer(self, layer: Any, steps: list[Any]) -> None:
        """Keep what the layer held before `steps`, which are done, unless its answer is kept already."""
        if self.has_answer(layer) or not isinstance(layer.data, np.ndarray):
            return
        before = np.array(layer.data)
        revert(before, steps)
        self._before[layer] = before
        job = start_job(lambda: iter([PackedLabels.of(before)]), must_finish=True)
        job.event.connect(partial(self._on_packed, layer, before))
        job.failed.connect(partial(self._on_pack_failed, layer))

    def _on_packed(self, layer: Any, before: npt.NDArray[Any], packed: PackedLabels) -> None:
        if self._before.get(layer) is before:
            add_metadata(layer, **{ANSWER: packed})
            self.changed.emit(layer)

    def _on_pack_failed(self, layer: Any, _error: FmsegError) -> None:
        """Keep the answer as it is: it only takes more memory."""


def _extent(part: Any) -> int:
    """Return over how many places an index of one axis goes: exactly enough to tell one from more."""
    if isinstance(part, slice):
        return int(part.stop - part.start)
    found = np.asarray(part)
    return 1 if found.size and found.min() == found.max() else 2


def _values_by_slice(change: Change, axis: int) -> Iterable[tuple[int, set[int]]]:
    """Yield the slices along `axis` that a change touches, each with the values before and after."""
    part = change.index[axis]
    if isinstance(part, slice):
        for at in range(part.start, part.stop):
            pick = (slice(None),) * axis + (at - part.start,)
            old = change.old[pick]
            new = change.new[pick] if np.ndim(change.new) else np.full(old.shape, change.new)
            where = old != new
            if where.any():
                yield at, {*np.unique(old[where]).tolist(), *np.unique(new[where]).tolist()}
        return
    indices = np.asarray(part)
    news = np.broadcast_to(np.asarray(change.new), indices.shape)
    for at in np.unique(indices).tolist():
        where = indices == at
        yield int(at), {*np.unique(change.old[where]).tolist(), *np.unique(news[where]).tolist()}
