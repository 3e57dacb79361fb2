"""One round: a run is prepared, trained in a process of its own, then measured and kept as a version in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.teach_work import Prepared, prepared, resumed
from napari_fmseg._napari.training_run import TrainingRun
from napari_fmseg._napari.worker import start_job
from napari_fmseg.errors import FmsegError
from napari_fmseg.events import Progress, Warned
from napari_fmseg.training import Augment
from napari_fmseg.training.projects import LessonOptions

__all__ = ["Round"]

_SAID = {
    "preparing": "Starting, and reading the cases",
    "training": "Learning",
    "validating": "Measuring on the held-out cases",
}


class Round(QObject):
    """One at a time; it ends with its parent.

    Attributes
    ----------
    changed
        Signal with the state, one of `training_run.STATES`, and what it means.
    began
        Signal with the `Prepared` run, when its process starts.
    came
        Signal with each event of the training.
    failed
        Signal with the error that ended it, before ``changed("failed", ...)``.
    over
        Signal: a version may have been made, so that the project should be read again.
    """

    changed = Signal(str, str)
    began = Signal(object)
    came = Signal(object)
    failed = Signal(object)
    over = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.state = "idle"
        self.fresh = True
        self.training, self.keeping = TrainingRun(parent), TrainingRun(parent)
        self._job: Any = None
        self._prepared: Prepared | None = None
        self._folder = Path()
        self._why = ""
        self._end = "done"
        for run in (self.training, self.keeping):
            run.failed.connect(self._on_failed)
        self.training.event.connect(self.came)
        self.training.changed.connect(self._on_training)
        self.keeping.event.connect(self._on_kept)
        self.keeping.changed.connect(self._on_keeping)

    @property
    def running(self) -> bool:
        """Whether a round is under way."""
        return self._job is not None or self.training.running or self.keeping.running

    @property
    def can_resume(self) -> bool:
        """Whether the last training of this window can go on."""
        return not self.running and self._prepared is not None and self.state in ("stopped", "failed")

    @property
    def left(self) -> tuple[float, float | None] | None:
        """Share of the steps that are done and about how many seconds the rest takes; None while nothing is learned."""
        return (self.training.fraction, self.training.seconds_left) if self.training.running else None

    def start(self, folder: Path, source: str, options: LessonOptions, augment: Augment, *, gpu: bool) -> None:
        """Begin a round."""
        self.fresh = True
        self._prepare(folder, lambda: prepared(folder, source, options, augment, gpu=gpu))

    def resume(self, folder: Path, number: int) -> None:
        """Go on with the training of this window that was stopped or failed, else with run `number` of the project."""
        if self.running:
            return
        if self.can_resume and folder == self._folder and self._prepared is not None:
            self.fresh = False
            self._begin(self._prepared)
        elif number:
            self.fresh = True
            self._prepare(folder, lambda: resumed(folder, number))

    def stop(self) -> None:
        """Ask for the end; the best so far is then measured and kept."""
        if self._job is not None:
            self._job.cancel()
        self.training.stop()
        self.keeping.stop()

    def close(self) -> None:
        """End everything at once; nothing is told any more."""
        if self._job is not None:
            self._job.abandon()
        self._job = None
        self.training.close()
        self.keeping.close()

    # --- preparing ---

    def _prepare(self, folder: Path, work: Callable[[], Iterator[Any]]) -> None:
        if self.running:
            return
        self._folder, self._prepared, self._why = folder, None, ""
        self._job = start_job(work, parent=self)
        self._job.event.connect(self._on_prepared)
        self._job.failed.connect(self._on_failed)
        self._job.finished.connect(self._on_prepared_all)
        self._enter("preparing", _SAID["preparing"])

    def _on_prepared(self, event: Any) -> None:
        if isinstance(event, Prepared):
            self._prepared = event

    def _on_prepared_all(self, done: bool) -> None:
        self._job = None
        if done and self._prepared is not None:
            self._begin(self._prepared)
        elif self.state != "failed":
            self._enter("stopped", "Stopped before anything was learned.")

    # --- training ---

    def _begin(self, run: Prepared) -> None:
        self._why = ""
        steps = {s.stage: -(-s.steps // s.steps_per_epoch) * s.steps_per_epoch for s in run.recipe.stages}
        self.began.emit(run)
        self.training.start(("train", str(run.file)), steps=steps)

    def _on_training(self, state: str) -> None:
        if state in _SAID:
            self._enter(state, _SAID[state])
        elif state in ("done", "stopped"):
            self._end = state
            self._keep()

    def _keep(self) -> None:
        """Measure what was learned and keep it; a training that was stopped early may have learned nothing."""
        run = self._prepared
        if run is None or not (run.run.folder / f"{run.recipe.name}.toml").exists():
            self._enter("stopped", "Stopped before anything was learned. Resume goes on from the last checkpoint.")
            self.over.emit()
            return
        self.keeping.start(("project", "keep", str(self._folder), "--run", run.run.folder.name))

    # --- keeping ---

    def _on_kept(self, event: Any) -> None:
        if isinstance(event, Warned):
            self._why = event.text
        elif isinstance(event, Progress):
            self._enter("validating", f"{_SAID['validating']}, {event.done} of {event.total}")

    def _on_keeping(self, state: str) -> None:
        if state == "preparing":
            self._enter("validating", _SAID["validating"])
        elif state == "done":
            self._enter(self._end, self._why)
            self.over.emit()
        elif state == "stopped":
            self._enter("stopped", "Stopped while it was measured. Resume measures it again.")
            self.over.emit()

    def _on_failed(self, error: FmsegError) -> None:
        self.failed.emit(error)
        self._enter(
            "failed", "It did not come to its end; the reason stands below. Resume goes on from what was saved."
        )
        self.over.emit()

    def _enter(self, state: str, text: str) -> None:
        self.state = state
        self.changed.emit(state, text)
