"""The dock that pretrains: a folder of scans without labels goes in, a model to start from comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication, QCheckBox, QVBoxLayout

from napari_fmseg._napari.common.dialogs import ErrorBox, ResearchOnly, text_label
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.job import start_job
from napari_fmseg._napari.common.time_estimate import format_seconds
from napari_fmseg._napari.common.tooltips import PRETRAIN
from napari_fmseg._napari.common.training_process import TrainingRun
from napari_fmseg._napari.common.viewer_window import unwrap_viewer
from napari_fmseg._napari.common.widgets import (
    NO_MARGINS,
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    Column,
    Note,
    allow,
    hbox,
    paragraph,
    progress_bar,
    push_button,
    vbox,
)
from napari_fmseg._napari.pretrain.form import PretrainForm
from napari_fmseg._napari.pretrain.panels import LeftOut, Outcome, Plots, SampleLayers, folder_in
from napari_fmseg._napari.pretrain.plan import model_in, recipe_in, sample_layers, write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Pictures, Progress, StepDone, TrainEvent, Warned
from napari_fmseg.workers.training import PROGRAM

__all__ = ["PretrainDock"]

_TICK_MS = 500
_BAR = 1000
_WORDS = {"preparing": "Starting", "training": "Training", "validating": "Validating on held-out scans"}


class PretrainDock(Dock):
    """Pretrains a network on scans without labels, in a process of its own, and shows how it goes.

    Parameters
    ----------
    more
        Fields of the recipe that the form does not show, for scripts.
    program
        The words before the command; see `napari_fmseg.workers.training.PROGRAM`.
    """

    ready = Signal(object)  # with the path of a model's card: the user wants to start from it

    def __init__(
        self, napari_viewer: Any, *, more: Mapping[str, Any] | None = None, program: Sequence[str] = PROGRAM
    ) -> None:
        super().__init__()
        self.setObjectName("fmseg_pretrain")
        self.viewer = napari_viewer = unwrap_viewer(napari_viewer)
        self.training = TrainingRun(self, program=program)
        self._said = ""
        self.form = PretrainForm(more)
        self.error, self.remarks, self.left_out = ErrorBox(), Note(), LeftOut()
        self.plots, self.outcome = Plots(), Outcome()
        self.samples = QCheckBox("Show a &sample as layers")
        self._layers = SampleLayers(napari_viewer)
        self.start_button = push_button("Start pre&training", style=PRIMARY_BUTTON)
        self.stop_button = push_button("St&op", style=SECONDARY_BUTTON)
        self.resume_button = push_button("&Resume", style=SECONDARY_BUTTON)
        self.bar, self.text = progress_bar(PRETRAIN.progress, _BAR), paragraph(tip=PRETRAIN.progress)
        self._timer = QTimer(self, interval=_TICK_MS)
        self._build()
        self._connect()
        self._allow()

    # --- how it looks ---

    def _build(self) -> None:
        self._column = Column()
        rows = self._column.rows
        about = text_label("Learns the look of your scans, without labels. Training on few labels can start from that.")
        self.samples.setChecked(True)
        self.samples.setToolTip(PRETRAIN.samples)
        for widget in (about, self.form, self.samples, self.error, self.remarks, self.outcome, self.left_out):
            rows.addWidget(widget)
        rows.addWidget(self.plots, 1)
        self.plots.hide()
        rows.addStretch(0)
        vbox((self._column, 1), self._foot(), of=self, margins=NO_MARGINS, spacing=0)
        self.setMinimumWidth(320)

    def _foot(self) -> QVBoxLayout:
        """Lay out what is always in sight: the buttons and how far it is."""
        for widget in (self.bar, self.text):
            widget.hide()
        buttons = hbox((self.start_button, 3), (self.stop_button, 1), (self.resume_button, 2))
        return vbox(buttons, self.bar, self.text, ResearchOnly(centred=True), margins=(8, 4, 8, 4), spacing=4)

    def _connect(self) -> None:
        self.setAcceptDrops(True)
        self.form.changed.connect(self._allow)
        self.start_button.clicked.connect(self._on_start)
        self.stop_button.clicked.connect(self._on_stop)
        self.resume_button.clicked.connect(self._on_resume)
        self.outcome.use.connect(self._on_use)
        self.training.event.connect(self._on_event)
        self.training.changed.connect(self._on_state)
        self.training.failed.connect(self.error.tell)
        self._timer.timeout.connect(self._on_tick)

    # --- a run ---

    def _allow(self) -> None:
        """Enable start, stop and resume, or state in the tooltips why not."""
        busy, out = self.training.running, self.form.out.path
        there = recipe_in(out) if out is not None else None
        reason = PRETRAIN.start_busy if busy else self.form.disabled_reason() or (PRETRAIN.start_there if there else "")
        allow(self.start_button, reason, PRETRAIN.start)
        idle = PRETRAIN.stop_idle if not busy else PRETRAIN.stop_under_way if self.training.stopping else ""
        allow(self.stop_button, idle, PRETRAIN.stop)
        can_resume = not busy and there is not None and self.training.state != "done"
        why_not = PRETRAIN.start_busy if busy else PRETRAIN.resume_none
        allow(self.resume_button, "" if can_resume else why_not, PRETRAIN.resume)
        self.form.setEnabled(not busy)

    def _on_start(self) -> None:
        try:
            recipe = write(self.form.plan())
        except FmsegError as error:
            self.error.tell(error)
            return
        self.plots.clear()
        self.plots.hide()
        self.left_out.clear()
        self._begin(recipe)

    def _on_resume(self) -> None:
        out = self.form.out.path
        recipe = recipe_in(out) if out is not None else None
        if recipe is not None:
            self._begin(recipe)

    def _begin(self, recipe: Path) -> None:
        self.error.tell(None)
        self.remarks.tell([])
        self.outcome.tell(None)
        self._layers.forget()
        self.plots.begin()
        self._said = ""
        self.training.start(("pretrain", str(recipe)))
        self._timer.start()
        self._on_tick()

    def _on_stop(self) -> None:
        self.training.stop()
        self._allow()
        self._on_tick()

    def _on_event(self, event: TrainEvent) -> None:
        self.plots.take(event)
        if isinstance(event, StepDone):
            self.plots.show()
            self._said = f"step {event.step} of {event.total or '…'}"
        elif isinstance(event, Progress) and event.stage == "reading":
            self._said = f"reading scan {event.done + 1} of {event.total}"
        elif isinstance(event, Warned) and not self.left_out.take(event):
            self.remarks.tell([*self.remarks.text().splitlines(), event.text])
        elif isinstance(event, Pictures) and self.samples.isChecked():
            path, known = event.path, self._layers.names
            start_job(lambda: sample_layers(path, known), parent=self).event.connect(self._layers.show)

    def _on_state(self, state: str) -> None:
        if not self.training.running:
            self._timer.stop()
            out = self.form.out.path
            model = model_in(out) if out is not None else None
            if state in ("done", "stopped") and model is not None:
                end = "is ready" if state == "done" else "can be used as a start as it is"
                self.outcome.tell(model, f"{model.stem} {end}: {model}")
                self._column.ensureWidgetVisible(self.outcome)
            if state == "done":
                self.form.propose()
        self._on_tick()
        self._allow()

    def _on_tick(self) -> None:
        """Show the progress."""
        training = self.training
        self.bar.setVisible(training.running)
        self.bar.setValue(int(training.fraction * _BAR))
        if training.stopping:
            text = "Stopping; what was learned is being kept"
        elif training.running:
            left = training.seconds_left
            parts = [f"{_WORDS[training.state]}: {self._said}" if self._said else f"{_WORDS[training.state]} …"]
            parts += [f"about {format_seconds(max(1.0, round(left)))} left"] if left is not None else []
            text = ", ".join(parts)
        else:
            end = training.state.capitalize() if training.state in ("done", "stopped", "failed") else ""
            text = f"{end}: {self._said}." if end and self._said else f"{end}." if end else ""
            text += " What was saved stays: press Resume." if training.state == "failed" else ""
        self.text.setText(text)
        self.text.setVisible(bool(text))

    # --- what comes after it ---

    def _on_use(self, path: Path) -> None:
        """Send the model on: as a signal, to the Teach dock, and to the clipboard."""
        QApplication.clipboard().setText(str(path))
        self.ready.emit(path)
        begin_from = self._teaching()
        if begin_from is not None:
            begin_from(path)
        where = 'chosen in the Teach panel under "Start from"' if begin_from is not None else "copied as a path"
        self.remarks.tell([f"{path.stem} is {where}. A recipe names it as start_from."])

    def _teaching(self) -> Any:
        """Open the Teach panel and give what takes a model there, or None where there is none."""
        try:
            _, teach = self.viewer.window.add_plugin_dock_widget("napari-fmseg", "Teach", tabify=True)
        except (AttributeError, KeyError, ValueError):  # a viewer without a window, or a version without that panel
            return None
        return getattr(getattr(teach, "train", None), "begin_from", None)

    # --- coming and going ---

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:
        """Accept a folder wherever it is dropped on the dock."""
        if event is not None and folder_in(event) and not self.training.running:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent | None) -> None:
        """Learn from the folder that was dropped."""
        folder = folder_in(event)
        if event is not None and folder and not self.training.running:
            event.acceptProposedAction()
            self.form.volumes.set_path(folder)

    def close_down(self) -> None:
        """End what runs; the dock may be deleted afterwards. The run can be resumed."""
        self._timer.stop()
        self.training.close()
