"""What all tests of the window need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

npe2 = pytest.importorskip("npe2")

MANIFEST = Path(__file__).parents[2] / "napari.yaml"


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the plugin known where it runs from the checkout without being installed, and give it a home of its own."""
    manager = npe2.PluginManager.instance()
    if "napari-fmseg" not in manager:
        manager.discover()
    if "napari-fmseg" not in manager:
        manager.register(npe2.PluginManifest.from_file(MANIFEST))
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))


@pytest.fixture
def drop() -> Callable[[Any, Path], None]:
    """Return a function that drops a file or folder on a widget, which must accept it."""
    from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
    from qtpy.QtGui import QDragEnterEvent, QDropEvent
    from qtpy.QtWidgets import QApplication

    def dropped(target: Any, path: Path) -> None:
        mime = QMimeData()
        mime.setUrls([QUrl.fromLocalFile(str(path))])
        rest = Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        for event in (QDragEnterEvent(QPoint(20, 20), *rest), QDropEvent(QPointF(20, 20), *rest)):
            QApplication.sendEvent(target, event)
            assert event.isAccepted()

    return dropped


@pytest.fixture
def open_paths() -> Callable[..., list[Any]]:
    """Return a function that opens files in a viewer and waits for their layers; the window stays alive meanwhile."""
    from qtpy.QtCore import QEventLoop

    from napari_fmseg._napari.common.viewer_window import window_of
    from napari_fmseg._napari.opening.open_files import Opening, tell

    def open_and_wait(viewer: Any, paths: list[str], on_error: Callable[[Any], None] | None = None) -> list[Any]:
        opening, window, loop = Opening(viewer, paths), window_of(viewer), QEventLoop()
        opening.failed.connect(on_error or (lambda error: tell(error, window)))
        opening.finished.connect(loop.quit)
        layers = opening.layers
        opening.start()
        if opening.running:
            loop.exec()
        return layers

    return open_and_wait


@pytest.hookimpl(tryfirst=True)
@pytest.fixture
def make_docks(make_napari_viewer: Any) -> Iterator[Callable[[], tuple[Any, Any]]]:
    """Yield a function that opens a window with both docks; pytest keeps what a fixture gives for too long."""
    from napari_fmseg._napari.export.dock import ExportDock
    from napari_fmseg._napari.segment.dock import SegmentDock

    sessions: list[Any] = []

    def made() -> tuple[Any, Any]:
        viewer = make_napari_viewer(show=True)
        docks = SegmentDock(viewer), ExportDock(viewer)
        for dock in docks:
            viewer.window.add_dock_widget(dock, name=type(dock).__name__)
        sessions.append(docks[0].session)
        return docks

    yield made
    while sessions:
        sessions.pop().close()


def pytest_runtest_teardown() -> None:
    """End what still runs in threads: while it runs nothing is collected, and napari would take that for a leak."""
    worker = sys.modules.get("napari_fmseg._napari.common.job")
    if worker is not None:
        assert worker.close_all_jobs(10)
