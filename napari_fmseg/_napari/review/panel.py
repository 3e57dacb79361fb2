"""The page on which cases are reviewed: which one is open, what was noted, and what is said of its labels."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QPlainTextEdit, QWidget

from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import (
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    add_row,
    allow,
    form,
    hbox,
    paragraph,
    push_button,
    vbox,
)
from napari_fmseg.training.projects import CaseRow

__all__ = ["ReviewPanel", "cases_to_review"]

TO_REVIEW, PREDICTED, ALL = "Not reviewed yet", "Predicted by a model", "All cases"
_NOTE_LINES = 3
_NOTE = "QPlainTextEdit { border: 1px solid rgba(128, 128, 128, 200); border-radius: 2px; }"  # in napari's it has none


def cases_to_review(rows: Sequence[CaseRow], which: str) -> list[str]:
    """List the cases to go through, by name: predicted ones first, the one that the model is least sure of at the top.

    Parameters
    ----------
    rows
        All cases of the project.
    which
        One of `TO_REVIEW`, `PREDICTED` and `ALL`.
    """
    wanted = [row for row in rows if not row.problem]
    if which == TO_REVIEW:
        wanted = [row for row in wanted if not row.verdict and row.status not in ("excluded", "unlabelled")]
    elif which == PREDICTED:
        wanted = [row for row in wanted if row.status == "predicted"]
    ranked = sorted(wanted, key=lambda row: (row.status != "predicted", -(row.uncertainty or 0.0), row.name))
    return [row.name for row in ranked]


class ReviewPanel(QWidget):
    """One case at a time.

    Attributes
    ----------
    accepted, corrected, rejected, next, previous
        Signals: what the user pressed.
    """

    accepted = Signal()
    corrected = Signal()
    rejected = Signal()
    next = Signal()
    previous = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.rows: Sequence[CaseRow] = ()
        self.case = ""
        self.title, self.facts = paragraph(), paragraph(plain=True)
        self.which = QComboBox()
        self.which.addItems([TO_REVIEW, PREDICTED, ALL])
        self.note = QPlainTextEdit()
        self.note.setPlaceholderText("Notes on this case")
        self.note.setTabChangesFocus(True)
        self.note.setStyleSheet(_NOTE)
        self.note.setFixedHeight(_NOTE_LINES * self.note.fontMetrics().lineSpacing() + 14)
        self.note.setToolTip(TEACH.review_note)
        self.previous_button = push_button("◀ Previous", TEACH.review_previous)
        self.next_button = push_button("Next ▶", TEACH.review_next)
        self.accept_button = push_button("&Accept", TEACH.review_accept, style=PRIMARY_BUTTON)
        self.correct_button = push_button("&Save correction", TEACH.review_correct, style=SECONDARY_BUTTON)
        self.reject_button = push_button("Re&ject", TEACH.review_reject, style=SECONDARY_BUTTON)
        which = form()
        add_row(which, "Sh&ow", self.which, TEACH.review_which)
        vbox(
            which,
            hbox(self.previous_button, self.next_button),
            self.title,
            self.facts,
            self.note,
            hbox((self.accept_button, 2), (self.correct_button, 2), (self.reject_button, 1)),
            1,
            of=self,
            margins=(6, 6, 6, 6),
            spacing=8,
        )
        self.accept_button.clicked.connect(self.accepted)
        self.correct_button.clicked.connect(self.corrected)
        self.reject_button.clicked.connect(self.rejected)
        self.next_button.clicked.connect(self.next)
        self.previous_button.clicked.connect(self.previous)
        self.which.currentIndexChanged.connect(self._show)
        self._show()

    @property
    def order(self) -> list[str]:
        """The cases to go through."""
        return cases_to_review(self.rows, self.which.currentText())

    def case_after(self, by: int) -> str:
        """Return the case `by` places after the open one, or "" where there is none."""
        order = self.order
        if not order:
            return ""
        if self.case in order:
            to = order.index(self.case) + by
            return order[to] if 0 <= to < len(order) else ""
        return order[0] if by > 0 else order[-1]

    def set_rows(self, rows: Sequence[CaseRow]) -> None:
        """Show the cases as they are now."""
        self.rows = rows
        if self.case not in {row.name for row in rows}:
            self.set_case("")
        self._show()

    def set_case(self, name: str) -> None:
        """Show another case, with what was noted of it."""
        self.case = name
        row = next((row for row in self.rows if row.name == name), None)
        self.note.setPlainText(row.note if row is not None else "")
        self._show()

    def allow(self, *, edited: bool, busy: str = "") -> None:
        """Enable what can be said of the open case.

        Parameters
        ----------
        edited
            Whether its labels were painted on since it was opened.
        busy
            Why nothing can be done now, or "".
        """
        row = next((row for row in self.rows if row.name == self.case), None)
        why = busy or ("" if row is not None else TEACH.review_closed)
        has_labels = row is not None and row.status != "unlabelled"
        nothing = why or ("" if has_labels else TEACH.review_nothing)
        allow(self.accept_button, nothing or (TEACH.review_edited if edited else ""), TEACH.review_accept)
        allow(self.correct_button, why or ("" if edited else TEACH.review_unchanged), TEACH.review_correct)
        allow(self.reject_button, nothing, TEACH.review_reject)
        self.note.setEnabled(not why)
        more, before = self.case_after(1), self.case_after(-1)
        allow(self.next_button, busy or ("" if more else "There is no further case."), TEACH.review_next)
        allow(self.previous_button, busy or ("" if before else "There is no case before."), TEACH.review_previous)

    def _show(self) -> None:
        order = self.order
        done = sum(bool(row.verdict) for row in self.rows)
        row = next((row for row in self.rows if row.name == self.case), None)
        place = f", {order.index(self.case) + 1} of {len(order)}" if self.case in order else ""
        left = f"{len(order)} to go through" if order else "None to go through"
        self.title.setText(f"<b>{self.case}</b>{place}" if row is not None else f"<b>{left}</b>")
        uncertainty = "" if row is None or row.uncertainty is None else f", uncertainty {row.uncertainty:.2f}"
        verdict = "" if row is None else f", {row.verdict}" if row.verdict else ", not reviewed"
        own = "" if row is None else f"{row.status.capitalize()}{uncertainty}{verdict}. "
        self.facts.setText(f"{own}{done} of {len(self.rows)} cases are reviewed.")
        self.allow(edited=False)
