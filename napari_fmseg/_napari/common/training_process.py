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
        self._training: RemoteTraining | None = None
        self._job: Job | None = None
        self._clock = _Clock({}, {})
        self._done = 0.0
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
        """Share of the steps, or of the planned minutes, that is done, 0 to 1; it never falls in a training."""
        self._done = max(self._done, self._clock.fraction(time.monotonic()))
        return self._done

    @property
    def seconds_left(self) -> float | None:
        """About how long the rest takes, or None while nobody can tell."""
        return self._clock.seconds_left(time.monotonic())

    def start(
        self,
        command: Sequence[str],
        *,
        steps: Mapping[str, int] | None = None,
        minutes: Mapping[str, float] | None = None,
    ) -> None:
        """Begin; does nothing while a training is under way.

        Parameters
        ----------
        command
            What would follow ``fmseg``, such as ``("train", "recipe.toml")``.
        steps
            Optimiser steps of every stage in order, where there are several, so that the time left takes in those to
            come.
        minutes
            How long every stage is to take, where the training goes by time: then the time left does, too.
        """
        if self.running:
            return
        self._command = tuple(map(str, command))
        self._clock = _Clock(steps or {}, {stage: 60 * m for stage, m in (minutes or {}).items()})
        self.error, self._asked, self._done = None, False, 0.0
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
            self.start(self._command, steps=self._clock.steps, minutes=self._clock.minutes)

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
    """How far a training is: by its steps and how fast they went since it was started here, or by its planned time.

    Parameters
    ----------
    steps
        Of every stage in order, where there are several.
    seconds
        How long every stage is to take; empty where it goes by steps. How many steps that will be is then a guess.
    """

    def __init__(self, steps: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        self.steps, self.seconds = dict(steps), dict(seconds)
        self._first: tuple[float, int] | None = None  # when, and how many steps were done then
        self._entered = 0.0, 0.0  # when the present stage was, and which share of it was done then
        self._over: dict[str, int] = {}  # steps of every stage that was seen
        self._stage, self._step, self._total = "", 0, 0

    @property
    def minutes(self) -> dict[str, float]:
        """How long every stage is to take."""
        return {stage: seconds / 60 for stage, seconds in self.seconds.items()}

    def take(self, event: StepDone, now: float) -> None:
        """Record a step."""
        if event.stage != self._stage:
            self._entered = now, (event.step - 1) / event.total if event.total else 0.0
        self._stage, self._step, self._total = event.stage, event.step, event.total
        self._over[event.stage] = event.step
        if self._first is None:
            self._first = (now, event.step)

    def fraction(self, now: float) -> float:
        done, total = self._progress_in_seconds(now) if self.seconds else self._progress_in_steps()
        return min(1.0, done / total) if self._total else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return about how many seconds the rest takes; None while nobody can tell, or when the time is over."""
        if self._first is None or now - self._first[0] < _FIRST_S:
            return None
        if self.seconds:
            done, total = self._progress_in_seconds(now)
            return total - done or None
        seen = sum(self._over.values()) - self._first[1]
        done, total = self._progress_in_steps()
        return (now - self._first[0]) / seen * (total - done) if seen > 0 and self._total else None

    def _progress_in_steps(self) -> tuple[float, float]:
        """Return the steps that are done, those of earlier stages too, and those of all stages."""
        before, after = self._around(self.steps)
        return before + self._step, before + self._total + after

    def _progress_in_seconds(self, now: float) -> tuple[float, float]:
        """Return the planned seconds that are over, and those of all stages."""
        before, after = self._around(self.seconds)
        own = self.seconds.get(self._stage, 0.0)
        since, share = self._entered
        return before + min(own, own * share + now - since), before + own + after

    def _around(self, sizes: Mapping[str, float]) -> tuple[float, float]:
        """Return the sum of the stages before the present one, and of those after it."""
        stages = list(sizes)
        at = stages.index(self._stage) if self._stage in stages else 0
        return sum(sizes[s] for s in stages[:at]), sum(sizes[s] for s in stages[at + 1 :])


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
