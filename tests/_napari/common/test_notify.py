"""The end of a training is told while another window is used, without a sound, and not to those who do not want it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pytestqt")
pytest.importorskip("napari")
from qtpy.QtWidgets import QApplication, QSystemTrayIcon, QWidget

from napari_fmseg._napari.common import notify as notify_module
from napari_fmseg._napari.common.notify import notify
from napari_fmseg._napari.common.preferences import Preferences


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the desktop is asked to show: the machine of a test has none."""
    calls: list[Any] = []
    monkeypatch.setattr(QApplication, "alert", lambda window, *_: calls.append(("alert", window)))
    monkeypatch.setattr(QSystemTrayIcon, "isSystemTrayAvailable", lambda: True)
    monkeypatch.setattr(QSystemTrayIcon, "supportsMessages", lambda: True)
    monkeypatch.setattr(QSystemTrayIcon, "showMessage", lambda _self, *text: calls.append(text[:2]))
    return calls


def test_a_window_that_is_not_in_use_is_marked_and_a_message_is_shown(qtbot: Any, told: list[Any]) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    assert notify(window, "Training is done", "Dice 0.91")
    assert told == [("alert", window), ("Training is done", "Dice 0.91")]
    notify(window, "Training is done", "again")
    assert len(window.findChildren(QSystemTrayIcon)) <= 2  # the one before goes


def test_nothing_is_told_to_somebody_who_looks_at_the_window(qtbot: Any, told: list[Any]) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    with qtbot.waitActive(window):
        window.show()
        window.activateWindow()
    assert not notify(window, "Training is done", "")
    assert told == []


def test_nothing_is_told_to_somebody_who_does_not_want_it(
    qtbot: Any, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_module, "load", lambda: Preferences(notify=False))
    window = QWidget()
    qtbot.addWidget(window)
    assert not notify(window, "Training is done", "")
    assert told == []
