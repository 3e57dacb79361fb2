"""The small widgets of the docks."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pytestqt")
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_fmseg._napari.common.widgets import ScrollArea


def test_a_scroll_area_asks_for_the_width_of_what_it_holds_and_cuts_nothing(qtbot: Any) -> None:
    inside, window, wide = QWidget(), QWidget(), QLabel("options")
    wide.setMinimumSize(700, 900)
    wide.hide()
    QVBoxLayout(inside).addWidget(wide)
    area = ScrollArea(inside)
    layout = QVBoxLayout(window)
    layout.addWidget(area)
    qtbot.addWidget(window)
    window.resize(200, 150)
    window.show()
    assert window.width() < 700
    wide.show()
    qtbot.waitUntil(lambda: window.minimumSizeHint().width() > 700)
    qtbot.waitUntil(lambda: 700 <= inside.width() <= area.viewport().width())
    assert window.height() < 900
