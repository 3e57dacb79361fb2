"""A dialog to choose from the series or volumes in a folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QItemSelectionModel, QSize, Qt
from qtpy.QtGui import QIcon, QImage, QPainter, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QLabel,
    QTreeWidget,
    QTreeWidgetItem,
    QWidget,
)

from napari_fmseg._napari.common.dialogs import run_modal
from napari_fmseg._napari.common.tooltips import OPEN
from napari_fmseg._napari.common.widgets import allow, paragraph, vbox
from napari_fmseg.io.series_previews import SeriesPreview

__all__ = ["SeriesChooser", "choose"]

_COLUMNS = ("Series", "Type", "Slices", "Size (voxels)", "Spacing (mm)", "Files")
_PICTURE = 72


def choose(offers: Sequence[SeriesPreview], parent: QWidget | None = None) -> list[SeriesPreview]:
    """Show the series and return those to open; none if the user cancels."""
    dialog = SeriesChooser(offers, parent)
    return dialog.chosen if run_modal(dialog) else []


class SeriesChooser(QDialog):
    """Lists what a folder offers, as `preview_series` tells it, and lets the user take one or several."""

    def __init__(self, offers: Sequence[SeriesPreview], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._offers = tuple(offers)
        place = self._offers[0].path if self._offers else None
        where = (
            "" if place is None else (place.parent if place.is_file() and not self._offers[0].series else place).name
        )
        self.setWindowTitle("Choose what to open")
        self.setModal(True)
        self._list = QTreeWidget()
        self._fill()
        head = paragraph(f"“{where}” holds {len(self._offers)} volumes. Which of them shall be opened?")
        hint = QLabel("Ctrl or Shift and a click take several; a double click opens one.")
        self._buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Open | QDialogButtonBox.StandardButton.Cancel)
        for button in self._buttons.buttons():
            button.setIcon(QIcon())  # napari's own buttons have none
        self._open = self._buttons.button(QDialogButtonBox.StandardButton.Open)
        vbox(head, self._list, hint, self._buttons, of=self)
        self._buttons.accepted.connect(self.accept)
        self._buttons.rejected.connect(self.reject)
        self._list.itemSelectionChanged.connect(self._on_selection)
        self._list.itemDoubleClicked.connect(self.accept)
        self._list.setFocus()
        self.resize(780, min(560, 150 + (_PICTURE + 4) * len(self._offers)))
        self._select_largest()

    @property
    def chosen(self) -> list[SeriesPreview]:
        """What is selected, in the order of the list."""
        return [
            offer for i, offer in enumerate(self._offers) if (item := self._list.topLevelItem(i)) and item.isSelected()
        ]

    def _fill(self) -> None:
        self._list.setColumnCount(len(_COLUMNS))
        self._list.setHeaderLabels(list(_COLUMNS))
        self._list.setRootIsDecorated(False)
        self._list.setToolTip(OPEN.series)
        self._list.setUniformRowHeights(True)
        self._list.setStyleSheet("QTreeView::item:selected { background: rgb(0, 98, 163); color: white; }")
        self._list.setAllColumnsShowFocus(True)
        self._list.setIconSize(QSize(_PICTURE, _PICTURE))
        self._list.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        for offer in self._offers:
            item = QTreeWidgetItem(_texts(offer))
            item.setToolTip(0, offer.description or offer.series or str(offer.path))
            if offer.picture is not None:
                item.setIcon(0, _icon(offer.picture))
            for column in range(1, len(_COLUMNS)):
                item.setTextAlignment(column, Qt.AlignmentFlag.AlignCenter)
            self._list.addTopLevelItem(item)
        header = self._list.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)

    def _select_largest(self) -> None:
        """Start with the series of most slices: it is rarely the localizer."""
        sizes = [(z, y * x) for z, y, x in (offer.shape for offer in self._offers)]
        if sizes:
            item = self._list.topLevelItem(sizes.index(max(sizes)))
            flags = QItemSelectionModel.SelectionFlag
            self._list.setCurrentItem(item, 0, flags.ClearAndSelect | flags.Rows)
        self._on_selection()

    def _on_selection(self) -> None:
        count = len(self.chosen)
        self._open.setText("Open" if count < 2 else f"Open {count}")
        allow(self._open, "" if count else OPEN.no_series, "")


def _texts(offer: SeriesPreview) -> list[str]:
    z, y, x = offer.shape
    dz, dy, dx = offer.spacing
    name = offer.description or "(no description)"
    size = f"{x} × {y} × {z}" if x else "unknown"
    spacing = f"{dx:.3g} × {dy:.3g} × {dz:.3g}" if dx and dz else (f"{dx:.3g} × {dy:.3g}" if dx else "unknown")
    return [name, offer.modality or "–", str(z or "–"), size, spacing, str(offer.n_files)]


def _icon(picture: npt.NDArray[np.uint8]) -> QIcon:
    rows, columns = picture.shape
    image = QImage(picture.tobytes(), columns, rows, columns, QImage.Format.Format_Grayscale8)
    canvas = QPixmap(max(rows, columns), max(rows, columns))
    canvas.fill(Qt.GlobalColor.black)
    painter = QPainter(canvas)
    painter.drawImage((canvas.width() - columns) // 2, (canvas.height() - rows) // 2, image)
    painter.end()
    return QIcon(canvas)
