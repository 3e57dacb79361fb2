"""A viewer as it is, and its window: the one place that looks, because napari has no public name for them yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

__all__ = ["plain", "window_of"]


def plain(viewer: Any) -> Any:
    """Give the viewer itself where napari hands a plugin a stand-in for it.

    A stand-in wraps anew whatever is asked of it, so that one layer is never the same object twice, and Qt does not
    take its window for one.
    """
    return getattr(viewer, "__wrapped__", viewer)


def window_of(viewer: Any) -> QWidget | None:
    """Return the main window of a viewer as a parent for dialogs; None for a `ViewerModel` or a closed one."""
    try:
        window: QWidget | None = getattr(getattr(plain(viewer), "window", None), "_qt_window", None)
    except RuntimeError:  # Qt has deleted it already
        return None
    return window
