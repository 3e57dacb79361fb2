"""Run, cancel, and how far it is: two buttons, a bar with the stage and the time left, the times afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.time_estimate import Estimate, format_seconds
from napari_fmseg._napari.common.tooltips import SEGMENT
from napari_fmseg._napari.common.widgets import (
    NO_MARGINS,
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    allow,
    hbox,
    paragraph,
    progress_bar,
    push_button,
    vbox,
)

__all__ = ["RunBar"]

STEPS = 1000
TICK_MS = 250


class RunBar(QWidget):
    """The buttons and the bar; its signals tell which button was pressed."""

    run = Signal()
    cancel = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._estimate: Estimate | None = None
        self._label = ""
        self.run_button = push_button("&Run", style=PRIMARY_BUTTON)
        self.cancel_button = push_button("&Cancel", style=SECONDARY_BUTTON)
        self.bar, self.text = progress_bar(SEGMENT.progress, STEPS), paragraph()
        self._timer = QTimer(self, interval=TICK_MS)
        self._timer.timeout.connect(self._on_tick)
        buttons = hbox((self.run_button, 2), (self.cancel_button, 1))
        vbox(buttons, self.bar, self.text, of=self, margins=NO_MARGINS, spacing=4)
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.bar.hide()
        self.text.hide()
        self.allow("")

    @property
    def running(self) -> bool:
        """Whether a run is shown as under way."""
        return self._estimate is not None

    def allow(self, disabled_reason: str) -> None:
        """Enable the run button, or state in its tooltip why not."""
        allow(self.run_button, SEGMENT.run_busy if self.running else disabled_reason, SEGMENT.run)
        allow(self.cancel_button, "" if self.running else "Nothing is running.", SEGMENT.cancel)

    def begin(self, stages: Sequence[str], known: Mapping[str, float]) -> None:
        """Show a run that begins."""
        self._estimate = Estimate(stages, known, time.monotonic())
        self._label = "starting"
        self.bar.show()
        self.text.show()
        self._timer.start()
        self._on_tick()
        self.allow("")

    def move(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a stage are finished."""
        if self._estimate is not None:
            self._estimate.enter(stage, done, total, time.monotonic())
            self._label = stage
            self._on_tick()

    def stopping(self) -> None:
        """Show that the run was asked to end."""
        self._label = "stopping"
        allow(self.cancel_button, "The run is ending.", "")
        self._on_tick()

    def end(self, text: str) -> dict[str, float]:
        """Show that the run is over; gives the seconds of its stages by the clock."""
        self._timer.stop()
        seconds = self._estimate.finish(time.monotonic()) if self._estimate is not None else {}
        self._estimate = None
        self.bar.hide()
        self.text.setText(text)
        self.text.setVisible(bool(text))
        self.text.setToolTip(SEGMENT.times if text else "")
        return seconds

    def _on_tick(self) -> None:
        if self._estimate is None:
            return
        self.bar.setValue(int(self._estimate.fraction * STEPS))
        left = self._estimate.seconds_left(time.monotonic())
        has_rest = self._label != "stopping"
        rest = f": about {format_seconds(max(1.0, round(left)))} left" if left is not None and has_rest else ""
        self.text.setText(f"{self._label.capitalize()}{rest}")
