"""What happens to the volumes of a folder, here or on other machines: events for the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from napari_fmseg.core.errors import FmsegError, explain, is_out_of_memory
from napari_fmseg.core.events import Event
from napari_fmseg.pipelines.folders.failures import Failure
from napari_fmseg.pipelines.folders.steps import SegmentationJob

__all__ = ["EXPECTED", "Failed", "FolderEvent", "FolderProgress", "Pace", "VolumeDone", "VolumeEvent", "was_expected"]

EXPECTED = (FmsegError, MemoryError, OSError, RuntimeError)
"""What may be wrong with one volume and does not end the run; a `RuntimeError` only where `was_expected`."""


def was_expected(error: BaseException) -> bool:
    """Return whether an error is of one volume; else it is a defect of the program."""
    return isinstance(error, EXPECTED) and (not isinstance(error, RuntimeError) or is_out_of_memory(error))


@dataclass(frozen=True)
class VolumeEvent:
    """An event of one volume of many."""

    job: SegmentationJob
    event: Event


@dataclass(frozen=True)
class VolumeDone:
    """A volume that is done; `table` is what `napari_fmseg.pipelines.folders.steps.Done.table` says of it."""

    job: SegmentationJob
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A volume that could not be read, segmented or written; the others are not held up.

    Attributes
    ----------
    job
        Which one.
    error, cause, fix
        As in `Failure`.
    exit_code
        1 for what the user can mend in the input, 3 for the machine.
    """

    job: SegmentationJob
    error: str
    cause: str
    fix: str
    exit_code: int

    @classmethod
    def of(cls, job: SegmentationJob, error: Exception) -> Failed:
        """Describe an exception."""
        found = Failure.of("", error)
        return cls(job, found.error, found.cause, found.fix, explain(error)[0])


@dataclass(frozen=True)
class FolderProgress:
    """How far the whole is.

    Attributes
    ----------
    done, total
        Volumes, with those that failed.
    failed
        How many of them failed.
    seconds_left
        What the rest will take if it goes on like this.
    """

    done: int
    total: int
    failed: int = 0
    seconds_left: float = 0.0


FolderEvent: TypeAlias = VolumeEvent | VolumeDone | Failed | FolderProgress


class Pace:
    """Counts volumes and estimates the time that is left.

    Parameters
    ----------
    total
        How many there are.
    clock
        Gives seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock, self._start = total, clock, clock()
        self._done = self._failed = 0

    def count(self, *, failed: bool = False) -> FolderProgress:
        """Count one more volume."""
        self._done += 1
        self._failed += failed
        left = (self._clock() - self._start) / self._done * (self._total - self._done)
        return FolderProgress(self._done, self._total, self._failed, left)
