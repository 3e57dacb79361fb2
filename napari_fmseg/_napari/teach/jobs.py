"""What the Teach dock does beside the window: iterators for jobs that give the project as it is then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_fmseg._napari.choosers.image_volumes import ImageVolume
from napari_fmseg._napari.correct.tracking.saved_corrections import corrections_in
from napari_fmseg._napari.layers import KEY, LayerData, image_layers, labels_layer, map_layer
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.projects.staged_case import corrections_of, prediction_of, uncertainty_of
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.io.channels import read_channels
from napari_fmseg.training.projects import (
    LabelOptions,
    Project,
    RunReport,
    Version,
    activate_version,
    add_case,
    earlier_labels,
    init_project,
    label_case,
    labels_revision,
    list_versions,
    open_project,
    publish,
    rename_class,
    restore_labels,
    roll_back,
    run_report,
    scan_cases,
    training_plan,
    unfinished_run,
)

__all__ = [
    "EARLIER",
    "FOUND",
    "UNCERTAINTY",
    "CaseLayers",
    "Earlier",
    "NewCase",
    "ProjectSnapshot",
    "SetAside",
    "activate_version_job",
    "add_case_job",
    "change_project_job",
    "load_case_job",
    "load_earlier_job",
    "open_project_job",
    "restore_labels_job",
]

UNCERTAINTY = "uncertainty"
"""The role, in the metadata, of a layer that shows the uncertainty of the model."""

EARLIER = "earlier"
"""The role of a layer with labels that a case had before."""

FOUND = "found"
"""The role of a layer with what a version found in a case that it never saw."""


@dataclass(frozen=True)
class ProjectSnapshot:
    """A project as it is now.

    Attributes
    ----------
    project, versions
        See there.
    note
        How the next model will be measured, or why nothing can be trained yet.
    can_train
        Whether something can.
    unfinished
        The number of a run that can be resumed, or 0.
    report
        What the newest version did on the cases that it never saw; None while there is no version.
    """

    project: Project
    versions: tuple[Version, ...] = ()
    note: str = ""
    can_train: bool = False
    unfinished: int = 0
    report: RunReport | None = None


@dataclass(frozen=True)
class CaseLayers:
    """A case to be shown: the layers of its image, one with its labels, and those of a model.

    `uncertainty` is where the model is unsure, `found` are the labels that it found.
    """

    name: str
    images: tuple[LayerData, ...]
    labels: LayerData
    uncertainty: LayerData | None = None
    found: LayerData | None = None


@dataclass(frozen=True)
class Earlier:
    """Labels that a case had, to be shown."""

    labels: LayerData


@dataclass(frozen=True)
class SetAside:
    """The labels of a case that are in the window are not those of the project any more."""

    name: str


@dataclass(frozen=True, eq=False)
class NewCase:
    """What the user wants to add.

    Attributes
    ----------
    folder
        Of the project.
    name
        Of the case.
    image
        A volume or its file; None if the case is there and gets new labels.
    labels
        Or None, to be labelled later.
    options
        How they are understood.
    link
        Whether the file is linked, not copied.
    shown
        What was chosen, to be marked when it is done: the image, and its labels layer or None.
    revision
        Of the labels that these correct, see `labels_revision`; None for those that the project has.
    replace
        Whether labels that somebody else saved after that are replaced, too.
    renamed
        Classes of the project that are called otherwise from now on.
    corrections
        What was corrected in them, see `pack_corrections`.
    """

    folder: Path
    name: str
    image: Volume | Path | None = None
    labels: LabelMap | None = None
    options: LabelOptions = field(default_factory=LabelOptions)
    link: bool = False
    shown: tuple[ImageVolume, Any] | None = None
    revision: str | None = None
    replace: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    corrections: bytes | None = None


def open_project_job(folder: Path, new: Mapping[str, Any] | None = None) -> Iterator[Progress | ProjectSnapshot]:
    """Open a project, or make it with the arguments `new` of `init_project`, and examine what it does not know yet."""
    project = init_project(folder, **new) if new is not None else open_project(folder)
    yield Progress("opening", 0, 1)
    project = yield from scan_cases(project)
    yield _snapshot_of(project)


def add_case_job(what: NewCase) -> Iterator[ProjectSnapshot]:
    """Add a case, or give one its labels."""
    project = open_project(what.folder)
    for old, new in what.renamed.items():
        project = rename_class(project, old, new)
    if what.renamed and project.index.used:
        publish(project)
    if what.image is not None:
        project = add_case(project, what.name, what.image, what.labels, what.options, link=what.link)
    elif what.labels is not None:
        project = label_case(
            project, what.name, what.labels, what.options,
            revision=what.revision, replace=what.replace, corrections=what.corrections,
        )  # fmt: skip
    yield _snapshot_of(project)


def load_case_job(
    folder: Path, name: str, model_labels: Path | None = None, title_of_model: str = ""
) -> Iterator[CaseLayers]:
    """Read a case: its image, and its labels, what a model found, or an empty layer to label it in.

    Parameters
    ----------
    folder
        Of the project.
    name
        Of the case.
    model_labels, title_of_model
        What a version found in it, to be shown beside its labels, and what that layer is called.
    """
    project = open_project(folder)
    files = project.files_of(name)
    volume = read_channels(files.images)
    recorded = {"case": name, "project": str(folder), "revision": labels_revision(project, name)}
    images = tuple(_with_metadata(layer, recorded) for layer in image_layers(volume, name, source=str(files.images[0])))
    names = dict(project.facts.labels)
    prediction, where = folder / prediction_of(name), folder / uncertainty_of(name)
    if files.labels is not None:
        found, title = read_labels(files.labels), f"{name} · labels"
        if project.facts.ignore is not None:
            names[project.facts.ignore] = "ignore"
    elif prediction.exists():
        found, title = read_labels(prediction), f"{name} · predicted, to be corrected"
    else:
        found, title = LabelMap(np.zeros(volume.geometry.shape, np.uint8), volume.geometry), f"{name} · new labels"
    labels = LabelMap(np.array(found.data), volume.geometry, volume.meta, names)
    layer = labels_layer(labels, title, frame=volume.geometry.canonical()[0])
    saved = folder / corrections_of(name)
    corrected = (
        corrections_in(saved.read_bytes(), volume.geometry.canonical()[0]) if files.labels and saved.exists() else {}
    )
    data, options, kind = _with_metadata(layer, recorded | corrected)
    is_shown = files.labels is None and where.exists()
    uncertainty = _uncertainty_layer(where, f"{name} · uncertainty", volume, recorded) if is_shown else None
    shown = None
    if model_labels is not None:
        found = read_labels(model_labels)
        marks = LabelMap(np.array(found.data), volume.geometry, {}, dict(project.facts.labels))
        shown = labels_layer(marks, title_of_model, frame=volume.geometry.canonical()[0])
        shown = _with_metadata(shown, {"case": name, "project": str(folder), "role": FOUND})
    yield CaseLayers(name, images, (np.ascontiguousarray(data), options, kind), uncertainty, shown)


def load_earlier_job(folder: Path, name: str, number: int) -> Iterator[CaseLayers | Earlier]:
    """Read a case and labels that it had; see `label_history`."""
    yield from load_case_job(folder, name)
    project = open_project(folder)
    volume = read_channels(project.files_of(name).images)
    found, _ = earlier_labels(project, name, number)
    labels = LabelMap(np.array(found.data), volume.geometry, volume.meta, found.names)
    layer = labels_layer(labels, f"{name} · labels {number}", frame=volume.geometry.canonical()[0])
    data, options, kind = _with_metadata(layer, {"case": name, "project": str(folder), "role": EARLIER})
    yield Earlier((np.ascontiguousarray(data), options, kind))


def restore_labels_job(folder: Path, name: str, number: int) -> Iterator[ProjectSnapshot | SetAside | CaseLayers]:
    """Restore earlier labels of a case, and show them."""
    yield _snapshot_of(restore_labels(open_project(folder), name, number - 1))
    yield SetAside(name)
    yield from load_case_job(folder, name)


def change_project_job(folder: Path, change: Callable[[Project], Project]) -> Iterator[ProjectSnapshot]:
    """Carry out a change of a project, such as `exclude_case`."""
    yield _snapshot_of(change(open_project(folder)))


def _uncertainty_layer(file: Path, title: str, volume: Volume, recorded: Mapping[str, str]) -> LayerData:
    """Return the map of the model's uncertainty, hidden at first: it lies over what is to be corrected."""
    percent = read_volume(file)
    uncertainty = Volume((percent.data / 100).astype(np.float32), percent.geometry)
    layer = map_layer(uncertainty, title, frame=volume.geometry.canonical()[0])
    data, options, kind = _with_metadata(layer, {**recorded, "role": UNCERTAINTY})
    return data, {**options, "visible": False}, kind


def _with_metadata(layer: LayerData, recorded: Mapping[str, Any]) -> LayerData:
    data, options, kind = layer
    metadata = {KEY: {**options["metadata"][KEY], **recorded}}
    return data, {**options, "metadata": metadata}, kind


def activate_version_job(folder: Path, number: int = 0) -> Iterator[ProjectSnapshot]:
    """Use a version, 0 the one before, and list it where models are chosen."""
    project = open_project(folder)
    project = activate_version(project, number) if number else roll_back(project)
    publish(project)
    yield _snapshot_of(project)


def _snapshot_of(project: Project) -> ProjectSnapshot:
    try:
        note, can_train = training_plan(project).note, True
    except FmsegError:
        note, can_train = "Nothing to train on yet: add a volume with its labels.", False
    versions = list_versions(project)
    report = run_report(project, versions[-1]) if versions else None
    return ProjectSnapshot(project, versions, note, can_train, unfinished_run(project), report)
