"""Small widgets of the docks, and how they are made and laid out: rows, columns, forms, buttons, notes, sections."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import (
    QBoxLayout,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLayout,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

__all__ = [
    "TICK_BOXES",
    "Collapsible",
    "Column",
    "Note",
    "ScrollArea",
    "add_row",
    "allow",
    "form",
    "hbox",
    "paragraph",
    "progress_bar",
    "push_button",
    "vbox",
]

Part: TypeAlias = QWidget | QLayout | tuple[QWidget | QLayout, int] | int
"""A widget or a layout, alone or with its share of the room that is left; a number is empty room with that share."""
Margins: TypeAlias = tuple[int, int, int, int]
_Box = TypeVar("_Box", bound=QBoxLayout)
NO_MARGINS: Margins = (0, 0, 0, 0)

# Its own ground and its own text, so that both of napari's themes can be read.
_NOTE = "QLabel { background: #ffe08a; color: #2b2300; border-radius: 3px; padding: 4px 6px; }"

TICK_BOXES = "QAbstractItemView::indicator:unchecked { border: 1px solid #808080; border-radius: 2px; }"
"""The style of lists with boxes to tick: napari's themes leave an empty one in the colour of the list."""


PRIMARY_BUTTON = (
    "QPushButton:enabled { background: #1f6fbf; color: white; font-weight: bold; padding: 5px; }"
    "QPushButton:enabled:hover { background: #2a80d6; }"
    "QPushButton:enabled:focus { border: 1px solid white; }"
    "QPushButton:disabled { padding: 5px; }"
)
"""The style of the one button of a dock that starts its work."""
SECONDARY_BUTTON = "QPushButton { padding: 5px; }"
"""The style of the buttons beside it: as high as it is."""


def limit_width(combo: QComboBox, n_characters: int) -> None:
    """Allow a combo box to be as narrow as `n_characters`: a long entry must not widen the dock."""
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(n_characters)


def _fill(box: _Box, parts: tuple[Part, ...], margins: Margins | None, spacing: int | None) -> _Box:
    if margins is not None:
        box.setContentsMargins(*margins)
    if spacing is not None:
        box.setSpacing(spacing)
    for part in parts:
        if isinstance(part, int):
            box.addStretch(part)
            continue
        item, share = part if isinstance(part, tuple) else (part, 0)
        if isinstance(item, QLayout):
            box.addLayout(item, share)
        else:
            box.addWidget(item, share)
    return box


def hbox(
    *parts: Part, of: QWidget | None = None, margins: Margins | None = None, spacing: int | None = None
) -> QHBoxLayout:
    """Lay out parts beside one another in the widget `of`; margins and spacing are Qt's where none are given."""
    return _fill(QHBoxLayout(of) if of is not None else QHBoxLayout(), parts, margins, spacing)


def vbox(
    *parts: Part, of: QWidget | None = None, margins: Margins | None = None, spacing: int | None = None
) -> QVBoxLayout:
    """Lay out parts below one another, as `hbox` does beside."""
    return _fill(QVBoxLayout(of) if of is not None else QVBoxLayout(), parts, margins, spacing)


def form(of: QWidget | None = None, *, margins: Margins | None = NO_MARGINS, spacing: int | None = 6) -> QFormLayout:
    """Make an empty form, whose fields are as wide as there is room; see `hbox`."""
    made = QFormLayout(of) if of is not None else QFormLayout()
    if margins is not None:
        made.setContentsMargins(*margins)
    if spacing is not None:
        made.setSpacing(spacing)
    made.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return made


def add_row(to: QFormLayout, name: str, field: QWidget, tip: str = "", *, shown: QWidget | None = None) -> QLabel:
    """Add a field to a form and return its label, with the tooltip of the field, or with `tip` on both.

    Parameters
    ----------
    to
        The form.
    name
        On the label; its key goes to the field.
    field
        What is filled in.
    tip
        For both; without it the label has that of the field.
    shown
        What stands in the form, with the field in it; by default the field.
    """
    label = QLabel(name)
    label.setBuddy(field)
    label.setToolTip(tip or field.toolTip())
    if tip:
        field.setToolTip(tip)
    to.addRow(label, shown or field)
    return label


def push_button(text: str, tip: str = "", *, style: str = "", auto_default: bool | None = None) -> QPushButton:
    """Make a button; in a dialog one that is no `auto_default` is not pressed by Enter."""
    made = QPushButton(text)
    made.setToolTip(tip)
    if style:
        made.setStyleSheet(style)
    if auto_default is not None:
        made.setAutoDefault(auto_default)
    return made


def paragraph(text: str = "", tip: str = "", *, selectable: bool = False, plain: bool = False) -> QLabel:
    """Make a text of several lines; a `plain` one shows markup as it is."""
    made = QLabel(text)
    made.setWordWrap(True)
    made.setToolTip(tip)
    if selectable:
        made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    if plain:
        made.setTextFormat(Qt.TextFormat.PlainText)
    return made


def progress_bar(tip: str = "", steps: int = 1000) -> QProgressBar:
    """Make a thin bar without a number."""
    made = QProgressBar()
    made.setRange(0, steps)
    made.setTextVisible(False)
    made.setFixedHeight(8)
    made.setToolTip(tip)
    return made


def allow(widget: QWidget, disabled_reason: str, tip: str) -> None:
    """Enable a widget, or disable it and let its tooltip state why."""
    widget.setEnabled(not disabled_reason)
    widget.setToolTip(disabled_reason or tip)


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


class Collapsible(QWidget):
    """A section that is closed at first.

    Not superqt's QCollapsible: it fixes the height of what is inside, which cuts text that wraps, and leaves closed
    widgets in the order of the Tab key.
    """

    def __init__(self, title: str, inside: QWidget, tip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title, self._inside = title, inside
        style = "QPushButton { text-align: left; background: transparent; border: none; padding: 2px 0px; }"
        self.button = push_button("", tip, style=style)
        self.button.setCheckable(True)
        self.button.setFlat(True)
        vbox(self.button, inside, of=self, margins=NO_MARGINS, spacing=2)
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
    """Widgets below one another that scroll where they do not fit; text that wraps gets the height that it needs."""

    def __init__(self, parent: QWidget | None = None) -> None:
        self._inside = QWidget()
        super().__init__(self._inside, parent)
        self.rows = vbox(of=self._inside, margins=(8, 8, 8, 4), spacing=6)

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
