"""Many volumes with one model: the next one is read and the last one written while one is being segmented.

Of the volumes at most three are in memory at a time, however many there are: one being read or waiting, one being
segmented, one being written.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from napari_fmseg.core.events import Progress
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines.folders.outcome import (
    EXPECTED,
    Failed,
    FolderEvent,
    Pace,
    VolumeDone,
    VolumeEvent,
    was_expected,
)
from napari_fmseg.pipelines.folders.steps import (
    JobOptions,
    JobVolume,
    SegmentationJob,
    SegmentedVolume,
    check_stages,
    read_job,
    segment_volume,
    write_job,
)

__all__ = ["segment_jobs"]

T = TypeVar("T")

_Wait = Callable[[], T]


def segment_jobs(
    jobs: Sequence[SegmentationJob],
    model: Model,
    options: JobOptions,
    *,
    first: JobVolume | None = None,
    overlap: bool = True,
) -> Generator[FolderEvent, None, None]:
    """Segment volumes one after the other.

    Parameters
    ----------
    jobs
        From `plan_jobs`.
    model
        Loaded once for all.
    options
        For all of them.
    first
        The first volume, where it was read already.
    overlap
        Whether reading and writing take place meanwhile. The results are the same.

    Yields
    ------
    VolumeEvent, VolumeDone, Failed, FolderProgress
        `VolumeDone` or `Failed` once for every job, each followed by `FolderProgress`.
    """
    pace = Pace(len(jobs))
    with contextlib.ExitStack() as lanes:
        reader = lanes.enter_context(_Lane("read")) if overlap else None
        writer = lanes.enter_context(_Lane("write", patient=True)) if overlap else None

        def read(job: SegmentationJob) -> _Wait[JobVolume]:
            return _start(reader, lambda: read_job(job, model.card, options))

        def write(job: SegmentationJob, segmented: SegmentedVolume) -> _Wait[VolumeDone]:
            return _start(writer, lambda: VolumeDone(job, write_job(job, segmented, model, options).table()))

        def end(job: SegmentationJob, outcome: VolumeDone | Exception) -> Iterator[FolderEvent]:
            yield Failed.of(job, outcome) if isinstance(outcome, Exception) else outcome
            yield pace.count(failed=isinstance(outcome, Exception))

        waiting = read(jobs[0]) if first is None else [first].pop
        del first
        writing: tuple[SegmentationJob, _Wait[VolumeDone]] | None = None
        for number, job in enumerate(jobs):
            volume = _outcome(waiting)
            if number + 1 < len(jobs):
                waiting = read(jobs[number + 1])
            if isinstance(volume, JobVolume):
                segmented = yield from _segment(job, volume, model, options)
            else:
                segmented = volume
            del volume
            if writing is not None:
                yield from end(writing[0], _outcome(writing[1]))
                writing = None
            if isinstance(segmented, Exception):
                yield from end(job, segmented)
            else:
                writing = job, write(job, segmented)
            del segmented
        if writing is not None:
            yield from end(writing[0], _outcome(writing[1]))


def _segment(
    job: SegmentationJob, read: JobVolume, model: Model, options: JobOptions
) -> Generator[VolumeEvent, None, SegmentedVolume | Exception]:
    yield VolumeEvent(job, Progress("reading", 1, 1))
    events = segment_volume(read, model, options)
    del read
    try:
        check_stages(job, model.card, options)
        while True:
            yield VolumeEvent(job, next(events))
    except StopIteration as end:
        segmented: SegmentedVolume = end.value
        return segmented
    except EXPECTED as error:
        if not was_expected(error):
            raise
        return error.with_traceback(None)  # whose frames would keep the volume


def _outcome(wait: _Wait[T]) -> T | Exception:
    """Return the result of a step, or what was wrong with its volume."""
    try:
        return wait()
    except EXPECTED as error:
        if not was_expected(error):
            raise
        return error


def _start(lane: _Lane | None, step: _Wait[T]) -> _Wait[T]:
    """Start a step and return what waits for its result; without a lane it starts when it is waited for."""
    return step if lane is None else lane.start(step).result


class _Lane:
    """A thread that takes one step after the other; a `patient` one is waited for, unless the process ends."""

    def __init__(self, name: str, *, patient: bool = False) -> None:
        self._patient = patient
        self._steps: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"fmseg {name}", daemon=True)
        self._thread.start()

    def start(self, step: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._steps.put((step, future))
        return future

    def __enter__(self) -> _Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.put(None)
        if self._patient:
            self._thread.join()

    def _run(self) -> None:
        while (item := self._steps.get()) is not None:
            step, future = item
            del item
            try:
                future.set_result(step())
            except BaseException as error:  # noqa: BLE001 - the boundary of the thread: it is raised where it is waited for
                future.set_exception(error)
            del step, future
