"""Segmentation in a separate process, so that the calling program stays responsive and survives a crash.

Loading torch and running networks would hold Python's lock for long, and a window would stall. In another process they
cannot; it stays warm between runs, can be stopped at any moment, frees all GPU memory when it
ends, and does not crash the parent.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from napari_fmseg.core import errors
from napari_fmseg.core.errors import Cancelled, FmsegError
from napari_fmseg.core.events import Event, Progress, Saved
from napari_fmseg.core.volume import Volume
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.registry import find_card
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import SegmentationJob
from napari_fmseg.workers.engine_process import EngineProcess
from napari_fmseg.workers.protocol import ChannelClosed

__all__ = ["RemoteEngine"]

PATIENCE_S = 0.3  # how long a cancelled run may take to stop by itself
_TURN_S = 3.0  # how long a run waits for one that is being cancelled


class RemoteEngine:
    """Runs models in another process, one volume at a time.

    The process starts with the first run (or `start`) and stays, with the last two models loaded, until `close`,
    until this program ends, or until it had nothing to do for `idle_minutes`.

    Parameters
    ----------
    command
        The program and its arguments; None takes this Python and this package.
    idle_minutes
        After which the process ends and gives its memory back; the next run starts another.
    environment
        Variables set for the process in addition to our own.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        idle_minutes: float = 10.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._idle_minutes, self._environment = command, idle_minutes, dict(environment or {})
        self._turn = threading.Lock()  # one run at a time
        self._starting = threading.Lock()
        self._process: EngineProcess | None = None
        self._run: _Run | None = None
        self._numbers = itertools.count(1)
        self._finalizer: weakref.finalize[..., RemoteEngine]

    @property
    def pid(self) -> int | None:
        """Number of the process, or None while there is none."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    def start(self) -> None:
        """Start the process now, so that the first run need not wait for torch to load; returns at once.

        Raises
        ------
        FmsegError
            If the system starts no process.
        """
        self._ensure_process()

    def segment(
        self, volume: Volume, model: str | Path | ModelCard, options: SegmentOptions | None = None
    ) -> Iterator[Event]:
        """Segment one volume, stage by stage, as `napari_fmseg.segment` does.

        Parameters
        ----------
        volume
            Any orientation and spacing; as many channels as the model was trained with.
        model
            A model's name, the path of a card, or a card.
        options
            See `SegmentOptions`.

        Yields
        ------
        Progress, Warned or StageResult
            The same as in this process, after a `Progress` of "starting engine" and of "loading model". Closing the
            iterator before its end stops the run.

        Raises
        ------
        Cancelled
            After `cancel` or `close`.
        FmsegError
            Whatever `napari_fmseg.segment` and `load_model` raise; and if the process has ended, what is known of it.
        """
        yield from self._request_events(volume, model, options or SegmentOptions())

    def segment_file(
        self, job: SegmentationJob, model: str | Path | ModelCard, options: SegmentOptions | None = None
    ) -> Iterator[Event | Saved]:
        """Segment one volume from file to file, as `napari_fmseg.pipelines.batch.segment_file` does; else as `segment`.

        The process reads and writes; no voxels travel.

        Parameters
        ----------
        job
            From `napari_fmseg.pipelines.batch.plan_jobs`.
        model, options
            As for `segment`.

        Yields
        ------
        Progress, Warned, and at last Saved
        """
        yield from self._request_events(None, model, options or SegmentOptions(), job=job)

    def grad_cam(
        self,
        volume: Volume,
        model: str | Path | ModelCard,
        label: int,
        *,
        point: Sequence[int] | None = None,
        device: str = "auto",
    ) -> Iterator[Event]:
        """Compute the saliency map of a class, as `napari_fmseg.explain.gradcam.grad_cam` does; else as `segment`.

        Parameters
        ----------
        volume, model
            As for `segment`.
        label, point
            The class, and the voxel (z, y, x) to explain.
        device
            As in `SegmentOptions`.
        """
        question = {"label": int(label), "point": None if point is None else tuple(int(p) for p in point)}
        yield from self._request_events(volume, model, SegmentOptions(device=device), why=question)

    def _request_events(
        self, volume: Volume | None, model: str | Path | ModelCard, options: SegmentOptions, **more: Any
    ) -> Iterator[Any]:
        card = model if isinstance(model, ModelCard) else find_card(model)
        if not self._turn.acquire(timeout=_TURN_S):
            raise FmsegError("The engine is busy with another volume. Wait until it is ready, or cancel that run.")
        run = _Run(next(self._numbers))
        self._run = run
        try:
            yield from self._events(run, {"volume": volume, "card": card, "options": options, **more})
        finally:
            self._leave(run)
            self._run = None
            self._turn.release()

    def cancel(self) -> None:
        """Stop the run that is going on, if there is one; from any thread, returns at once.

        The process is asked to stop, and killed after 0.3 s. The run's iterator then raises `Cancelled`.
        """
        run = self._run
        if run is None or run.cancelled:
            return
        run.cancelled = True
        threading.Thread(target=self._stop, args=(run,), daemon=True, name="fmseg cancel").start()

    def close(self) -> None:
        """End the process and whatever it does; the engine can be used again."""
        run, process = self._run, self._process
        if run is not None:
            run.cancelled = True
        if process is not None:
            process.end()

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ensure_process(self) -> EngineProcess:
        with self._starting:
            process = self._process
            if process is not None and process.alive:
                return process
            if process is not None:
                process.end()
                self._finalizer.detach()
            self._process = process = EngineProcess(self._command, self._idle_minutes, self._environment)
            self._finalizer = weakref.finalize(self, EngineProcess.end, process)
            return process

    # --- one run ------------------------------------------------------------------------------------------------

    def _events(self, run: _Run, request: dict[str, Any]) -> Iterator[Event]:
        yield Progress("starting engine", 0, 1)
        try:
            event = self._first(run, request)
            yield Progress("starting engine", 1, 1)
            while event is not None and not run.cancelled:
                yield event
                event = _next(run)
        except ChannelClosed:
            if not run.cancelled:
                assert run.process is not None
                raise run.process.why_it_ended() from None
        if run.cancelled:
            raise Cancelled("The segmentation was cancelled.")

    def _first(self, run: _Run, request: dict[str, Any]) -> Event | None:
        """Send the request and return the first event; the process is started if need be."""
        for last_try in (False, True):
            run.process = self._ensure_process()
            if run.cancelled:
                run.over = True
                return None
            try:
                run.process.wire.send("segment", run=run.number, **request)
                return _next(run)
            except ChannelClosed:  # having been idle for long, it may just have left
                if last_try or run.cancelled or not run.process.is_idle_exit():
                    raise
            except FmsegError:  # a request that cannot be sent, or that was refused: the link is whole
                run.over = True
                raise
        return None

    def _stop(self, run: _Run) -> None:
        """Request the process to stop this run, and kill it if it does not."""
        until = time.monotonic() + PATIENCE_S
        process = run.process
        if process is None:  # it will see that it is cancelled before it asks for anything
            return
        if process.wire.writing_lock.acquire(timeout=PATIENCE_S):
            try:
                process.wire.send_locked("cancel", run=run.number)
            except ChannelClosed:
                return
            finally:
                process.wire.writing_lock.release()
        if not run.ended.wait(max(0.0, until - time.monotonic())):
            with run.ending:
                if not run.ended.is_set():  # or the process would be killed in the next run
                    run.killed = True
                    process.kill()

    def _leave(self, run: _Run) -> None:
        """End a run: the channel is left between two messages, or the process is ended."""
        if not run.over and run.process is not None:
            self.cancel()
            try:
                while _next(run) is not None:
                    pass
            except (ChannelClosed, FmsegError):
                if not run.over:
                    run.process.end()
        with run.ending:
            run.ended.set()
        if run.killed and run.process is not None:
            run.process.end()


def _next(run: _Run) -> Event | None:
    """Wait for the next event of a run; None is its end."""
    assert run.process is not None
    while True:
        kind, fields = run.process.wire.receive()
        if fields.get("run") not in (0, run.number):  # 0: the process could not even begin
            continue
        if kind == "event":
            event: Event = fields["event"]
            return event
        run.over = True
        if kind == "failed":
            raise _rebuild_error(fields)
        return None


class _Run:
    """One call of `segment`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: EngineProcess | None = None
        self.cancelled = False
        self.over = False  # the process has nothing more to say about it
        self.ended = threading.Event()  # the iterator has ended
        self.ending = threading.Lock()
        self.killed = False


class _Trace(Exception):
    """Where in the other process an error was raised."""


def _rebuild_error(fields: Mapping[str, Any]) -> FmsegError:
    """Rebuild an error of the other process; its traceback there is the cause."""
    kind = getattr(errors, fields["error"], FmsegError)
    error: FmsegError = kind(fields["text"])
    if error.exit_code != fields["exit_code"]:
        error.exit_code = fields["exit_code"]
    error.__cause__ = _Trace(fields["trace"]) if fields["trace"] else None
    return error
