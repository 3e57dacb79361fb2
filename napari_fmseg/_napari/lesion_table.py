"""The lesions of a labels layer: volume and uptake of each, in a small window; a click goes to the lesion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_fmseg._napari.cases import cases_of
from napari_fmseg._napari.dialogs import show_error
from napari_fmseg._napari.going import go_to
from napari_fmseg._napari.layers import geometry_of, is_pet, labels_of, meta_of, volume_of
from napari_fmseg._napari.links import Links
from napari_fmseg._napari.parts import ErrorBox
from napari_fmseg._napari.tables import plain_table, set_columns
from napari_fmseg._napari.tooltips import LESIONS
from napari_fmseg._napari.worker import Job, start_job
from napari_fmseg.errors import GeometryMismatch
from napari_fmseg.lesions import Lesion, LesionTable, columns, lesions, write_lesions
from napari_fmseg.volume import LabelMap, Volume

__all__ = ["LesionDialog"]

WAIT_MS = 400  # after the last stroke or key, before measuring again


class LesionDialog(QDialog):
    """Lists the lesions of one labels layer, measured in an image on the same grid.

    Parameters
    ----------
    viewer
        Where the images are, and where a click goes.
    layer
        The labels.
    """

    def __init__(self, viewer: Any, layer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Lesions")
        self._viewer, self.layer = viewer, layer
        self.found: LesionTable | None = None
        self._job: Job | None = None
        self._images = [part for case in cases_of(viewer.layers) for part in _on_grid(case, layer)]
        self.image, self.min_ml = QComboBox(), QDoubleSpinBox()
        self.table, self.totals, self.error = plain_table((), stretch=1), QLabel(), ErrorBox()
        self.save, self.close_button = QPushButton("&Export CSV …"), QPushButton("&Close")
        self._timer = QTimer(self, singleShot=True, interval=WAIT_MS)
        self._timer.timeout.connect(self._on_time)
        self._build()
        self._links = Links(self)
        self._links.connect(self._on_changed, layer.events.paint, layer.events.data)
        self._links.connect(self._on_removed, viewer.layers.events.removed)
        self.finished.connect(self._on_closed)
        self._show(None)
        self._on_time()

    def _build(self) -> None:
        self.image.addItems([part.name for part in self._images])
        pets = [at for at, part in enumerate(self._images) if is_pet(meta_of(part))]
        self.image.setCurrentIndex(pets[0] if pets else 0)
        self.image.setToolTip(LESIONS.image)
        self.min_ml.setRange(0, 1000)
        self.min_ml.setSingleStep(0.1)
        self.min_ml.setSuffix(" ml")
        self.min_ml.setToolTip(LESIONS.min_ml)
        self.save.setToolTip(LESIONS.save)
        self.close_button.setAutoDefault(False)
        self.save.setAutoDefault(False)
        self.totals.setWordWrap(True)
        self.table.setToolTip(LESIONS.jump)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("&Image", self.image)
        form.addRow("&Smallest lesion", self.min_ml)
        foot = QHBoxLayout()
        foot.addStretch(1)
        foot.addWidget(self.save)
        foot.addWidget(self.close_button)
        layout = QVBoxLayout(self)
        layout.addWidget(QLabel(self.layer.name))
        layout.addLayout(form)
        for widget in (self.table, self.totals, self.error):
            layout.addWidget(widget)
        layout.addLayout(foot)
        self.resize(620, 420)
        self.image.currentIndexChanged.connect(self._timer.start)
        self.min_ml.valueChanged.connect(self._on_changed)
        self.table.cellClicked.connect(self._on_cell)
        self.table.cellActivated.connect(self._on_cell)
        self.error.asked.connect(lambda error: show_error(self, error))
        self.save.clicked.connect(self._on_save)
        self.close_button.clicked.connect(self.accept)

    # --- measuring ---

    def _on_changed(self) -> None:
        self._timer.start()

    def _on_time(self) -> None:
        if self._job is not None and self._job.running:
            self._timer.start()
            return
        self.error.tell(None)
        if not self._images:
            self.error.tell(GeometryMismatch(
                "No image lies on the grid of these labels. Open the image that they were made on, then this again."
            ))  # fmt: skip
            return
        part = self._images[self.image.currentIndex()]
        labels, least = labels_of(self.layer), self.min_ml.value()
        volume = dataclasses.replace(volume_of([part]), meta=meta_of(part))
        self._job = start_job(lambda: _measured(labels, volume, least), parent=self)
        self._job.event.connect(self._show)
        self._job.failed.connect(self.error.tell)

    def _show(self, found: LesionTable | None) -> None:
        self.found = found
        self.save.setEnabled(found is not None)
        if found is None:
            self.totals.setText("Measuring …")
            return
        set_columns(self.table, ("", "Lesion", "ml", *columns(found)), stretch=1)
        self.table.setRowCount(len(found.lesions))
        for row, lesion in enumerate(found.lesions):
            self._fill(row, lesion)
        self.totals.setText(_totals(found))

    def _fill(self, row: int, lesion: Lesion) -> None:
        name = lesion.name or f"label {lesion.label}"
        figures = (lesion.max, lesion.mean, lesion.peak, lesion.total)
        for column, text in enumerate((str(lesion.number), name, _said(lesion.ml), *map(_said, figures))):
            item = QTableWidgetItem(text)
            item.setToolTip(LESIONS.jump)
            if column != 1:
                item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self.table.setItem(row, column, item)

    # --- what the user does ---

    def _on_cell(self, row: int, _: int) -> None:
        if self.found is not None and row < len(self.found.lesions):
            go_to(self._viewer, self.layer, self.found.lesions[row].hottest)

    def _on_save(self) -> None:
        found = self.found
        path, _ = QFileDialog.getSaveFileName(self, "Save lesions", "lesions.csv", "CSV (*.csv)")
        if path and found is not None:
            job = start_job(lambda: _saved(found, Path(path)), parent=self)
            job.failed.connect(self.error.tell)

    def _on_removed(self, event: Any) -> None:
        if event.value is self.layer or any(event.value is part for part in self._images):
            self.reject()

    def _on_closed(self) -> None:
        self._timer.stop()
        self._links.end()
        if self._job is not None:
            self._job.cancel()


def _on_grid(case: Any, layer: Any) -> list[Any]:
    """Give the layers of a volume that lie on the grid of the labels."""
    on = geometry_of(layer)
    return [part for part in case.layers if part.data.ndim == 3 and geometry_of(part).matches(on, atol_mm=0.01)]


def _measured(labels: LabelMap, volume: Volume, min_ml: float) -> Iterator[LesionTable]:
    yield lesions(labels, volume, min_ml=min_ml)


def _saved(found: LesionTable, path: Path) -> Iterator[Path]:
    yield write_lesions(found, path)


def _totals(found: LesionTable) -> str:
    if not found.lesions:
        return "There is no lesion." + (f" {found.left_out} parts are smaller." if found.left_out else "")
    largest, _, _, total = columns(found)
    left_out = f" {found.left_out} smaller parts are left out." if found.left_out else ""
    return (f"{len(found.lesions)} lesions, {_said(found.ml)} ml; {largest} {_said(found.max)}; "
            f"{total} {_said(found.total)}.{left_out}")  # fmt: skip


def _said(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
