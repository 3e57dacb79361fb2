"""One tool at a time: computed in a thread, shown as a preview, accepted as one undo step or cancelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.correct.preview import Overlay, Picture, picture_of
from napari_fmseg._napari.correct.tools import Tool
from napari_fmseg._napari.correct.tracking.history import Change, changes_of
from napari_fmseg._napari.correct.tracking.tracker import Tracker
from napari_fmseg.core.errors import FmsegError

__all__ = ["Draft", "Session", "check_writable"]

_PAUSE_S = 0.15  # before the whole is computed: the user may still be moving a slider


@dataclass(frozen=True, eq=False)
class Draft:
    """What a tool would do to the labels as they are.

    Parameters
    ----------
    title
        What the tool does.
    picture
        For the preview.
    changes
        For the undo step; empty while only the visible slice is known.
    is_whole
        Whether all slices are known.
    """

    title: str
    picture: Picture
    changes: list[Change]
    is_whole: bool


class Session(QObject):
    """Runs tools on labels layers.

    Attributes
    ----------
    changed
        Signal: another state; see `running` and `draft`.
    failed
        Signal with the error that ended a tool.
    told
        Signal with a sentence for the user, such as that nothing would change.
    accepted
        Signal with the title of what was written.
    """

    changed = Signal()
    failed = Signal(object)
    told = Signal(str)
    accepted = Signal(str)

    def __init__(self, viewer: Any, tracker: Tracker, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._tracker, self._overlay = tracker, Overlay(viewer)
        self._layer: Any = None
        self._version = 0
        self._tool: Tool | None = None
        self._job: Job | None = None
        self._at_once = False
        self.draft: Draft | None = None
        tracker.edited.connect(self._on_edited)

    @property
    def running(self) -> bool:
        """Whether something is being computed."""
        return self._job is not None

    @property
    def title(self) -> str:
        """What the tool does that is open."""
        return "" if self._tool is None else self._tool.title

    @property
    def is_open(self) -> bool:
        """Whether there is something to accept or to cancel."""
        return self._tool is not None

    def prepare(self, layer: Any, classes: Iterable[int]) -> None:
        """Add the layer of the preview, hidden, so that the first tool does not wait for it."""
        if not isinstance(layer.data, np.ndarray):
            self._overlay.remove()
        elif not self.is_open:
            self._overlay.prepare(layer, classes)

    def run(self, layer: Any, tool: Tool, *, at_once: bool = False) -> None:
        """Compute what a tool does and show it; `at_once` accept it when it is done.

        A preview that is open is cancelled; the same tool with another setting replaces it without a gap.
        """
        if self._tool is None or self._tool.title != tool.title or layer is not self._layer:
            self.cancel()
        elif self._job is not None:
            self._job.cancel()
        try:
            check_writable(layer)
        except FmsegError as error:
            self.failed.emit(error)
            return
        self._layer, self._tool, self._at_once = layer, tool, at_once
        self._version = self._tracker.version(layer)
        labels, stop = layer.data, Event()
        job = self._job = start_job(lambda: _drafts(labels, tool, stop), stop.set, parent=self)
        job.event.connect(partial(self._on_draft, job))
        job.failed.connect(partial(self._on_failed, job))
        job.finished.connect(partial(self._on_finished, job))
        self.changed.emit()

    def accept(self) -> None:
        """Write what is shown as one undo step; while it is being computed, as soon as it is done."""
        if self._tool is None:
            return
        if self.draft is None or not self.draft.is_whole or self.running:
            self._at_once = True
            self.changed.emit()
            return
        layer, draft, tool = self._layer, self.draft, self._tool
        self._close()
        self._tracker.commit(layer, draft.changes, tool.corrected)
        self.accepted.emit(draft.title)

    def cancel(self) -> None:
        """Forget what is shown or being computed; the labels stay as they are."""
        if self._tool is not None:
            self._close()

    def close_down(self) -> None:
        """Cancel, and take the preview's layer away."""
        self.cancel()
        self._overlay.remove()

    def _close(self) -> None:
        if self._job is not None:
            self._job.cancel()
        self._job = self._tool = self.draft = None
        self._overlay.hide()
        self.changed.emit()

    # --- what comes from the thread

    def _on_draft(self, job: Job, draft: Draft) -> None:
        if job is not self._job or self._tool is None:
            return
        nothing = not draft.picture.n_more + draft.picture.n_less
        if nothing and draft.is_whole:
            told = self._tool.nothing
            self._close()
            self.told.emit(told)
            return
        self.draft = draft
        if not (self._at_once and draft.is_whole):
            self._overlay.show(self._layer, draft.picture)
        self.changed.emit()

    def _on_failed(self, job: Job, error: FmsegError) -> None:
        if job is self._job:
            self._close()
            self.failed.emit(error)

    def _on_finished(self, job: Job, done: bool) -> None:
        if job is not self._job:
            return
        self._job = None
        if done and self._at_once:
            self.accept()
        else:
            self.changed.emit()

    def _on_edited(self, layer: Any) -> None:
        """Cancel what was computed from labels that are others now."""
        if self._tool is not None and layer is self._layer and self._tracker.version(layer) != self._version:
            self.cancel()
            self.told.emit("The labels were changed, so the preview was cancelled. Press the tool again.")


def check_writable(layer: Any) -> None:
    """Refuse labels that cannot be written.

    Raises
    ------
    FmsegError
        If they do not lie in memory, or are read-only.
    """
    data = layer.data
    if not isinstance(data, np.ndarray) or not data.flags.writeable:
        raise FmsegError(
            f"“{layer.name}” cannot be changed: its voxels lie in a file that is read as needed. Expected labels in "
            "memory. Duplicate the layer with “Convert to Labels”, or open the file again."
        )


def _drafts(labels: Any, tool: Tool, stop: Event) -> Iterator[Draft]:
    """Yield what a tool does to the visible slice, where that is quicker, and last what it does to all."""
    if tool.visible is not None:
        yield Draft(tool.title, picture_of(labels, tool.visible(labels)), [], False)
        if stop.wait(_PAUSE_S):
            return
    edit = tool.whole(labels)
    yield Draft(tool.title, picture_of(labels, edit), changes_of(labels, edit), True)
