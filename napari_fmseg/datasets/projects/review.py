"""What somebody who looked at a case said of its labels: accepted, corrected or rejected, and a note."""

from __future__ import annotations

import dataclasses

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets.projects.add_case import label_case
from napari_fmseg.datasets.projects.label_import import LabelOptions
from napari_fmseg.datasets.projects.project import Project, now, open_project, with_record, write_state
from napari_fmseg.datasets.projects.staged_case import prediction_of
from napari_fmseg.datasets.projects.transaction import transaction

__all__ = ["ACCEPTED", "CORRECTED", "REJECTED", "accept_case", "review_case"]

ACCEPTED, CORRECTED, REJECTED = "accepted", "corrected", "rejected"
_LONGEST_NOTE = 2000  # characters


def review_case(project: Project, name: str, verdict: str | None = None, note: str | None = None) -> Project:
    """Record what was said of a case.

    A labelled case that is rejected is left out until it is accepted or corrected.

    Parameters
    ----------
    project, name
        The case; the project is read afresh.
    verdict
        ``"accepted"``, ``"corrected"``, ``"rejected"``, or "" for none; None leaves it as it is.
    note
        A few sentences, never about who the patient is; None leaves it as it is.

    Raises
    ------
    FmsegError
        If there is no such case, no such verdict, or the note is too long.
    """
    if verdict not in (None, "", ACCEPTED, CORRECTED, REJECTED):
        raise FmsegError(f"{verdict!r} is no verdict. Expected {ACCEPTED}, {CORRECTED} or {REJECTED}.")
    if note is not None and len(note) > _LONGEST_NOTE:
        raise FmsegError(f"The note has {len(note)} characters; {_LONGEST_NOTE} are possible. Shorten it.")
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        record, files = fresh.record(name), fresh.files_of(name)
        if verdict is not None:
            excluded = record.excluded
            if verdict == REJECTED and files.labels is not None:
                excluded = True
            elif record.verdict == REJECTED:
                excluded = False
            record = dataclasses.replace(
                record, verdict=verdict, reviewed=now() if verdict else "", excluded=excluded
            )  # fmt: skip
        if note is not None:
            record = dataclasses.replace(record, note=note.strip())
        write_state(change, with_record(fresh, name, record))
    return open_project(project.folder)


def accept_case(project: Project, name: str, note: str | None = None) -> Project:
    """Accept the labels of a case as they are; those that a model predicted become its labels.

    Raises
    ------
    FmsegError
        If the case has neither labels nor predicted ones, or as `label_case`.
    """
    fresh = open_project(project.folder)
    if fresh.files_of(name).labels is None:
        predicted = fresh.folder / prediction_of(name)
        if not predicted.exists():
            raise FmsegError(f"{name} has no labels to accept. Label it, or predict it with a model first.")
        fresh = label_case(fresh, name, predicted, LabelOptions())
    return review_case(fresh, name, ACCEPTED, note)
