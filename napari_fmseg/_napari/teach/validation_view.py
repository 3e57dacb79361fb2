"""Held-out cases in pictures: a plane of one as the network learns, and then all of them, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QLabel, QTableWidgetItem, QWidget

from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import NO_MARGINS, hbox, paragraph, vbox
from napari_fmseg.training.projects import HeldOutCase, RunReport

__all__ = ["HeldOutTable", "PlaneView"]

SIDE = 118  # pixels
_TITLES = {"labels": "Your labels", "prediction": "The model's, so far"}
_TINT = 0.45
_OUTLINES = {"labels": "#56b4e9", "prediction": "#e69f00"}  # told apart with every kind of sight
PICTURE, CASE, DICE, CLASSES = range(4)
_COLUMNS = ("Picture", "Case", "Dice", "Lowest class")
_COLUMN_TIPS = (TEACH.held_out_picture, TEACH.held_out_case, TEACH.held_out_dice, TEACH.held_out_class)
_PICTURE, _ROW = 84, 90  # pixels
_ROWS_SHOWN = 3
_LEAST_PLANE = 24  # voxels of a plane that are shown at least


class PlaneView(QWidget):
    """Two pictures; hidden while there are none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setToolTip(TEACH.picture)
        self.pictures = {name: QLabel() for name in _TITLES}
        pairs = [(self.pictures[name], QLabel(title)) for name, title in _TITLES.items()]
        for label in (label for pair in pairs for label in pair):
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        hbox(*(vbox(*pair) for pair in pairs), of=self, margins=NO_MARGINS)
        self.hide()

    def show_plane(self, path: Path, colors: Mapping[int, Sequence[float]]) -> bool:
        """Show what the training wrote; says whether it could be read, as the next picture may be replacing it."""
        plane = _read_plane(path)
        if plane is None:
            return False
        image, marks, spacing = plane
        for name, label in self.pictures.items():
            label.setPixmap(_pixmap(_tint(image, marks[name], colors), spacing, SIDE))
        self.show()
        return True


class HeldOutTable(QWidget):
    """Cases that a model never saw, the worst first, each with its picture; hidden while there are none."""

    opened = Signal(str)  # with the name of a case that was clicked

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.report: RunReport | None = None
        self.advice, self.title = paragraph(tip=TEACH.advice), paragraph()
        self.table = plain_table(_COLUMNS, _COLUMN_TIPS, row=_ROW, stretch=CLASSES)
        self.table.setIconSize(QSize(_PICTURE, _PICTURE))
        vbox(self.advice, self.title, self.table, of=self, margins=NO_MARGINS, spacing=4)
        self.table.cellClicked.connect(self._on_opened)
        self.table.cellActivated.connect(self._on_opened)  # Enter
        self._fill(None)

    def show_report(self, report: RunReport | None) -> None:
        """Show what a version did, or with None nothing."""
        if report != self.report:  # pictures take a while to be read
            self._fill(report)

    def _fill(self, report: RunReport | None) -> None:
        self.report = report
        cases = report.cases if report is not None else ()
        self.advice.setText(report.advice if report is not None else "")
        self.advice.setVisible(bool(self.advice.text()))
        yours, model = (f'<span style="color: {color}">●</span>' for color in _OUTLINES.values())
        what = _title(report) if report is not None else ""
        self.title.setText(f"<b>{what}</b> {yours} your labels {model} the model's")
        self.table.setRowCount(len(cases))
        for row, case in enumerate(cases):
            for column, item in enumerate(_cells(case)):
                self.table.setItem(row, column, item)
        header = self.table.horizontalHeader().sizeHint().height()
        self.table.setFixedHeight(header + _ROW * min(len(cases), _ROWS_SHOWN) + 4)
        self.setVisible(bool(cases))

    def _on_opened(self, row: int, _column: int) -> None:
        if self.report is not None:
            self.opened.emit(self.report.cases[row].name)


def _title(report: RunReport) -> str:
    if report.left_out:
        return "Each case by a model that was trained without it"
    return f"Cases that version {report.version} never saw"


