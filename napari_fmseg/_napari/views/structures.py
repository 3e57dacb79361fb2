"""From structure to structure: the classes of a labels layer that have voxels, and the middle of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.layers import names_of
from napari_fmseg._napari.results.navigation import centre_on_voxel
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.evaluation.volumes import Measure, measure

__all__ = ["Structures"]


class Structures(QObject):
    """Goes to the next or the previous structure of the chosen labels; what takes long is done beside the window.

    Attributes
    ----------
    arrived
        Signal with the label that was gone to.
    failed
        Signal with an error.
    """

    arrived = Signal(int)
    failed = Signal(object)

    def __init__(self, viewer: Any, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer, self._links = viewer, Links(self)
        self.layer: Any = None
        self._job: Job | None = None
        self._found: tuple[Measure, ...] | None = None
        self._point: tuple[float, ...] = ()
        self._by = 0  # where to go when it is measured; 0 for nowhere
        self._n_changes = 0

    def set_layer(self, layer: Any) -> None:
        """Choose another labels layer, or none."""
        if layer is self.layer:
            return
        self._links.end()
        self.layer, self._found, self._by = layer, None, 0
        self._n_changes += 1
        if layer is not None:
            self._links.connect(self._on_changed, layer.events.paint, layer.events.data, layer.events.set_data)

    def go(self, by: int) -> None:
        """Go to the next (1) or the previous (-1) structure that has voxels."""
        if self.layer is None:
            return
        self._by = by
        self._go_on()

    def _go_on(self) -> None:
        """Go there if it is known where the structures are; else measure them first."""
        if self._by and self._found is not None:
            self._arrive(self._found)
        elif self._by and self._job is None and self.layer is not None:
            data, n = np.asarray(self.layer.data), self._n_changes
            labels = LabelMap(data, Geometry.from_spacing(data.shape), {}, names_of(self.layer))
            self._job = start_job(lambda: iter([(n, measure(labels))]), parent=self)
            self._job.event.connect(self._on_measured)
            self._job.failed.connect(self._on_failed)
            self._job.finished.connect(self._on_finished)

    def close_down(self) -> None:
        """Disconnect from the layer and end what runs."""
        if self._job is not None:
            self._job.abandon()
            self._job = None
        self.set_layer(None)

    def _on_changed(self, event: Any) -> None:
        """Forget what was found when voxels have changed; another slice on the screen is no change."""
        point = tuple(self._viewer.dims.point)
        if event.type == "set_data" and point != self._point:
            self._point = point
        else:
            self._found = None
            self._n_changes += 1

    def _on_measured(self, measured: tuple[int, tuple[Measure, ...]]) -> None:
        n_changes, found = measured
        if n_changes == self._n_changes:  # else it is measured once more
            self._found = found

    def _on_failed(self, error: Any) -> None:
        self._by = 0
        self.failed.emit(error)

    def _on_finished(self, _done: bool) -> None:
        self._job = None
        self._go_on()

    def _arrive(self, found: tuple[Measure, ...]) -> None:
        by, self._by = self._by, 0
        present = [one for one in found if one.centre is not None]
        if not present:
            return
        labels, now = [one.label for one in present], int(self.layer.selected_label)
        if by > 0:
            label = next((label for label in labels if label > now), labels[0])
        else:
            label = next((label for label in reversed(labels) if label < now), labels[-1])
        self.layer.selected_label = label
        centre_on_voxel(self._viewer, self.layer, present[labels.index(label)].centre or (0, 0, 0))
        self.arrived.emit(label)
