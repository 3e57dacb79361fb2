"""Buttons for the shape of a class: smooth, grow, shrink, holes, islands, and a split along a painted cut."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QGridLayout, QWidget

from napari_fmseg._napari.common.number_boxes import NumberBox
from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import NO_MARGINS, hbox, limit_width, paragraph, push_button, vbox

__all__ = ["ShapePanel"]


def _millimetres(value: float, tip: str, least: float, most: float) -> NumberBox:
    box = NumberBox()
    box.setRange(least, most)
    box.setDecimals(1)
    box.setSingleStep(0.5)
    box.setValue(value)
    box.setSuffix(" mm")
    box.setToolTip(tip)
    return box


class ShapePanel(QWidget):
    """What can be done to the shape of the active class."""

    smoothed = Signal(float)  # mm
    resized = Signal(float)  # mm; negative shrinks
    holes = Signal(bool)  # fill them in slices, and not only those enclosed on all sides
    island = Signal(bool)  # keep the island that is clicked on next, or remove it
    cutting = Signal()  # the user wants to paint a cut
    split = Signal()  # the cut is painted

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.radius = _millimetres(3.0, CORRECT.smooth, 0.1, 50.0)
        self.distance = _millimetres(2.0, CORRECT.grow, 0.1, 50.0)
        self.smooth = push_button("S&mooth", CORRECT.smooth)
        self.grow, self.shrink = push_button("&Grow", CORRECT.grow), push_button("Shr&ink", CORRECT.grow)
        self.fill_holes = push_button("Fill h&oles", CORRECT.holes)
        self.in_slices = QCheckBox("in slices")
        self.in_slices.setToolTip(CORRECT.in_slices)
        self.keep = push_button("&Keep…", CORRECT.keep)
        self.remove = push_button("R&emove…", CORRECT.remove)
        self.cut = push_button("Paint a c&ut", CORRECT.cut)
        self.divide = push_button("Split…", CORRECT.split)
        self.through = QCheckBox("The cut goes through all slices")
        self.through.setToolTip(CORRECT.through)
        self.through.setChecked(True)
        self.part = QComboBox()
        self.part.setToolTip(CORRECT.part)
        limit_width(self.part, 8)
        grid = QGridLayout()
        grid.setContentsMargins(*NO_MARGINS)
        grid.setSpacing(4)
        rows = (
            (self.radius, self.smooth, None),
            (self.distance, self.grow, self.shrink),
            (self.in_slices, self.fill_holes, None),
            (paragraph("Islands"), self.keep, self.remove),
            (paragraph("Split"), self.cut, self.divide),
        )
        for row, widgets in enumerate(rows):
            for column, widget in enumerate(widgets):
                if widget is not None:
                    grid.addWidget(widget, row, column)
        below = hbox(paragraph("The part becomes"), (self.part, 1))
        vbox(grid, self.through, below, of=self, margins=NO_MARGINS, spacing=4)
        self.smooth.clicked.connect(lambda: self.smoothed.emit(self.radius.value()))
        self.grow.clicked.connect(lambda: self.resized.emit(self.distance.value()))
        self.shrink.clicked.connect(lambda: self.resized.emit(-self.distance.value()))
        self.fill_holes.clicked.connect(lambda: self.holes.emit(self.in_slices.isChecked()))
        self.keep.clicked.connect(lambda: self.island.emit(True))
        self.remove.clicked.connect(lambda: self.island.emit(False))
        self.cut.clicked.connect(self.cutting)
        self.divide.clicked.connect(self.split)

    def show_classes(self, names: dict[int, str]) -> None:
        """List the classes that the part of a split may become."""
        chosen = self.part.currentData()
        self.part.clear()
        for value, name in names.items():
            self.part.addItem(name, value)
        self.part.setCurrentIndex(max(self.part.findData(chosen), 0) if self.part.count() else -1)
