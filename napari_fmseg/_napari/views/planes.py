"""Two more planes beside napari's own canvas: the same layers, the same place, a crosshair in all three.

Why not the plugin napari-orthogonal-views (0.5, BSD-3, maintained, for napari 0.6.5 to 0.9), which was tried first: it
places its crosshair, and moves the planes by key, at slice number times spacing, without the origin of the scan. So
both are wrong for every scan whose first voxel does not lie at 0, which is nearly every scan. It tells each stroke as
new voxels of the layer (the `data` event), which the autosave and the tools of correction take for another label map,
draws the head downwards, puts napari's canvas into another place of the window, and needs OpenCV. napari itself has no
second canvas for one viewer (0.9). So this module puts napari's own `QtViewer` twice into a dock below the canvas, as
napari's example of several viewers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import QSplitter, QWidget

from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.viewer_window import camera_of, qt_viewer_of, window_of
from napari_fmseg._napari.common.widgets import NO_MARGINS, vbox
from napari_fmseg._napari.segment.scan_view import attend
from napari_fmseg._napari.views.crosshair import Crosshair
from napari_fmseg._napari.views.linked_layers import LinkedLayer, can_be_linked

__all__ = ["Plane", "Planes"]

_CLICK = 4  # pixels that the mouse may move in a click


class Plane(QWidget):
    """One further plane of a viewer.

    Parameters
    ----------
    viewer
        napari's.
    axis
        Which of its last three axes (0, 1 or 2) is sliced.
    """

    def __init__(self, viewer: Any, axis: int, parent: QWidget | None = None) -> None:
        from napari.components import ViewerModel
        from napari.qt import QtViewer

        super().__init__(parent)
        self.viewer, self.axis = viewer, axis
        self.model = ViewerModel(title=f"plane {axis}")
        self.qt_viewer = QtViewer(self.model)
        self.qt_viewer.setAcceptDrops(False)
        vbox(self.qt_viewer, of=self, margins=NO_MARGINS)
        self._links = Links(self)
        self._of_layer: dict[Any, LinkedLayer] = {}
        camera_of(self.model).orientation2d = ("up", "right")  # the patient's head, or the front of the body, is up
        attend(self.model)
        for layer in viewer.layers:
            self._add(layer)
        self.crosshair = Crosshair(self.model, self.qt_viewer)
        events = viewer.layers.events
        self._links.connect(self._on_inserted, events.inserted)
        self._links.connect(self._on_removed, events.removed)
        self._links.connect(self._on_order, events.moved, events.reordered)
        self._links.connect(self._on_active, viewer.layers.selection.events.active)
        self._links.connect(self._on_range, viewer.dims.events.range)
        self._links.connect(self._on_point, viewer.dims.events.point)
        self._links.connect(self._on_own_point, self.model.dims.events.point)
        self._links.connect(self._on_theme, viewer.events.theme)
        self._turn()
        self._on_theme()
        self._on_active()
        self._on_point()
        self.model.reset_view()

    def close_down(self) -> None:
        """Disconnect from the viewer; the plane may be deleted afterwards."""
        self._links.end()
        for link in self._of_layer.values():
            link.end()
        self._of_layer.clear()
        self.crosshair.end()
        self.qt_viewer.close()
        self.model.layers.clear()

    def copy_of(self, layer: Any) -> Any:
        """Return the layer that shows `layer` here, or None."""
        link = self._of_layer.get(layer)
        return link.copy if link is not None else None

    def _turn(self) -> None:
        """Slice the axis of this plane; the rest is shown in its order, so that z runs upwards."""
        n = self.model.dims.ndim
        if n >= 3:
            last = [n - 3 + axis for axis in (self.axis, *(a for a in range(3) if a != self.axis))]
            self.model.dims.order = (*range(n - 3), *last)

    # --- layers ---

    def _add(self, layer: Any) -> None:
        if not can_be_linked(layer):
            return
        link = self._of_layer[layer] = LinkedLayer(layer, self)
        above = [one for one in self.viewer.layers if one in self._of_layer]
        self.model.layers.insert(above.index(layer), link.copy)

    def _on_inserted(self, event: Any) -> None:
        was_empty = not self.model.layers
        self._add(event.value)
        self._turn()
        self._on_range()
        if was_empty:
            self.model.reset_view()

    def _on_removed(self, event: Any) -> None:
        link = self._of_layer.pop(event.value, None)
        if link is not None:
            link.end()
            self.model.layers.remove(link.copy)
            self._on_range()

    def _on_order(self, _event: Any = None) -> None:
        wanted = [self._of_layer[layer].copy for layer in self.viewer.layers if layer in self._of_layer]
        for to, layer in enumerate(wanted):
            now = self.model.layers.index(layer)
            if now != to:
                self.model.layers.move(now, to)

    def _on_active(self, _event: Any = None) -> None:
        self.model.layers.selection.active = self.copy_of(self.viewer.layers.selection.active)

    def _on_theme(self, _event: Any = None) -> None:
        self.model.theme = self.viewer.theme

    # --- the place ---

    def _on_range(self, _event: Any = None) -> None:
        """Count slices as the viewer does, which may leave some layers out."""
        mine, theirs = self.model.dims, self.viewer.dims
        if mine.ndim == theirs.ndim and tuple(mine.range) != tuple(theirs.range):
            mine.range = theirs.range
        self._on_point()

    def _on_point(self, _event: Any = None) -> None:
        self._move(self.viewer.dims, self.model.dims)

    def _on_own_point(self, _event: Any = None) -> None:
        self._move(self.model.dims, self.viewer.dims)

    @staticmethod
    def _move(source: Any, target: Any) -> None:
        point = tuple(source.point)
        if len(point) == target.ndim and tuple(target.point) != point:
            target.point = point


class Planes(Dock):
    """The two planes that napari's canvas does not show, side by side, and the crosshair in all three.

    Attributes
    ----------
    closed
        Signal: the dock was closed.
    """

    closed = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        splitter = QSplitter(Qt.Orientation.Horizontal)
        self.planes = [Plane(viewer, axis, splitter) for axis in self._other_axes()]
        for plane in self.planes:
            splitter.addWidget(plane)
        vbox(splitter, of=self, margins=NO_MARGINS)
        self._main_crosshair = Crosshair(viewer, qt_viewer_of(viewer))
        self._callbacks = [(model, _moves_on_click(viewer)) for model in self._models()]
        for model, callback in self._callbacks:
            model.mouse_drag_callbacks.append(callback)
        window = window_of(viewer)
        if window is not None:
            window.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """End with the window: when it closes, it hides first, while its canvases can still be let go."""
        if event is not None and event.type() == QEvent.Type.Hide and not event.spontaneous():
            self.close_down()
        return bool(super().eventFilter(watched, event))

    def _other_axes(self) -> list[int]:
        dims = self.viewer.dims
        shown = dims.order[-3] - (dims.ndim - 3) if dims.ndim >= 3 else 0
        return [axis for axis in (1, 2, 0) if axis != shown]

    def _models(self) -> list[Any]:
        return [self.viewer, *(plane.model for plane in self.planes)]

    def show_crosshair(self, visible: bool) -> None:
        """Show or hide the lines in all planes."""
        for crosshair in (self._main_crosshair, *(plane.crosshair for plane in self.planes)):
            crosshair.show(visible)

    def move_to_mouse(self) -> bool:
        """Move all planes to the place under the mouse; return whether it is over a canvas."""
        for model, canvas in self._canvases():
            if canvas.underMouse():
                move_to(self.viewer, model.cursor.position)
                return True
        return False

    def _canvases(self) -> Iterator[tuple[Any, QWidget]]:
        yield self.viewer, qt_viewer_of(self.viewer).canvas.native
        for plane in self.planes:
            yield plane.model, plane.qt_viewer.canvas.native

    def reset_view(self) -> None:
        """Show all of the scan in every plane."""
        for model in self._models():
            model.reset_view()

    def close_down(self) -> None:
        """Disconnect from the viewer; the planes may be deleted afterwards."""
        for model, callback in self._callbacks:
            if callback in model.mouse_drag_callbacks:
                model.mouse_drag_callbacks.remove(callback)
        self._callbacks.clear()
        if self.planes:
            self._main_crosshair.end()
            for plane in self.planes:
                plane.close_down()
            self.planes.clear()
            self.closed.emit()


def move_to(viewer: Any, position: Any) -> None:
    """Move a viewer to a place in its world, as far as its sliders go."""
    dims = viewer.dims
    if len(position) != dims.ndim or dims.ndim < 3:
        return
    axes = range(dims.ndim - 3, dims.ndim)
    inside = [min(max(float(position[axis]), dims.range[axis].start), dims.range[axis].stop) for axis in axes]
    dims.set_point(tuple(axes), inside)


def _moves_on_click(viewer: Any) -> Any:
    """Return a callback for the mouse in a canvas: a click moves all planes, while no tool is chosen that needs it."""

    def on_press(model: Any, event: Any) -> Iterator[None]:
        if event.type != "mouse_press" or event.button != 1 or event.modifiers or model.dims.ndisplay != 2:
            return
        if str(getattr(model.layers.selection.active, "mode", "pan_zoom")) != "pan_zoom":
            return
        start, position = tuple(event.pos), tuple(event.position)
        yield
        while event.type == "mouse_move":
            if max(abs(now - then) for now, then in zip(event.pos, start, strict=True)) > _CLICK:
                return
            yield
        move_to(viewer, position)

    return on_press
