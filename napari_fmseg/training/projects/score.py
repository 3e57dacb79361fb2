"""Scores of a model on cases of a project, by the pipeline that users run, on the labelled voxels."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from napari_fmseg.core.events import Progress, drain
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.projects.locked_split import HELD_OUT
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.io import read_labels
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions, segment

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
    project: Project, model: Model, names: Sequence[str], options: SegmentOptions | None = None
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
        prediction = drain(segment(read_channels(files.images), model, options))
        if files.labels is not None:
            truth = read_labels(files.labels)
            found[name] = _dice(prediction, truth, project, model, project.record(name).classes)
    yield Progress("measuring", len(names), len(names))
    return found


def _dice(
    prediction: LabelMap, truth: LabelMap, project: Project, model: Model, classes: Sequence[str]
) -> dict[str, float]:
    shared = [name for name in classes if name in model.card.labels.values() and name in project.facts.numbers]
    code = {name: i for i, name in enumerate(shared, 1)}
    mine = np.zeros(prediction.data.shape, np.int32)
    its = np.zeros(truth.data.shape, np.int32)
    for value, name in model.card.labels.items():
        mine[prediction.data == value] = code.get(name, 0)
    for value, name in project.facts.labels.items():
        its[truth.data == value] = code.get(name, 0)
    if project.facts.ignore is not None:
        mine[truth.data == project.facts.ignore] = 0
    values = dice_per_label(mine, its, len(shared) + 1)
    return dict(zip(shared, map(float, values), strict=True))
