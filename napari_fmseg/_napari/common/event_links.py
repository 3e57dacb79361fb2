"""What ends with a widget, however that ends: connections from napari's events, and whatever else it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod, finalize

from qtpy.QtCore import QObject

__all__ = ["Links", "when_destroyed"]


def when_destroyed(owner: QObject, action: Callable[[], object]) -> None:
    """Call `action` once when a Qt object ends: in C++, with its window, or in Python, by the garbage collector.

    `action` must not hold the owner. The finalizer keeps the function alive until it was called: a slot that only Qt
    holds may be cleared by the collector just before Qt calls it, which ends the program.
    """
    done = False

    def end(*_: object) -> None:
        nonlocal done
        if not done:
            done = True
            action()

    owner.destroyed.connect(end)
    finalize(owner, end).atexit = False


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
        when_destroyed(owner, lambda: _end(links))

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
