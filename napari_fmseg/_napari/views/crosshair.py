"""Two thin lines through the place that all planes show, drawn in one canvas."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_fmseg._napari.common.viewer_window import scene_of

__all__ = ["Crosshair"]

COLOR = (0.25, 0.9, 1.0, 0.9)
_FAR = 1e6  # beyond any scan, in the units of the viewer
_ON_TOP = 1_000_000


class Crosshair:
    """The lines of one canvas; they follow the sliders of its viewer.

    Parameters
    ----------
    viewer
        A napari viewer or `ViewerModel` of which only slices are shown.
    qt_viewer
        Its canvas.
    """

    def __init__(self, viewer: Any, qt_viewer: Any) -> None:
        from vispy.scene.visuals import Line

        self._viewer = viewer
        self._line = Line(pos=np.zeros((4, 2), np.float32), connect="segments", color=COLOR, width=1, method="gl")
        self._line.set_gl_state("translucent", depth_test=False)
        self._line.order = _ON_TOP
        self._line.parent = scene_of(qt_viewer)
        self.visible = True
        for emitter in self._emitters():
            emitter.connect(self.draw)
        self.draw()

    @property
    def position(self) -> tuple[float, float]:
        """Where the lines cross, in the scene: along the screen's x and y."""
        x, y = (self._viewer.dims.point[axis] for axis in reversed(self._viewer.dims.displayed[-2:]))
        return float(x), float(y)

    def show(self, visible: bool) -> None:
        """Show or hide the lines."""
        self.visible = visible
        self.draw()

    def draw(self, _event: Any = None) -> None:
        """Move the lines to where the viewer is."""
        dims = self._viewer.dims
        self._line.visible = self.visible and dims.ndisplay == 2 and dims.ndim >= 3
        if self._line.visible:
            x, y = self.position
            self._line.set_data(pos=np.array([[x, -_FAR], [x, _FAR], [-_FAR, y], [_FAR, y]], np.float32))

    def end(self) -> None:
        """Remove the lines."""
        for emitter in self._emitters():
            emitter.disconnect(self.draw)
        self._line.parent = None

    def _emitters(self) -> tuple[Any, ...]:
        events = self._viewer.dims.events
        return events.point, events.order, events.ndisplay
