"""A training under way as a dock sees it: its state, its events, how long it will still take."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping, Sequence

from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, StepDone, TrainEvent
from napari_fmseg.workers.training import PROGRAM, RemoteTraining

__all__ = ["STATES", "TrainingRun"]

STATES = ("idle", "preparing", "training", "validating", "done", "stopped", "failed")
_BETWEEN_STEPS_S = 0.1  # a curve needs no more, and the window has to draw each
_FIRST_S = 1.0  # of training before a time is recorded


class TrainingRun:
    """One training at a time, in a process of its own; it ends with `parent`, and with the program.

    Parameters
    ----------
    parent
        The dock that shows it.
    program
        The words before the command; see `napari_fmseg.workers.training.PROGRAM`.

    Attributes
    ----------
    changed
        Qt signal with the new state, one of `STATES`. (A QObject may have no signal called `event`, which is why this
        is none and has one inside.)
    event
        Qt signal with each `TrainEvent`. Of steps that come faster than ten a second one arrives, with their mean loss.
    failed
        Qt signal with the `FmsegError` that ended the training, before ``changed("failed")``.
    error
        That error, or None.
    """

    def __init__(self, parent: QObject, *, program: Sequence[str] = PROGRAM) -> None:
        self._parent, self._program = parent, tuple(program)
        self._signals = _Signals()
        signals = self._signals
        self.changed, self.event, self.failed = signals.changed, signals.event_received, signals.failed
        self._command: tuple[str, ...] = ()
        self._steps: dict[str, int] = {}
        self._training: RemoteTraining | None = None
        self._job: Job | None = None
        self._clock = _Clock()
        self._asked = False
        self.state = "idle"
        self.error: FmsegError | None = None

    @property
    def running(self) -> bool:
        """Whether a training is under way; a start is possible when not."""
        return self._job is not None

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop and has not yet."""
        return self.running and self._asked

    @property
    def can_resume(self) -> bool:
        """Whether a training was begun that did not come to its end."""
        return not self.running and self.state in ("stopped", "failed") and bool(self._command)

    @property
    def pid(self) -> int | None:
        """Number of the process, or None while there is none."""
        return self._training.pid if self._training is not None else None

    @property
    def fraction(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return self._clock.fraction(self._steps)

    @property
    def seconds_left(self) -> float | None:
        """About how long the rest takes, or None while nobody can tell."""
        return self._clock.seconds_left(self._steps, time.monotonic())

    def start(self, command: Sequence[str], *, steps: Mapping[str, int] | None = None) -> None:
        """Begin; does nothing while a training is under way.

        Parameters
        ----------
        command
            What would follow ``fmseg``, such as ``("train", "recipe.toml")``.
        steps
            Optimiser steps of every stage in order, where there are several, so that the time left takes in those to
            come.
        """
        if self.running:
            return
        self._command, self._steps = tuple(map(str, command)), dict(steps or {})
        self._clock, self.error, self._asked = _Clock(), None, False
        self._training = training = RemoteTraining(self._command, program=self._program)
        self._job = start_job(lambda: _thin_steps(training.events()), training.stop, self._parent)
        self._job.event.connect(self._on_event)
        self._job.failed.connect(self._on_failed)
        self._job.finished.connect(self._on_finished)
        self._enter("preparing")

    def stop(self) -> None:
        """Request the training to stop and keep the best so far; returns at once, "stopped" follows within two
        seconds.
        """
        if self._training is not None and self.running:
            self._asked = True
            self._training.stop()

    def resume(self) -> None:
        """Go on with a training that was stopped or failed, from what it has saved."""
        if self.can_resume:
            self.start(self._command, steps=self._steps)

    def close(self) -> None:
        """End the training at once; no signal follows."""
        if self._job is not None:
            self._job.abandon()
        self._job = self._training = None

    def _on_event(self, event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            self._clock.take(event, time.monotonic())
            self._enter("training")
        elif isinstance(event, Progress) and event.stage == "validating":
            self._enter("validating")
        self._signals.event_received.emit(event)

    def _on_failed(self, error: FmsegError) -> None:
        self.error = error

    def _on_finished(self, done: bool) -> None:
        self._job = self._training = None
        if self.error is not None:
            self._signals.failed.emit(self.error)
            self._enter("failed")
        else:
            self._enter("stopped" if self._asked or not done else "done")

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._signals.changed.emit(state)


class _Signals(QObject):
    changed = Signal(str)
    event_received = Signal(object)
    failed = Signal(object)


class _Clock:
    """How far a training is, and how fast it went since it was started here."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None  # when, and how many steps were done then
        self._over: dict[str, int] = {}  # steps of every stage that was seen
        self._stage, self._step, self._total = "", 0, 0

    def take(self, event: StepDone, now: float) -> None:
        """Record a step."""
        self._stage, self._step, self._total = event.stage, event.step, event.total
        self._over[event.stage] = event.step
        if self._first is None:
            self._first = (now, event.step)

    def _all(self, steps: Mapping[str, int]) -> tuple[int, int]:
        """Return the steps that are done, those of earlier stages too, and those of all stages."""
        stages = list(steps)
        at = stages.index(self._stage) if self._stage in stages else 0
        before, after = sum(steps[s] for s in stages[:at]), sum(steps[s] for s in stages[at + 1 :])
        return before + self._step, before + self._total + after

    def fraction(self, steps: Mapping[str, int]) -> float:
        done, total = self._all(steps)
        return min(1.0, done / total) if self._total else 0.0

    def seconds_left(self, steps: Mapping[str, int], now: float) -> float | None:
        if self._first is None or now - self._first[0] < _FIRST_S:
            return None
        seen = sum(self._over.values()) - self._first[1]
        done, total = self._all(steps)
        return (now - self._first[0]) / seen * (total - done) if seen > 0 and self._total else None


def _thin_steps(events: Generator[TrainEvent, None, None]) -> Iterator[TrainEvent]:
    """Yield every event, of fast steps one for several; the last one before anything else always."""
    waiting: list[StepDone] = []
    last = 0.0
    with contextlib.closing(events):
        for event in events:
            if waiting and (not isinstance(event, StepDone) or event.stage != waiting[0].stage):
                yield _mean(waiting)
                waiting = []
            if not isinstance(event, StepDone):
                yield event
                continue
            waiting.append(event)
            if time.monotonic() - last >= _BETWEEN_STEPS_S:
                yield _mean(waiting)
                waiting, last = [], time.monotonic()
        if waiting:
            yield _mean(waiting)


def _mean(steps: Sequence[StepDone]) -> StepDone:
    """Return the last of several steps with the mean loss of all."""
    return dataclasses.replace(steps[-1], loss=sum(step.loss for step in steps) / len(steps))
