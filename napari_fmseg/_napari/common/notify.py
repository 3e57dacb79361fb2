"""Telling that long work has ended while somebody uses another window; without a sound."""

from __future__ import annotations

from qtpy.QtCore import QObject
from qtpy.QtWidgets import QApplication, QSystemTrayIcon, QWidget

from napari_fmseg._napari.common.preferences import load

__all__ = ["notify"]

_SHOWN_MS = 8000


class _Tray(QSystemTrayIcon):
    """Our icon in the tray, which is there only as long as it shows a message."""


def notify(window: QWidget | None, title: str, text: str) -> bool:
    """Show a notification of the desktop and mark the window, unless it is in use or the user does not want it.

    Parameters
    ----------
    window
        napari's.
    title, text
        What has ended, and how; nothing about a patient.

    Returns
    -------
    bool
        Whether it was told.
    """
    app = QApplication.instance()
    if window is None or app is None or window.isActiveWindow() or not load().notify:
        return False
    QApplication.alert(window)  # until the window is used
    if QSystemTrayIcon.isSystemTrayAvailable() and QSystemTrayIcon.supportsMessages():
        tray = _tray_of(window)
        tray.show()
        tray.messageClicked.connect(window.activateWindow)
        tray.showMessage(title, text, QSystemTrayIcon.MessageIcon.Information, _SHOWN_MS)
    return True


def _tray_of(window: QObject) -> QSystemTrayIcon:
    """Return a fresh icon that belongs to the window; the one before goes."""
    for old in window.findChildren(_Tray):
        old.hide()
        old.deleteLater()
    made = _Tray(window)
    if isinstance(window, QWidget):
        made.setIcon(window.windowIcon())
    return made
