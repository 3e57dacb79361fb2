"""Work is never lost: labels that the user paints are copied to disk, and offered back after a crash.

Every dock calls `Recovery.start(viewer)` once; it does nothing the second time.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QApplication, QWidget

from napari_fmseg._napari.autosaves import Autosave, Session, Work, abandoned, delete, read, work_of
from napari_fmseg._napari.preferences import Preferences, load
from napari_fmseg._napari.windows import plain, window_of
from napari_fmseg.errors import FmsegError

__all__ = ["Recovery"]

BEAT_MS = 30_000
RETRY_MS = 30_000  # after a failure, such as a full disk


class Recovery(QObject):
    """Watches the labels layers of one viewer and copies those that change.

    A layer counts as changed when it is painted, filled, erased or given other voxels, and afterwards also by undo and
    redo. Copies are made in a thread, from the layer's own array: the window does not wait.

    Parameters
    ----------
    viewer
        A napari viewer, or a `ViewerModel`.
    parent
        Its window; with it this object ends.

    Attributes
    ----------
    saved
        Signal with the layer's name, when a copy was written.
    failed
        Signal with the error, when none could be written: once, until one can be written again.
    """

    saved = Signal(str)
    failed = Signal(object)
    _written = Signal(object)  # from the thread that writes

    @classmethod
    def of(cls, viewer: Any) -> Recovery:
        """Give the one that watches `viewer`, and make it if there is none."""
        viewer = plain(viewer)
        window = window_of(viewer)
        found = window.findChild(cls) if window is not None else None
        return found if found is not None else cls(viewer, window)

    @classmethod
    def start(cls, viewer: Any) -> Recovery:
        """Watch `viewer`, and offer what a crash left behind, once per start of napari."""
        recovery = cls.of(viewer)
        app = QApplication.instance()
        if app is not None and not app.property("fmseg_offered"):
            app.setProperty("fmseg_offered", True)
            QTimer.singleShot(0, recovery.offer)  # first the dock that starts us appears
        return recovery

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.session = Session(_root(load()))
        self._window = parent
        self._keys: dict[Any, str] = {}  # of every layer that was touched
        self._dirty: set[Any] = set()
        self._maybe: set[Any] = set()  # redrawn: by undo, or merely by scrolling; the checksum will tell
        self._replaces: dict[Any, Autosave] = {}
        self._busy = self._trouble = False
        self._slots: dict[Any, list[Any]] = {}
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(self.save_now)
        self._beats = QTimer(self, interval=BEAT_MS)
        self._beats.timeout.connect(self.session.beat)
        self._written.connect(self._on_written)
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        for layer in viewer.layers:
            self._watch(layer)
        app = QApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.close)
        if parent is not None:
            parent.destroyed.connect(self.close)  # comes before the window's children go, of which this is one
        self.failed.connect(_tell)

    def settled(self, layer: Any) -> None:
        """Say that what `layer` holds is safe elsewhere (exported, or just computed): its copy is removed.

        What is painted on it afterwards is copied again.
        """
        self._dirty.discard(layer)
        self._maybe.discard(layer)
        self._replaces.pop(layer, None)
        key = self._keys.pop(layer, None)
        if key is not None:
            self.session.remove(key)

    def save_now(self) -> None:
        """Copy what changed, in a thread; `saved` tells when."""
        if self._busy:
            self._timer.start(500)
            return
        layers = [x for x in self._keys if (x in self._dirty or x in self._maybe) and x in self.viewer.layers]
        if not load().autosave:
            layers = [x for x in layers if x in self._replaces]
        if not layers:
            return
        jobs = [(layer, self._keys[layer], work_of(layer)) for layer in layers]
        self._dirty.difference_update(layers)
        self._maybe.difference_update(layers)
        self._busy = True
        threading.Thread(target=self._write, args=(jobs, self.session), name="fmseg-autosave").start()

    def offer(self) -> None:
        """Ask what to do with labels that a crash left behind, if there are any."""
        from napari_fmseg._napari.recovery_dialog import RecoveryDialog

        left = abandoned({_root(load()), _root(Preferences())})
        if left:
            dialog = RecoveryDialog(left, self._window)
            dialog.restored.connect(self._on_restore)
            dialog.open()

    def restore(self, save: Autosave) -> Any:
        """Add autosaved labels to the viewer as they were, and give the layer.

        The copy stays until the layer was copied anew: another crash in between loses nothing.

        Raises
        ------
        UnreadableVolume
            If the copy is damaged.
        """
        from napari.layers import Labels

        data, options, _ = read(save)
        layer = self.viewer.add_layer(Labels(data, **options))
        self._replaces[layer] = save
        self._on_touch(layer)
        self.save_now()
        return layer

    def close(self) -> None:
        """End deliberately: nothing will be offered."""
        self._timer.stop()
        self._beats.stop()
        for layer in list(self._slots):
            self._unwatch(layer)
        self._dirty.clear()
        self.session.close()

    # --- what happens to layers

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)

    def _on_removed(self, event: Any) -> None:
        self._unwatch(event.value)
        self.settled(event.value)

    def _watch(self, layer: Any) -> None:
        if not hasattr(layer.events, "labels_update") or layer in self._slots:
            return
        touch, redrawn = partial(self._on_touch, layer), partial(self._on_redrawn, layer)
        for event in (layer.events.paint, layer.events.labels_update, layer.events.data):
            event.connect(touch)
        layer.events.set_data.connect(redrawn)
        self._slots[layer] = [touch, redrawn]

    def _unwatch(self, layer: Any) -> None:
        touch, redrawn = self._slots.pop(layer, (None, None))
        if touch is not None:
            for event in (layer.events.paint, layer.events.labels_update, layer.events.data):
                event.disconnect(touch)
            layer.events.set_data.disconnect(redrawn)

    def _on_touch(self, layer: Any, _event: Any = None) -> None:
        if layer not in self._keys:
            self._keys[layer] = self.session.new_key(layer.name)
            self._beats.start()
        self._dirty.add(layer)
        self._arm()

    def _on_redrawn(self, layer: Any, _event: Any = None) -> None:
        if layer in self._keys and layer not in self._dirty:
            self._maybe.add(layer)
            self._arm()

    def _arm(self) -> None:
        if not self._timer.isActive():
            self._timer.start(RETRY_MS if self._trouble else load().autosave_seconds * 1000)

    # --- writing

    def _write(self, jobs: list[tuple[Any, str, Work]], session: Session) -> None:
        """Copy one layer after the other; in a thread of its own."""
        done: list[tuple[Any, str, bool | FmsegError]] = []
        for layer, key, work in jobs:
            try:
                done.append((layer, key, session.write(key, work)))
            except FmsegError as error:
                done.append((layer, key, error))
            except (OSError, ValueError, TypeError) as error:  # a layer unlike any that was foreseen
                done.append((layer, key, FmsegError(f"{work.options['name']!r} cannot be autosaved: {error}.")))
        try:
            self._written.emit(done)
        except RuntimeError:  # the viewer was closed meanwhile, and this object with it
            session.close()

    def _on_written(self, done: list[tuple[Any, str, bool | FmsegError]]) -> None:
        self._busy = False
        for layer, key, outcome in done:
            if self._keys.get(layer) != key:  # settled or removed meanwhile
                self.session.remove(key)
            elif isinstance(outcome, FmsegError):
                self._dirty.add(layer)
                if not self._trouble:
                    self.failed.emit(outcome)
                self._trouble = True
                self._arm()
            else:
                self._trouble = False
                replaced = self._replaces.pop(layer, None)
                if replaced is not None:
                    delete(replaced)
                if outcome:
                    self.saved.emit(layer.name)

    def _on_restore(self, saves: list[Autosave]) -> None:
        from napari_fmseg._napari.dialogs import show_error

        for save in saves:
            try:
                self.restore(save)
            except FmsegError as error:
                show_error(self._window, error, title="The labels could not be restored")


def _root(preferences: Preferences) -> Path:
    return preferences.folder / "recovery"


def _tell(error: FmsegError) -> None:
    from napari.utils.notifications import show_warning

    show_warning(f"Painted labels are not autosaved at the moment. {error} Export them now to be safe.")
