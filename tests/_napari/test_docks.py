"""The docks open from napari's menu, as napari itself makes them, and end with it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari._qt")
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractButton, QDockWidget, QLabel, QPushButton, QTabBar, QTabWidget, QWidget

from napari_fmseg._napari.choosers.image_chooser import ImageChooser
from napari_fmseg._napari.common.widgets import Collapsible
from napari_fmseg.core.processes import environment

WHY = re.compile(r"first|\bno\b|\bonly\b|^nothing is|is going on|^it is checking", re.IGNORECASE)
NAMES = ("Segment", "Correct", "Teach", "Export", "Pretrain", "View", "nnInteractive", "Doctor")


@pytest.mark.parametrize("name", NAMES)
def test_a_dock_opens_from_the_menu_and_closes_with_the_window(make_napari_viewer, qtbot, name: str) -> None:
    viewer = make_napari_viewer(show=True)
    dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
    qtbot.wait(50)
    assert widget.isVisible()
    dock.close()
    qtbot.wait(50)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_disabled_before_anything_is_open_states_why(make_napari_viewer, qtbot, name: str) -> None:
    viewer = make_napari_viewer(show=True)
    _, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
    qtbot.waitUntil(widget.isVisible)
    for button in widget.findChildren(QPushButton):
        if button.testAttribute(Qt.WidgetAttribute.WA_ForceDisabled):  # itself, not the page that it lies on
            assert WHY.search(button.toolTip()), (button.text(), button.toolTip())
    for bar in widget.findChildren(QTabBar):
        for i in range(bar.count()):
            assert bar.isTabEnabled(i) or WHY.search(bar.tabToolTip(i)), bar.tabText(i)


@pytest.mark.parametrize("name", NAMES)
def test_no_key_of_a_dock_means_two_things_or_opens_a_menu_of_napari(make_napari_viewer, qtbot, name: str) -> None:
    viewer = make_napari_viewer(show=True)
    _, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
    for section in widget.findChildren(Collapsible):
        section.button.setChecked(True)
    menus = [action.text() for action in viewer.window._qt_window.menuBar().actions()]
    (pages,) = widget.findChildren(QTabWidget) or (None,)
    for page in range(pages.count() if pages is not None else 1):
        if pages is not None:
            pages.setCurrentIndex(page)
        qtbot.wait(20)
        parts = [part for part in widget.findChildren(QWidget) if part.isVisibleTo(widget)]
        texts = [part.text() for part in parts if isinstance(part, QAbstractButton)]
        texts += [part.text() for part in parts if isinstance(part, QLabel) and part.buddy() is not None]
        keys = [match.group(1).upper() for text in (*menus, *texts) if (match := re.search(r"&(\w)", text))]
        assert len(keys) == len(set(keys)), sorted((*menus, *texts))


@pytest.mark.parametrize("name", ["Segment", "Teach", "nnInteractive"])
def test_a_dock_opens_with_the_image_that_is_chosen_in_the_layer_list(make_napari_viewer, qtbot, name: str) -> None:
    viewer = make_napari_viewer(show=True)
    for image in ("first", "second", "third"):
        viewer.add_image(np.zeros((4, 5, 6)), name=image)
    viewer.layers.selection.active = viewer.layers["second"]
    _, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
    qtbot.waitUntil(widget.isVisible)
    (chooser, *_) = widget.findChildren(ImageChooser)
    assert chooser.case is not None
    assert chooser.case.name == "second"


def test_opening_the_docks_loads_no_torch(tmp_path: Path) -> None:
    code = f"""
        import sys
        import napari
        from qtpy.QtWidgets import QApplication
        viewer = napari.Viewer(show=False)
        for name in {NAMES!r}:
            viewer.window.add_plugin_dock_widget("napari-fmseg", name)
            QApplication.processEvents()
            assert "torch" not in sys.modules, name
        viewer.close()
        QApplication.processEvents()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=150,
        env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_our_docks_share_one_place_as_tabs_and_keep_their_buttons_in_sight(make_napari_viewer, qtbot) -> None:
    viewer = make_napari_viewer(show=True)
    window = viewer.window._qt_window
    window.resize(1280, 760)
    other, _ = viewer.window.add_dock_widget(QPushButton("of another plugin"), area="right"), None
    docks: dict[str, QDockWidget] = {}
    widgets: dict[str, QWidget] = {}
    for name in NAMES:
        docks[name], widgets[name] = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
        qtbot.waitUntil(lambda name=name: not widgets[name].visibleRegion().isEmpty())  # the newest lies on top
    assert set(window.tabifiedDockWidgets(docks["Segment"])) == set(docks.values()) - {docks["Segment"]}
    assert window.tabifiedDockWidgets(other) == []
    for name, button in (
        ("Segment", "bar.run_button"),
        ("Correct", "fill"),
        ("Export", "export_button"),
        ("Pretrain", "start_button"),
    ):
        docks[name].raise_()
        part = widgets[name]
        for step in button.split("."):
            part = getattr(part, step)
        qtbot.waitUntil(lambda part=part: not part.visibleRegion().isEmpty())
        assert part.height() >= part.minimumSizeHint().height()
    docks["Export"].close()
    assert set(window.tabifiedDockWidgets(docks["Segment"])) >= {docks["Teach"], docks["Pretrain"]}


def test_a_dock_that_the_user_has_put_elsewhere_stays_there(make_napari_viewer, qtbot) -> None:
    viewer = make_napari_viewer(show=True)
    first, _ = viewer.window.add_plugin_dock_widget("napari-fmseg", "Export")
    first.setFloating(True)
    second, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", "Doctor")
    qtbot.waitUntil(widget.isVisible)
    qtbot.wait(50)
    assert viewer.window._qt_window.tabifiedDockWidgets(second) == []
    assert first.isFloating()
