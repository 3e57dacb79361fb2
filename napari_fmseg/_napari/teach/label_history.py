"""The earlier labels of a case: a list, from which they are shown or taken again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QDialog, QTableWidgetItem, QWidget

from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import allow, hbox, push_button, vbox
from napari_fmseg.training.projects import LabelVersion

__all__ = ["LabelHistory"]

TITLES = ("Labels", "Saved", "Structures")
WIDTH, HEIGHT = 460, 260


class LabelHistory(QDialog):
    """The labels that a case had, the newest first; the signals carry the number of earlier labels."""

    show_labels = Signal(int)
    restore = Signal(int)

    def __init__(self, case: str, rows: Sequence[LabelVersion], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Labels of {case}")
        self.setObjectName("fmseg_history")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(WIDTH, HEIGHT)
        self.table = plain_table(TITLES, stretch=2)
        self.show_button = push_button("&Show", TEACH.show_earlier, auto_default=False)
        self.restore_button = push_button("&Take these again", auto_default=False)
        self.close_button = push_button("Close")
        vbox(self.table, hbox(self.show_button, self.restore_button, 1, self.close_button), of=self)
        self._fill(rows)
        self.table.itemSelectionChanged.connect(self._on_selected)
        self.show_button.clicked.connect(lambda: self.show_labels.emit(self.chosen))
        self.restore_button.clicked.connect(self._on_restore)
        self.close_button.clicked.connect(self.accept)
        self.table.selectRow(1 if len(rows) > 1 else 0)
        self._on_selected()

    @property
    def chosen(self) -> int:
        """The number of the chosen earlier labels; 0 for those of now, or none."""
        rows = self.table.selectionModel().selectedRows()
        return int(self.table.item(rows[0].row(), 0).data(Qt.ItemDataRole.UserRole)) if rows else 0

    def _fill(self, rows: Sequence[LabelVersion]) -> None:
        self.table.setRowCount(len(rows))
        for i, row in enumerate(reversed(rows)):
            when = datetime.fromisoformat(row.changed).astimezone().strftime("%d %b %y %H:%M") if row.changed else "–"
            title = f"{row.number}{' (now)' if row.present else ''}"
            for column, text in enumerate((title, when, ", ".join(row.classes))):
                item = QTableWidgetItem(text)
                item.setData(Qt.ItemDataRole.UserRole, 0 if row.present else row.number)
                self.table.setItem(i, column, item)

    def _on_selected(self) -> None:
        why = "" if self.chosen else "Choose earlier labels in the list."
        allow(self.show_button, why, TEACH.show_earlier)
        allow(self.restore_button, why, TEACH.restore)

    def _on_restore(self) -> None:
        self.restore.emit(self.chosen)
        self.accept()
