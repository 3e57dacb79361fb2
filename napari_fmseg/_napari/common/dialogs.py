"""Errors with cause and fix, in a dock and in a dialog; questions, the disclaimer."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from qtpy.QtCore import Qt
from qtpy.QtGui import QFontDatabase, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QFrame,
    QLabel,
    QPlainTextEdit,
    QPushButton,
    QSizePolicy,
    QStyle,
    QWidget,
)

from napari_fmseg._napari.common.widgets import ScrollArea, hbox, paragraph, push_button, vbox
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.package import __version__

__all__ = [
    "Choice",
    "ErrorBox",
    "ErrorDialog",
    "Question",
    "ResearchOnly",
    "TextDialog",
    "ask",
    "choose",
    "on_screen",
    "run_modal",
    "show_error",
    "text_label",
]

Kind = TypeVar("Kind", bound=QDialog)

FAILED = "fmseg could not do this"
RESEARCH_ONLY = "Research use only. Not a medical device."
WIDTH, TEXT_HEIGHT, DETAILS_HEIGHT = 560, 320, 260  # pixels; with details still inside 1280 x 800
_UNEXPECTED = (
    "This should not have happened. Your layers are as they were. Try it again; if it happens again, press "
    '"Copy report" and send the text, with what you did, to the developers.'
)
_FOCUS = "QPushButton { min-width: 72px } QPushButton:focus { border: 1px solid #3d8bd4 }"  # seen in both themes
_ERROR = "QFrame#error { background: #8c1d18; border-radius: 3px; } QFrame#error QLabel { color: white; background: transparent; }"  # noqa: E501
_SELECTABLE = Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
_PACKAGES = (
    "napari",
    "npe2",
    "qtpy",
    "PyQt6",
    "PySide6",
    "PyQt5",
    "numpy",
    "torch",
    "SimpleITK",
    "pydicom",
    "highdicom",
)
# A path starts with a slash, a drive letter or ~. In quotes it ends with them; without, as names of folders may have
# spaces in them, nobody knows where, so the rest of the line goes too.
_QUOTED_PATH = re.compile(r"""(['"])(?:~|[A-Za-z]:)?[\\/].*?\1""")
_PLAIN_PATH = re.compile(r"(?<![\w<])(?:~|[A-Za-z]:)?[\\/](?=\S).*")


def show_error(parent: QWidget | None, error: BaseException, *, title: str = FAILED) -> ErrorDialog:
    """Open a window that says what happened and what to do, and go on at once.

    Parameters
    ----------
    parent
        The dock that could not do its work; its window is blocked until the user closes the dialog. None: whatever
        window is active.
    error
        A `FmsegError` is shown with its own words; anything else as something unexpected.
    title
        What was tried, such as "The scan could not be opened".

    Returns
    -------
    ErrorDialog
        It deletes itself when it is closed.
    """
    dialog = ErrorDialog(error, title, parent=_window(parent))
    dialog.open()
    return dialog


def ask(
    parent: QWidget | None, title: str, text: str, yes: str = "Yes", no: str = "No", *, default_no: bool = True
) -> bool:
    """Show a question and wait for the answer.

    Parameters
    ----------
    parent
        The dock that asks.
    title
        The question in a line.
    text
        What either answer leads to.
    yes, no
        What stands on the buttons: verbs, such as "Replace" and "Keep".
    default_no
        Enter means no. Esc and closing the window always do.
    """
    return run_modal(Question(title, text, yes, no, default_no=default_no, parent=_window(parent)))


def choose(parent: QWidget | None, title: str, text: str, answers: Sequence[str]) -> int | None:
    """Show a question with several answers and wait for one.

    Parameters
    ----------
    parent
        The dock that asks.
    title
        The question in a line.
    text
        What the answers lead to.
    answers
        What stands on the buttons, the likeliest first; beside them stands Cancel.

    Returns
    -------
    int or None
        Which answer; None for Cancel, Esc, or closing the window.
    """
    question = Choice(title, text, answers, parent=_window(parent))
    return question.answer if run_modal(question) else None


def run_modal(dialog: QDialog) -> bool:
    """Show a dialog, wait for its end and return whether it was accepted; it is deleted as soon as nobody uses it."""
    try:
        return bool(dialog.exec() == QDialog.DialogCode.Accepted)
    finally:
        dialog.deleteLater()


def on_screen(kind: type[Kind]) -> Kind | None:
    """Return the dialog of `kind` that is open now, or None: for tests, which click it from a timer."""
    for widget in QApplication.topLevelWidgets():
        if isinstance(widget, kind) and widget.isVisible():
            return widget
    return None


class ResearchOnly(QLabel):
    """The line that every dock carries."""

    def __init__(self, parent: QWidget | None = None, *, centred: bool = False) -> None:
        super().__init__(RESEARCH_ONLY, parent)
        if centred:
            self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setObjectName("fmseg_research_only")
        self.setWordWrap(True)
        self.setTextInteractionFlags(_SELECTABLE)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        font = self.font()
        font.setItalic(True)
        self.setFont(font)


class TextDialog(QDialog):
    """A title with a mark, text that can be selected and scrolled, and a row of buttons."""

    def __init__(self, title: str, mark: QStyle.StandardPixmap, parent: QWidget | None) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setMinimumWidth(WIDTH)
        self.setStyleSheet(_FOCUS)
        self.heading = text_label(title, bold=True)
        self.heading.setObjectName("fmseg_heading")
        icon = QLabel()
        icon.setPixmap(self.style().standardIcon(mark).pixmap(32, 32))
        icon.setFixedWidth(40)
        icon.setAlignment(Qt.AlignmentFlag.AlignTop)
        inner = QWidget()
        self.body = vbox(of=inner, margins=(0, 0, 8, 0), spacing=8)
        self.scroll, self.buttons = ScrollArea(inner), hbox()
        parts = (hbox(icon, (self.heading, 1)), (self.scroll, 1), self.buttons)
        self.column = vbox(*parts, of=self, margins=(16, 16, 16, 12), spacing=10)

    def add_buttons(self, *buttons: tuple[QPushButton, str]) -> None:
        """Add buttons with their tooltips: the first on the left, the others on the right, the last for Enter."""
        for button, tip in buttons:
            button.setToolTip(tip)
            self.buttons.addWidget(button)
        self.buttons.insertStretch(1, 1)
        buttons[-1][0].setDefault(True)
        buttons[-1][0].setFocus()

    def showEvent(self, event: QShowEvent | None) -> None:
        """Make the text as high as it needs, up to what fits on a small screen; more is scrolled."""
        super().showEvent(event)
        inner = self.scroll.widget()
        for label in inner.findChildren(QLabel):
            label.ensurePolished()  # the theme's font and padding count
        self.body.invalidate()
        height = self.body.totalHeightForWidth(self.scroll.viewport().width())
        self.scroll.setFixedHeight(min(height + 8, TEXT_HEIGHT))
        self.adjustSize()


class ErrorDialog(TextDialog):
    """An error: what happened, what to do, and for those who help details, hidden at first."""

    def __init__(self, error: BaseException, title: str, *, parent: QWidget | None = None) -> None:
        super().__init__(title, QStyle.StandardPixmap.SP_MessageBoxWarning, parent)
        self.setObjectName("fmseg_error")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        happened, to_do = sentences(error)
        self.happened, self.to_do = text_label(happened), text_label(to_do)
        self.body.addWidget(self.happened)
        if to_do:
            self.body.addWidget(text_label("What to do", bold=True))
            self.body.addWidget(self.to_do)
        self.report = "\n\n".join(part for part in (title, happened, to_do, details(error)) if part)
        self.details = QPlainTextEdit(details(error))
        self.details.setObjectName("fmseg_details")
        self.details.setReadOnly(True)
        self.details.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.details.setFixedHeight(DETAILS_HEIGHT)
        self.details.hide()
        self.column.insertWidget(2, self.details)
        tip = "Versions, and where in the program it happened."
        self.details_button = push_button("Show details", tip, auto_default=False)
        tip = "Copies this text with its details; nothing is sent. File names may stand in it."
        self.copy_button = push_button("Copy report", tip, auto_default=False)
        self.close_button = QPushButton("Close")
        for button in (self.details_button, self.copy_button):
            self.buttons.addWidget(button)
        self.buttons.addStretch(1)
        self.buttons.addWidget(self.close_button)
        self.close_button.setDefault(True)
        self.details_button.clicked.connect(self._on_details)
        self.copy_button.clicked.connect(self._on_copy)
        self.close_button.clicked.connect(self.accept)
        self.close_button.setFocus()

    def _on_details(self) -> None:
        hidden = self.details.isHidden()
        self.details.setVisible(hidden)
        self.details_button.setText("Hide details" if hidden else "Show details")
        self.adjustSize()

    def _on_copy(self) -> None:
        QApplication.clipboard().setText(self.report)
        self.copy_button.setText("Copied")


class ErrorBox(QFrame):
    """Red: what happened and what to do, to be read and copied; hidden while all is well."""

    def __init__(self, parent: QWidget | None = None, *, title: str = FAILED) -> None:
        super().__init__(parent)
        self._title = title  # of the window with the details
        self.setObjectName("error")
        self.setStyleSheet(_ERROR)
        self.error: BaseException | None = None
        self.text = paragraph(selectable=True)
        self.copy = push_button("Cop&y", "Copies the message, to be sent or searched for.")
        self.more = push_button("Details", "Opens the message in a window of its own, with what a report needs.")
        vbox(self.text, hbox(1, self.copy, self.more), of=self, margins=(6, 6, 6, 6))
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
            show_error(self, self.error, title=self._title)


class Question(TextDialog):
    """A question with two answers; accepted means yes."""

    def __init__(
        self, title: str, text: str, yes: str, no: str, *, default_no: bool = True, parent: QWidget | None = None
    ) -> None:
        super().__init__(title, QStyle.StandardPixmap.SP_MessageBoxQuestion, parent)
        self.setObjectName("fmseg_question")
        self.body.addWidget(text_label(text))
        self.yes_button, self.no_button = QPushButton(yes), QPushButton(no)
        self.yes_button.setObjectName("fmseg_yes")
        self.no_button.setObjectName("fmseg_no")
        self.buttons.addStretch(1)
        self.buttons.addWidget(self.yes_button)
        self.buttons.addWidget(self.no_button)
        self.yes_button.clicked.connect(self.accept)
        self.no_button.clicked.connect(self.reject)
        preferred = self.no_button if default_no else self.yes_button
        preferred.setDefault(True)
        preferred.setFocus()


class Choice(TextDialog):
    """A question with several answers, and Cancel."""

    def __init__(self, title: str, text: str, answers: Sequence[str], *, parent: QWidget | None = None) -> None:
        super().__init__(title, QStyle.StandardPixmap.SP_MessageBoxQuestion, parent)
        self.setObjectName("fmseg_choice")
        self.answer = 0  # the answer that was clicked, counted from 0
        self.body.addWidget(text_label(text))
        self.answer_buttons = [push_button(answer, auto_default=False) for answer in answers]
        self.cancel_button = QPushButton("Cancel")
        self.buttons.addStretch(1)
        for i, button in enumerate(self.answer_buttons):
            button.clicked.connect(partial(self._on_answer, i))
            self.buttons.addWidget(button)
        self.buttons.addWidget(self.cancel_button)
        self.cancel_button.clicked.connect(self.reject)
        self.cancel_button.setDefault(True)
        self.cancel_button.setFocus()

    def _on_answer(self, number: int, _checked: bool = False) -> None:
        self.answer = number
        self.accept()


def sentences(error: BaseException) -> tuple[str, str]:
    """Split an error into what happened and what to do."""
    text = str(error).strip()
    if not isinstance(error, FmsegError):
        return (f"{type(error).__name__}: {text}" if text else type(error).__name__), _UNEXPECTED
    first = re.match(r".+?[.!?](?=\s+[A-Z`'\"(])", text, re.DOTALL)
    if not text or first is None:
        return text or type(error).__name__, ""
    return first[0], text[first.end() :].strip()


def details(error: BaseException) -> str:
    """Return versions and the chain of causes with their places in the code, and nothing that could name a patient.

    The error's own message stands above, in the dialog; in those of its causes paths are left out.
    """
    return f"{_trace(error)}\n\n{versions()}"


def versions() -> str:
    """Return the versions that matter, a line each, without importing any of them."""
    found = [f"napari-fmseg {__version__}", f"Python {platform.python_version()}", platform.platform(terse=True)]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(found)


def _trace(error: BaseException) -> str:
    """Return the chain of causes, first cause first, without values, paths of data or names of users."""
    chain: list[tuple[BaseException, str]] = []
    link: BaseException | None = error
    joint = ""
    while link is not None and all(link is not seen for seen, _ in chain):
        chain.append((link, joint))
        if link.__cause__ is not None:
            link, joint = link.__cause__, "\nwhich led to:\n"
        else:
            link, joint = (None if link.__suppress_context__ else link.__context__), "\nand while handling it:\n"
    lines = []
    for one, after in reversed(chain):
        for frame in traceback.extract_tb(one.__traceback__):
            lines.append(f"  {_short(frame.filename)}:{frame.lineno} in {frame.name}")
        text = "(see above)" if one is error else _without_paths(str(one))
        lines.append(f"{type(one).__module__}.{type(one).__qualname__}: {text}{after}")
    return "\n".join(lines)


def _short(filename: str) -> str:
    """Return a module's path from its package on, so that no user's name is in it."""
    path = Path(filename)
    for root in sorted((Path(p) for p in sys.path if p), key=lambda p: -len(p.parts)):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.name


def _without_paths(text: str) -> str:
    return _PLAIN_PATH.sub("<path>", _QUOTED_PATH.sub("<path>", text))


def text_label(text: str, *, bold: bool = False) -> QLabel:
    """Return text that wraps and can be selected; what looks like markup stays as it is."""
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setTextInteractionFlags(_SELECTABLE)
    label.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    if bold:
        font = label.font()
        font.setBold(True)
        label.setFont(font)
    return label


def _window(parent: QWidget | None) -> QWidget | None:
    """Return the window that a dialog belongs to; its style sheet gives the dialog napari's theme."""
    return parent.window() if parent is not None else QApplication.activeWindow()
