"""The classes of a labels layer: show or hide, colour, name, volume; a click goes to the structure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QSize, Qt, QTimer, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QFileDialog, QTableWidget, QTableWidgetItem, QWidget

from napari_fmseg._napari.choosers.label_pairing import label_map
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import CLASSES
from napari_fmseg._napari.common.widgets import NO_MARGINS, allow, hbox, paragraph, push_button, vbox
from napari_fmseg._napari.layer_transform import has_spacing, moves_of
from napari_fmseg._napari.layers import names_of
from napari_fmseg._napari.results.class_colors import SWATCH, Rgba, color_icon, colors_of, rename, set_colors
from napari_fmseg._napari.results.navigation import centre_on_voxel
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import NO_SPACING, Geometry, LabelMap
from napari_fmseg.evaluation.volumes import Measure, measure, write_measures

__all__ = ["ClassTable"]

SHOWN, COLOR, NAME, ML, VOXELS = range(5)
TITLES = ("", "", "Class", "ml", "Voxels")
TIPS = (CLASSES.visible, CLASSES.color, f"{CLASSES.name} {CLASSES.jump}", CLASSES.volume_ml, CLASSES.voxels)
WAIT_MS = 400  # after the last stroke, before counting again
ROW = 24  # pixels
ROWS = 8  # in sight without scrolling


class ClassTable(QWidget):
    """Classes of one labels layer of a viewer."""

    measured = Signal()  # the figures are those of the layer now
    failed = Signal(object)  # an error that the user should see

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self.layer: Any = None
        self.measures: tuple[Measure, ...] = ()
        self._job: Job | None = None
        self._links = Links(self)
        self._filling = False
        self._point: tuple[float, ...] = ()
        self._timer = QTimer(self, singleShot=True, interval=WAIT_MS)
        self._timer.timeout.connect(self._on_time)
        self.title = paragraph()
        self.title.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.table = self._build_table()
        self.save = push_button("Stati&stics …")
        self.buttons = hbox(1, self.save)
        self.questions = hbox(1)  # what else can be asked about a class
        vbox(self.title, self.table, self.buttons, self.questions, of=self, margins=NO_MARGINS)
        self.save.clicked.connect(self._on_save)
        self.set_layer(None)

    def _build_table(self) -> QTableWidget:
        table = plain_table(TITLES, TIPS, row=ROW, stretch=NAME, editable=True)
        table.setIconSize(QSize(SWATCH, SWATCH))
        table.horizontalHeader().setMinimumSectionSize(24)
        table.itemChanged.connect(self._on_item)
        table.cellClicked.connect(self._on_cell)
        table.cellActivated.connect(self._on_cell)
        return table

    def set_layer(self, layer: Any) -> None:
        """Show the classes of a labels layer, or none."""
        if layer is not self.layer:
            self._let_go()
            self.layer = layer
            self.measures = ()
            self.table.setRowCount(0)
            if layer is not None:
                events = layer.events
                self._links.connect(self._on_changed, events.paint, events.data, events.set_data)
                self._links.connect(self._on_changed, *moves_of(layer))
                self._links.connect(self._on_look, events.features, events.colormap, events.name)
        self._fill()
        if layer is not None:
            self._point = tuple(self._viewer.dims.point)
            self._timer.start(0)

    def close_down(self) -> None:
        """Disconnect from the layer and end what runs; the table may be deleted afterwards."""
        self._let_go()
        self.layer = None

    def _let_go(self) -> None:
        self._timer.stop()
        if self._job is not None:
            self._job.cancel()
            self._job = None
        self._links.end()

    # --- measuring ---

    def _on_changed(self, event: Any) -> None:
        """React to changed voxels, or to another plane on the screen, which costs nothing."""
        point = tuple(self._viewer.dims.point)
        if event.type == "set_data" and point != self._point:
            self._point = point
        else:
            self._timer.start()

    def _on_time(self) -> None:
        if self._job is not None and self._job.running:
            self._timer.start()  # once more, when it has ended
            return
        labels = self._label_map()
        self._job = start_job(lambda: iter([measure(labels)]), parent=self)
        self._job.event.connect(self._on_measured)
        self._job.failed.connect(self.failed)
        self._job.finished.connect(self._on_done)

    def _label_map(self) -> LabelMap:
        """Return the labels as they are now; voxels are counted even where their size is not known."""
        try:
            return label_map(self.layer, self._viewer.layers)
        except GeometryMismatch:
            data = np.asarray(self.layer.data)
            grid = Geometry.from_spacing(data.shape)
            return LabelMap(data, grid, {NO_SPACING: True}, names_of(self.layer))

    def _on_measured(self, measures: Any) -> None:
        if self.layer is not None:
            self.measures = measures
            self._fill()
            self.measured.emit()

    def _on_done(self, _: bool) -> None:
        self._job = None

    # --- showing ---

    def _on_look(self) -> None:
        if not self._filling:
            self._fill()

    def _fill(self) -> None:
        layer = self.layer
        self.title.setText("No labels yet. Run a model, or choose a labels layer." if layer is None else layer.name)
        allow(self.save, CLASSES.no_labels if layer is None else "", CLASSES.statistics)
        self.table.setVisible(layer is not None)
        self.table.setToolTip(CLASSES.jump)
        if layer is None:
            return
        names = names_of(layer)
        found = {m.label: m for m in self.measures}
        labels = sorted({*names, *found})
        colors = colors_of(layer, labels)
        self._filling = True
        spaced = not any(math.isnan(m.ml) for m in self.measures) if self.measures else has_spacing(layer)
        self.table.setColumnHidden(ML, not spaced)
        self.table.horizontalHeaderItem(VOXELS).setToolTip(CLASSES.voxels if spaced else CLASSES.no_spacing)
        self.table.setRowCount(len(labels))
        for row, label in enumerate(labels):
            self._fill_row(row, label, names.get(label, ""), colors[label], found.get(label))
        self.table.setMinimumHeight(ROW * min(len(labels) + 1, ROWS) + 12)
        self._filling = False

    def _fill_row(self, row: int, label: int, name: str, color: Any, found: Measure | None) -> None:
        fixed = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        shown = QTableWidgetItem()
        shown.setFlags(fixed | Qt.ItemFlag.ItemIsUserCheckable)
        shown.setCheckState(Qt.CheckState.Checked if color[3] > 0 else Qt.CheckState.Unchecked)
        shown.setData(Qt.ItemDataRole.UserRole, label)
        swatch = QTableWidgetItem(color_icon(color), "")
        called = QTableWidgetItem(name or f"label {label}")
        ml = QTableWidgetItem("…" if found is None else "" if math.isnan(found.ml) else _ml(found.ml))
        voxels = QTableWidgetItem("…" if found is None else f"{found.voxels:,}".replace(",", " "))
        for column, item in enumerate((shown, swatch, called, ml, voxels)):
            item.setToolTip(TIPS[column])
            if column >= ML:
                item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            if column in (COLOR, ML, VOXELS):
                item.setFlags(fixed)
            self.table.setItem(row, column, item)

    # --- what the user does ---

    def _label(self, row: int) -> int:
        return int(self.table.item(row, SHOWN).data(Qt.ItemDataRole.UserRole))

    def _on_item(self, item: QTableWidgetItem) -> None:
        if self._filling or self.layer is None:
            return
        label = self._label(item.row())
        if item.column() == SHOWN:
            red, green, blue, _ = colors_of(self.layer, [label])[label]
            on = item.checkState() == Qt.CheckState.Checked
            self._set_color(label, (red, green, blue, 1.0 if on else 0.0))
        elif item.column() == NAME and item.text().strip():
            rename(self.layer, label, item.text().strip())
        else:
            self._fill()

    def _on_cell(self, row: int, column: int) -> None:
        if self.layer is None:
            return
        if column == COLOR:
            self._ask_color(self._label(row))
        elif column != SHOWN:
            self.go_to(self._label(row))

    def _ask_color(self, label: int) -> None:
        red, green, blue, alpha = colors_of(self.layer, [label])[label]
        asked = QColorDialog.getColor(QColor.fromRgbF(red, green, blue), self, "Colour of the class")
        if asked.isValid():
            self._set_color(label, (asked.redF(), asked.greenF(), asked.blueF(), alpha or 1.0))

    def _set_color(self, label: int, color: Rgba) -> None:
        set_colors(self.layer, {label: color}, [m.label for m in self.measures])

    def go_to(self, label: int) -> None:
        """Move the view to the middle of a structure and choose its label for painting."""
        self.layer.selected_label = label
        found = next((m for m in self.measures if m.label == label), None)
        if found is None or found.centre is None:
            return
        centre_on_voxel(self._viewer, self.layer, found.centre)

    def _on_save(self) -> None:
        labels = self._label_map()
        path, _ = QFileDialog.getSaveFileName(self, "Save statistics", f"{_safe(self.layer.name)}.csv", "CSV (*.csv)")
        if path:
            job = start_job(lambda: iter([write_measures(measure(labels), Path(path))]), parent=self)
            job.failed.connect(self.failed)


def _ml(ml: float) -> str:
    return f"{ml:.0f}" if ml >= 100 else f"{ml:.1f}" if ml >= 1 else f"{ml:.3f}".rstrip("0").rstrip(".")


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
