"""A layer that is shown in a second canvas: the same voxels, the same history, the same look, painted on in either.

napari draws a layer in one canvas only, so a second canvas has a layer of its own on the same array. What is painted
in one is redrawn in the other, and told as painted on the first layer, where everything else listens: the autosave, the
class table, the tools of correction. Undo and redo take from one history.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import QObject, QTimer

from napari_fmseg._napari.common.viewer_window import history_of, share_history
from napari_fmseg._napari.correct.tracking.guard import share_rules

__all__ = ["LinkedLayer", "can_be_linked"]

_PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")
_LOOK = ("visible", "opacity", "blending", "colormap", "name")
_IMAGE = ("gamma", "interpolation2d", "contrast_limits")
_LABELS = ("contour", "features", "show_selected_label")
_TOOLS = ("selected_label", "brush_size", "n_edit_dimensions", "preserve_labels", "contiguous", "mode")
_BOTH_WAYS = frozenset({*_TOOLS, "contrast_limits", "gamma", "opacity"})


def can_be_linked(layer: Any) -> bool:
    """Return whether a layer is shown in the other planes: images and labels with three axes or more."""
    return layer._type_string in ("image", "labels") and layer.ndim >= 3 and not getattr(layer, "rgb", False)


class LinkedLayer(QObject):
    """The copy of one layer.

    Parameters
    ----------
    layer
        Of the viewer.
    parent
        With it the link ends.

    Attributes
    ----------
    copy
        The layer for the other canvas.
    """

    def __init__(self, layer: Any, parent: QObject) -> None:
        from napari.layers import Layer

        super().__init__(parent)
        self.layer = layer
        self.copy = Layer.create(*layer.as_layer_data_tuple())
        self._connections: list[tuple[Any, Callable[..., None]]] = []
        self._is_labels = layer._type_string == "labels"
        self._heights = history_of(layer)
        self._is_syncing = False
        self._stale: list[Any] = []
        self._redraw = QTimer(self, singleShot=True, interval=0)
        self._redraw.timeout.connect(self._on_redraw)
        kinds = (*_LABELS, *_TOOLS) if self._is_labels else _IMAGE
        for name in (*_PLACE, *_LOOK, *kinds):
            self._link(name, layer, self.copy)
            if name in _BOTH_WAYS:
                self._link(name, self.copy, layer)
            if name != "visible":
                self._set(name, layer, self.copy)
        self._set("visible", layer, self.copy)
        self._connect(layer.events.data, self._on_data)
        if self._is_labels:
            share_history(layer, self.copy)
            share_rules(layer, self.copy)
            for one, other in ((layer, self.copy), (self.copy, layer)):
                self._connect(one.events.labels_update, partial(self._on_stroke, other))
                self._connect(one.events.set_data, partial(self._on_drawn, other))
            self._connect(layer.events.paint, self._on_painted)
            self._connect(self.copy.events.paint, self._on_painted_there)

    def end(self) -> None:
        """Disconnect from both layers; again does no harm."""
        self._redraw.stop()
        for emitter, slot in self._connections:
            emitter.disconnect(slot)
        self._connections.clear()

    def _connect(self, emitter: Any, slot: Callable[..., None]) -> None:
        emitter.connect(slot)
        self._connections.append((emitter, slot))

    # --- the look ---

    def _link(self, name: str, source: Any, target: Any) -> None:
        if name in source.events:
            self._connect(getattr(source.events, name), partial(self._on_property, name, source, target))

    def _on_property(self, name: str, source: Any, target: Any, _event: Any = None) -> None:
        if not self._is_syncing:
            self._set(name, source, target)

    def _set(self, name: str, source: Any, target: Any) -> None:
        """Set a property of one layer to that of the other, unless it is so already."""
        if not hasattr(source, name):
            return
        value = getattr(source, name)
        if name in ("selected_label", "brush_size", "mode", "visible", "opacity", "name", "n_edit_dimensions") and (
            getattr(target, name) == value
        ):
            return
        self._is_syncing = True
        try:
            setattr(target, name, value)
        finally:
            self._is_syncing = False

    # --- the voxels ---

    def _on_data(self, _event: Any = None) -> None:
        """Follow to another array."""
        if self.copy.data is not self.layer.data:
            self.copy.data = self.layer.data
        else:
            self.copy.refresh(extent=False)
        if self._is_labels:
            share_history(self.layer, self.copy)

    def _on_stroke(self, other: Any, _event: Any = None) -> None:
        """Redraw the other layer while somebody paints: once the window has time, however many dabs there were."""
        if not any(layer is other for layer in self._stale):
            self._stale.append(other)
        self._redraw.start()

    def _on_redraw(self) -> None:
        stale, self._stale = self._stale, []
        for layer in stale:
            layer.refresh(extent=False, thumbnail=False, highlight=False)

    def _on_drawn(self, other: Any, _event: Any = None) -> None:
        """Notice undo and redo, which have no event: the layer is drawn anew, and its history has another height."""
        heights = history_of(self.layer)
        if heights != self._heights:
            self._heights = heights
            self._on_stroke(other)

    def _on_painted(self, _event: Any = None) -> None:
        self._heights = history_of(self.layer)
        share_history(self.layer, self.copy)
        self._on_stroke(self.copy)

    def _on_painted_there(self, event: Any) -> None:
        """Report a stroke in the other canvas as one on the layer itself."""
        self._heights = history_of(self.layer)
        self.layer.events.paint(value=event.value)
        self._on_stroke(self.layer)
