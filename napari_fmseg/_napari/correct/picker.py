"""A click in the picture that is meant for a tool, and not for the brush."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, Signal

__all__ = ["Picker"]


class Picker(QObject):
    """Hands the next click in the canvas to whoever waits for it; no layer is painted on meanwhile.

    Attributes
    ----------
    waiting
        Signal with what the user is to click on; "" when nobody waits any more.
    """

    waiting = Signal(str)

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layer: Any = None
        self._mode = ""
        self._use: Callable[[Any], None] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the next click is a tool's."""
        return self._use is not None

    def wait(self, what: str, use: Callable[[Any], None]) -> None:
        """Call `use` with the place of the next click in the viewer's world; `what` says what to click on."""
        self.stop()
        layer = self._viewer.layers.selection.active  # the one that a click would paint on
        self._use = use
        if layer is not None:
            self._layer, self._mode = layer, str(layer.mode)
            layer.mode = "pan_zoom"
        self._viewer.mouse_drag_callbacks.append(self._on_press)
        self.waiting.emit(what)

    def stop(self) -> None:
        """Wait no longer; the layer's brush is as before."""
        if self._use is None:
            return
        self._use = None
        if self._on_press in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.remove(self._on_press)
        if self._layer is not None and self._layer in self._viewer.layers and str(self._layer.mode) == "pan_zoom":
            self._layer.mode = self._mode
        self._layer = None
        self.waiting.emit("")

    def _on_press(self, _viewer: Any, event: Any) -> Any:
        """Use a click; a drag moves the picture as always."""
        dragged = False
        yield
        while event.type == "mouse_move":
            dragged = True
            yield
        if self._use is not None and not dragged:
            use, position = self._use, tuple(event.position)
            self.stop()
            use(position)
