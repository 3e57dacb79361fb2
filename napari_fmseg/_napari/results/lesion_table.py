"""The lesions of a labels layer: volume and uptake of each, in a small window; a click goes to the lesion."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QComboBox, QDialog, QFileDialog, QHeaderView, QLabel, QTableWidgetItem, QWidget

from napari_fmseg._napari.choosers.image_volumes import ImageVolume, cases_of
from napari_fmseg._napari.choosers.label_pairing import image_of, is_of, label_map, lies_on, why_ask
from napari_fmseg._napari.common.dialogs import ErrorBox, ask
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.number_boxes import NumberBox
from napari_fmseg._napari.common.table_widget import plain_table, set_columns
from napari_fmseg._napari.common.tooltips import LESIONS
from napari_fmseg._napari.common.widgets import Note, allow, form, hbox, paragraph, push_button, vbox
from napari_fmseg._napari.layers import is_pet, meta_of, volume_of
from napari_fmseg._napari.results.navigation import centre_on_voxel
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.evaluation.lesions import Lesion, LesionTable, columns, lesions, write_lesions

__all__ = ["LesionDialog"]

WAIT_MS = 400  # after the last stroke or key, before measuring again


class LesionDialog(QDialog):
    """Lists the lesions of one labels layer, measured in an image of the viewer on the same grid."""

    def __init__(self, viewer: Any, layer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Lesions")
        self._viewer, self.layer = viewer, layer
        self.found: LesionTable | None = None
        self._job: Job | None = None
        self._homes = [case for case in cases_of(viewer.layers) for _ in _on_grid(case, layer)]
        self._images = [part for case in cases_of(viewer.layers) for part in _on_grid(case, layer)]
        self._agreed: set[str] = set()  # images of others that the user wants to measure in
        self.image, self.min_ml = QComboBox(), NumberBox()
        self.table, self.totals, self.error = plain_table(()), paragraph(), ErrorBox()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.pairing_note = Note()
        self.save = push_button("&Export CSV …", auto_default=False)
        self.close_button = push_button("&Close", auto_default=False)
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
        self.image.setCurrentIndex(self._likely())
        self.image.setToolTip(LESIONS.image)
        self.min_ml.setRange(0, 1000)
        self.min_ml.setSingleStep(0.1)
        self.min_ml.setSuffix(" ml")
        self.min_ml.setToolTip(LESIONS.min_ml)
        self.table.setToolTip(LESIONS.jump)
        self._form = form(margins=None, spacing=None)
        self._form.addRow("&Image", self.image)
        self._form.addRow("&Smallest lesion", self.min_ml)
        below = (self.pairing_note, self.table, self.totals, self.error, hbox(1, self.save, self.close_button))
        vbox(QLabel(self.layer.name), self._form, *below, of=self)
        self.resize(620, 420)
        self.image.currentIndexChanged.connect(self._timer.start)
        self.min_ml.valueChanged.connect(self._on_changed)
        self.table.cellClicked.connect(self._on_cell)
        self.table.cellActivated.connect(self._on_cell)
        self.save.clicked.connect(self._on_save)
        self.close_button.clicked.connect(self.accept)

    # --- which image ---

    def _likely(self) -> int:
        """Choose a PET that the labels were made on, else an image that they were made on, else a PET."""
        own = [is_of(self.layer, case) for case in self._homes]
        pets = [is_pet(meta_of(part)) for part in self._images]
        home = image_of(self.layer, self._viewer.layers)
        first = [home is not None and case.id == home.id for case in self._homes]
        scores = [4 * bool(mine) + 2 * pet + here for mine, pet, here in zip(own, pets, first, strict=True)]
        return scores.index(max(scores)) if scores else -1

    @property
    def _home(self) -> ImageVolume:
        home: ImageVolume = self._homes[self.image.currentIndex()]
        return home

    # --- measuring ---

    def _on_changed(self) -> None:
        self._timer.start()

    def _on_time(self) -> None:
        if self._job is not None and self._job.running:
            self._timer.start()
            return
        self.error.tell(None)
        if not self._images:
            self._fail(GeometryMismatch(
                "No image lies on the grid of these labels. Open the image that they were made on, then this again."
            ))  # fmt: skip
            return
        part = self._images[self.image.currentIndex()]
        question = why_ask(self.layer, self._home, self._viewer.layers)
        self.pairing_note.tell([f"{question} Is it the same patient?"] if question else [])
        try:
            labels = label_map(self.layer, self._viewer.layers)
            volume = dataclasses.replace(volume_of([part]), meta=meta_of(part))
        except FmsegError as error:
            self._fail(error)
            return
        for widget in (self.min_ml, self._form.labelForField(self.min_ml)):
            widget.setVisible(labels.has_spacing)
        self.totals.setToolTip("" if labels.has_spacing else LESIONS.no_spacing)
        least = self.min_ml.value() if labels.has_spacing else 0.0
        self._job = start_job(lambda: iter([lesions(labels, volume, min_ml=least)]), parent=self)
        self._job.event.connect(self._show)
        self._job.failed.connect(self._fail)

    def _fail(self, error: FmsegError) -> None:
        """Show why nothing could be measured, and no figures of before."""
        self._show(None)
        self.table.setRowCount(0)
        self.totals.setText("")
        self.error.tell(error)

    def _show(self, found: LesionTable | None) -> None:
        self.found = found
        allow(self.save, LESIONS.no_figures if found is None else "", LESIONS.save)
        if found is None:
            self.totals.setText("Measuring …")
            return
        size = "ml" if found.has_spacing else "Voxels"
        shown = columns(found) if found.has_spacing else columns(found)[:2]  # the others need the size of a voxel
        set_columns(self.table, ("", "Lesion", size, *shown))
        self.table.setRowCount(len(found.lesions))
        for row, lesion in enumerate(found.lesions):
            self._fill(row, lesion)
        self.totals.setText(_totals(found))

    def _fill(self, row: int, lesion: Lesion) -> None:
        name = lesion.name or f"label {lesion.label}"
        figures = [_format(v) for v in (lesion.ml, lesion.max, lesion.mean, lesion.peak, lesion.total)]
        if self.found is not None and not self.found.has_spacing:
            figures = [str(lesion.voxels), *figures[1:3]]
        for column, text in enumerate((str(lesion.number), name, *figures)):
            item = QTableWidgetItem(text)
            item.setToolTip(LESIONS.jump)
            if column != 1:
                item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self.table.setItem(row, column, item)

    # --- what the user does ---

    def _on_cell(self, row: int, _: int) -> None:
        if self.found is not None and row < len(self.found.lesions):
            centre_on_voxel(self._viewer, self.layer, self.found.lesions[row].hottest)

    def _on_save(self) -> None:
        found = self.found
        if found is None or not self._agrees():
            return
        path, _ = QFileDialog.getSaveFileName(self, "Save lesions", "lesions.csv", "CSV (*.csv)")
        if path:
            job = start_job(lambda: iter([write_lesions(found, Path(path))]), parent=self)
            job.failed.connect(self.error.tell)

    def _agrees(self) -> bool:
        """Show a question before figures are saved that were measured in an image of other labels."""
        home = self._home
        if is_of(self.layer, home) is not False or home.id in self._agreed:
            return True
        text = (f"{why_ask(self.layer, home, self._viewer.layers)} The table is right only if both are of one patient, "
                "as the PET beside a CT is.")  # fmt: skip
        agreed = ask(self, f"Is “{home.name}” of the same patient?", text, "Save the table", "Cancel")
        self._agreed |= {home.id} if agreed else set()
        return agreed

    def _on_removed(self, event: Any) -> None:
        if event.value is self.layer or any(event.value is part for part in self._images):
            self.reject()

    def _on_closed(self) -> None:
        self._timer.stop()
        self._links.end()
        if self._job is not None:
            self._job.cancel()


def _on_grid(case: ImageVolume, layer: Any) -> list[Any]:
    """Return the layers of a volume that lie on the grid of the labels."""
    return [part for part in case.layers if part.data.ndim == 3] if lies_on(layer, case) else []


def _totals(found: LesionTable) -> str:
    if not found.lesions:
        return "There is no lesion." + (f" {found.left_out} components are smaller." if found.left_out else "")
    largest, _, _, total = columns(found)
    left_out = f" {found.left_out} smaller components are left out." if found.left_out else ""
    start, size = found.count_text, sum(lesion.voxels for lesion in found.lesions)
    if not found.has_spacing:
        return f"{start}, {size} voxels; {largest} {_format(found.max)}. There are no ml: the layer has no spacing."
    return (f"{start}, {_format(found.ml)} ml; {largest} {_format(found.max)}; "
            f"{total} {_format(found.total)}.{left_out}")  # fmt: skip


def _format(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
