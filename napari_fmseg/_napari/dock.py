"""What the docks that run something have in common: it ends when napari closes them."""

from __future__ import annotations

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QWidget

__all__ = ["Dock"]


class Dock(QWidget):
    """A widget whose `close_down` is called when napari closes its dock, which only takes the widget out of it."""

    _docked = False

    def event(self, event: QEvent) -> bool:
        """Notice being put into a dock and taken out again."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._docked = True
            elif self._docked:
                self._docked = False
                self.close_down()
        return bool(super().event(event))

    def close_down(self) -> None:
        """End what runs and let go of the viewer; the dock may be deleted afterwards."""
