"""Training: from what, for how long, and how it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QComboBox, QFileDialog, QLabel, QSizePolicy, QWidget

from napari_fmseg._napari.common.curves import Curves
from napari_fmseg._napari.common.number_boxes import NumberBox
from napari_fmseg._napari.common.options_form import OptionsForm
from napari_fmseg._napari.common.preferences import PRECISIONS, list_device_names
from napari_fmseg._napari.common.time_estimate import format_seconds
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import (
    NO_MARGINS,
    PRIMARY_BUTTON,
    Collapsible,
    add_row,
    allow,
    form,
    hbox,
    limit_width,
    paragraph,
    progress_bar,
    push_button,
    vbox,
)
from napari_fmseg._napari.teach.validation_view import HeldOutTable, PlaneView
from napari_fmseg.core.events import EpochDone, Pictures, Progress, StepDone, TrainEvent
from napari_fmseg.models.registry import GENERAL_START, list_models
from napari_fmseg.training import Augment
from napari_fmseg.training.projects import ACTIVE_VERSION, FROM_SCRATCH, RunReport, TrainingOptions, Version

__all__ = ["TrainPanel"]

_FILE = "a file"
_TICK_MS = 500
_PLOT = 76  # pixels, so that all of the page is in sight at 800
_COLORS = {
    "idle": "#8a8a8a",
    "preparing": "#e69f00",
    "training": "#3d8bd4",
    "validating": "#3d8bd4",
    "done": "#2f9e62",
    "stopped": "#e69f00",
    "failed": "#d9534f",
}
_DOING = {"reading": "Reading the cases", "validating": "Validating on the held-out cases"}
_WORDS = {"rate": "Learning rate, times"}


class _Sources(QComboBox):
    """A list that says when it is opened."""

    opened = Signal()

    def showPopup(self) -> None:
        """Open the list."""
        self.opened.emit()
        super().showPopup()


class TrainPanel(QWidget):
    """What to start from, the minutes, three buttons with a signal each, and what is learned."""

    start = Signal()
    stop = Signal()
    resume = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.state, self._text, self._doing = "idle", "", ""
        self._present = 0
        self._files: list[str] = []  # cards that the user has chosen
        self._steps: Mapping[str, int] = {}  # as planned
        self._reached: dict[str, int] = {}  # the last step of every stage that was seen
        self._is_timed = False
        self._colors: dict[int, Sequence[float]] = {}
        self._last = 0.0  # where on the x axis the last step lies
        self._left: Any = lambda: None
        self._versions: Sequence[Version] = ()
        self.source, self.minutes = _Sources(), NumberBox()
        self.options = OptionsForm(
            TrainingOptions,
            skip=("minutes",),
            choices={"device": list_device_names(), "precision": PRECISIONS},
            labels=_WORDS,
        )
        self.augment = OptionsForm(Augment, skip=("swap",))
        self.choices_made = paragraph(tip=TEACH.choices)
        self.choices_made.hide()
        inside = QWidget()
        follows = paragraph("The augmentation follows from the data. A value that is changed here is used instead:")
        vbox(self.choices_made, self.options, follows, self.augment, of=inside, margins=NO_MARGINS)
        self.more = Collapsible("Details", inside, TEACH.details)
        self.start_button = push_button("&Start", style=PRIMARY_BUTTON)
        self.stop_button, self.resume_button = push_button("S&top"), push_button("R&esume")
        self.light, self.said, self.note = QLabel(), paragraph(), paragraph()
        self.bar = progress_bar()
        self.loss = Curves("", "loss")
        self.dice = Curves("step", "Dice", y_range=(0, 1), digits=2)
        self.learned = paragraph(tip=TEACH.learned)
        self.picture, self.held_out = PlaneView(), HeldOutTable()
        self.show_learned("")
        self._lay_out()
        self._timer = QTimer(self, interval=_TICK_MS)
        self._timer.timeout.connect(self._on_tick)
        self.start_button.clicked.connect(self.start)
        self.stop_button.clicked.connect(self.stop)
        self.resume_button.clicked.connect(self.resume)
        self.source.activated.connect(self._on_source)
        self.source.opened.connect(self._list_again)
        self.refresh((), 0)
        self.show_state("idle", "")
        self.allow(TEACH.no_project, can_resume=False)

    def _lay_out(self) -> None:
        limit_width(self.source, 14)
        self.minutes.setRange(0.1, 10_000)
        self.minutes.setDecimals(1)
        self.minutes.setValue(TrainingOptions().minutes)
        self.minutes.setPrefix("about ")
        self.minutes.setSuffix(" minutes")
        fields = form(spacing=None)
        add_row(fields, "Start from", self.source, TEACH.source)
        add_row(fields, "Time", self.minutes, TEACH.minutes)
        buttons = hbox((self.start_button, 2), (self.stop_button, 1), (self.resume_button, 1))
        status = hbox(self.light, (self.said, 1))
        for curves in (self.loss, self.dice):  # as high as there is room: the plot itself asks for 640 x 480
            curves.plot.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)
            curves.plot.setMinimumHeight(_PLOT)
        self.loss.setToolTip(TEACH.loss)
        self.dice.setToolTip(TEACH.dice_curve)
        above = (fields, self.note, self.more, buttons, status, self.bar, self.learned, self.held_out)
        shown = ((self.loss, 1), (self.dice, 1), self.picture)
        vbox(*above, *shown, of=self, margins=(6, 6, 6, 6), spacing=5)

    # --- what to start from ---

    def refresh(self, versions: Sequence[Version], present: int) -> None:
        """List what a training can start from; what was chosen stays."""
        before, self._versions = self.source.currentData(), versions
        self.source.clear()
        if present:
            self.source.addItem(f"The project's model, version {present}", ACTIVE_VERSION)
        self.source.addItem("Scratch: a new network", FROM_SCRATCH)
        self.source.addItem("General start: has learned other organs", GENERAL_START)
        own = {version.card.sha256 for version in versions}
        for card in list_models():
            if card.sha256 not in own:
                self.source.addItem(f"{card.modality} · {card.title}" if card.modality else card.title, card.name)
        for file in self._files:
            self.source.addItem(Path(file).stem, file)
        self.source.addItem("Pretrained or other model file …", _FILE)
        at = self.source.findData(before) if before not in (None, _FILE) else -1
        self.source.setCurrentIndex(at if at >= 0 and present == self._present else 0)  # a new version is gone on from
        self._present = present

    def _list_again(self) -> None:
        """List what a training can start from, as it is now: another dock may have imported a model."""
        self.refresh(self._versions, self._present)

    def showEvent(self, event: QShowEvent | None) -> None:
        """List what a training can start from."""
        super().showEvent(event)
        self._list_again()

    def begin_from(self, path: Path) -> None:
        """Start from the card of a model in a file."""
        if str(path) not in self._files:
            self._files.append(str(path))
            self.source.addItem(path.stem, str(path))
        self.source.setCurrentIndex(self.source.findData(str(path)))

    def _on_source(self) -> None:
        if self.source.currentData() != _FILE:
            return
        path, _ = QFileDialog.getOpenFileName(self, "A model's card", "", "Model cards (*.toml)")
        self.source.setCurrentIndex(0)
        if path:
            self.begin_from(Path(path))

    def choices(self) -> tuple[str, TrainingOptions, Augment]:
        """Return what the user has chosen."""
        options = TrainingOptions(minutes=self.minutes.value(), **self.options.values())
        return str(self.source.currentData()), options, Augment(**self.augment.values())

    # --- how it goes ---

    def allow(self, disabled_reason: str, *, can_resume: bool) -> None:
        """Enable the start button, or state in its tooltip why not."""
        running = self.state in ("preparing", "training", "validating")
        busy = TEACH.busy if running else ""
        allow(self.start_button, busy or disabled_reason, TEACH.start)
        allow(self.stop_button, "" if running else "Nothing is running.", TEACH.stop)
        allow(self.resume_button, busy or ("" if can_resume else "No training was interrupted."), TEACH.resume)

    def show_state(self, state: str, text: str, left: Any = None) -> None:
        """Show a state and what it means; `left` gives share and seconds left while it runs."""
        self.state, self._text = state, text
        self._left = left or (lambda: None)
        self.light.setText(
            f'<span style="color: {_COLORS[state]}; font-size: 14pt">●</span> <b>{state.capitalize()}</b>'
        )
        running = state in ("preparing", "training", "validating")
        self.bar.setVisible(running)
        (self._timer.start if running else self._timer.stop)()
        self._on_tick()

    def begin(
        self, steps: Mapping[str, int], colors: Mapping[str, Any], *, fresh: bool, is_timed: bool = False
    ) -> None:
        """Get ready for a training; one that is resumed goes on in its plots.

        Parameters
        ----------
        steps
            Of every stage, as planned.
        colors
            Of the structures.
        fresh
            Whether it is another training than the last one.
        is_timed
            Whether it goes by time, so that its number of steps is a guess.
        """
        self._steps, self._is_timed = dict(steps), is_timed
        self.held_out.show_report(None)
        if fresh:
            self.loss.clear()
            self.dice.clear()
            self._doing = ""
            self._reached.clear()
            self.picture.hide()
        self._colors = dict(enumerate(colors.values(), 1))
        self.dice.set_colors(dict(colors))

    def tell_choices(self, texts: Sequence[str]) -> None:
        """Show under the details what was chosen for the last training, and why."""
        self.choices_made.setText("\n".join(texts))
        self.choices_made.setVisible(bool(texts))

    def add_choice(self, text: str) -> None:
        """Show one choice more."""
        self.tell_choices([*filter(None, self.choices_made.text().splitlines()), text])

    def show_learned(self, text: str) -> None:
        """Show what the model learns from, or with "" nothing."""
        self.learned.setText(text)
        self.learned.setVisible(bool(text))

    def show_report(self, report: RunReport | None) -> None:
        """Show what the newest version did on the cases that it never saw, in place of the picture as it learned."""
        self.held_out.show_report(report)
        self.picture.setVisible(self.picture.isVisibleTo(self) and not self.held_out.isVisibleTo(self))

    def take(self, event: TrainEvent) -> None:
        """Draw an event."""
        if isinstance(event, StepDone):
            self.loss.add(self._at(event.stage, event.step), {event.stage: event.loss})
            self._doing = f"Training: {event.stage}, step {event.step}"
            self._doing += "" if self._is_timed else f" of {event.total}"
        elif isinstance(event, EpochDone):
            values = {name.removeprefix("dice/"): v for name, v in event.metrics.items() if name.startswith("dice/")}
            self.dice.add(self._last, values)
            self._doing = f"{event.stage.capitalize()}: round {event.epoch} of {event.total} is measured"
        elif isinstance(event, Pictures):
            self.picture.show_plane(event.path, self._colors)
        elif isinstance(event, Progress) and event.stage in ("reading", "validating"):
            self._doing = f"{_DOING[event.stage]}, {event.done} of {event.total}"
        self._on_tick()

    def _at(self, stage: str, step: int) -> float:
        """Return where a step lies, behind those of the stages before."""
        names = list(self._steps)
        earlier = names[: names.index(stage)] if stage in names else []
        self._reached[stage] = step
        before = sum(self._reached.get(name, self._steps[name]) for name in earlier)
        self._last = float(before + step)
        return self._last

    def _on_tick(self) -> None:
        left = self._left()
        text = self._text
        if left is not None:
            share, seconds = left
            self.bar.setValue(int(1000 * share))
            rest = f", about {format_seconds(max(1.0, round(seconds)))} left" if seconds is not None else ""
            text = f"{self._doing or text}{rest}"
        self.said.setText(text)
