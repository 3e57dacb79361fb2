"""Opening files while the window stays alive: read in a thread, added and asked about in the window's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.viewer_window import window_of
from napari_fmseg._napari.opening.layer_data import distinct, layers_of, offers_instead, overlay_on, remarks_on
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg._napari.segment.scan_view import attend
from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.io.series_previews import SeriesPreview

__all__ = ["Opening", "look_at", "tell"]

_alive: set[Opening] = set()  # an opening that nobody holds must not be collected while it reads


@dataclass(frozen=True)
class _Wanted:
    path: str
    series: str | None = None
    name: str = ""


@dataclass(frozen=True)
class _Outcome:
    """What the thread found: layers, or several volumes to choose from, or an error."""

    wanted: _Wanted
    layers: list[Any] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    offers: tuple[SeriesPreview, ...] = ()
    error: FmsegError | None = None


class Opening(QObject):
    """Reads paths one after the other in a thread and adds each as layers, always with our own reader.

    It deletes itself when it has finished.

    Parameters
    ----------
    viewer
        A napari viewer, or a `ViewerModel`.
    paths
        Files and folders.
    parent
        What ends it when it goes; by default the viewer's window.

    Attributes
    ----------
    reading : Signal(str)
        The name of what is being read now.
    opened : Signal(list)
        The layers of one path.
    failed : Signal(object)
        An `FmsegError`; the other paths are still read.
    finished : Signal()
        Nothing is left to do.
    layers : list
        All that were added so far.
    """

    reading = Signal(str)
    opened = Signal(list)
    failed = Signal(object)
    finished = Signal()

    def __init__(self, viewer: Any, paths: Iterable[str], parent: QObject | None = None) -> None:
        self._window = window_of(viewer)
        super().__init__(parent or self._window)
        self._viewer = viewer
        self._paths = [str(path) for path in paths]
        self._wanted: deque[_Wanted] = deque()
        self.layers: list[Any] = []
        self.running = False
        self._job: Job | None = None
        self._name = ""  # of the file that is being read
        self.destroyed.connect(lambda me=self: _alive.discard(me))

    def start(self) -> None:
        """Begin; returns at once."""
        _alive.add(self)
        self.running = True
        self._wanted.extend(_Wanted(path) for path in self._paths)
        self._next()

    def _next(self) -> None:
        if not self._wanted:
            self._finish()
            return
        wanted = self._wanted.popleft()
        self._name = Path(wanted.path).name
        self.reading.emit(wanted.name or self._name)
        self._viewer.status = f"Reading {self._name} …"
        rest = [other.path for other in self._wanted if other.series is None]
        self._job = start_job(lambda: _read_one(wanted, rest), parent=self)
        self._job.event.connect(self._on_read)
        self._job.failed.connect(self._on_broken)

    def _on_read(self, result: tuple[_Outcome, list[str]]) -> None:
        outcome, rest = result
        if not self.running or window_of(self._viewer) is not self._window:  # stopped, or the viewer was closed
            self._finish()
            return
        self._wanted = deque(other for other in self._wanted if other.series is not None or other.path in rest)
        if outcome.error is not None:
            self.failed.emit(outcome.error)
        elif outcome.offers:
            self._ask(outcome)
        else:
            self._add(outcome)
        if self.running:
            self._next()

    def _on_broken(self, error: FmsegError) -> None:
        """Report an error that nobody foresaw, with the name of the file, and go on with the next."""
        self.failed.emit(UnreadableVolume(f"{self._name} could not be read. {error}"))
        self._next()

    def _ask(self, outcome: _Outcome) -> None:
        from napari_fmseg._napari.opening.series_dialog import choose

        chosen = choose(outcome.offers, self._window)
        self._wanted.extendleft(_Wanted(str(offer.path), offer.series, offer.description) for offer in reversed(chosen))

    def _add(self, outcome: _Outcome) -> None:
        from napari.utils.notifications import show_warning

        attend(self._viewer)
        if self._window is not None:
            Recovery.start(self._viewer)
        for layer in outcome.layers:
            for name, value in overlay_on(self._viewer, layer.metadata).items():
                setattr(layer, name, value)
        self.layers += [self._viewer.add_layer(layer) for layer in outcome.layers]
        if outcome.layers:
            look_at(self._viewer, outcome.layers[0])
        for remark in outcome.remarks:
            show_warning(remark)
        self.opened.emit(outcome.layers)

    def _finish(self) -> None:
        if not self.running:
            return
        self.running = False
        _alive.discard(self)
        with suppress(RuntimeError):  # the viewer may be gone
            self._viewer.status = "Ready"
        self.finished.emit()
        with suppress(RuntimeError):  # its window may have gone with the last signal
            self.deleteLater()


def look_at(viewer: Any, layer: Any) -> None:
    """Go to the middle of a layer that the current slice does not meet: two patients rarely lie at the same place."""
    low, high = layer.extent.world
    axis = viewer.dims.order[0]
    first = viewer.dims.ndim - len(low)
    if (
        viewer.dims.ndisplay == 2
        and axis >= first
        and not (low[axis - first] <= viewer.dims.point[axis] <= high[axis - first])
    ):
        viewer.dims.set_point(axis, (low[axis - first] + high[axis - first]) / 2)
        viewer.reset_view()


def _read_one(wanted: _Wanted, rest: list[str]) -> Iterator[tuple[_Outcome, list[str]]]:
    """Yield what became of a path, and those of the rest that do not belong to the same series."""
    yield _read(wanted), distinct([wanted.path, *rest])[1:] if rest else []


def _read(wanted: _Wanted) -> _Outcome:
    from napari.layers import Layer  # the first of a type costs a second of imports; only adding needs the window

    try:
        try:
            data = layers_of(wanted.path, series=wanted.series, name=wanted.name)
            return _Outcome(wanted, [Layer.create(*one) for one in data], remarks_on(data))
        except UnreadableVolume as error:
            if wanted.series is not None:
                raise
            return _Outcome(wanted, offers=offers_instead(wanted.path, error))
    except FmsegError as error:
        return _Outcome(wanted, error=_without_frames(error))


def _without_frames(error: FmsegError) -> FmsegError:
    """Drop the tracebacks: through the frames of the thread they would keep the viewer alive as long as the error."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def tell(error: FmsegError, window: QWidget | None) -> None:
    """Show an error in a dialog before its window; where none is on the screen, as one of napari's notes."""
    if window is not None and window.isVisible():
        from napari_fmseg._napari.common import dialogs

        dialogs.show_error(window, error, title="This could not be opened")
        return
    from napari.utils.notifications import show_error

    show_error(str(error))