def _cells(case: HeldOutCase) -> list[QTableWidgetItem]:
    told = {name: value for name, value in case.dice_by_class.items() if value == value}
    lowest = min(told, key=lambda name: told[name]) if len(told) > 1 else ""
    plane = _read_plane(case.picture) if case.picture is not None else None
    items = [QTableWidgetItem(text) for text in ("", case.name, f"{case.dice:.2f}", lowest)]
    if plane is not None:
        items[PICTURE].setIcon(QIcon(_draw_outlines(*plane)))
    tip = "\n".join([*(f"Dice of {name}: {value:.3f}" for name, value in told.items()), TEACH.held_out_case])
    for item in items:
        item.setToolTip(tip)
    return items


Plane: TypeAlias = tuple[npt.NDArray[np.floating], dict[str, npt.NDArray[np.integer]], npt.NDArray[np.floating]]
"""Of a picture of `write_plane`: the image, labels by name, and the spacing of rows and columns."""


def _read_plane(path: Path) -> Plane | None:
    """Return a picture; None if it cannot be read, as another one may be replacing it."""
    try:
        with np.load(path) as arrays:
            return arrays["image"][0], {name: arrays[name][0] for name in _TITLES}, arrays["spacing"][1:]
    except (OSError, KeyError, ValueError, BadZipFile):
        return None


def _draw_outlines(
    image: npt.NDArray[np.floating], marks: Mapping[str, npt.NDArray[np.integer]], spacing: npt.NDArray[np.floating]
) -> QPixmap:
    """Draw an 8-bit plane around the structures with the outlines of both labels, as fine as the screen has them."""
    part = _around(np.logical_or(*(marks[name] > 0 for name in _TITLES)))
    height, width = _size(image[part].shape, spacing, _PICTURE)
    at = tuple(np.arange(n) * of // n for n, of in zip((height, width), image[part].shape, strict=True))
    out = np.repeat(image[part][np.ix_(*at)].astype(np.uint8)[..., None], 3, 2)
    for name, color in _OUTLINES.items():
        out[_edges(marks[name][part][np.ix_(*at)])] = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return _pixmap(out, np.ones(2), _PICTURE)


def _around(there: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the part of a plane with what is there and half as much on each side; all of it where nothing is."""
    part = []
    for axis in (1, 0):
        found = np.flatnonzero(there.any(axis))
        n = there.shape[1 - axis]
        first, last = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, n)
        margin = max((last - first) // 2, (_LEAST_PLANE - (last - first)) // 2)
        part.append(slice(max(0, first - margin), min(n, last + margin)))
    return tuple(part)


def _edges(marks: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Return the pixels of structures that touch something else."""
    padded = np.pad(marks, 1, mode="edge")
    neighbours = (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2])
    edges: npt.NDArray[np.bool_] = (marks > 0) & np.any([marks != other for other in neighbours], axis=0)
    return edges


def _tint(
    image: npt.NDArray[np.floating], marks: npt.NDArray[np.integer], colors: Mapping[int, Sequence[float]]
) -> npt.NDArray[np.uint8]:
    """Return the plane in grey with its structures in their colours, (y, x, 3)."""
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    out = np.repeat(grey[..., None], 3, 2)
    for value, color in colors.items():
        there = marks == value
        out[there] = (1 - _TINT) * out[there] + _TINT * np.array(color[:3])
    return np.ascontiguousarray(255 * out, np.uint8)


def _size(shape: tuple[int, ...], spacing: npt.NDArray[np.floating], side: int) -> tuple[int, int]:
    """Return height and width in pixels as wide and high as the voxels are; the longer one is `side`."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pixmap(rgb: npt.NDArray[np.uint8], spacing: npt.NDArray[np.floating], side: int) -> QPixmap:
    """Make the picture as large as there is room."""
    height, width, _ = rgb.shape
    picture = QImage(rgb.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
    rows, columns = _size(rgb.shape, spacing, side)
    return QPixmap.fromImage(picture).scaled(
        columns, rows, Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.SmoothTransformation
    )
