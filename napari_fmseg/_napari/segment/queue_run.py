"""The queue at work: scans are segmented one after the other in the engine's process, from file to file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_fmseg._napari.common.event_links import when_destroyed
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.segment.queue_store import (
    CANCELLED,
    DONE,
    FAILED,
    RUNNING,
    WAITING,
    QueuedScan,
    QueueFile,
)
from napari_fmseg._napari.segment.run_request import Engine
from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.events import Progress
from napari_fmseg.io.dicom.series import files_by_series
from napari_fmseg.io.discovery import file_of_series
from napari_fmseg.io.paths import files_below
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import plan_jobs

__all__ = ["Queue", "Wish", "plan_scans"]


@dataclass(frozen=True)
class Wish:
    """A scan that the user wants segmented: its path, and which DICOM series where the path holds several."""

    path: Path
    series: str = ""


class Queue(QObject):
    """The scans in their order; at most one runs.

    Attributes
    ----------
    changed
        Signal: a scan was added, removed or moved, or its state changed.
    moved
        Signal with the progress of the scan that runs: its stage, and percent.
    failed
        Signal with an error of the queue itself, such as a state that cannot be written.
    scans
        All of them.
    results
        The folder that results go to, or None.
    """

    changed = Signal()
    moved = Signal(str, int)
    failed = Signal(object)

    def __init__(self, folder: Path, engine: Callable[[], Engine], busy: Callable[[], bool], parent: QObject) -> None:
        super().__init__(parent)
        self._file, self._engine, self._busy = QueueFile(folder), engine, busy
        self._job: Job | None = None
        self._now = ""  # the id of the scan that runs
        self._reason = ""
        self.active = False  # the next one that waits is begun when there is room for it
        self.scans: list[QueuedScan] = []
        self.results: Path | None = None
        when_destroyed(parent, self._file.release)

    @property
    def running(self) -> bool:
        """Whether a scan is being segmented."""
        return self._job is not None

    def restore(self) -> int:
        """Adopt what a window that is no more left behind, and return how many of its scans wait."""
        found, self.results = self._file.adopt()
        if found:
            self.scans += found
            self._write()
        return sum(scan.state == WAITING for scan in found)

    def add(self, scans: Iterable[QueuedScan]) -> None:
        """Add scans at the end."""
        self.scans += scans
        self._write()
        self._go_on_soon()

    def move(self, number: int, by: int) -> int:
        """Move a scan up (-1) or down (1) and return its number afterwards."""
        to = min(max(0, number + by), len(self.scans) - 1)
        self.scans.insert(to, self.scans.pop(number))
        self._write()
        return to

    def remove(self, number: int) -> None:
        """Remove a scan from the list; one that runs is cancelled. Its result stays."""
        scan = self.scans.pop(number)
        if scan.id == self._now and self._job is not None:
            self._job.cancel()
        self._write()

    def retry(self, number: int) -> None:
        """Queue a scan again."""
        if self.scans[number].state != RUNNING:
            self._set(self.scans[number].id, WAITING)
            self._go_on_soon()

    def cancel(self, number: int) -> None:
        """Cancel a scan that runs or waits; the queue goes on with the next."""
        scan = self.scans[number]
        if scan.id == self._now and self._job is not None:
            self._job.cancel()
        elif scan.state == WAITING:
            self._set(scan.id, CANCELLED)

    def cancel_all(self) -> None:
        """Cancel every scan that runs or waits, and stop."""
        self.active = False
        for number in range(len(self.scans)):
            self.cancel(number)
        self.changed.emit()

    def start(self) -> None:
        """Go through the list until nothing waits."""
        self.active = True
        self.changed.emit()
        self.go_on()

    def pause(self) -> None:
        """Stop after the scan that runs now."""
        self.active = False
        self.changed.emit()

    def go_on(self) -> None:
        """Begin the next scan, if the queue is active and the engine has nothing else to do."""
        if not self.active or self.running or self._busy():
            return
        scan = next((scan for scan in self.scans if scan.state == WAITING), None)
        if scan is None:
            self.active = False
            self.changed.emit()
            return
        self._now, self._reason = scan.id, ""
        self._set(scan.id, RUNNING)
        engine = self._engine()
        job = self._job = start_job(lambda: _segment(scan, engine), engine.cancel, self.parent())
        job.event.connect(self._on_event)
        job.failed.connect(self._on_failed)
        job.finished.connect(self._on_finished)

    def close(self) -> None:
        """End what runs; the list stays on disk, and what ran waits again at the next start."""
        if self._job is not None:
            self._job.abandon()
        self._job, self.active = None, False
        self._file.release(empty=not self.scans)

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Progress):
            self.moved.emit(event.stage, round(100 * event.done / max(1, event.total)))

    def _on_failed(self, error: FmsegError) -> None:
        self._reason = str(error)

    def _on_finished(self, done: bool) -> None:
        state = DONE if done else FAILED if self._reason else CANCELLED
        now, self._job, self._now = self._now, None, ""
        self._set(now, state, self._reason)
        self._go_on_soon()

    def _go_on_soon(self) -> None:
        if self.active:
            QTimer.singleShot(0, self.go_on)

    def _set(self, which: str, state: str, reason: str = "") -> None:
        self.scans = [
            dataclasses.replace(scan, state=state, reason=reason) if scan.id == which else scan for scan in self.scans
        ]
        self._write()

    def _write(self) -> None:
        try:
            self._file.write(self.scans, self.results)
        except FmsegError as error:
            self.failed.emit(error)
        self.changed.emit()


def plan_scans(
    wishes: Sequence[Wish], results: Path, model: str, n_channels: int, options: SegmentOptions, names: frozenset[Path]
) -> Iterator[list[QueuedScan]]:
    """Find the volumes that are meant, and a name for each result that nobody has; for a thread.

    Parameters
    ----------
    wishes
        Files, DICOM folders, folders of volumes.
    results
        The folder for the labels.
    model, n_channels, options
        What to run.
    names
        Results of scans that wait already.

    Yields
    ------
    list
        One `QueuedScan` for each volume, once.

    Raises
    ------
    FmsegError
        As `plan_jobs`.
    """
    paths = list(dict.fromkeys(_one_file_of(wish) for wish in wishes))
    jobs = plan_jobs(paths, results, channels=n_channels, taken=lambda path: path in names or path.exists())
    yield [QueuedScan(job, model, options) for job in jobs]


def _one_file_of(wish: Wish) -> Path:
    """Return a path that stands for one series alone: its folder, or a DICOM file for its series in the same folder."""
    if not wish.series or not wish.path.is_dir():
        return wish.path
    series, _ = files_by_series(files_below(wish.path))
    if len(series) < 2 or wish.series not in series:
        return wish.path
    files = series[wish.series]
    if file := file_of_series(files):
        return file
    common = Path(os.path.commonpath([path.parent for path in files]))
    if len(files_by_series(files_below(common))[0]) > 1:
        raise UnreadableVolume(
            f"{common.name} holds the series in several folders or objects beside other series, where no file stands "
            "for all of it. Put it into a folder of its own, or segment it now instead of queueing it."
        )
    return common


def _segment(scan: QueuedScan, engine: Engine) -> Iterator[Any]:
    """Run one scan; in a thread. The engine is looked for here: making its process takes a moment."""
    yield Progress("starting", 0, 1)
    yield from engine.segment_file(scan.job, scan.model, scan.options)
