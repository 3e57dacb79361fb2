"""The dock that teaches: label a few volumes, train the model on them, let it do the next ones, correct, go round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QTabWidget, QWidget

from napari_fmseg._napari.choosers.model_chooser import ModelChooser
from napari_fmseg._napari.common.dialogs import ErrorBox, ResearchOnly
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.job import start_job
from napari_fmseg._napari.common.notify import notify
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.training_process import TrainingRun
from napari_fmseg._napari.common.viewer_window import unwrap_viewer, window_of
from napari_fmseg._napari.common.widgets import Note, ScrollArea, paragraph, vbox
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.layers import colormap_of
from napari_fmseg._napari.opening.open_files import Opening
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg._napari.review.panel import ReviewPanel
from napari_fmseg._napari.review.review import Review
from napari_fmseg._napari.teach.add_case_panel import AddCase
from napari_fmseg._napari.teach.case_actions import CaseActions
from napari_fmseg._napari.teach.case_layers import record_case, show_case
from napari_fmseg._napari.teach.case_table import CaseTable, summary
from napari_fmseg._napari.teach.jobs import (
    CaseLayers,
    NewCase,
    ProjectSnapshot,
    activate_version_job,
    add_case_job,
    load_case_job,
    open_project_job,
)
from napari_fmseg._napari.teach.model_files import ask_and_export, ask_and_import
from napari_fmseg._napari.teach.project_bar import ProjectBar
from napari_fmseg._napari.teach.questions import ask_to_replace
from napari_fmseg._napari.teach.train_panel import TrainPanel
from napari_fmseg._napari.teach.training_round import Round, minutes_of, steps_of
from napari_fmseg._napari.teach.version_list import VersionList
from napari_fmseg.core.errors import FmsegError, LabelsChanged
from napari_fmseg.core.events import LEARNED_FROM, STARTING_WEIGHTS, EpochDone, Progress, Warned
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.training import Recipe
from napari_fmseg.training.projects import Project, case_table, labels_revision, rank_cases

__all__ = ["TeachDock"]

_REMARKS = 2  # of a training that are shown at once
_LEARNED = 0.3  # Dice from which a class is no longer said not to be learned


class TeachDock(Dock):
    """A project: its cases, its training, its versions."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer = unwrap_viewer(napari_viewer)
        self.project: Project | None = None
        self._known: ProjectSnapshot | None = None
        self._job: Any = None
        self._adding: NewCase | None = None
        self._stored: tuple[Any, int] = (None, 0)  # the labels that are being added, and how often they were changed
        self._conflict: LabelsChanged | None = None
        self._remarks: dict[str, str] = {}  # of the training, by what they are about
        self.bar = ProjectBar(self._likely)
        self.facts, self.note, self.error = paragraph(), Note(), ErrorBox()
        self.add, self.cases = AddCase(napari_viewer), CaseTable()
        self.train, self.versions = TrainPanel(), VersionList()
        self.round, self.predicting = Round(self), TrainingRun(self)
        self.actions_of_case = CaseActions(
            self, napari_viewer, self.cases, lambda: self.project, self._do, self._on_failed
        )
        self.pages = QTabWidget()
        self._recovery = Recovery.start(napari_viewer)
        self.reviewing = ReviewPanel()
        self.review = Review(self, napari_viewer, self.reviewing, self._do, self.add.add_button.click, self._recovery)
        self._build()
        self._connect()
        self._refresh()
        last = self.bar.last
        if last is not None:
            self.open_folder(last)

    # --- how it looks ---

    def _build(self) -> None:
        first = QWidget()
        vbox(self.add, (self.cases, 1), of=first, margins=(6, 6, 6, 6), spacing=8)
        pages = {"Cases": first, "Train": self.train, "Versions": self.versions, "Review": self.reviewing}
        for title, page in pages.items():
            self.pages.addTab(ScrollArea(page), title)
        below = (self.note, self.error, ResearchOnly(centred=True))
        vbox(self.bar, self.facts, (self.pages, 1), *below, of=self, margins=(6, 6, 6, 4), spacing=5)
        self.setMinimumWidth(370)
        self.setAcceptDrops(True)

    def _connect(self) -> None:
        self.bar.chosen.connect(self.open_folder)
        self.add.add.connect(self._on_add)
        self.add.failed.connect(self._on_failed)
        self.cases.opened.connect(self._on_case)
        self.cases.predict.connect(self._on_predict)
        self.train.start.connect(self._on_start)
        self.train.stop.connect(self.round.stop)
        self.train.resume.connect(self._on_resume)
        self.train.held_out.opened.connect(self._on_held_out)
        self.round.changed.connect(self._on_state)
        self.round.recipe_explained.connect(self.train.add_choice)
        self.round.started.connect(self._on_began)
        self.round.event_received.connect(self._on_event)
        self.round.failed.connect(self._on_failed)
        self.round.finished.connect(self._on_over)
        self.predicting.failed.connect(self._on_failed)
        self.predicting.changed.connect(self._on_predicting)
        self.predicting.event.connect(self._on_predicted)
        self.versions.use.connect(self._on_use)
        self.versions.roll_back.connect(self._on_roll_back)
        self.versions.export.connect(self._on_export)
        self.versions.import_.connect(self._on_import)

    # --- which project ---

    def open_folder(self, folder: Path, new: Mapping[str, Any] | None = None) -> None:
        """Open a project, or make it with the arguments `new` of `init_project`."""
        self._do(lambda: open_project_job(folder, new))

    def _likely(self) -> dict[str, Any]:
        """Return what a new project is likely to be, by what the viewer shows."""
        image, layer = self.add.image.case, self.add.layer
        names = fmseg_metadata(layer).get("names", {}) if layer is not None else {}
        return {
            "names": tuple(names.values()),
            "n_channels": image.n_channels if image else 1,
            "modality": str(image.meta.get("modality", "")) if image else "",
        }

    # --- work beside the window ---

    def _do(self, work: Callable[[], Iterator[Any]]) -> None:
        """Start what the user asked for, unless something is being done already."""
        if self._job is None:
            self.error.tell(None)
            self._start_job(work)
            self.pages.setEnabled(self.round.running)

    def _start_job(self, work: Callable[[], Iterator[Any]]) -> None:
        self._job = start_job(work, parent=self)
        self._job.event.connect(self._on_done)
        self._job.failed.connect(self._on_failed)
        self._job.finished.connect(self._on_finished)

    def _on_done(self, event: Any) -> None:
        if isinstance(event, Progress):
            self.facts.setText(f"{event.stage.capitalize()} … {event.done} of {event.total}")
        elif isinstance(event, ProjectSnapshot):
            self._take(event)
        elif isinstance(event, CaseLayers):
            assert self.project is not None
            show_case(self.viewer, self.project, event)
            self.review.on_opened(event)
        else:
            self.actions_of_case.take(event)

    def _on_finished(self, done: bool) -> None:
        what, conflict = self._adding, self._conflict
        self._job = self._adding = self._conflict = None
        if what is not None and conflict is not None:
            QTimer.singleShot(0, lambda: self._on_conflict(what, conflict))
        self.pages.setEnabled(True)
        self._refresh()
        self.review.on_idle()

    def _take(self, what: ProjectSnapshot) -> None:
        before = self.project.folder if self.project is not None else None
        self._known, self.project = what, what.project
        if what.project.folder != before:
            self.bar.set_folder(what.project.folder)
            self.note.tell([])
            if not self.round.running:
                self.train.show_state("idle", "")
                self.train.show_learned("")
        if self._adding is not None:
            self._on_added(self._adding)
        self._list_models()
        self._refresh()

    def _refresh(self) -> None:
        """Show the project as it is."""
        known, project = self._known, self.project
        self.add.set_project(project)
        for page in (1, 2, 3):
            self.pages.setTabEnabled(page, project is not None)
            self.pages.setTabToolTip(page, "" if project is not None else TEACH.no_project)
        used = project.index.used if project is not None else ()
        why = "" if used else "There is no model yet. Train one first."
        why = why or ("A training is under way." if self.round.running else "")
        why = why or ("The cases are being predicted." if self.predicting.running else "")
        if project is None or known is None:
            self.facts.setText("A project is a folder with volumes, your labels, and the models trained on them.")
            self.cases.show_cases((), (), TEACH.no_project)
            self.review.set_project(None, ())
        else:
            rows = case_table(project)
            self.facts.setText(summary(project, rows, known.versions[-1].number if known.versions else 0))
            self.cases.show_cases(rows, rank_cases(project), why)
            self.review.set_project(project, rows, self._lock_reason())
            self.train.note.setText(known.note)
            self.versions.show_versions(known.versions, used)
            self.train.refresh(known.versions, used[-1] if used else 0)
            self.train.show_report(known.report if not self.round.running else None)
        self._allow()

    def _allow(self) -> None:
        self.cases.lock(self._lock_reason())
        why = "" if self._known is not None and self._known.can_train else "Add a volume with its labels first."
        why = why or ("The cases are being predicted." if self.predicting.running else "")
        unfinished = bool(self._known and self._known.unfinished and not self.round.running)
        self.train.allow(why, can_resume=self.round.can_resume or unfinished)

    def _lock_reason(self) -> str:
        """Return why cases cannot be changed now, or nothing."""
        return "A training is under way." if self.round.running or self.predicting.running else ""

    def _on_failed(self, error: Any) -> None:
        if isinstance(error, LabelsChanged) and self._adding is not None:
            self._conflict = error
        else:
            self.error.tell(error)

    def _on_conflict(self, what: NewCase, error: LabelsChanged) -> None:
        """Show a question about labels that somebody else saved."""
        if ask_to_replace(self, str(error)):
            self._on_add(replace(what, replace=True))
        else:
            self.error.tell(error)

    # --- cases ---

    def _on_add(self, what: NewCase) -> None:
        if self._job is None:
            self._adding = what
            self._stored = (self.add.layer, self._recovery.edits_of(self.add.layer))
            self._do(lambda: add_case_job(what))

    def _on_added(self, what: NewCase) -> None:
        record_case(what, labels_revision(self.project, what.name) if self.project is not None else None)
        if what.labels is not None:
            self._recovery.mark_saved(*self._stored)
        saved = "has its labels" if what.labels is not None else "was added, to be labelled later"
        self.note.tell([f"{what.name} {saved}."])
        self.add.name.clear()
        self.cases.choose(what.name)
        self.review.on_saved(what.name, *self._stored)

    def _on_case(self, name: str) -> None:
        if self.project is not None:
            folder = self.project.folder
            self._do(lambda: load_case_job(folder, name))

    def _on_held_out(self, name: str) -> None:
        """Open a case with its labels and the model's."""
        report = self.train.held_out.report
        case = next((case for case in report.cases if case.name == name), None) if report is not None else None
        if self.project is not None and case is not None and report is not None:
            folder = self.project.folder
            model = "a model without it" if report.left_out else f"version {report.version}"
            self._do(lambda: load_case_job(folder, name, case.found, f"{name} · {model}"))

    def _on_predict(self) -> None:
        if self.project is not None and not self.round.running:
            self.error.tell(None)
            self.predicting.start(("project", "predict", str(self.project.folder)))

    def _on_predicted(self, event: Any) -> None:
        if isinstance(event, Progress):
            self.note.tell([f"Predicting, {event.done} of {event.total} cases."])

    def _on_predicting(self, state: str) -> None:
        if state in ("done", "stopped", "failed"):
            self.note.tell([])
            self._on_over()
        self._refresh()

    # --- training ---

    def _on_start(self) -> None:
        if self.project is None or self._job is not None:
            return
        self.error.tell(None)
        self.note.tell([])
        try:
            source, options, augment = self.train.choices()
        except FmsegError as error:
            self.error.tell(error)
            return
        self._remarks.clear()
        self.train.tell_choices([])
        self.train.show_learned("")
        self.round.start(self.project.folder, source, options, augment)

    def _on_resume(self) -> None:
        if self.project is not None and self._job is None:
            self.error.tell(None)
            self.round.resume(self.project.folder, self._known.unfinished if self._known else 0)

    def _on_began(self, recipe: Recipe) -> None:
        steps, is_timed = steps_of(recipe), bool(minutes_of(recipe))
        self.train.begin(steps, _colors(recipe.labels), fresh=self.round.fresh, is_timed=is_timed)

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Warned):
            if event.code == STARTING_WEIGHTS:  # for those who open the details
                self.train.add_choice(event.text)
            elif event.code == LEARNED_FROM:
                self.train.show_learned(event.text)
            else:
                self._warn(event)
        self.train.take(event)
        if isinstance(event, EpochDone):
            self._allow()
            self._drop_remarks(event.metrics)

    def _warn(self, warning: Warned) -> None:
        """Show a warning of the training; every stage gives the same ones, so the newest replaces the one before."""
        about = warning.code or warning.text
        self._remarks.pop(about, None)
        self._remarks[about] = warning.text
        self.note.tell(list(self._remarks.values())[-_REMARKS:])

    def _drop_remarks(self, metrics: Mapping[str, float]) -> None:
        """Forget that a class was not being learned once it is."""
        about = {name.replace("dice/", "not-learned: ", 1) for name, dice in metrics.items() if dice >= _LEARNED}
        if about & self._remarks.keys():
            self._remarks = {key: text for key, text in self._remarks.items() if key not in about}
            self.note.tell(list(self._remarks.values())[-_REMARKS:])

    def _on_state(self, state: str, text: str) -> None:
        self.train.show_state(state, text, lambda: self.round.left)
        self._allow()
        if state in ("done", "failed"):
            notify(window_of(self.viewer), f"Training {'is done' if state == 'done' else 'has failed'}", text)

    def _on_over(self) -> None:
        """Read the project again."""
        if self.project is not None and self._job is None:
            folder = self.project.folder
            self._start_job(lambda: open_project_job(folder))  # what went wrong stays in sight

    def _list_models(self) -> None:
        """List a new model wherever models are chosen, such as in the Segment dock."""
        window = window_of(self.viewer)
        for chooser in window.findChildren(ModelChooser) if window is not None else ():
            chooser.refresh()

    # --- versions ---

    def _on_use(self, number: int) -> None:
        if self.project is not None:
            folder = self.project.folder
            self._do(lambda: activate_version_job(folder, number))

    def _on_roll_back(self) -> None:
        self._on_use(0)

    def _on_export(self) -> None:
        known = self._known.versions if self._known else ()
        version = next((v for v in known if v.number == self.versions.chosen), None)
        if version is not None:
            self._tell(lambda: ask_and_export(self, version))

    def _on_import(self) -> None:
        self._tell(lambda: ask_and_import(self))
        self._list_models()
        self._refresh()

    def _tell(self, what: Callable[[], str]) -> None:
        """Do something with a file, and say what was done or why it was not."""
        self.error.tell(None)
        try:
            self.note.tell([*filter(None, [what()])])
        except FmsegError as error:
            self.error.tell(error)

    # --- coming and going ---

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:
        """Accept files and folders."""
        if event is not None and event.mimeData() is not None and event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent | None) -> None:
        """Open a project; anything else is opened as a scan."""
        if event is None or event.mimeData() is None:
            return
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]
        event.acceptProposedAction()
        projects = [path for path in paths if (path / "dataset.json").exists()]
        if projects:
            self.open_folder(projects[0])
        elif paths:
            opening = Opening(self.viewer, [str(path) for path in paths], self)
            opening.failed.connect(self._on_failed)
            opening.start()

    def close_down(self) -> None:
        """End what runs and let go of the viewer; the dock may be deleted afterwards."""
        self.round.close()
        self.predicting.close()
        if self._job is not None:
            self._job.abandon()
            self._job = None
        self.add.close_down()


def _colors(names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return structures the colours that their labels have."""
    grid = Geometry.from_spacing((1, 1, 1), (1, 1, 1))
    of_label = colormap_of(LabelMap(np.zeros((1, 1, 1), np.uint8), grid, {}, dict(enumerate(names, 1))))
    return {name: of_label[value][:3] for value, name in enumerate(names, 1)}
