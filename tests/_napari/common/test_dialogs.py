"""Errors and questions in real windows, with real clicks and keys."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication, QDialog, QWidget

from napari_fmseg._napari.common.dialogs import ErrorDialog, Question, ResearchOnly, ask, details, on_screen, show_error
from napari_fmseg.core.errors import UnreadableVolume

MESSAGE = "scan.nii.gz cannot be read as a NIfTI file. Expected 348 bytes of header. Copy the file again."


def raised() -> UnreadableVolume:
    try:
        try:
            open("/data/Mueller^Anna/scan.nii.gz")  # noqa: SIM115
        except OSError as cause:
            raise UnreadableVolume(MESSAGE) from cause
    except UnreadableVolume as error:
        return error


@pytest.fixture
def window(qtbot):
    widget = QWidget()
    qtbot.addWidget(widget)
    widget.show()
    return widget


def click(qtbot, button) -> None:
    assert button.isVisible()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def test_an_error_says_what_happened_and_what_to_do_and_does_not_block(qtbot, window):
    dialog = show_error(window, raised(), title="The scan could not be opened")
    qtbot.waitExposed(dialog)
    assert dialog.windowTitle() == dialog.heading.text() == "The scan could not be opened"
    assert dialog.happened.text() == "scan.nii.gz cannot be read as a NIfTI file."
    assert dialog.to_do.text() == "Expected 348 bytes of header. Copy the file again."
    assert dialog.happened.textInteractionFlags() & Qt.TextInteractionFlag.TextSelectableByMouse
    assert on_screen(ErrorDialog) is dialog
    gone = []
    dialog.destroyed.connect(lambda: gone.append(True))
    click(qtbot, dialog.close_button)
    qtbot.waitUntil(lambda: gone == [True])


def test_the_report_holds_versions_and_causes_and_no_name_from_a_path(qtbot, window):
    dialog = show_error(window, raised())
    qtbot.waitExposed(dialog)
    click(qtbot, dialog.copy_button)
    report = QApplication.clipboard().text()
    assert MESSAGE.split(". ")[0] in report
    for known in ("napari-fmseg", "napari 0", "FileNotFoundError", "UnreadableVolume", "test_dialogs.py"):
        assert known in report
    assert "Mueller" not in report
    assert str(os.path.expanduser("~/")) not in report
    click(qtbot, dialog.close_button)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("/data/Mueller Anna/scan.nii is damaged.", "<path>"),
        (r"cannot open C:\Mueller Anna\scan.nii", "cannot open <path>"),
        (
            "[Errno 2] No such file: '/data/Mueller Anna/x'; expected 1/2 of 3 mm/px",
            "No such file: <path>; expected 1/2",
        ),
        ("~/Mueller/x\nis gone", "<path>\nis gone"),
    ],
)
def test_a_cause_keeps_its_words_and_loses_its_paths(told, shown):
    try:
        raise UnreadableVolume("The scan cannot be read.") from OSError(told)
    except UnreadableVolume as error:
        text = details(error)
    assert shown in text
    assert "Mueller" not in text


def test_details_are_shown_when_asked_for_and_fit_on_a_small_screen(qtbot, window):
    dialog = show_error(window, raised())
    qtbot.waitExposed(dialog)
    assert not dialog.details.isVisible()
    before = dialog.height()
    click(qtbot, dialog.details_button)
    qtbot.waitUntil(lambda: dialog.details.isVisible() and dialog.height() > before)
    assert "FileNotFoundError" in dialog.details.toPlainText()
    assert dialog.details.isReadOnly()
    click(qtbot, dialog.details_button)
    assert not dialog.details.isVisible()
    click(qtbot, dialog.close_button)


def test_a_very_long_message_is_scrolled_and_the_window_stays_small(qtbot, window):
    dialog = show_error(window, UnreadableVolume("Too much. " + "Many words about <b>slices</b>. " * 300))
    qtbot.waitExposed(dialog)
    click(qtbot, dialog.details_button)
    qtbot.wait(50)
    assert dialog.height() <= 800
    assert dialog.width() <= 1280
    assert dialog.scroll.verticalScrollBar().maximum() > 0
    assert "<b>" in dialog.to_do.text()
    assert dialog.to_do.textFormat() == Qt.TextFormat.PlainText
    click(qtbot, dialog.close_button)


@pytest.mark.parametrize("key", [Qt.Key.Key_Escape, Qt.Key.Key_Return])
def test_an_error_closes_by_key(qtbot, window, key):
    dialog = show_error(window, ValueError("axis 7"))
    qtbot.waitExposed(dialog)
    assert dialog.happened.text() == "ValueError: axis 7"
    assert "Copy report" in dialog.to_do.text()
    with qtbot.waitSignal(dialog.finished):
        qtbot.keyClick(dialog, key)


def asked(qtbot, window, act, **options) -> bool:
    """Ask, and let `act` answer from a timer as soon as the question is there."""

    def look() -> None:
        question = on_screen(Question)
        if question is None:
            QTimer.singleShot(20, look)
        else:
            act(question)

    QTimer.singleShot(0, look)
    return ask(window, "Replace it?", "The file exists.", "Replace", "Keep", **options)


def test_a_question_gives_the_answer_that_was_clicked(qtbot, window):
    assert asked(qtbot, window, lambda q: click(qtbot, q.yes_button)) is True
    assert asked(qtbot, window, lambda q: click(qtbot, q.no_button)) is False
    assert on_screen(QDialog) is None


@pytest.mark.parametrize(
    ("key", "default_no", "answer"),
    [
        (Qt.Key.Key_Return, True, False),
        (Qt.Key.Key_Return, False, True),
        (Qt.Key.Key_Escape, True, False),
        (Qt.Key.Key_Escape, False, False),
    ],
)
def test_enter_takes_the_safe_answer_and_escape_is_always_no(qtbot, window, key, default_no, answer):
    assert asked(qtbot, window, lambda q: qtbot.keyClick(q, key), default_no=default_no) is answer


def test_the_disclaimer_is_one_line_that_every_dock_can_carry(qtbot):
    label = ResearchOnly()
    qtbot.addWidget(label)
    assert label.text() == "Research use only. Not a medical device."
