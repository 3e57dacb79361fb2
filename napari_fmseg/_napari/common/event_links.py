"""Connections from napari's events to a widget, which end with the widget however that ends."""

from __future__ import annotations

from typing import Any
from weakref import WeakMethod

from qtpy.QtCore import QObject

__all__ = ["Links"]


class Links:
    """Connections that belong to one widget.

    A window that closes deletes its widgets without telling Python; an event of the viewer would then call a widget
    that is no more.

    Parameters
    ----------
    owner
        With it they end.
    """

    def __init__(self, owner: QObject) -> None:
        # Apart from the widget, and weak: a connection must not keep a widget alive.
        self._links: list[tuple[Any, WeakMethod[Any]]] = []
        links = self._links
        owner.destroyed.connect(lambda *_: _end(links))

    def connect(self, method: Any, *emitters: Any) -> None:
        """Call `method` at every event of `emitters`."""
        for emitter in emitters:
            emitter.connect(method)
            self._links.append((emitter, WeakMethod(method)))

    def end(self) -> None:
        """Disconnect everything; a second call does no harm."""
        _end(self._links)


def _end(links: list[tuple[Any, WeakMethod[Any]]]) -> None:
    for emitter, reference in links:
        method = reference()
        if method is not None:
            emitter.disconnect(method)
    links.clear()
