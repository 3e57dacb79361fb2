"""Scores of a model on cases of a project, by the pipeline that users run, on the labelled voxels."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np

from napari_fmseg.core.events import Progress, drain
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.datasets.projects.case_results import labels_file, picture_file
from napari_fmseg.datasets.projects.locked_split import HELD_OUT
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.io import read_labels, write_labels
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training.validation import write_plane

__all__ = ["cases_to_score", "measure"]


def cases_to_score(project: Project, version: int) -> tuple[str, ...]:
    """Return the held-out cases on which a version is not scored yet, because they are new or were relabelled."""
    return tuple(
        name
        for name in project.labelled
        if project.role(name) == HELD_OUT and not (project.record(name).problem or project.record(name).excluded)
        and version not in project.record(name).dice
    )  # fmt: skip


def measure(
    project: Project,
    model: Model,
    names: Sequence[str],
    options: SegmentOptions | None = None,
    *,
    run: Path | None = None,
) -> Generator[Progress, None, dict[str, dict[str, float]]]:
    """Segment cases and compare with their labels.

    Voxels that carry the ignore label do not count, nor do classes that the case's labels do not tell of.

    Parameters
    ----------
    project
        See `Project`.
    model
        Its classes are found by name.
    names
        Of labelled cases.
    options
        Of the pipeline.
    run
        The folder of a run, to keep there what the model found in each case and a picture of it.

    Yields
    ------
    Progress
        Per case.

    Returns
    -------
    dict
        Dice by case and class; nan for a class that is neither in the labels nor found.
    """
    found: dict[str, dict[str, float]] = {}
    options = options or SegmentOptions(show_stages=False)
    for i, name in enumerate(names):
        yield Progress("measuring", i, len(names))
        files = project.files_of(name)
        volume = read_channels(files.images)
        prediction = _renumber(drain(segment(volume, model, options)), model.card.labels, project.facts.numbers)
        if files.labels is not None:
            truth = read_labels(files.labels)
            known = set(model.card.labels.values())
            found[name] = _dice(prediction, truth, project, [n for n in project.record(name).classes if n in known])
            if run is not None:
                _keep(volume, truth, prediction, project, name, run)
    yield Progress("measuring", len(names), len(names))
    return found


def _renumber(labels: LabelMap, names: Mapping[int, str], numbers: Mapping[str, int]) -> LabelMap:
    """Return labels with other numbers for the classes; those that have none are left out."""
    data = np.zeros(labels.data.shape, np.int32)
    for value, name in names.items():
        data[labels.data == value] = numbers.get(name, 0)
    own = {number: name for name, number in numbers.items() if name in names.values()}
    return LabelMap(data, labels.geometry, labels.meta, own)


def _dice(prediction: LabelMap, truth: LabelMap, project: Project, classes: Sequence[str]) -> dict[str, float]:
    facts = project.facts
    code = {name: i for i, name in enumerate((n for n in classes if n in facts.numbers), 1)}
    mine, its = (_renumber(labels, facts.labels, code).data for labels in (prediction, truth))
    if facts.ignore is not None:
        mine[truth.data == facts.ignore] = 0
    values = dice_per_label(mine, its, len(code) + 1)
    return dict(zip(code, map(float, values), strict=True))


def _keep(volume: Volume, truth: LabelMap, found: LabelMap, project: Project, name: str, run: Path) -> None:
    """Keep a picture of a case and what was found in it in the folder of a run."""
    image, ignore = project.record(name).image, project.facts.ignore
    data = truth.data if ignore is None else np.where(truth.data == ignore, IGNORE, truth.data)
    known = LabelMap(data, truth.geometry, {}, truth.names)
    write_plane(volume, known, found, picture_file(run, image), small=True)
    write_labels(found, labels_file(run, image), source=volume)
