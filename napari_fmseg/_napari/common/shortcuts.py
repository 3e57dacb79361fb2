"""The panel's keys, all in one place. napari does not read key bindings from a plugin's manifest, so docks ask here.

A key works wherever the focus is in napari's window while the dock exists, and is never taken from anybody: where
napari, another plugin or the user has given it to something else, ours stays without.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.viewer_window import window_of

__all__ = ["KEYS", "PREVIEW_KEYS", "bind", "borrow", "is_key_in_use"]

KEYS = MappingProxyType(
    {
        "run": "Ctrl+Alt+R",
        "cancel": "Ctrl+Alt+C",
        "stages": "Ctrl+Alt+G",  # show all stages' layers, or only the best
        "3-D": "Ctrl+Alt+D",  # the labels in three dimensions, or slices
        "export": "Ctrl+Alt+E",
        "crosshair": "Ctrl+Alt+X",  # all planes to the place under the mouse
        "next structure": "Ctrl+Alt+PgDown",
        "previous structure": "Ctrl+Alt+PgUp",
        "next case": "Ctrl+PgDown",  # of the review in Teach
        "previous case": "Ctrl+PgUp",
        "accept case": "Ctrl+Alt+A",
        "reject case": "Ctrl+Alt+J",
        "fill": "Ctrl+Alt+F",
        "spread": "Ctrl+Alt+W",
        "slice is right": "Ctrl+Alt+Y",
        "range": "Ctrl+Alt+B",
        "smooth": "Ctrl+Alt+U",
        "holes": "Ctrl+Alt+H",
        "keep island": "Ctrl+Alt+K",
        "remove island": "Ctrl+Alt+V",
    }
)
PREVIEW_KEYS = MappingProxyType({"accept": ("Return", "Enter"), "dismiss": ("Esc",)})
"""Keys of a preview, which are ours only while there is one."""


def bind(dock: QWidget, viewer: Any, name: str, action: Callable[[], object]) -> QShortcut | None:
    """Bind the key `name` of `KEYS` to `action` while `dock` exists.

    Parameters
    ----------
    dock
        The widget that owns the key.
    viewer
        napari's; its own keys are respected.
    name
        One of `KEYS`.
    action
        Such as a button's ``click``, which does nothing while the button is disabled.

    Returns
    -------
    QShortcut or None
        None if the key is something else's already.
    """
    if is_key_in_use(viewer, KEYS[name]):
        return None
    shortcut = QShortcut(QKeySequence(KEYS[name]), dock)
    shortcut.setObjectName(f"fmseg_{name}")
    shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
    shortcut.activated.connect(lambda: action())
    return shortcut


def borrow(dock: QWidget, name: str, action: Callable[[], object]) -> list[QShortcut]:
    """Make the shortcuts `name` of `PREVIEW_KEYS`, disabled: whoever enables them takes the keys for a moment."""
    made = []
    for key in PREVIEW_KEYS[name]:
        shortcut = QShortcut(QKeySequence(key), dock)
        shortcut.setObjectName(f"fmseg_{name}_{key}")
        shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
        shortcut.setEnabled(False)
        for signal in (shortcut.activated, shortcut.activatedAmbiguously):
            signal.connect(lambda: action())
        made.append(shortcut)
    return made


def is_key_in_use(viewer: Any, key: str) -> bool:
    """Return whether a key such as "Ctrl+Alt+R" does something in `viewer` already."""
    wanted = QKeySequence(key)
    window = window_of(viewer)
    if window is not None:
        actions = [action for widget in (window, *window.findChildren(QWidget)) for action in widget.actions()]
        if any(wanted in action.shortcuts() for action in actions):
            return True
        if any(wanted == shortcut.key() and not _is_idle(shortcut) for shortcut in window.findChildren(QShortcut)):
            return True
    bound = [str(k) for k in (*viewer.keymap, *type(viewer).class_keymap)]
    return any(QKeySequence(text.replace("-", "+")) == wanted for text in [*bound, *_users_keys()])


def _is_idle(shortcut: QShortcut) -> bool:
    """Return whether it belongs to a dock of ours that was closed: a hidden widget's key does nothing."""
    owner = shortcut.parent()
    return bool(shortcut.objectName().startswith("fmseg_") and isinstance(owner, QWidget) and not owner.isVisible())


def _users_keys() -> list[str]:
    """List what stands under Preferences > Shortcuts."""
    from napari.settings import get_settings

    return [str(key) for keys in get_settings().shortcuts.shortcuts.values() for key in keys]
