"""The window that offers labels back: those of a crash, or those that were removed without being saved."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QPushButton, QStyle, QTableWidget, QTableWidgetItem, QWidget

from napari_fmseg._napari.common.dialogs import TextDialog, ask, text_label
from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import RECOVERY
from napari_fmseg._napari.common.widgets import allow
from napari_fmseg._napari.recovery.autosave_store import KEPT_DAYS, Autosave, delete

__all__ = ["RecoveryDialog"]

_CRASH = (
    "napari ended unexpectedly while you were painting. These labels were autosaved. Tick those that you want back; "
    "what you do not restore or delete is offered again at the next start."
)
_REMOVED = (
    "These labels were painted, and then removed or closed without being saved. Tick those that you want back. They "
    f"are kept on this computer for {KEPT_DAYS} days."
)
_NONE = "Nothing was removed without being saved in the last {days} days."
ROW_HEIGHT, MOST_ROWS = 30, 8


class RecoveryDialog(TextDialog):
    """Lists labels that a crash left behind, or that were removed, with Restore, Keep for later and Delete.

    Esc keeps all. The first column of the table has the ticks.
    """

    restored = Signal(object)  # with the list of `Autosave` that the user wants back

    def __init__(self, saves: Sequence[Autosave], parent: QWidget | None = None, *, is_crash: bool = True) -> None:
        title = "Labels of an earlier session" if is_crash else "Recently removed labels"
        super().__init__(title, QStyle.StandardPixmap.SP_MessageBoxInformation, parent)
        self.setObjectName("fmseg_recovery")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        text = _CRASH if is_crash else _REMOVED if saves else _NONE.format(days=KEPT_DAYS)
        self.body.addWidget(text_label(text))
        self.saves = list(saves)
        self.table = _table(self.saves, ticked=is_crash or len(saves) == 1, when="Autosaved" if is_crash else "Removed")
        self.table.setVisible(bool(saves))
        self.column.insertWidget(2, self.table)
        self.restore_button = QPushButton("Restore" if is_crash else "Put back")
        self.later_button = QPushButton("Keep for later" if is_crash else "Close")
        self.delete_button = QPushButton("Delete")
        later = RECOVERY.later if is_crash else RECOVERY.close
        restore, delete = (self.restore_button, RECOVERY.restore), (self.delete_button, RECOVERY.delete)
        self.add_buttons(delete, (self.later_button, later), restore)
        self.table.itemChanged.connect(self._on_ticked)
        self.restore_button.clicked.connect(self._on_restore)
        self.later_button.clicked.connect(self.reject)
        self.delete_button.clicked.connect(self._on_delete)
        self._on_ticked()

    @property
    def ticked(self) -> list[Autosave]:
        """What the user wants to do something with."""
        rows = range(self.table.rowCount())
        return [self.saves[i] for i in rows if self.table.item(i, 0).checkState() == Qt.CheckState.Checked]

    def _on_ticked(self) -> None:
        why = "" if self.ticked else "Tick labels in the list first."
        allow(self.restore_button, why, RECOVERY.restore)
        allow(self.delete_button, why, RECOVERY.delete)

    def _on_restore(self) -> None:
        wanted = self.ticked
        self.accept()
        self.restored.emit(wanted)

    def _on_delete(self) -> None:
        names = ", ".join(save.name for save in self.ticked)
        if not ask(
            self, "Delete these labels for good?", f"{names} cannot be brought back afterwards.", "Delete", "Keep"
        ):
            return
        gone = self.ticked
        for save in gone:
            row = self.saves.index(save)
            delete(save)
            self.saves.pop(row)
            self.table.removeRow(row)
        self._on_ticked()
        if not self.saves:
            self.accept()


def _table(saves: Sequence[Autosave], *, ticked: bool, when: str) -> QTableWidget:
    table = plain_table(("Labels", when, "Size"), row=ROW_HEIGHT, stretch=0)
    table.setRowCount(len(saves))
    table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
    for row, save in enumerate(saves):
        name = QTableWidgetItem(save.name)
        name.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
        name.setCheckState(Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked)
        name.setToolTip(save.name)
        size = " x ".join(map(str, save.shape)) + f", {_bytes(save.n_bytes)}"
        for column, item in enumerate((name, QTableWidgetItem(_when(save.saved_at)), QTableWidgetItem(size))):
            table.setItem(row, column, item)
    table.setFixedHeight(ROW_HEIGHT * (min(len(saves), MOST_ROWS) + 1) + 8)
    return table


def _when(saved_at: float) -> str:
    """Return a time as people write it: today's by the clock, others with their date."""
    then, now = time.localtime(saved_at), time.localtime()
    return time.strftime("today, %H:%M:%S" if then[:3] == now[:3] else "%d %b %Y, %H:%M", then)


def _bytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
