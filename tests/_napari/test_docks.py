"""The docks open from napari's menu, as napari itself makes them, and end with it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("napari._qt")

from npe2 import PluginManager, PluginManifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def our_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    plugins = PluginManager.instance()
    if "napari-fmseg" not in {manifest.name for manifest in plugins.iter_manifests()}:
        plugins.register(PluginManifest.from_file(ROOT / "napari.yaml"))


@pytest.mark.parametrize("name", ["Segment", "Export", "Doctor"])
def test_a_dock_opens_from_the_menu_and_closes_with_the_window(make_napari_viewer, qtbot, name: str) -> None:
    viewer = make_napari_viewer(show=True)
    dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
    qtbot.wait(50)
    assert widget.isVisible()
    dock.close()
    qtbot.wait(50)
