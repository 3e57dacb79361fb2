"""The docks open from napari's menu, as napari itself makes them, and end with it."""

from __future__ import annotations

import pytest

pytest.importorskip("napari._qt")


@pytest.mark.parametrize("name", ["Segment", "Export", "Doctor"])
def test_a_dock_opens_from_the_menu_and_closes_with_the_window(make_napari_viewer, qtbot, name: str) -> None:
    viewer = make_napari_viewer(show=True)
    dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
    qtbot.wait(50)
    assert widget.isVisible()
    dock.close()
    qtbot.wait(50)
