"""Remove or exclude cases; a case that was used for training stays recorded as such."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets import nnunet_json
from napari_fmseg.datasets.projects.case_results import results_of
from napari_fmseg.datasets.projects.project import Project, open_project, with_record, write_state
from napari_fmseg.datasets.projects.staged_case import companions_of, relative
from napari_fmseg.datasets.projects.transaction import STATE_DIR, transaction

__all__ = ["drop_empty_history", "exclude_case", "include_case", "remove_case"]


def exclude_case(project: Project, name: str) -> Project:
    """Exclude a case from training and validation until `include_case`; `FmsegError` if there is no such case."""
    return _with_exclusion(project, name, excluded=True)


def include_case(project: Project, name: str) -> Project:
    """Include a case again, in the role that its image has; `FmsegError` if there is no such case."""
    return _with_exclusion(project, name, excluded=False)


def _with_exclusion(project: Project, name: str, *, excluded: bool) -> Project:
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        fresh.files_of(name)
        record = dataclasses.replace(fresh.record(name), excluded=excluded)
        write_state(change, with_record(fresh, name, record))
    return open_project(project.folder)


def remove_case(project: Project, name: str, *, with_labels: bool = False) -> Project:
    """Delete a case: its image, labels, earlier labels, predictions and pictures. A linked image stays where it is.

    Its image keeps its role in the split: if it comes again, it is held out or not as before, and versions that have
    learned from it still say so.

    Parameters
    ----------
    project, name
        The case; the project is read afresh.
    with_labels
        Delete it although somebody labelled it.

    Raises
    ------
    FmsegError
        If there is no such case, or it has labels and `with_labels` is False.
    """
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        files, record = fresh.files_of(name), fresh.record(name)
        if (files.labels is not None or record.earlier) and not with_labels:
            raise FmsegError(
                f"{name} has labels, which would be deleted with it. Say so (--with-labels), or exclude it: it then "
                "takes no part, and nothing is lost."
            )
        labels = () if files.labels is None else (files.labels,)
        places = [
            relative(path, fresh.folder) for path in (*files.images, *labels) if path.is_relative_to(fresh.folder)
        ]
        places += [old.file for old in record.earlier]
        places += [place for place in companions_of(name) if (fresh.folder / place).exists()]
        if record.image not in {fresh.record(other).image for other in fresh.files if other != name}:
            places += [relative(path, fresh.folder) for path in results_of(fresh.folder, record.image)]
        for place in places:
            change.remove(place)
        n_labelled = len([other for other in fresh.labelled if other != name])
        change.table("dataset.json", nnunet_json.without_case(fresh.facts.table, name, n_labelled))
        rest = {other: known for other, known in fresh.index.cases.items() if other != name}
        left = {other: known for other, known in fresh.files.items() if other != name}
        index = dataclasses.replace(fresh.index, cases=rest)
        write_state(change, dataclasses.replace(fresh, files=left, index=index))
    drop_empty_history(project, name)
    return open_project(project.folder)


def drop_empty_history(project: Project, name: str) -> None:
    """Remove the folder of a case's earlier labels if nothing lies in it any more."""
    with suppress(OSError):  # it is not there, or holds files of others
        (project.folder / STATE_DIR / "history" / name).rmdir()
