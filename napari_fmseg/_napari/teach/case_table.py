"""The cases of a project as a table: what each is for, how the model does on it, and which to label next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from qtpy.QtCore import QPoint, Qt, Signal
from qtpy.QtGui import QAction, QColor
from qtpy.QtWidgets import QMenu, QTableWidget, QTableWidgetItem, QWidget

from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import NO_MARGINS, allow, hbox, paragraph, push_button, vbox
from napari_fmseg.training.projects import CaseRow, Project

__all__ = ["CaseTable", "summary"]

NAME, STATUS, DICE, UNCERTAINTY, CHANGED = range(5)
TITLES = ("Case", "Status", "Dice", "Uncertainty", "Edited")
TIPS = (TEACH.case, TEACH.status, TEACH.dice, TEACH.uncertainty, TEACH.changed)
_ROW = 22
_WIDTHS = (80, 86, 42, 76, 52)  # pixels at first; together as wide as the narrowest dock
_SHOWN = 7
_DOTS = {
    "unlabelled": "#8a8a8a",
    "predicted": "#e69f00",
    "corrected": "#2f9e62",
    "held out": "#3d8bd4",
    "excluded": "#b0b0b0",
}


def summary(project: Project, rows: Sequence[CaseRow], newest: int) -> str:
    """Return in two lines what a project is about and how far it is; `newest` is the number of its newest version."""
    held = sum(row.status == "held out" for row in rows)
    learned = sum(row.status == "corrected" for row in rows)
    excluded = sum(row.status == "excluded" for row in rows)
    rest = len(rows) - held - learned - excluded
    used = project.index.used
    model = f"version {used[-1]} active" if used else "no model yet"
    if used and newest > used[-1]:
        model += f", version {newest} is not (why: page Versions)"
    left_out = f", {excluded} left out" if excluded else ""
    return (
        f"<b>{', '.join(project.facts.numbers)}</b><br>{learned} case(s) for training, {held} held out, "
        f"{rest} without labels{left_out}; {model}"
    )


class CaseTable(QWidget):
    """One row per case; a click on a title sorts, a double click opens the case.

    Signals with a text carry the name of a case, with which the user wants to do what the signal is called.
    """

    opened = Signal(str)
    predict = Signal()  # the cases without labels are to be predicted
    history = Signal(str)
    exclude = Signal(str)
    include = Signal(str)
    rename = Signal(str)
    remove = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.table = self._build_table()
        self.next = paragraph(tip=TEACH.next)
        self.open_button = push_button("&Open case", TEACH.open_case)
        self.predict_button = push_button("Predict &unlabelled", TEACH.predict)
        self.more_button, self.menu = push_button("&More"), QMenu(self)
        self._statuses: dict[str, str] = {}
        self._locked = ""
        self._make_menu()
        buttons = hbox(self.open_button, self.predict_button, self.more_button)
        vbox((self.table, 1), self.next, buttons, of=self, margins=NO_MARGINS, spacing=4)
        self.table.cellDoubleClicked.connect(self._on_open)
        self.table.itemSelectionChanged.connect(self._on_selected)
        self.open_button.clicked.connect(self._on_open)
        self.predict_button.clicked.connect(self.predict)
        self.show_cases((), ())

    def _make_menu(self) -> None:
        """Make the menu of a case; it opens from the button, and with a right click on the row."""
        kinds = (
            ("history", "Earlier labels …", TEACH.history),
            ("exclude", "Leave out", TEACH.exclude),
            ("include", "Include again", TEACH.include),
            ("rename", "Rename …", TEACH.rename_case),
            ("remove", "Remove …", TEACH.remove_case),
        )
        self.menu.setToolTipsVisible(True)
        self.actions_by_name: dict[str, QAction] = {}
        for name, text, tip in kinds:
            action = self.menu.addAction(text)
            action.setToolTip(tip)
            action.triggered.connect(partial(self._on_action, name))
            self.actions_by_name[name] = action
        self.more_button.setMenu(self.menu)
        self.table.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.table.customContextMenuRequested.connect(self._on_menu)

    def _on_menu(self, where: QPoint) -> None:
        if self.table.itemAt(where) is not None and self.chosen:
            self.menu.popup(self.table.viewport().mapToGlobal(where))

    def _on_action(self, name: str, _checked: bool = False) -> None:
        if self.chosen:
            getattr(self, name).emit(self.chosen)

    def lock(self, why: str) -> None:
        """Lock all cases with the reason `why`; "" unlocks them."""
        self._locked = why
        self._on_selected()

    def _build_table(self) -> QTableWidget:
        table = plain_table(TITLES, TIPS, row=_ROW)
        header = table.horizontalHeader()
        header.setMinimumSectionSize(30)
        for column, width in enumerate(_WIDTHS):
            header.resizeSection(column, width)
        header.setStretchLastSection(True)
        header.setSortIndicator(NAME, Qt.SortOrder.AscendingOrder)
        table.setSortingEnabled(True)
        table.setMinimumHeight(_SHOWN * _ROW)
        return table

    @property
    def chosen(self) -> str:
        """The name of the selected case, or ""."""
        rows = self.table.selectionModel().selectedRows()
        return self.table.item(rows[0].row(), NAME).text() if rows else ""

    def choose(self, name: str) -> None:
        """Select a case."""
        found = [item for item in self.table.findItems(name, Qt.MatchFlag.MatchExactly) if item.column() == NAME]
        if found:
            self.table.selectRow(found[0].row())
            self.table.scrollToItem(found[0])

    def show_cases(self, rows: Sequence[CaseRow], to_label: Sequence[CaseRow], why_no_prediction: str = "") -> None:
        """Fill the table.

        Parameters
        ----------
        rows
            All cases.
        to_label
            Those without labels, the one first that should be labelled next.
        why_no_prediction
            Why the cases without labels cannot be predicted, or "".
        """
        before = self.chosen
        self._statuses = {row.name: row.status for row in rows}
        self.table.setSortingEnabled(False)  # a row must not move while it is filled
        self.table.setRowCount(len(rows))
        for i, row in enumerate(rows):
            for column, item in enumerate(_items(row)):
                self.table.setItem(i, column, item)
        self.table.setSortingEnabled(True)
        self.choose(before)
        first = to_label[0] if to_label else None
        value = None if first is None else first.uncertainty
        uncertainty = "" if value is None else f": most uncertain ({value:.2f})"
        self.next.setText(f"<b>Label next</b> {first.name}{uncertainty}" if first else "")
        self.next.setVisible(first is not None)
        why = why_no_prediction or ("" if to_label else "Every case has labels.")
        allow(self.predict_button, why, TEACH.predict)
        self._on_selected()

    def _on_selected(self) -> None:
        why = "" if self.chosen else "Choose a case in the table first."
        allow(self.open_button, why, TEACH.open_case)
        allow(self.more_button, why, TEACH.more_case)
        excluded = self._statuses.get(self.chosen) == "excluded"
        self.actions_by_name["exclude"].setVisible(not excluded)
        self.actions_by_name["include"].setVisible(excluded)
        for name, action in self.actions_by_name.items():
            action.setEnabled(name == "history" or not self._locked)

    def _on_open(self, *_: Any) -> None:
        if self.chosen:
            self.opened.emit(self.chosen)


class _Sorted(QTableWidgetItem):
    """A cell that sorts by a number, and those without one after all others."""

    def __init__(self, text: str, key: float) -> None:
        super().__init__(text)
        self.key = key
        self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def __lt__(self, other: object) -> bool:
        return self.key < getattr(other, "key", 0.0)


def _items(row: CaseRow) -> list[QTableWidgetItem]:
    status = QTableWidgetItem(f"● {row.status}")
    status.setForeground(QColor("#d9534f" if row.problem else _DOTS[row.status]))
    items = [
        QTableWidgetItem(row.name),
        status,
        _number(row.dice),
        _number(row.uncertainty),
        _Sorted(*_when(row.changed)),
    ]
    for item in items:
        item.setToolTip(_tooltip(row))
    return items


def _number(value: float | None) -> QTableWidgetItem:
    return _Sorted("–" if value is None else f"{value:.2f}", -1.0 if value is None else value)


def _when(changed: str) -> tuple[str, float]:
    """Return a UTC time as the user's clock has it, short: today's hour, else the day."""
    if not changed:
        return "–", 0.0
    then = datetime.fromisoformat(changed).astimezone()
    today = then.date() == datetime.now().astimezone().date()
    return then.strftime("%H:%M" if today else "%d %b %y"), then.timestamp()


def _tooltip(row: CaseRow) -> str:
    """Return all that is known of a case, for the tooltip."""
    lines = [row.problem] if row.problem else []
    if row.classes:
        lines.append(f"Labelled: {', '.join(row.classes)}, in {100 * row.labelled:.0f} % of the slices")
    lines += [f"Dice of {name}: {value:.3f}" for name, value in row.dice_by_class.items()]
    if row.dice_by_class and row.left_out:
        lines.append("This Dice is that of a model that was trained in the same way without this case.")
    elif row.dice_by_class and row.status == "corrected":
        lines.append("This case was used for training, so its Dice is too good.")
    if row.verdict:
        lines.append(f"Reviewed: {row.verdict}.")
    if row.note:
        lines.append(f"Note: {row.note}")
    if row.earlier:
        lines.append(f"{row.earlier} earlier version(s) of its labels are kept.")
    lines.append("The image lies outside of the project." if row.linked else "Double-click to open it.")
    return "\n".join(lines)
