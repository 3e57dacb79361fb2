"""One round: a recipe is chosen, carried out, and what was learned is measured and kept; each in its own process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.common.training_process import TrainingRun
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.training import Augment, Recipe, load_recipe
from napari_fmseg.training.projects import LEAVING, TrainingOptions

__all__ = ["Round", "minutes_of", "steps_of"]

_SAID = {
    "preparing": "Starting, and reading the cases",
    "training": "Training",
    "validating": "Validating on the held-out cases",
}
_KEEPING = {LEAVING: "Training again without one image at a time, to validate on it; step"}


class Round(QObject):
    """One at a time; it ends with its parent.

    Attributes
    ----------
    changed
        Signal with the state, one of `training_run.STATES`, and what it means.
    recipe_explained
        Signal with a sentence on why the recipe is as it is.
    started
        Signal with the recipe, when its process starts.
    event_received
        Signal with each event of the training.
    failed
        Signal with the error that ended it, before ``changed("failed", ...)``.
    finished
        Signal: a version may have been made, so that the project should be read again.
    """

    changed = Signal(str, str)
    recipe_explained = Signal(str)
    started = Signal(object)
    event_received = Signal(object)
    failed = Signal(object)
    finished = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.state = "idle"
        self.fresh = True
        self.preparing, self.training, self.keeping = (TrainingRun(parent) for _ in range(3))
        self._runs = (self.preparing, self.training, self.keeping)
        self._recipe: Recipe | None = None
        self._file = Path()
        self._why, self._end = "", "done"
        for run in self._runs:
            run.failed.connect(self._on_failed)
        self.preparing.event.connect(self._on_prepared)
        self.preparing.changed.connect(self._on_preparing)
        self.training.event.connect(self.event_received)
        self.training.changed.connect(self._on_training)
        self.keeping.event.connect(self._on_kept)
        self.keeping.changed.connect(self._on_keeping)

    @property
    def running(self) -> bool:
        """Whether a round is under way."""
        return any(run.running for run in self._runs)

    @property
    def folder(self) -> Path:
        """The project of the last run."""
        return self._file.parents[3]

    @property
    def can_resume(self) -> bool:
        """Whether the last training of this window can go on."""
        return not self.running and self._recipe is not None and self.state in ("stopped", "failed")

    @property
    def left(self) -> tuple[float, float | None] | None:
        """Share that is done and about how many seconds the rest takes; None while nothing is learned."""
        return (self.training.fraction, self.training.seconds_left) if self.training.running else None

    def start(self, folder: Path, source: str, options: TrainingOptions, augment: Augment) -> None:
        """Begin a round."""
        if self.running:
            return
        self.fresh, self._recipe = True, None
        words = [*_non_default_arguments(options, ""), *_non_default_arguments(augment, "augment.")]
        self.preparing.start(("project", "prepare", str(folder), "--start-from", source, *words))

    def resume(self, folder: Path, number: int) -> None:
        """Go on with the training of this window that was stopped or failed, else with run `number` of the project."""
        if self.running:
            return
        self.fresh = not (self.can_resume and folder == self.folder)
        if not self.fresh:
            self._begin()
        elif number:
            self._take(folder / "fmseg" / "runs" / str(number) / "recipe.toml")

    def stop(self) -> None:
        """Request the training to stop; the best weights so far are then validated and kept."""
        for run in self._runs:
            run.stop()

    def close(self) -> None:
        """End everything at once; no signal follows."""
        for run in self._runs:
            run.close()

    # --- preparing ---

    def _on_prepared(self, event: Any) -> None:
        if isinstance(event, Warned):
            self.recipe_explained.emit(event.text)
        elif isinstance(event, Saved):
            self._file = event.path

    def _on_preparing(self, state: str) -> None:
        if state == "preparing":
            self._enter(state, "Choosing networks, grids and steps for your cases and this machine")
        elif state == "done":
            self._take(self._file)
        elif state == "stopped":
            self._enter(state, "Stopped before anything was learned.")

    def _take(self, file: Path) -> None:
        try:
            self._recipe, self._file = load_recipe(file), file
        except FmsegError as error:
            self._on_failed(error)
            return
        self._begin()

    # --- training ---

    def _begin(self) -> None:
        assert self._recipe is not None
        self._why = ""
        self.started.emit(self._recipe)
        self.training.start(("train", str(self._file)), steps=steps_of(self._recipe), minutes=minutes_of(self._recipe))

    def _on_training(self, state: str) -> None:
        if state in _SAID:
            self._enter(state, _SAID[state])
        elif state in ("done", "stopped"):
            self._end = state
            self._keep()

    def _keep(self) -> None:
        """Measure what was learned and keep it; a training that was stopped early may have learned nothing."""
        run = self._file.parent
        if self._recipe is None or not (run / f"{self._recipe.name}.toml").exists():
            self._enter("stopped", "Stopped before the first epoch ended. Resume continues from the last checkpoint.")
            self.finished.emit()
            return
        self.keeping.start(("project", "keep", str(self.folder), "--run", run.name))

    # --- keeping ---

    def _on_kept(self, event: Any) -> None:
        if isinstance(event, Warned):
            self._why = event.text
        elif isinstance(event, Progress):
            said = _KEEPING.get(event.stage, _SAID["validating"])
            self._enter("validating", f"{said}, {event.done} of {event.total}")

    def _on_keeping(self, state: str) -> None:
        if state == "preparing":
            self._enter("validating", _SAID["validating"])
        elif state == "done":
            self._enter(self._end, self._why)
            self.finished.emit()
        elif state == "stopped":
            self._enter("stopped", "Stopped while it was measured. Resume measures it again.")
            self.finished.emit()

    def _on_failed(self, error: FmsegError) -> None:
        rest = " Resume continues from the last checkpoint." if self._recipe is not None else ""
        self.failed.emit(error)
        self._enter("failed", f"It did not come to its end; the reason stands below.{rest}")
        self.finished.emit()

    def _enter(self, state: str, text: str) -> None:
        self.state = state
        self.changed.emit(state, text)


def steps_of(recipe: Recipe) -> dict[str, int]:
    """Return the steps that every stage takes: whole epochs."""
    return {stage.stage: -(-stage.steps // stage.steps_per_epoch) * stage.steps_per_epoch for stage in recipe.stages}


def minutes_of(recipe: Recipe) -> dict[str, float]:
    """Return the minutes that every stage takes by the clock on the wall; nothing where a stage goes by steps."""
    is_timed = recipe.clock == "wall" and all(stage.minutes for stage in recipe.stages)
    return {stage.stage: stage.minutes for stage in recipe.stages} if is_timed else {}


def _non_default_arguments(options: Any, prefix: str) -> list[str]:
    """Return what differs from the defaults as the words of a command."""
    words = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            words += [f"--{prefix}{field.name.replace('_', '-')}", str(value)]
    return words
