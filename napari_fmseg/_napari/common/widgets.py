"""Small widgets of the docks: a note, an error that can be copied, a section that opens and closes."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, QSize, Qt, Signal
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

__all__ = ["Collapsible", "Column", "ErrorBox", "Note", "ScrollArea"]

# Its own ground and its own text, so that both of napari's themes can be read.
_NOTE = "QLabel { background: #ffe08a; color: #2b2300; border-radius: 3px; padding: 4px 6px; }"
_ERROR = "QFrame#error { background: #8c1d18; border-radius: 3px; } QFrame#error QLabel { color: white; background: transparent; }"  # noqa: E501


PRIMARY_BUTTON = (
    "QPushButton:enabled { background: #1f6fbf; color: white; font-weight: bold; padding: 5px; }"
    "QPushButton:enabled:hover { background: #2a80d6; }"
    "QPushButton:enabled:focus { border: 1px solid white; }"
    "QPushButton:disabled { padding: 5px; }"
)
"""The style of the one button of a dock that starts its work."""


def limit_width(combo: QComboBox, n_characters: int) -> None:
    """Allow a combo box to be as narrow as `n_characters`: a long entry must not widen the dock."""
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(n_characters)


class Note(QLabel):
    """Yellow lines that the user should read; hidden while there are none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWordWrap(True)
        self.setStyleSheet(_NOTE)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.hide()

    def tell(self, texts: list[str]) -> None:
        """Show these sentences, each once."""
        self.setText("\n".join(dict.fromkeys(texts)))
        self.setVisible(bool(texts))


class ErrorBox(QFrame):
    """Red: what happened and what to do, to be read and copied; hidden while all is well.

    Attributes
    ----------
    details_requested
        Signal with the error: the user wants to see all of it.
    """

    details_requested = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("error")
        self.setStyleSheet(_ERROR)
        self.error: BaseException | None = None
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.copy = QPushButton("Cop&y")
        self.copy.setToolTip("Copies the message, to be sent or searched for.")
        self.more = QPushButton("Details")
        self.more.setToolTip("Opens the message in a window of its own, with what a report needs.")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(self.text)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(self.copy)
        row.addWidget(self.more)
        layout.addLayout(row)
        self.copy.clicked.connect(self._on_copy)
        self.more.clicked.connect(self._on_more)
        self.hide()

    def tell(self, error: BaseException | None) -> None:
        """Show an error, or with None that there is none."""
        self.error = error
        self.text.setText(str(error) if error is not None else "")
        self.setVisible(error is not None)

    def _on_copy(self) -> None:
        QApplication.clipboard().setText(self.text.text())

    def _on_more(self) -> None:
        if self.error is not None:
            self.details_requested.emit(self.error)


class Collapsible(QWidget):
    """A section that is closed at first.

    Not superqt's QCollapsible: it fixes the height of what is inside, which cuts text that wraps, and leaves closed
    widgets in the order of the Tab key.
    """

    def __init__(self, title: str, inside: QWidget, tip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title, self._inside = title, inside
        self.button = QPushButton()
        self.button.setCheckable(True)
        self.button.setFlat(True)
        self.button.setStyleSheet(
            "QPushButton { text-align: left; background: transparent; border: none; padding: 2px 0px; }"
        )
        self.button.setToolTip(tip)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.button)
        layout.addWidget(inside)
        self.button.toggled.connect(self._on_toggled)
        self._on_toggled(False)

    def set_title(self, title: str) -> None:
        """Change the title."""
        self._title = title
        self._on_toggled(self.button.isChecked())

    def _on_toggled(self, is_open: bool) -> None:
        self.button.setText(f"{'▾' if is_open else '▸'} {self._title}")
        self._inside.setVisible(is_open)


class ScrollArea(QScrollArea):
    """Shows one widget at the full width, without a frame; only its height scrolls, and its width is never cut."""

    def __init__(self, inside: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(inside)
        inside.installEventFilter(self)

    def minimumSizeHint(self) -> QSize:
        """Return the width that the widget and a scroll bar need, and little height."""
        smallest, inside, bar = super().minimumSizeHint(), self.widget(), self.verticalScrollBar()
        if inside is not None and bar is not None:
            smallest.setWidth(inside.minimumSizeHint().width() + bar.sizeHint().width())
        return smallest

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Request another width when something in it has changed."""
        if event is not None and event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))


class Column(ScrollArea):
    """Widgets below one another that scroll where they do not fit; text that wraps gets the height that it needs.

    Attributes
    ----------
    rows
        The layout to add them to.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        self._inside = QWidget()
        super().__init__(self._inside, parent)
        self.rows = QVBoxLayout(self._inside)
        self.rows.setContentsMargins(8, 8, 8, 4)
        self.rows.setSpacing(6)

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        super().resizeEvent(event)
        self._fit()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Measure again when something in it has changed."""
        if event is not None and event.type() == QEvent.Type.LayoutRequest:
            self._fit()
        return bool(super().eventFilter(watched, event))

    def _fit(self) -> None:
        # A scroll area asks its widget for one smallest height, and not for that at the width that it has.
        self._inside.setMinimumHeight(self.rows.minimumHeightForWidth(self.viewport().width()))
