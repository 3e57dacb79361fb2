"""The classes of the labels: the row that is selected is the active class, a tick marks a class as finished."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import QTableWidgetItem, QWidget

from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import NO_MARGINS, vbox
from napari_fmseg._napari.layers import names_of
from napari_fmseg._napari.results.class_colors import SWATCH, color_icon, colors_of

__all__ = ["ClassList", "class_name"]

MOST_UNNAMED = 100  # of labels that number every cell, only so many are listed

COLOR, NAME, FINISHED = range(3)
ROW, MOST_ROWS = 22, 6
TIPS = (CORRECT.active, CORRECT.active, CORRECT.finished)


def class_name(layer: Any, value: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return names_of(layer).get(value) or f"label {value}"


class ClassList(QWidget):
    """The classes of one labels layer."""

    finished = Signal(object)  # the set of classes that are ticked
    activated = Signal(int)  # another class is active

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.layer: Any = None
        self._present: frozenset[int] = frozenset()
        self._job: Job | None = None
        self._filling = False
        self._links = Links(self)
        self.table = plain_table(("", "Class", "Finished"), TIPS, row=ROW, stretch=NAME)
        self.table.setIconSize(QSize(SWATCH, SWATCH))
        self.table.horizontalHeader().setMinimumSectionSize(24)
        self.table.itemChanged.connect(self._on_ticked)
        self.table.itemSelectionChanged.connect(self._on_selected)
        vbox(self.table, of=self, margins=NO_MARGINS)

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes in their order."""
        return tuple(self._value(row) for row in range(self.table.rowCount()))

    def show_layer(self, layer: Any, finished: frozenset[int]) -> None:
        """Show the classes of a labels layer, with ticks at those that are finished."""
        if layer is not self.layer:
            self.close_down()
            self.layer = layer
            if layer is not None:
                self._search(layer.data)
                events = layer.events
                self._links.connect(self._on_look, events.features, events.colormap, events.selected_label)
        self._fill(finished)

    def close_down(self) -> None:
        """Disconnect from the layer."""
        self._links.end()
        if self._job is not None:
            self._job.cancel()
        self.layer, self._job, self._present = None, None, frozenset()

    def _search(self, labels: Any) -> None:
        """Find the classes that occur, in a thread: labels of other programs have no names."""
        self._job = start_job(lambda: iter([_classes_in(labels)]), parent=self)
        self._job.event.connect(self._on_present)

    def _on_present(self, present: frozenset[int]) -> None:
        if self.layer is not None and not present <= set(self.classes):
            self._present = present
            self._on_look()

    def _on_look(self, _: Any = None) -> None:
        if self.layer is None or self._filling:
            return
        active = int(self.layer.selected_label)
        self._fill(self._ticks())
        self.activated.emit(active)

    def _fill(self, finished: frozenset[int]) -> None:
        layer = self.layer
        values = [] if layer is None else _classes_to_list(layer, finished | self._present)
        colors = colors_of(layer, values) if values else {}
        self._filling = True
        self.table.setRowCount(len(values))
        for row, value in enumerate(values):
            self._fill_row(row, value, colors[value], is_finished=value in finished)
        active = 0 if layer is None else int(layer.selected_label)
        if active in values:
            self.table.selectRow(values.index(active))
        else:
            self.table.clearSelection()
        rows = min(max(len(values), 1), MOST_ROWS)
        self.table.setFixedHeight(ROW * rows + self.table.horizontalHeader().sizeHint().height() + 6)
        self._filling = False

    def _fill_row(self, row: int, value: int, color: Any, *, is_finished: bool) -> None:
        fixed = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        swatch, name = QTableWidgetItem(color_icon(color), ""), QTableWidgetItem(class_name(self.layer, value))
        tick = QTableWidgetItem()
        tick.setCheckState(Qt.CheckState.Checked if is_finished else Qt.CheckState.Unchecked)
        swatch.setData(Qt.ItemDataRole.UserRole, value)
        for column, item in enumerate((swatch, name, tick)):
            item.setFlags(fixed | (Qt.ItemFlag.ItemIsUserCheckable if column == FINISHED else Qt.ItemFlag.NoItemFlags))
            item.setToolTip(TIPS[column] if column == FINISHED else f"{class_name(self.layer, value)}. {TIPS[column]}")
            self.table.setItem(row, column, item)

    def _value(self, row: int) -> int:
        return int(self.table.item(row, COLOR).data(Qt.ItemDataRole.UserRole))

    def _ticks(self) -> frozenset[int]:
        rows = range(self.table.rowCount())
        return frozenset(
            self._value(row) for row in rows if self.table.item(row, FINISHED).checkState() == Qt.CheckState.Checked
        )

    def _on_ticked(self, item: QTableWidgetItem) -> None:
        if not self._filling and item.column() == FINISHED:
            self.finished.emit(self._ticks())

    def _on_selected(self) -> None:
        rows = {index.row() for index in self.table.selectedIndexes()}
        if self._filling or self.layer is None or len(rows) != 1:
            return
        value = self._value(rows.pop())
        if value != int(self.layer.selected_label) and value <= np.iinfo(self.layer.data.dtype).max:
            self.layer.selected_label = value


def _classes_to_list(layer: Any, others: frozenset[int]) -> list[int]:
    """Return the classes to list: those with a name, the active one, and others as far as they are not too many."""
    unnamed = sorted(others)[:MOST_UNNAMED]
    return sorted({*names_of(layer), *unnamed, int(layer.selected_label)} - {0})


def _classes_in(labels: Any) -> frozenset[int]:
    """Return the classes that occur in labels in memory, but the background."""
    if not isinstance(labels, np.ndarray):
        return frozenset()
    found: set[int] = set()
    for plane in labels:  # slice by slice, so that the window's thread gets its turns
        found.update(int(value) for value in np.unique(plane))
    return frozenset(found) - {0}
