"""Cases that are new or were changed: read, hashed, and given their role."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Mapping
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.datasets.projects.painted_slices import PaintedSlices
from napari_fmseg.datasets.projects.project import (
    INDEX,
    CaseRecord,
    Project,
    open_project,
    read_project,
    with_fingerprint,
    with_record,
    with_roles,
    write_state,
)
from napari_fmseg.datasets.projects.transaction import transaction
from napari_fmseg.io import read_labels
from napari_fmseg.io.channels import read_channels

__all__ = ["changed_cases", "labelled_share", "scan_all", "scan_cases"]


def changed_cases(project: Project) -> tuple[str, ...]:
    """Return the names of the cases that are new or changed since the last scan."""
    return tuple(
        name
        for name, files in project.files.items()
        if with_fingerprint(record := project.record(name), files) != record or not (record.image or record.problem)
    )


def scan_cases(project: Project, *, write: bool = True) -> Generator[Progress, None, Project]:
    """Read the cases that are new or changed, and assign a role to those with labels.

    Parameters
    ----------
    project
        As it was opened.
    write
        Keep what was found, so that it need not be read again, and the roles, for ever. Without it the project that is
        given has both, and its folder stays as it is.

    Yields
    ------
    Progress
        Per case.

    Returns
    -------
    Project
        With every case known. A case that cannot be read has its `problem` told and takes no part.
    """
    names = changed_cases(project)
    if not names and (not write or (project.folder / INDEX).exists()):
        return project
    records = {}
    for i, name in enumerate(names):
        yield Progress("examining", i, len(names))
        records[name] = _scan(project, name)
    yield Progress("examining", len(names), len(names))
    if not write:
        return with_roles(_with_records(project, records))
    with transaction(project.folder) as change:
        write_state(change, _with_records(read_project(project.folder), records))
    return open_project(project.folder)


def _with_records(project: Project, records: Mapping[str, CaseRecord]) -> Project:
    """Return the project with the records of cases that have not changed since."""
    fresh = project
    for name, record in records.items():
        if name in fresh.files and with_fingerprint(record, fresh.files[name]) == record:
            known = fresh.record(name)
            if not known.image:
                known = _record_of_renamed(fresh, record)
                record = dataclasses.replace(record, classes=known.classes or record.classes)
            record = dataclasses.replace(record, earlier=known.earlier, excluded=known.excluded, note=known.note)
            if known.image == record.image:  # what was predicted belongs to the image, not to the name
                record = dataclasses.replace(record, uncertainty=known.uncertainty, predicted=known.predicted)
            fresh = with_record(fresh, name, record)
    return fresh


def scan_all(project: Project, *, write: bool = True) -> Project:
    """Run `scan_cases` to its end."""
    work = scan_cases(project, write=write)
    while True:
        try:
            next(work)
        except StopIteration as done:
            found: Project = done.value
            return found


def _record_of_renamed(project: Project, record: CaseRecord) -> CaseRecord:
    """Find what is known of an image whose files were renamed: its labels still have the same classes."""
    gone = (old for name, old in project.index.cases.items() if name not in project.files and old.image)
    same = (old for old in gone if old.image == record.image and old.label_stamp == record.label_stamp)
    return next(same, CaseRecord())


def _scan(project: Project, name: str) -> CaseRecord:
    files, known, facts = project.files[name], project.record(name), project.facts
    found = with_fingerprint(CaseRecord(), files)
    try:
        same = known.image and known.stamps == found.stamps
        image = known.image if same else image_hash(read_channels(files.images))
        if files.labels is None:
            return dataclasses.replace(found, image=image)
        labels = read_labels(files.labels)
        data = labels.data
    except FmsegError as error:
        return dataclasses.replace(found, problem=str(error))
    ignored = data == facts.ignore if facts.ignore is not None else np.zeros(data.shape, bool)
    return dataclasses.replace(
        found,
        image=image,
        classes=known.classes or facts.classes_of(name) or tuple(facts.labels.values()),
        sparse=bool(ignored.any()),
        labelled=labelled_share(ignored),
        unconfirmed=not ignored.any() and PaintedSlices.of(data, labels.geometry).look_partial,
        changed=datetime.fromtimestamp(os.stat(files.labels).st_mtime, UTC).isoformat(timespec="seconds"),
    )


def labelled_share(ignored: npt.NDArray[np.bool_]) -> float:
    """Return the share of slices with a labelled voxel, along the axis where it is least: that is how slices were
    labelled.
    """
    return min(float((~ignored).any(tuple(a for a in range(3) if a != axis)).mean()) for axis in range(3))
