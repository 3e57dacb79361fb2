"""Work is never lost: labels that the user paints are copied to disk, and offered back after a crash.

Whoever closes the window is asked about labels that were painted and not saved; those that are removed all the same can
be put back for a while. Docks and the reader call `Recovery.start(viewer)`; it does nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

from qtpy.QtCore import QEvent, QObject, QTimer, Signal
from qtpy.QtWidgets import QApplication, QDialog, QWidget

from napari_fmseg._napari.common.job import start_job
from napari_fmseg._napari.common.preferences import Preferences, load
from napari_fmseg._napari.common.viewer_window import history_of, unwrap_viewer, window_of
from napari_fmseg._napari.correct.tracking.tracker import Tracker
from napari_fmseg._napari.layer_transform import TOOL, fmseg_metadata
from napari_fmseg._napari.recovery.autosave_store import (
    KEPT_DAYS,
    Autosave,
    Session,
    Work,
    delete,
    list_abandoned,
    list_removed,
    prune,
    read,
    work_of,
)
from napari_fmseg._napari.segment.scan_view import attend
from napari_fmseg.core.errors import FmsegError

__all__ = ["Recovery", "show_removed_labels"]

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
    tracker
        Records which slices of the layers the user corrected.
    saved
        Signal with the layer's name, when a copy was written.
    failed
        Signal with the error, when none could be written: once, until one can be written again.
    retired
        Signal with a list of `Autosave`: labels that were removed without being saved, and can be put back.
    """

    saved = Signal(str)
    failed = Signal(object)
    retired = Signal(object)

    @classmethod
    def of(cls, viewer: Any) -> Recovery:
        """Return the one that watches `viewer`, and make it if there is none."""
        viewer = unwrap_viewer(viewer)
        window = window_of(viewer)
        found = window.findChild(cls) if window is not None else None
        return found if found is not None else cls(viewer, window)

    @classmethod
    def start(cls, viewer: Any) -> Recovery:
        """Watch `viewer`, and offer what a crash left behind, once per start of napari."""
        recovery = cls.of(viewer)
        attend(viewer)
        app = QApplication.instance()
        if app is not None and not app.property("fmseg_offered"):
            app.setProperty("fmseg_offered", True)
            QTimer.singleShot(0, recovery.offer)  # first the dock that starts us appears
        return recovery

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.session = Session(_root(load()))
        self._keys: dict[Any, str] = {}  # of every layer that was touched
        self._dirty: set[Any] = set()
        self._maybe: set[Any] = set()  # redrawn: by another plugin, or merely by scrolling; the checksum will tell
        self._replaces: dict[Any, Autosave] = {}
        self._retired: set[str] = set()  # keys of layers that were removed without being saved
        self._edits: dict[Any, int] = {}
        self._histories: dict[Any, tuple[int, int]] = {}
        self._busy = self._trouble = self._closed = False
        self._slots: dict[Any, list[Any]] = {}
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(self.save_now)
        self._beats = QTimer(self, interval=BEAT_MS)
        self._beats.timeout.connect(self.session.beat)
        self.tracker = Tracker.of(viewer)
        self.tracker.changed.connect(self._on_corrections)
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        for layer in viewer.layers:
            self._watch(layer)
        app = QApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.close)
        if parent is not None:
            parent.destroyed.connect(self.close)  # comes before the window's children go, of which this is one
            parent.installEventFilter(self)
        self.failed.connect(_tell)
        self.retired.connect(self._on_retired)
        prune(self._bins())

    @property
    def _window(self) -> QWidget | None:
        """The viewer's window; a reference of ours would keep it from ending."""
        parent = self.parent()
        return parent if isinstance(parent, QWidget) else None

    @property
    def unsaved(self) -> list[Any]:
        """The layers that were painted on and not saved since, from the bottom to the top."""
        return [layer for layer in self.viewer.layers if layer in self._keys]

    def edits_of(self, layer: Any) -> int:
        """Count the changes of a layer, to find out afterwards whether there was another one."""
        return self._edits.get(layer, 0)

    def mark_saved(self, layer: Any, edits: int | None = None) -> None:
        """Record that what `layer` holds is safe elsewhere (exported, or just computed): its copy is removed.

        What is painted on it afterwards is copied again.

        Parameters
        ----------
        layer
            A labels layer.
        edits
            `edits_of` it when it was copied elsewhere; if it was changed since, it is not safe.
        """
        if edits is not None and edits != self.edits_of(layer):
            return
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
        jobs, session = [(layer, self._keys[layer], work_of(layer)) for layer in layers], self.session
        self._dirty.difference_update(layers)
        self._maybe.difference_update(layers)
        self._busy = True
        job = start_job(lambda: _write(jobs, session), must_finish=True)
        job.event.connect(self._on_written)
        job.failed.connect(self.failed)
        job.finished.connect(self._on_writer_ended)

    def offer(self) -> None:
        """Show a question about labels that a crash left behind, if there are any."""
        left = list_abandoned({_root(load()), _root(Preferences())})
        if left:
            self._open(left, is_crash=True)

    def show_removed(self) -> None:
        """List the labels that were removed without being saved, to be put back."""
        prune(self._bins())
        self._open(list_removed(self._bins()), is_crash=False)

    def _open(self, saves: list[Autosave], *, is_crash: bool) -> None:
        from napari_fmseg._napari.recovery.dialog import RecoveryDialog

        dialog = RecoveryDialog(saves, self._window, is_crash=is_crash)
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
        """End deliberately: nothing will be offered, but what was not saved can be put back."""
        if self._closed:
            return
        self._closed = True
        self._timer.stop()
        self._beats.stop()
        self._retire(self.unsaved)
        for layer in list(self._slots):
            self._unwatch(layer)
        self._dirty.clear()
        self.session.close()

    # --- what was painted and not saved

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Show a question before the window closes with labels that were painted and not saved."""
        if event is not None and event.type() == QEvent.Type.Close and not self._may_close():
            event.ignore()
            return True
        return False

    def _may_close(self) -> bool:
        layers = [] if self._closed else self.unsaved
        if not layers or self._window is None or not self._window.isVisible():
            return True
        from napari_fmseg._napari.recovery.unsaved import UnsavedDialog

        dialog = UnsavedDialog(layers, tuple(self.viewer.layers), self._window)
        try:
            answer = dialog.exec()
        finally:
            dialog.deleteLater()
        for layer in dialog.saved:  # the discarded ones stay as they are: the window may yet stay open
            self.mark_saved(layer)
        return bool(answer == QDialog.DialogCode.Accepted)

    def _retire(self, layers: list[Any]) -> None:
        """Move layers that are removed without being saved to where they can be put back from, in a thread."""
        jobs = []
        for layer in layers:
            key, replaced = self._keys.pop(layer), self._replaces.pop(layer, None)
            if load().autosave:
                self._retired.add(key)
                jobs.append((key, work_of(layer), replaced))
            else:
                self.session.remove(key)
        if jobs:
            session, folder = self.session, self._bins()[0]
            job = start_job(lambda: _write_retired(jobs, session, folder), must_finish=True)
            job.event.connect(self._on_retired_or_lost)
            job.failed.connect(self.failed)

    def _on_retired_or_lost(self, outcome: list[Autosave] | FmsegError) -> None:
        (self.failed if isinstance(outcome, FmsegError) else self.retired).emit(outcome)

    def _on_retired(self, saves: list[Autosave]) -> None:
        """Show a notification that labels were removed, with a button that puts them back."""
        if not saves or (self._window is not None and not self._window.isVisible()):
            return
        from napari.utils.notifications import Notification, notification_manager

        class Note(Notification):
            source = "fmseg"  # it is shown

        what = f"“{saves[0].name}”" if len(saves) == 1 else f"{len(saves)} layers"
        text = (
            f"Removed without being saved: {what}. Painted labels can be put back for {KEPT_DAYS} days: "
            "File > IO Utilities > Recently removed labels."
        )
        known, waiting = ref(self), list(saves)  # weak: napari keeps its notes as long as it runs

        def put_back(*_: Any) -> None:
            recovery, wanted = known(), waiting[:]
            waiting.clear()
            if recovery is not None and not recovery._closed:
                recovery._on_restore(wanted)

        notification_manager.dispatch(Note(text, "info", actions=(("Put back", put_back),)))

    def _bins(self) -> list[Path]:
        """Return the folders of removed labels; new ones go to the first."""
        return list(dict.fromkeys(one.folder / "removed" for one in (load(), Preferences())))

    # --- what happens to layers

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)

    def _on_removed(self, event: Any) -> None:
        self._unwatch(event.value)
        if event.value in self._keys:
            self._retire([event.value])
        self.mark_saved(event.value)
        self._edits.pop(event.value, None)

    def _watch(self, layer: Any) -> None:
        if (
            not hasattr(layer.events, "labels_update")
            or layer in self._slots
            or fmseg_metadata(layer).get("role") == TOOL
        ):
            return
        touch, redrawn = partial(self._on_touch, layer), partial(self._on_redrawn, layer)
        for event in (layer.events.paint, layer.events.labels_update, layer.events.data):
            event.connect(touch)
        layer.events.set_data.connect(redrawn)
        self._slots[layer] = [touch, redrawn]
        self._histories[layer] = history_of(layer)

    def _unwatch(self, layer: Any) -> None:
        touch, redrawn = self._slots.pop(layer, (None, None))
        self._histories.pop(layer, None)
        if touch is not None:
            for event in (layer.events.paint, layer.events.labels_update, layer.events.data):
                event.disconnect(touch)
            layer.events.set_data.disconnect(redrawn)

    def _on_touch(self, layer: Any, _event: Any = None) -> None:
        if layer not in self._keys:
            self._keys[layer] = self.session.new_key(layer.name)
            self._beats.start()
        self._dirty.add(layer)
        self._edits[layer] = self.edits_of(layer) + 1
        self._histories[layer] = history_of(layer)
        self._arm()

    def _on_redrawn(self, layer: Any, _event: Any = None) -> None:
        if history_of(layer) != self._histories.get(layer):  # undone or redone
            self._on_touch(layer)
        elif layer in self._keys and layer not in self._dirty:
            self._maybe.add(layer)
            self._arm()

    def _on_corrections(self, layer: Any) -> None:
        """Copy which slices are corrected, with labels that are copied anyway."""
        if layer in self._keys:
            self._dirty.add(layer)
            self._arm()

    def _arm(self) -> None:
        if not self._timer.isActive():
            self._timer.start(RETRY_MS if self._trouble else load().autosave_seconds * 1000)

    # --- writing

    def _on_writer_ended(self) -> None:
        self._busy = False

    def _on_written(self, done: _Outcomes) -> None:
        self._busy = False
        for layer, key, outcome in done:
            if self._keys.get(layer) != key:  # saved elsewhere or removed meanwhile
                if key not in self._retired:
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
        from napari_fmseg._napari.common.dialogs import show_error

        for save in saves:
            try:
                self.restore(save)
            except FmsegError as error:
                show_error(self._window, error, title="The labels could not be restored")


def show_removed_labels() -> None:
    """List the labels that were removed without being saved, over the current viewer; a menu command."""
    import napari

    viewer = napari.current_viewer()
    if viewer is not None:
        Recovery.start(viewer).show_removed()


_Outcomes = list[tuple[Any, str, bool | FmsegError]]


def _write(jobs: list[tuple[Any, str, Work]], session: Session) -> Iterator[_Outcomes]:
    """Copy one layer after the other, and yield once what became of all: whether it was written, or the error."""
    outcomes: _Outcomes = []
    for layer, key, work in jobs:
        try:
            outcomes.append((layer, key, session.write(key, work)))
        except FmsegError as error:
            outcomes.append((layer, key, error))
        except (OSError, ValueError, TypeError) as error:  # a layer unlike any that was foreseen
            outcomes.append((layer, key, FmsegError(f"{work.options['name']!r} cannot be autosaved: {error}.")))
    yield outcomes


def _write_retired(
    jobs: list[tuple[str, Work, Autosave | None]], session: Session, folder: Path
) -> Iterator[list[Autosave] | FmsegError]:
    """Move one layer after the other to `folder`; yield an error for each that cannot be, and last those that were."""
    saves = []
    for key, work, replaced in jobs:
        try:
            save = session.retire(key, work, folder)
        except (FmsegError, OSError, ValueError, TypeError) as error:  # a layer unlike any that was foreseen
            yield FmsegError(f"{work.options['name']!r} was removed and could not be kept: {error}.")
            continue
        if save is not None:
            saves.append(save)
            if replaced is not None:
                delete(replaced)
    yield saves


def _root(preferences: Preferences) -> Path:
    return preferences.folder / "recovery"


def _tell(error: FmsegError) -> None:
    from napari.utils.notifications import show_warning

    show_warning(f"Painted labels are not autosaved at the moment. {error} Export them now to be safe.")
