"""The files of a case on their way into a project: everything that one change has to write."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets import nnunet_json
from napari_fmseg.datasets.nnunet_json import CaseFiles, DatasetInfo
from napari_fmseg.datasets.projects.label_import import Labelled, LabelOptions, import_labels
from napari_fmseg.datasets.projects.project import (
    CaseRecord,
    Earlier,
    Project,
    now,
    with_fingerprint,
    with_record,
    write_state,
)
from napari_fmseg.datasets.projects.scan import changed_cases
from napari_fmseg.datasets.projects.transaction import STATE_DIR, Transaction
from napari_fmseg.io import read_labels, suffix_of, write_labels, write_volume

__all__ = [
    "StagedCase",
    "companions_of",
    "corrections_of",
    "move_to_training",
    "prediction_of",
    "relative",
    "stage_image",
    "stage_labels",
    "stage_state",
    "uncertainty_of",
]


@dataclass(frozen=True)
class StagedCase:
    """A case while it is written: where its files will lie, relative to the project, and what is known."""

    name: str
    images: tuple[tuple[str, Path], ...]  # the place in the project, and where the content is now
    record: CaseRecord
    labels: tuple[str, Path] | None = None


def stage_image(
    change: Transaction, facts: DatasetInfo, volume: Volume, files: tuple[Path, ...], stem: str, *, link: bool
) -> tuple[tuple[str, Path], ...]:
    """Copy, link or write the channels."""
    as_they_are = len(files) == volume.n_channels and all(
        path.is_file() and path.name.lower().endswith(facts.ending) and facts.ending not in _TWO_FILES for path in files
    )
    if link and not as_they_are:
        raise FmsegError(
            f"{files[0].name} cannot be linked: the project needs one {facts.ending} file per channel. Copy it, "
            "which converts it."
        )
    staged = []
    for i, channel in enumerate(volume.channels):
        path = f"{stem}_{i:04d}{facts.ending}"
        if link:
            change.link(files[i], path)
            staged.append((path, files[i].absolute()))
        elif as_they_are:
            staged.append((path, change.place(path)))
            shutil.copyfile(files[i], staged[-1][1])
        else:
            staged.append((path, change.place(path)))
            write_volume(Volume(np.ascontiguousarray(channel), volume.geometry, volume.meta), staged[-1][1])
    return tuple(staged)


_TWO_FILES = (".mhd", ".nhdr", ".hdr", ".img")


def move_to_training(change: Transaction, project: Project, name: str, record: CaseRecord) -> StagedCase:
    """Move the images of an unlabelled case to the labelled ones."""
    images = []
    if "/" in name:
        raise FmsegError(
            f"{name} cannot be labelled, because a labelled case has the same name. Rename its files in "
            f"{nnunet_json.UNLABELLED} first."
        )
    for path in project.files_of(name).images:
        place = relative(path, project.folder)
        if place.startswith(f"{nnunet_json.UNLABELLED}/"):
            target = f"{nnunet_json.IMAGES}/{path.name}"
            change.move(place, target)
            place = target
        images.append((place, path))
    return StagedCase(name, tuple(images), record)


def relative(path: Path, folder: Path) -> str:
    """Return a path as the project writes it: from its folder on, with forward slashes; as it is if it lies
    elsewhere.
    """
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def stage_labels(
    change: Transaction, project: Project, case: StagedCase, labels: LabelMap, options: LabelOptions, volume: Volume
) -> tuple[Project, StagedCase]:
    """Write the labels of a case, keep the previous ones, and update dataset.json.

    Parameters
    ----------
    change
        What is to be committed.
    project
        As it is.
    case
        As it will be, without its labels.
    labels
        From any tool.
    options
        How they are understood.
    volume
        The case's image.

    Returns
    -------
    tuple
        The project with its new facts, and the case with its labels; `stage_state` writes both.
    """
    facts, old = project.facts, project.files.get(case.name, CaseFiles(())).labels
    before = case.record.classes if old is not None else ()
    found = import_labels(labels, volume.geometry, facts, options, project.folder, before=before)
    record = case.record
    if old is not None:
        kept = f"{STATE_DIR}/history/{case.name}/{len(record.earlier) + 1:03d}{suffix_of(old)}"
        change.copy(old, kept)
        earlier = Earlier(kept, record.changed, record.classes or tuple(facts.labels.values()), facts.ignore or 0)
        record = dataclasses.replace(record, earlier=(*record.earlier, earlier))
    # Where the labels lay outside of the project, that file stays as it is.
    inside = old is not None and old.is_relative_to(project.folder)
    path = relative(old, project.folder) if old and inside else f"{nnunet_json.LABELS}/{case.name}{facts.ending}"
    staged = change.place(path)
    write_labels(found.labels, staged, source=volume)
    for old_file in (prediction_of(case.name), uncertainty_of(case.name)):
        if (project.folder / old_file).exists():
            change.remove(old_file)
    project = _with_facts(change, project, found, case.name)
    record = dataclasses.replace(
        record,
        classes=found.classes,
        sparse=found.sparse,
        labelled=found.share,
        changed=now(),
        predicted=0,
        problem="",
        unconfirmed=False,
        verdict="",  # it was about the labels before
        reviewed="",
        dice={},  # they were measured against the labels before
    )
    return project, dataclasses.replace(case, record=record, labels=(path, staged))


def prediction_of(name: str) -> str:
    """Return the path of a model's prediction for a case."""
    return f"{STATE_DIR}/predictions/{name.rpartition('/')[2]}.nii.gz"


