"""Cases on their way into a project: image and labels appear together, and no corrected label is lost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets import nnunet_json
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.datasets.projects.label_import import LabelOptions
from napari_fmseg.datasets.projects.project import CaseRecord, Project, now, open_project, with_record, write_state
from napari_fmseg.datasets.projects.revisions import check_unchanged, earlier_labels, labels_revision
from napari_fmseg.datasets.projects.staged_case import (
    StagedCase,
    corrections_of,
    move_to_training,
    prediction_of,
    stage_image,
    stage_labels,
    stage_state,
    uncertainty_of,
)
from napari_fmseg.datasets.projects.transaction import transaction
from napari_fmseg.io import read_labels, write_labels, write_volume
from napari_fmseg.io.channels import read_channels
from napari_fmseg.io.voxel_values import replace_non_finite

__all__ = ["add_case", "add_nameless", "check_name", "free_name", "label_case", "restore_labels", "save_prediction"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def free_name(project: Project) -> str:
    """Return a name that no case has: ``case-001`` and on. File names often tell who the patient is."""
    numbers = [int(m[1]) for name in (*project.files, *project.index.cases) if (m := re.fullmatch(r"case-(\d+)", name))]
    return f"case-{max(numbers, default=0) + 1:03d}"


def add_case(
    project: Project,
    name: str,
    image: Volume | Path | str | Sequence[Path | str],
    labels: LabelMap | Path | str | None = None,
    options: LabelOptions = LabelOptions(),  # noqa: B008 - frozen
    *,
    link: bool = False,
    again: bool = False,
) -> Project:
    """Add a volume, with its labels or without; killed at any moment, the project has all of it or nothing.

    Parameters
    ----------
    project
        It is read afresh: what others added meanwhile stays.
    name
        Of the case: letters, digits, ``-``, ``_`` and ``.``; never a patient's name.
    image
        A volume in memory; a file or DICOM folder; or one file per channel, in the order of the channels (files that
        end in ``_0000``, ``_0001``... are put in it).
    labels
        In memory or a file; None adds the volume to be labelled later.
    options
        How the labels are understood.
    link
        Make the image a symbolic link instead of a copy. It must have the project's format, one channel per file.
    again
        Take an image that is there already under another name. It keeps its role.

    Raises
    ------
    FmsegError
        If the name is taken or cannot be one, the image is there already, the channels are not those of the project,
        or the labels cannot be understood (see `labelled_for`).
    GeometryMismatch
        If the labels do not lie on the image and may not be resampled.
    UnreadableVolume, UnwritableVolume
        If a file cannot be read, linked or written.
    """
    check_name(name)
    return add_nameless(project, image, labels, options, link=link, again=again, name=name)[0]


def add_nameless(
    project: Project,
    image: Volume | Path | str | Sequence[Path | str],
    labels: LabelMap | Path | str | None = None,
    options: LabelOptions = LabelOptions(),  # noqa: B008 - frozen
    *,
    link: bool = False,
    again: bool = False,
    name: str = "",
) -> tuple[Project, str]:
    """Add a volume as `add_case` does, under the next free name, and return that name; safe beside other programs."""
    files = _paths(image)
    if link and not files:
        raise FmsegError("A volume in memory has no file to link to. Copy it (link=False).")
    volume = _finite(image) if isinstance(image, Volume) else read_channels(files)
    found = image_hash(volume)
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        name = name or free_name(fresh)  # within the lock: nobody else can take it
        if fresh.record(name).image == found and name in fresh.files:
            raise FmsegError(f"The case {name!r} is there already, with this image. Give it new labels instead.")
        if name in fresh.files:
            raise FmsegError(f"There is a case {name!r} with another image. Choose another name.")
        same = [other for other in fresh.files if fresh.record(other).image == found]
        if same and not again:
            raise FmsegError(
                f"This image is there already, as {same[0]!r}. Give that case new labels, or add it again on purpose; "
                "it would keep its role in the split."
            )
        if volume.n_channels != len(fresh.facts.channels):
            raise FmsegError(
                f"The volume has {volume.n_channels} channel(s), the project {len(fresh.facts.channels)}: "
                f"{', '.join(fresh.facts.channels)}. Give one file for each, in this order."
            )
        part = nnunet_json.UNLABELLED if labels is None else nnunet_json.IMAGES
        staged = stage_image(change, fresh.facts, volume, files, f"{part}/{name}", link=link)
        case = StagedCase(name, staged, CaseRecord(image=found, changed=now()))
        if labels is not None:
            fresh, case = stage_labels(change, fresh, case, _read(labels), options, volume)
        stage_state(change, fresh, case)
    return open_project(project.folder), name


def label_case(
    project: Project,
    name: str,
    labels: LabelMap | Path | str,
    options: LabelOptions = LabelOptions(),  # noqa: B008 - frozen
    *,
    revision: str | None = None,
    replace: bool = False,
    corrections: bytes | None = None,
) -> Project:
    """Save labels of a case, or corrected ones; the previous ones stay in ``fmseg/history``.

    Parameters
    ----------
    project, name
        The case; the project is read afresh.
    labels
        In memory or a file.
    options
        How they are understood.
    revision
        Of the labels that these correct, see `labels_revision`; by default those of `project`.
    replace
        Replace labels that somebody else saved after that, too.
    corrections
        What was corrected in them, as a viewer wants to have it back with the case; it goes with these labels.

    Raises
    ------
    LabelsChanged
        If the case has other labels than those of `revision` by now, and `replace` is False.
    FmsegError, GeometryMismatch, UnreadableVolume, UnwritableVolume
        As `add_case`; and if there is no such case.
    """
    given = _read(labels)
    known = labels_revision(project, name) if revision is None else revision
    current = open_project(project.folder)
    if not replace:  # before the image is read: it moves when a case gets its first labels
        check_unchanged(current, name, known)
    volume = read_channels(current.files_of(name).images)
    found = image_hash(volume)
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        if not replace:
            check_unchanged(fresh, name, known)
        case = move_to_training(change, fresh, name, dataclasses.replace(fresh.record(name), image=found))
        fresh, case = stage_labels(change, fresh, case, given, options, volume)
        if corrections is not None:
            change.place(corrections_of(name)).write_bytes(corrections)
        elif (project.folder / corrections_of(name)).exists():  # they were those of other labels
            change.remove(corrections_of(name))
        stage_state(change, fresh, case)
    return open_project(project.folder)


def restore_labels(project: Project, name: str, number: int = -1) -> Project:
    """Restore earlier labels of a case; the present ones become the latest earlier ones.

    Parameters
    ----------
    project, name
        The case; the project is read afresh.
    number
        Which of `CaseRecord.earlier`; the last by default.

    Raises
    ------
    FmsegError
        If the case has no such labels.
    """
    count = len(project.record(name).earlier)
    labels, earlier = earlier_labels(project, name, number + (count if number < 0 else 0) + 1)
    options = LabelOptions(classes=earlier.classes, resample=False, unlabelled="nothing")
    return label_case(project, name, labels, options)


def save_prediction(
    project: Project,
    name: str,
    labels: LabelMap,
    version: int,
    *,
    uncertainty: float | None = None,
    where: Volume | None = None,
) -> Project:
    """Save a model's prediction for a case, in ``fmseg/predictions``, to be corrected; it is never used for training.

    Parameters
    ----------
    project, name
        The case; the project is read afresh.
    labels
        On the image's grid.
    version
        Of the model.
    uncertainty
        Of the whole case, 0..1.
    where
        Of every voxel, 0..1, on the image's grid; kept in percent in ``fmseg/uncertainty``.
    """
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        fresh.files_of(name)
        write_labels(labels, change.place(prediction_of(name)))
        if where is not None:
            percent = np.rint(100 * where.data).astype(np.uint8)
            write_volume(Volume(percent, where.geometry), change.place(uncertainty_of(name)))
        record = fresh.record(name)
        told = record.uncertainty if uncertainty is None else {**record.uncertainty, version: uncertainty}
        record = dataclasses.replace(record, predicted=version, uncertainty=told, verdict="", reviewed="")
        fresh = with_record(fresh, name, record)
        write_state(change, fresh)
    return open_project(project.folder)


def check_name(name: str) -> None:
    """Refuse, with `FmsegError`, a name of a case that would break the layout of the files."""
    if not _NAME.fullmatch(name) or re.search(r"_\d{4}$", name) or name.endswith("."):
        raise FmsegError(
            f"{name!r} cannot be the name of a case: letters, digits, - _ and . are, up to 100 of them, and an end "
            "like _0000 stands for a channel."
        )


def _paths(image: Volume | Path | str | Sequence[Path | str]) -> tuple[Path, ...]:
    if isinstance(image, Volume):
        return ()
    return (Path(image),) if isinstance(image, Path | str) else nnunet_json.in_channel_order([Path(i) for i in image])


def _read(labels: LabelMap | Path | str) -> LabelMap:
    return labels if isinstance(labels, LabelMap) else read_labels(labels)


def _finite(volume: Volume) -> Volume:
    """Return the volume as a file would: finite, and in a number type that files have."""
    data = volume.data.astype(np.float32) if volume.data.dtype == np.float16 else volume.data
    return replace_non_finite(dataclasses.replace(volume, data=data))
