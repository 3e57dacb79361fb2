"""The dock that exports: which labels, as what, which classes, where to; it asks before it replaces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QComboBox

from napari_fmseg._napari.choosers.image_volumes import is_preview
from napari_fmseg._napari.choosers.label_pairing import label_map, note_new_labels
from napari_fmseg._napari.common.dialogs import ErrorBox, ResearchOnly, ask
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.shortcuts import bind
from napari_fmseg._napari.common.tooltips import EXPORT
from napari_fmseg._napari.common.viewer_window import unwrap_viewer
from napari_fmseg._napari.common.widgets import (
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    Note,
    allow,
    form,
    hbox,
    limit_width,
    progress_bar,
    push_button,
    vbox,
)
from napari_fmseg._napari.export.format_form import Way
from napari_fmseg._napari.export.label_origin import Origin, in_file_order, origin_of, snapshot
from napari_fmseg._napari.export.panels import ClassList, Destination, Outcome
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io.export import Export, export, files_of

__all__ = ["ExportDock"]


class ExportDock(Dock):
    """Writes the labels of a layer to files."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer = unwrap_viewer(napari_viewer)
        self.origin = Origin()
        self.job: Job | None = None
        self._written: list[Path] = []
        self._exported: tuple[Any, int] = (None, 0)
        self._is_whole = False  # whether all of a layer is written, so that it is safe afterwards
        self._remarks: list[str] = []
        self._suggested = ""
        self._shown: Any = None  # the layer whose classes are listed
        self.labels, self.way = QComboBox(), Way(self)
        self.classes, self.place = ClassList(), Destination()
        self.export_button = push_button("&Export", style=PRIMARY_BUTTON)
        self.cancel_button = push_button("&Cancel", style=SECONDARY_BUTTON)
        self.bar = progress_bar(steps=100)
        self.outcome, self.remarks, self.error = Outcome(), Note(), ErrorBox(title="The labels were not exported")
        self._build()
        self._connect()
        self._on_way()
        self._on_layers()
        self._recovery = Recovery.start(napari_viewer)
        bind(self, napari_viewer, "export", self.export_button.click)

    # --- how it looks ---

    def _build(self) -> None:
        for combo in (self.labels, self.way.what, self.way.format):
            limit_width(combo, 12)
        fields = form(margins=None)
        for name, field in (
            ("Label&s", self.labels),
            ("Wr&ite", self.way.what),
            ("F&ormat", self.way.format),
            ("", self.way.smooth),
            ("Classes", self.classes),
            ("&To", self.place),
        ):
            fields.addRow(name, field)
        fields.labelForField(self.place).setBuddy(self.place.line)
        above = (fields, self.error, self.remarks, self.outcome)
        below = (hbox((self.export_button, 2), (self.cancel_button, 1)), self.bar, ResearchOnly(centred=True))
        vbox(*above, 1, *below, of=self, margins=(8, 8, 8, 4), spacing=6)
        self.setMinimumWidth(320)

    def _connect(self) -> None:
        self.labels.currentIndexChanged.connect(self._on_labels)
        self.way.changed.connect(self._on_way)
        self.classes.changed.connect(self._look)
        self.place.changed.connect(self._look)
        self.export_button.clicked.connect(self._on_export)
        self.cancel_button.clicked.connect(self._on_cancel)
        layers = self.viewer.layers
        layers.events.inserted.connect(note_new_labels)
        self._links, self._of_labels = Links(self), Links(self)
        self._links.connect(self._on_layers, layers.events.inserted, layers.events.removed, layers.events.renamed)
        self._links.connect(self._on_active, layers.selection.events.active)

    # --- what is chosen ---

    @property
    def layer(self) -> Any:
        """The labels layer to export, or None."""
        return self.labels.currentData()

    def _on_layers(self, _: Any = None) -> None:
        from napari.layers import Labels

        chosen = self.layer
        labels = [layer for layer in reversed(self.viewer.layers) if isinstance(layer, Labels) and layer.data.ndim == 3]
        found = [layer for layer in labels if not is_preview(layer)]
        self.labels.blockSignals(True)
        self.labels.clear()
        for layer in found:
            self.labels.addItem(layer.name, layer)
        self.labels.setCurrentIndex(next((i for i, layer in enumerate(found) if layer is chosen), 0 if found else -1))
        self.labels.blockSignals(False)
        self._on_labels()

    def _on_active(self, _: Any = None) -> None:
        active = self.viewer.layers.selection.active
        for index in range(self.labels.count()):
            if self.labels.itemData(index) is active:
                self.labels.setCurrentIndex(index)

    def _on_labels(self, _: Any = None) -> None:
        layer = self.layer
        if layer is not self._shown:
            self._shown = layer
            self.error.tell(None)
            self.remarks.tell([])
            self._of_labels.end()
            if layer is not None:
                self._of_labels.connect(self._on_labels, layer.events.features, layer.events.colormap)
        self.origin = Origin() if layer is None else origin_of(layer, self.viewer.layers)
        self.classes.show_classes(None if layer is None else self._label_map(layer))
        self.labels.setToolTip(EXPORT.labels if layer is None else f"{EXPORT.labels} Now: {layer.name}")
        self.way.allow_dicom(EXPORT.export_no_labels if layer is None else self.origin.why_no_dicom())
        if layer is not None and self.place.stem in ("", self._suggested):
            self._suggested = re.sub(r"[^\w-]+", "_", layer.name).strip("_") or "labels"
            self.place.suggest(self._suggested)
        self._look()

    def _label_map(self, layer: Any) -> LabelMap | None:
        try:
            return label_map(layer, self.viewer.layers)
        except GeometryMismatch as error:
            self.error.tell(error)
            return None

    def _on_way(self) -> None:
        self.place.set_suffix("" if self.way.fills_folder else self.way.suffix)
        self._look()

    def _look(self) -> None:
        """Enable the export, or state in the tooltip why it is not possible; the bar is there while it runs."""
        self.bar.setVisible(self.job is not None)
        allow(self.export_button, self._disabled_reason(), EXPORT.export)
        allow(self.cancel_button, EXPORT.cancel_idle if self.job is None else "", EXPORT.cancel)

    def _disabled_reason(self) -> str:
        if self.job is not None:
            return EXPORT.export_busy
        if self.layer is None:
            return EXPORT.export_no_labels
        if self.classes.values == ():
            return EXPORT.export_no_class
        return "" if self.place.path is not None else EXPORT.export_no_place

    # --- the work ---

    def _on_export(self) -> None:
        self.error.tell(None)
        self.remarks.tell([])
        self.outcome.tell([])
        path = self.place.path
        if path is None:
            return
        try:
            labels, origin = snapshot(self.layer, self.viewer.layers), origin_of(self.layer, self.viewer.layers)
            self._exported = (self.layer, self._recovery.edits_of(self.layer))
            self._is_whole = self.classes.values is None and self.way.kind != "meshes"
        except FmsegError as error:
            self.error.tell(error)
            return
        wanted = Export(self.way.kind, path, self.way.suffix, self.classes.values, self.way.smooth.isChecked(),
                        source=origin.source, series=origin.series, model=origin.model)  # fmt: skip
        if not self._may_replace(labels, wanted):
            return
        self._written, self._remarks = [], [] if labels.has_spacing else [EXPORT.no_spacing]
        self.bar.setRange(0, 0)  # busy, until the first number comes
        self.job = start_job(lambda: _events(labels, origin, wanted), parent=self)
        self.job.event.connect(self._on_event)
        self.job.failed.connect(self.error.tell)
        self.job.finished.connect(self._on_finished)
        self._look()

    def _may_replace(self, labels: LabelMap, wanted: Export) -> bool:
        there = [path for path in files_of(labels, wanted) if path.exists()]
        if not there:
            return True
        names = ", ".join(path.name for path in there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
        many = "1 file" if len(there) == 1 else f"{len(there)} files"
        text = f"{names} in {there[0].parent} will be lost and cannot be brought back."
        return ask(self, f"Replace {many}?", text, "Replace", "Keep")

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Progress) and event.done:
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.done)
        elif isinstance(event, Saved):
            self._written.append(event.path)
        elif isinstance(event, Warned):
            self._remarks.append(event.text)

    def _on_cancel(self) -> None:
        if self.job is not None:
            self.job.cancel()

    def _on_finished(self, done: bool) -> None:
        cancelled = self.job is not None and self.job.cancelled
        self.job = None
        if done:
            self.outcome.tell(self._written)
            if self._is_whole:
                self._recovery.mark_saved(*self._exported)
        self.remarks.tell(["Stopped. Nothing was written."] if cancelled else self._remarks if done else [])
        self._look()


def _events(labels: LabelMap, origin: Origin, wanted: Export) -> Iterator[Progress | Warned | Saved]:
    labels = in_file_order(labels, origin)
    yield from export(labels, replace(wanted, like=origin.like(labels)))
