"""Which labels of a case somebody has read, so that those of others are not replaced unseen; and the earlier ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from napari_fmseg.core.errors import FmsegError, LabelsChanged
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.projects.project import INDEX, Earlier, Project, with_fingerprint
from napari_fmseg.datasets.projects.transaction import inside
from napari_fmseg.io import read_labels

__all__ = ["LabelVersion", "check_unchanged", "earlier_labels", "label_history", "labels_revision"]


@dataclass(frozen=True)
class LabelVersion:
    """Labels that a case has or had.

    Attributes
    ----------
    number
        Counted from 1, the oldest.
    changed
        When they were saved (UTC), or "".
    classes
        What they tell of.
    present
        Whether they are those of now.
    """

    number: int
    changed: str
    classes: tuple[str, ...]
    present: bool = False


def labels_revision(project: Project, name: str) -> str:
    """Return a mark that changes whenever somebody saves other labels of a case; "" while it has none."""
    files, record = project.files_of(name), project.record(name)
    if files.labels is None:
        return ""
    changed = (
        record.changed
        if with_fingerprint(record, files).label_stamp == record.label_stamp
        else _time_written(files.labels)
    )
    return f"{len(record.earlier) + 1}@{changed}"


def _time_written(path: Path) -> str:
    """Return when a file was written, as `scan_cases` records it."""
    try:
        return datetime.fromtimestamp(os.stat(path).st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:  # its disk is not connected
        return ""


def check_unchanged(project: Project, name: str, revision: str) -> None:
    """Raise `LabelsChanged` if the `labels_revision` of a case is not the one that was read before."""
    now = labels_revision(project, name)
    if now == revision:
        return
    when = now.partition("@")[2] or "meanwhile"
    raise LabelsChanged(
        f"The labels of {name} were changed by somebody else ({when}, UTC) after they were read here. Look at them "
        "first, or say that they are to be replaced (--replace); they stay in the project's history."
        if now
        else f"The labels of {name} are gone since they were read here. Say that new ones are wanted (--replace)."
    )


def label_history(project: Project, name: str) -> tuple[LabelVersion, ...]:
    """List the labels that a case had, the oldest first, and those it has; `FmsegError` if there is no such case."""
    files, record = project.files_of(name), project.record(name)
    before = [LabelVersion(i, old.changed, old.classes) for i, old in enumerate(record.earlier, 1)]
    if files.labels is None:
        return tuple(before)
    return (*before, LabelVersion(len(before) + 1, record.changed, record.classes, present=True))


def earlier_labels(project: Project, name: str, number: int) -> tuple[LabelMap, Earlier]:
    """Read labels that a case had, with the names that their numbers have in the project now.

    Parameters
    ----------
    project, name
        The case.
    number
        See `LabelVersion`.

    Raises
    ------
    FmsegError
        If the case had no such labels.
    """
    project.files_of(name)
    earlier = project.record(name).earlier
    if not 1 <= number <= len(earlier):
        known = f"1 to {len(earlier)}" if earlier else "none"
        raise FmsegError(f"The case {name!r} has no earlier labels of number {number}: known are {known}.")
    old = earlier[number - 1]
    found = read_labels(inside(project.folder, old.file, project.folder / INDEX))
    names = {value: label for value, label in project.facts.labels.items() if value != old.ignore}
    if old.ignore:
        names[old.ignore] = "ignore"
    return LabelMap(found.data, found.geometry, found.meta, names), old
