"""A viewer as it is, and its window: the one place that looks, because napari has no public name for them yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

__all__ = [
    "camera_of",
    "history_of",
    "qt_viewer_of",
    "scene_of",
    "set_view_direction",
    "share_history",
    "unwrap_viewer",
    "window_of",
]


def unwrap_viewer(viewer: Any) -> Any:
    """Return the viewer itself where napari hands a plugin a stand-in for it.

    A stand-in wraps anew whatever is asked of it, so that one layer is never the same object twice, and Qt does not
    take its window for one.
    """
    return getattr(viewer, "__wrapped__", viewer)


def window_of(viewer: Any) -> QWidget | None:
    """Return the main window of a viewer as a parent for dialogs; None for a `ViewerModel` or a closed one."""
    try:
        window: QWidget | None = getattr(getattr(unwrap_viewer(viewer), "window", None), "_qt_window", None)
    except RuntimeError:  # Qt has deleted it already
        return None
    return window


def qt_viewer_of(viewer: Any) -> Any:
    """Return the canvas of a viewer with its sliders, or None where it has no window."""
    window = window_of(viewer)
    return getattr(window, "_qt_viewer", None)


def scene_of(qt_viewer: Any) -> Any:
    """Return the node of vispy that a canvas draws its layers in: what is put there lies in the world of the viewer."""
    return qt_viewer.canvas.view.scene


def camera_of(viewer: Any) -> Any:
    """Return the camera, which moved into the scene with napari 0.9."""
    scene = getattr(viewer, "scene", None)
    return scene.camera if scene is not None else viewer.camera


def set_view_direction(viewer: Any) -> None:
    """Set the direction that the cursor of a viewer in 3-D looks in, where it does not know it yet.

    napari sets it when the mouse moves, and cannot describe a labels layer with class names before.
    """
    dims, cursor = viewer.dims, viewer.cursor
    if dims.ndisplay == 3 and len(dims.displayed) == 3:
        known = getattr(cursor, "_view_direction", None)
        if known is None or len(known) != dims.ndim:
            cursor._view_direction = camera_of(viewer).calculate_nd_view_direction(dims.ndim, dims.displayed)


def history_of(layer: Any) -> tuple[int, int]:
    """Return how many strokes of a labels layer can be undone and redone: napari has no event for either."""
    undo, redo = (getattr(layer, name, ()) for name in ("_undo_history", "_redo_history"))
    return len(undo), len(redo)


def share_history(layer: Any, copy: Any) -> None:
    """Make two labels layers on one array undo and redo from one history."""
    for name in ("_undo_history", "_redo_history"):
        if hasattr(layer, name):
            setattr(copy, name, getattr(layer, name))
