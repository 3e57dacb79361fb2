"""A real window with a scan, its labels and the Correct dock, and a hand that moves the mouse over the canvas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QCheckBox, QWidget

from napari_fmseg._napari.common.preferences import Preferences
from napari_fmseg._napari.correct.dock import CorrectDock
from napari_fmseg._napari.layers import image_layers, labels_layer
from napari_fmseg._napari.recovery import autosave
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

SHAPE = (21, 40, 48)
SPACING = (3.0, 1.0, 1.5)
NAMES = {1: "liver", 2: "kidney", 3: "tumour"}
LEFT = Qt.MouseButton.LeftButton


def tilt(degrees: float) -> np.ndarray:
    """A rotation about two axes: the columns are where the axes of an oblique scan run."""
    a, b = np.deg2rad((degrees, degrees / 2))
    about_x = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_z = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.asarray(about_x @ about_z)


def ball(centre: Sequence[float], radius_mm: float, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Where a ball lies, in mm."""
    places = np.ogrid[tuple(slice(0, n) for n in shape)]
    squares = sum(((p - c) * mm) ** 2 for p, c, mm in zip(places, centre, SPACING, strict=True))
    return np.asarray(squares <= radius_mm**2)


@dataclass(eq=False)
class Scene:
    """The window, and a hand at its mouse and keys."""

    viewer: Any
    image: Any
    layer: Any
    dock: CorrectDock
    qtbot: Any

    @property
    def data(self) -> np.ndarray:
        return self.layer.data

    @property
    def canvas(self) -> QWidget:
        return self.viewer.window._qt_viewer.canvas.native

    def show(self, index: int, axis: int = 0) -> None:
        """Show a slice, the other axes in the picture, fitted to the window."""
        rest = [k for k in range(3) if k != axis]
        if tuple(self.viewer.dims.order) != (axis, *rest):
            self.viewer.dims.order = (axis, *rest)
            self.viewer.reset_view()
        world = self.layer.data_to_world([index if k == axis else n // 2 for k, n in enumerate(self.data.shape)])
        self.viewer.dims.set_point(axis, world[axis])
        self.qtbot.wait(20)

    def pixel(self, voxel: Sequence[float]) -> QPoint:
        """Where a voxel of the shown slice is on the canvas."""
        world = self.layer.data_to_world(voxel)
        row, column = (world[axis] for axis in self.viewer.dims.displayed)
        canvas = self.viewer.window._qt_viewer.canvas
        view = canvas.view
        x, y = (view.transform * view.scene.transform).map([column, row])[:2]
        return QPoint(round(x), round(y))

    def click(self, voxel: Sequence[float]) -> None:
        """Click on a voxel in the canvas."""
        self._move(voxel)
        QTest.mouseClick(self.canvas, LEFT, Qt.KeyboardModifier.NoModifier, self.pixel(voxel))
        self.qtbot.wait(20)

    def drag(self, *voxels: Sequence[float]) -> None:
        """Press the button on the first voxel, move over the others and let go on the last."""
        none = Qt.KeyboardModifier.NoModifier
        self._move(voxels[0])
        QTest.mousePress(self.canvas, LEFT, none, self.pixel(voxels[0]))
        for voxel in voxels[1:]:
            self._move(voxel)
        QTest.mouseRelease(self.canvas, LEFT, none, self.pixel(voxels[-1]))
        self.qtbot.wait(20)

    def _move(self, voxel: Sequence[float]) -> None:
        QTest.mouseMove(self.canvas, self.pixel(voxel))
        self.qtbot.wait(10)

    hover = _move

    def brush(self, value: int, size: int = 1, mode: str = "paint") -> None:
        """Select napari's brush, eraser or bucket."""
        self.layer.selected_label = value
        self.layer.brush_size = size
        self.layer.mode = mode

    def press(self, button: Any) -> None:
        """Click on a button of the dock, or on the square of a box."""
        assert button.isEnabled(), button.toolTip()
        at = QPoint(8, button.height() // 2) if isinstance(button, QCheckBox) else button.rect().center()
        QTest.mouseClick(button, LEFT, Qt.KeyboardModifier.NoModifier, at)

    def key(self, key: Any, *modifiers: Any) -> None:
        """Press a key while the canvas has the focus."""
        self.canvas.setFocus()
        held = Qt.KeyboardModifier.NoModifier
        for modifier in modifiers:
            held |= modifier
        QTest.keyClick(self.canvas, key, held)
        self.qtbot.wait(20)

    def undo(self) -> None:
        self.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)

    def redo(self) -> None:
        self.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier)

    def wait_for_preview(self) -> None:
        """Wait until the whole is computed."""
        session, error = self.dock.session, self.dock.error

        def is_over() -> bool:
            done = session.draft is not None and session.draft.is_whole and not session.running
            return done or error.isVisible()

        self.wait_until(is_over)
        assert session.draft is not None, error.text.text()

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait long enough for a busy computer."""
        self.qtbot.waitUntil(done, timeout=60_000)

    def open(self, title: str) -> None:
        """Open a section of the dock."""
        from napari_fmseg._napari.common.widgets import Collapsible

        for section in self.dock.findChildren(Collapsible):
            if title in section.button.text() and not section.button.isChecked():
                self.press(section.button)
        self.qtbot.wait(20)


@pytest.fixture(scope="module")
def window(qapp: Any) -> Iterator[tuple[Any, CorrectDock]]:
    """Yield one window with the dock, for all tests of a module: a window takes longer than a test."""
    import napari

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autosave, "load", lambda: Preferences(autosave=False))
        patch.setattr(autosave.Recovery, "offer", lambda self: None)
        viewer = napari.Viewer(show=True)
        main = viewer.window._qt_window
        main.resize(1280, 800)
        dock = CorrectDock(viewer)
        viewer.window.add_dock_widget(dock, name="Correct")
        yield viewer, dock
        for layer in dock._recovery.unsaved:
            dock._recovery.mark_saved(layer)
        dock.close_down()
        viewer.close()
        for _ in range(3):
            qapp.processEvents()


@pytest.fixture
def make_scene(window: tuple[Any, CorrectDock], qtbot: Any) -> Iterator[Callable[..., Scene]]:
    """Yield a function that shows labels in the window; `turn` is the scan's direction."""
    viewer, dock = window

    def make(labels: np.ndarray, image: np.ndarray | None = None, turn: np.ndarray | None = None) -> Scene:
        before = list(viewer.layers)
        grid = Geometry.from_spacing(labels.shape, SPACING, (5.0, -20.0, 30.0), np.eye(3) if turn is None else turn)
        values = np.where(labels > 0, 100, 0).astype(np.int16) if image is None else image
        [(data, options, _)] = image_layers(Volume(values, grid), "scan")
        scan = viewer.add_image(data, **options)
        data, options, _ = labels_layer(LabelMap(labels, grid, {}, NAMES), "mask")
        layer = viewer.add_labels(np.array(data), **options)
        for old in before:  # never all: the welcome picture in between would be drawn for nothing
            if old in viewer.layers:
                viewer.layers.remove(old)
        viewer.dims.order = (0, 1, 2)
        with qtbot.waitActive(viewer.window._qt_window, timeout=60_000):
            viewer.window._qt_window.activateWindow()
        viewer.reset_view()
        qtbot.wait(50)
        return Scene(viewer, scan, layer, dock, qtbot)

    yield make
    dock.preview.cancelled.emit()
    dock.cut.close()
    dock.at_once.setChecked(False)
    dock.brush.limit.setChecked(False)
    dock.brush.only.setChecked(False)
    dock.error.tell(None)