def uncertainty_of(name: str) -> str:
    """Return the path of the uncertainty map of a case: percent, on the image's grid."""
    return f"{STATE_DIR}/uncertainty/{name.rpartition('/')[2]}.nii.gz"


def corrections_of(name: str) -> str:
    """Return the path of what was corrected in the labels of a case since the model's answer, and of that answer."""
    return f"{STATE_DIR}/corrections/{name.rpartition('/')[2]}.bin"


def companions_of(name: str) -> tuple[str, ...]:
    """Return the paths of all that is kept of a case beside its image and labels, whether it is there or not."""
    return prediction_of(name), uncertainty_of(name), corrections_of(name)


def _with_facts(change: Transaction, project: Project, found: Labelled, name: str) -> Project:
    """Return the project with a new dataset.json; where new classes pushed the ignore label up, label files follow."""
    old, new = project.facts.ignore, found.facts.ignore
    project = dataclasses.replace(project, facts=found.facts)
    if old is None or old == new or new is None:
        return project
    unsure = changed_cases(project)
    for other in project.labelled:
        path = project.files[other].labels
        if other == name or path is None or not (project.record(other).sparse or other in unsure):
            continue
        labels = read_labels(path)
        if not (labels.data == old).any():
            continue
        data = labels.data.astype(np.int64)
        data[data == old] = new
        names = {**found.facts.labels, new: "ignore"}
        source = Volume(np.zeros(labels.geometry.shape, np.uint8), labels.geometry, labels.meta)
        place = change.place(relative(path, project.folder))
        write_labels(LabelMap(data, labels.geometry, {}, names), place, source=source)
        files = CaseFiles(project.files[other].images, place)
        project = with_record(project, other, with_fingerprint(project.record(other), files))
    return project


def stage_state(change: Transaction, project: Project, case: StagedCase) -> None:
    """Collect dataset.json, index and split with the case in them."""
    labels = None if case.labels is None else case.labels[0]
    n_labelled = len({*project.labelled, *([case.name] if labels else [])})
    table = nnunet_json.with_case(
        project.facts.table, case.name, tuple(place for place, _ in case.images), labels, n_labelled
    )
    if table != nnunet_json.read_facts(project.folder).table:
        change.table("dataset.json", table)
    # Sizes and times of the staged files stay with them when they are moved.
    files = CaseFiles(tuple(content for _, content in case.images), None if case.labels is None else case.labels[1])
    project = dataclasses.replace(project, files={**project.files, case.name: files})
    write_state(change, with_record(project, case.name, with_fingerprint(case.record, files)))
