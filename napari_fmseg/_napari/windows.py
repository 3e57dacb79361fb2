"""Which window a viewer has: the one place that looks at it, because napari has no public name for it yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

__all__ = ["window_of"]


def window_of(viewer: Any) -> QWidget | None:
    """Return the main window of a viewer as a parent for dialogs; None for a `ViewerModel` or a closed one."""
    try:
        window: QWidget | None = getattr(getattr(viewer, "window", None), "_qt_window", None)
    except RuntimeError:  # Qt has deleted it already
        return None
    return window
