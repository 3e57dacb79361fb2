"""What our docks have in common: they share one place as tabs, and what runs in one ends when napari closes it."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

__all__ = ["Dock"]


class Dock(QWidget):
    """A widget whose `close_down` is called when napari closes its dock, which only takes the widget out of it."""

    _docked = False

    def event(self, event: QEvent) -> bool:
        """Notice being put into a dock and taken out again."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._docked = True
                QTimer.singleShot(0, self._join)  # first napari puts it where it belongs
            elif self._docked:
                self._docked = False
                self.close_down()
        return bool(super().event(event))

    def _join(self) -> None:
        """Become a tab of the dock of ours that is on this side already: one below the other, their ends vanish."""
        mine = _dock_of(self)
        main = mine.parentWidget() if mine is not None else None
        if mine is None or not isinstance(main, QMainWindow) or mine.isFloating():
            return
        docks = {_dock_of(other) for other in main.findChildren(Dock)} - {mine, None}
        side = main.dockWidgetArea(mine)
        there = [d for d in main.findChildren(QDockWidget) if d in docks and main.dockWidgetArea(d) == side]
        there = [d for d in there if not d.isFloating() and not d.isHidden()]
        if there and mine not in main.tabifiedDockWidgets(there[-1]):
            main.tabifyDockWidget(there[-1], mine)
            mine.show()
            mine.raise_()

    def close_down(self) -> None:
        """End what runs and let go of the viewer; the dock may be deleted afterwards."""


def _dock_of(widget: QWidget) -> QDockWidget | None:
    """Return the dock that holds a widget."""
    above = widget.parentWidget()
    while above is not None and not isinstance(above, QDockWidget):
        above = above.parentWidget()
    return above
