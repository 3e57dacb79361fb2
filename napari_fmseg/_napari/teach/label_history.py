"""The earlier labels of a case: a list, from which they are shown or taken again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QDialog, QHBoxLayout, QPushButton, QTableWidgetItem, QVBoxLayout, QWidget

from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg.training.projects import LabelVersion

__all__ = ["LabelHistory"]

TITLES = ("Labels", "Saved", "Structures")
WIDTH, HEIGHT = 460, 260


class LabelHistory(QDialog):
    """The labels that a case had, the newest first.

    Attributes
    ----------
    show_labels, restore
        Signals with the number of earlier labels.
    """

    show_labels = Signal(int)
    restore = Signal(int)

    def __init__(self, case: str, rows: Sequence[LabelVersion], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Labels of {case}")
        self.setObjectName("fmseg_history")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(WIDTH, HEIGHT)
        self.table = plain_table(TITLES, stretch=2)
        self.show_button, self.restore_button = QPushButton("&Show"), QPushButton("&Take these again")
        self.close_button = QPushButton("Close")
        self.show_button.setToolTip(TEACH.show_earlier)
        buttons = QHBoxLayout()
        for button in (self.show_button, self.restore_button):
            buttons.addWidget(button)
            button.setAutoDefault(False)
        buttons.addStretch(1)
        buttons.addWidget(self.close_button)
        layout = QVBoxLayout(self)
        layout.addWidget(self.table)
        layout.addLayout(buttons)
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
        for button, tip in ((self.show_button, TEACH.show_earlier), (self.restore_button, TEACH.restore)):
            button.setEnabled(not why)
            button.setToolTip(why or tip)

    def _on_restore(self) -> None:
        self.restore.emit(self.chosen)
        self.accept()
