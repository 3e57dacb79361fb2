"""What runs for a dock: the engine, the job under way, and the layers that its stages go to."""

from __future__ import annotations

import dataclasses
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.common.event_links import when_destroyed
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.segment.run_request import EditedLayers, Engine, Request, StageLayer, run_to_layers
from napari_fmseg._napari.segment.stage_layers import StageLayers

__all__ = ["Session"]


class Session(QObject):
    """One run at a time; the engine stays between runs, so that a model is loaded once.

    Parameters
    ----------
    viewer
        Where the layers go.
    engine
        What runs the models; None starts `napari_fmseg.workers.engine.RemoteEngine` at the first run.
    parent
        The dock; with it everything ends.

    Attributes
    ----------
    event_received
        Signal: `Progress`, `Warned` or `StageLayer`, after its layer was placed.
    failed, finished
        Signals as those of `Job`.
    newest, final
        The layer with the newest labels, and that with the last ones of a run that came to its end; or None.
    kept
        Names of edited layers that were not replaced.
    """

    event_received = Signal(object)
    failed = Signal(object)
    finished = Signal(bool)

    def __init__(self, viewer: Any, engine: Engine | None, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer, self._engine = viewer, engine
        self._job: Job | None = None
        self._layers: StageLayers | None = None
        self.warm = False  # whether a run came to its end, so that the engine need not start
        self.newest: Any = None
        self.final: Any = None
        self.kept: list[str] = []
        # Widgets of a window that closes are deleted without a word: a signal is all that is left then.
        held = self._held = _Held(engine)
        when_destroyed(parent, held.end)

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self._job is not None

    def start(self, request: Request) -> None:
        """Begin a run; events follow as signals."""
        engine = self.engine()
        self._layers = layers = StageLayers(self._viewer, request.run)
        self._held.layers = layers
        self.newest, self.final, self.kept = None, None, layers.kept
        asked = dataclasses.replace(request, before=layers.before())
        self._job = start_job(lambda: run_to_layers(asked, engine), engine.cancel, self.parent())
        self._held.job = self._job
        self._job.event.connect(self._on_event)
        self._job.failed.connect(self.failed)
        self._job.finished.connect(self._on_finished)

    def cancel(self) -> None:
        """End the run soon; `finished(False)` follows."""
        if self._job is not None:
            self._job.cancel()

    def close(self) -> None:
        """End the run at once and give the engine back; no signal follows."""
        self._held.end()
        self._job = self._layers = None
        self._engine = None

    def engine(self) -> Engine:
        """Return what runs the models; its process starts at the first run."""
        if self._engine is None:
            from napari_fmseg.workers.engine import RemoteEngine

            self._engine = self._held.engine = RemoteEngine()
        return self._engine

    def _on_event(self, event: Any) -> None:
        if self._layers is None:
            return
        if isinstance(event, EditedLayers):
            self._layers.mark_edited(event.layers)
            return
        if isinstance(event, StageLayer):
            layer = self._layers.place(event)
            if event.is_labels:
                self.newest = layer
            if event.stage == "labels":
                self.final = layer
        self.event_received.emit(event)

    def _on_finished(self, done: bool) -> None:
        if self._layers is not None:
            if done:
                self.warm = True
                self._layers.finish()
            else:
                self._layers.stop()
        self._job = self._layers = None
        self._held.job = self._held.layers = None
        self.finished.emit(done)


class _Held:
    """What must end with the dock, kept apart from it: nothing of the dock may be touched when it is deleted."""

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine
        self.job: Job | None = None
        self.layers: StageLayers | None = None

    def end(self) -> None:
        """End all of it; again does no harm."""
        if self.job is not None:
            self.job.abandon()
        if self.layers is not None:
            self.layers.release()
        if self.engine is not None:
            self.engine.close()
        self.engine = self.job = self.layers = None
