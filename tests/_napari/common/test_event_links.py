"""What ends with a widget ends also where the garbage collector is what ends the widget."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

pytest.importorskip("pytestqt")
pytest.importorskip("napari")
from napari.utils.events import EventEmitter
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.event_links import Links, when_destroyed


class Owner(QWidget):
    """A widget in a circle of references, with a child that listens."""

    def __init__(self, emitter: Any, ended: list[int]) -> None:
        super().__init__()
        self.circle = [self, lambda: self]
        self.child = QObject(self)
        self.links = Links(self.child)
        self.links.connect(self.notice, emitter)
        when_destroyed(self, lambda: ended.append(1))

    def notice(self, _event: Any = None) -> None:
        """Do nothing."""


def test_a_widget_that_the_garbage_collector_ends_ends_its_connections_once_and_nothing_crashes(qtbot: Any) -> None:
    emitter, ended = EventEmitter(type_name="moved"), []
    for _ in range(50):
        Owner(emitter, ended)
    gc.collect()
    emitter()
    assert (len(ended), len(emitter.callbacks)) == (50, 0)


def test_a_widget_that_qt_deletes_ends_once_although_python_still_has_it(qtbot: Any) -> None:
    emitter, ended = EventEmitter(type_name="moved"), []
    owner = Owner(emitter, ended)
    owner.deleteLater()
    qtbot.waitUntil(lambda: ended == [1])
    known = weakref.ref(owner)
    del owner
    gc.collect()
    assert (known(), ended) == (None, [1])


def test_a_dock_that_only_the_garbage_collector_ends_does_not_crash_napari(make_napari_viewer: Any, qtbot: Any) -> None:
    viewer = make_napari_viewer(show=True)
    for name in ("Segment", "Correct", "Teach", "Export", "Pretrain", "View", "nnInteractive", "Doctor"):
        gc.collect()
        gc.disable()
        try:
            _, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
            qtbot.wait(50)
            viewer.window.remove_dock_widget(widget)
            del widget, _
            qtbot.wait(50)
        finally:
            gc.enable()
        gc.collect()
        qtbot.wait(20)
