"""What is computed or shown by a tool, with Accept and Cancel, and their keys."""

from __future__ import annotations

import math

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFrame, QWidget

from napari_fmseg._napari.common.shortcuts import borrow
from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import (
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    hbox,
    paragraph,
    progress_bar,
    push_button,
    vbox,
)
from napari_fmseg._napari.correct.session import Draft, Session

__all__ = ["PreviewBar"]

_FRAME = "QFrame#preview { border: 1px solid #1f6fbf; border-radius: 3px; }"


class PreviewBar(QFrame):
    """Shown while a tool runs, or waits for a click, or for the user's answer."""

    accepted = Signal()
    cancelled = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("preview")
        self.setStyleSheet(_FRAME)
        self.text, self.bar = paragraph(), progress_bar(steps=0)
        self.accept = push_button("&Accept", CORRECT.accept, style=PRIMARY_BUTTON)
        self.cancel = push_button("Ca&ncel", CORRECT.cancel, style=SECONDARY_BUTTON)
        vbox(self.text, self.bar, hbox((self.accept, 2), (self.cancel, 1)), of=self, margins=(6, 6, 6, 6), spacing=4)
        self.accept.clicked.connect(self.accepted)
        self.cancel.clicked.connect(self.cancelled)
        self._accept_keys = borrow(self, "accept", self.accepted.emit)
        self._cancel_keys = borrow(self, "dismiss", self.cancelled.emit)
        self.hide()

    def show_session(self, session: Session, voxel_ml: float) -> None:
        """Show what a tool is at; `voxel_ml` is nan where the size of voxels is not known."""
        self._show("" if not session.is_open else _text(session, voxel_ml), can_accept=session.is_open)
        self.bar.setVisible(session.running)

    def show_waiting(self, what: str) -> None:
        """Show what the user is to click on, or with "" that nobody waits."""
        self._show(what, can_accept=False)
        self.bar.hide()

    def _show(self, text: str, *, can_accept: bool) -> None:
        self.text.setText(text)
        self.setVisible(bool(text))
        self.accept.setVisible(can_accept)
        for keys, on in ((self._accept_keys, bool(text) and can_accept), (self._cancel_keys, bool(text))):
            for key in keys:
                key.setEnabled(on)


def _text(session: Session, voxel_ml: float) -> str:
    draft: Draft | None = session.draft
    if draft is None:
        return f"{session.title} …"
    if not draft.is_whole:
        return f"{draft.title}: this slice is shown, the others follow …"
    amounts = ((draft.picture.n_more, "added"), (draft.picture.n_less, "removed (magenta)"))
    return f"{draft.title}: {', '.join(f'{_amount(n, voxel_ml)} {what}' for n, what in amounts if n)}."


def _amount(n: int, voxel_ml: float) -> str:
    """Return a number of voxels, with their volume where that is known."""
    voxels, ml = f"{n:,} voxel{'s' if n != 1 else ''}".replace(",", " "), n * voxel_ml
    if math.isnan(ml):
        return voxels
    return f"{voxels} ({ml:.0f} ml)" if ml >= 100 else f"{voxels} ({ml:.2g} ml)"
