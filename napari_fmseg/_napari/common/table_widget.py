"""Tables that look and behave alike: whole rows, no grid, no numbers before them, left by the Tab key."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget

from napari_fmseg._napari.common.widgets import TICK_BOXES

__all__ = ["plain_table", "set_columns"]


def plain_table(
    titles: Sequence[str],
    tips: Sequence[str] = (),
    *,
    row: int = 0,
    stretch: int | None = None,
    editable: bool = False,
) -> QTableWidget:
    """Make an empty table.

    Parameters
    ----------
    titles, tips
        Of the columns, and what they say under the pointer.
    row
        Height of a row in pixels; 0 as high as Qt likes.
    stretch
        The column that takes the room that is left; the others are as wide as what they hold. None leaves all widths.
    editable
        Whether cells can be written in.
    """
    table = QTableWidget(0, 0)
    set_columns(table, titles)
    if stretch is not None:
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        table.horizontalHeader().setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)
    for column, tip in enumerate(tips):
        table.horizontalHeaderItem(column).setToolTip(tip)
    table.horizontalHeader().setHighlightSections(False)  # bold titles are wider than their columns
    table.verticalHeader().hide()
    if row:
        table.verticalHeader().setDefaultSectionSize(row)
    table.setStyleSheet(TICK_BOXES)
    table.setShowGrid(False)
    table.setCornerButtonEnabled(False)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setTabKeyNavigation(False)
    if not editable:
        table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    return table


def set_columns(table: QTableWidget, titles: Sequence[str]) -> None:
    """Set the columns of a table."""
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(list(titles))
