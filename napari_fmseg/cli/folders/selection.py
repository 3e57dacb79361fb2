"""Which volumes of a folder a command works on: a part, those that are not done yet, those that failed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from tyro.conf import arg

from napari_fmseg.cli.console import note
from napari_fmseg.cli.exit_codes import _Usage
from napari_fmseg.pipelines.folders.failures import Failure, read_failures, write_failures

if TYPE_CHECKING:
    from napari_fmseg.models.card import ModelCard
    from napari_fmseg.pipelines.folders.outcome import Failed
    from napari_fmseg.pipelines.folders.steps import JobOptions, SegmentationJob

__all__ = ["FailedTable", "Part", "choose_jobs", "take_part"]

T = TypeVar("T")

Part = Annotated[
    str | None,
    arg(metavar="i/N", help="Only one part of the volumes, for several machines without a scheduler: "
        "2/8 is the second of eight. All parts together are all volumes."),
]  # fmt: skip


class FailedTable:
    """The table failed.csv of an output folder, kept up to date while a run goes on.

    A part has a table of its own, because several machines cannot write into one; without a part all are looked at.

    Parameters
    ----------
    jobs
        All volumes of the run.
    images
        What the user named: a case is named from the folder that holds it.
    output
        The folder; there is no table where it is the file of a single result.
    part
        As ``"2/8"``, or None.
    """

    def __init__(self, jobs: Sequence[SegmentationJob], images: Sequence[Path], output: Path, part: str | None) -> None:
        folder = images[0] if len(images) == 1 and images[0].is_dir() else None
        self._case = {job.result: _case_name(job.image, folder) for job in jobs}
        self.path = None if jobs and jobs[0].result == output else output / _table_name(part)
        self._tables: dict[Path, dict[str, Failure]] = {}
        if self.path is not None:
            others = [] if part else sorted(output.glob("failed-*-of-*.csv"))
            for path in (self.path, *others):
                self._tables[path] = {failure.case: failure for failure in read_failures(path)}

    def lists(self, job: SegmentationJob) -> bool:
        """Return whether the volume failed before."""
        return any(self._case[job.result] in table for table in self._tables.values())

    def add(self, failed: Failed) -> None:
        """Write down that a volume failed."""
        self.remove(failed.job)
        if self.path is not None:
            case = self._case[failed.job.result]
            self._tables[self.path][case] = Failure(case, failed.error, failed.cause, failed.fix)
            write_failures(self._tables[self.path].values(), self.path)

    def remove(self, job: SegmentationJob) -> None:
        """Write down that a volume is done."""
        for path, table in self._tables.items():
            if table.pop(self._case[job.result], None) is not None:
                write_failures(table.values(), path)


def choose_jobs(
    jobs: Sequence[SegmentationJob],
    table: FailedTable,
    card: ModelCard,
    options: JobOptions,
    *,
    resume: bool = False,
    retry: bool = False,
    part: str | None = None,
) -> tuple[list[SegmentationJob], list[SegmentationJob]]:
    """Return the volumes that a run works on, and those that were done before; tell the user how many there are."""
    from napari_fmseg.pipelines.folders.steps import is_done, run_hashes

    chosen = list(jobs) if part is None else take_part(jobs, part)
    if retry:
        if table.path is None:
            raise _Usage("--retry takes the volumes that failed.csv in the output folder lists; give a folder.")
        chosen = [job for job in chosen if table.lists(job)]
        note(f"{len(chosen)} volumes that failed are tried again." if chosen else "No volume has failed before.")
    before: list[SegmentationJob] = []
    if resume:
        hashes = run_hashes(card, options)
        before = [job for job in chosen if is_done(job, hashes)]
        done = {job.result for job in before}
        total, chosen = len(chosen), [job for job in chosen if job.result not in done]
        note(f"{len(before)} of {total} volumes are done already.")
        for job in before:
            table.remove(job)
    return chosen, before


def take_part(items: Sequence[T], part: str) -> list[T]:
    """Return one part of a list, and tell the user how many there are; parts differ by one item at most.

    Raises
    ------
    FmsegError
        If `part` is not like ``"2/8"``.
    """
    number, total = _numbers(part)
    chosen = list(items[number - 1 :: total])
    note(f"part {number} of {total}: {len(chosen)} of {len(items)}")
    return chosen


def _numbers(part: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    number, total = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= total:
        raise _Usage(f"--part is i/N with i from 1 to N, such as 2/8; not {part!r}.")
    return number, total


def _table_name(part: str | None) -> str:
    return "failed.csv" if part is None else "failed-{}-of-{}.csv".format(*_numbers(part))


def _case_name(image: Path, folder: Path | None) -> str:
    return Path(os.path.abspath(image) if folder is None else os.path.relpath(image, folder)).as_posix()
