"""Keys that work in the whole window and are taken from nobody, and the plugin's entries in napari's menus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from qtpy.QtCore import Qt
from qtpy.QtGui import QShortcut
from qtpy.QtWidgets import QPushButton

import napari_fmseg
from napari_fmseg._napari.common.shortcuts import KEYS, bind, is_key_in_use
from napari_fmseg._napari.common.tooltips import EXPORT, SEGMENT
from napari_fmseg._napari.doctor_dock import DoctorDock
from napari_fmseg._napari.export.dock import ExportDock
from napari_fmseg._napari.segment.dock import SegmentDock

MANIFEST = Path(napari_fmseg.__file__).parent / "napari.yaml"
CTRL_ALT = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier


@pytest.fixture
def shown(make_napari_viewer, qtbot):
    """A window with a dock whose button counts its clicks."""
    viewer = make_napari_viewer(show=True)
    button = QPushButton("Run")
    clicks = []
    button.clicked.connect(lambda: clicks.append(1))
    viewer.window.add_dock_widget(button, name="dock")
    return viewer, button, clicks


def test_no_key_of_ours_is_naparis(shown):
    viewer, _, _ = shown
    assert [key for key in KEYS.values() if is_key_in_use(viewer, key)] == []
    assert is_key_in_use(viewer, "Ctrl+Alt+P")  # napari's own


def test_a_key_works_while_another_widget_has_the_focus_and_not_for_a_disabled_button(shown, qtbot):
    viewer, button, clicks = shown
    assert bind(button, viewer, "run", button.click) is not None
    window = button.window()
    with qtbot.waitActive(window):
        window.activateWindow()
    window.setFocus()
    qtbot.keyClick(window, Qt.Key.Key_R, CTRL_ALT)
    qtbot.waitUntil(lambda: clicks == [1])
    button.setEnabled(False)
    qtbot.keyClick(window, Qt.Key.Key_R, CTRL_ALT)
    qtbot.wait(50)
    assert clicks == [1]


def test_a_key_that_somebody_else_has_is_left_to_him(shown):
    viewer, button, _ = shown
    viewer.bind_key("Control-Alt-R", lambda _: None)
    assert bind(button, viewer, "run", button.click) is None
    assert bind(button, viewer, "cancel", button.click) is not None
    assert bind(button, viewer, "cancel", button.click) is None


def test_the_segment_dock_has_its_keys_and_a_closed_one_gives_them_free(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    for _ in range(2):
        dock = SegmentDock(viewer)
        area = viewer.window.add_dock_widget(dock, name="Segment")
        qtbot.waitUntil(dock.isVisible)
        for name, tip in {"run": SEGMENT.run, "cancel": SEGMENT.cancel, "stages": SEGMENT.show_all,
                          "3-D": SEGMENT.three_d}.items():  # fmt: skip
            assert dock.findChild(QShortcut, f"fmseg_{name}").key().toString() == KEYS[name]
            assert KEYS[name] in tip
        area.close()
        qtbot.wait(50)


def test_the_export_dock_has_its_key(make_napari_viewer):
    viewer = make_napari_viewer()
    dock = ExportDock(viewer)
    viewer.window.add_dock_widget(dock, name="Export")
    assert dock.findChild(QShortcut, "fmseg_export").key().toString() == KEYS["export"]
    assert KEYS["export"] in EXPORT.export


def test_the_doctor_opens_from_naparis_plugins(npe2pm, make_napari_viewer, qtbot):
    npe2pm.register(str(MANIFEST))
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Doctor")
    assert isinstance(dock, DoctorDock)
    qtbot.waitUntil(dock.again_button.isEnabled, timeout=60_000)
    assert dock.findings
