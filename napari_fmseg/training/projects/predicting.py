"""What the present model finds in the cases without labels, to be corrected, and how unsure it is of each."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from napari_fmseg.errors import FmsegError
from napari_fmseg.events import Progress, drain
from napari_fmseg.metrics import dice_per_label
from napari_fmseg.models import Model, load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training.projects.adding import save_prediction
from napari_fmseg.training.projects.state import Project, read_image
from napari_fmseg.training.projects.table import ranked
from napari_fmseg.training.projects.versions import present_version
from napari_fmseg.volume import Box, LabelMap, Volume

__all__ = ["predict"]

_LESS = 0.04  # of every side is left out when a case is looked at once more


def predict(project: Project, names: Sequence[str] = (), *, device: str = "auto") -> Generator[Progress, None, Project]:
    """Segment cases with the project's model in use and keep what it finds, to be corrected.

    A case is looked at twice, whole and without its outermost voxels. Where a model is sure, both give the same; its
    uncertainty is 1 - the mean Dice of the two.

    Parameters
    ----------
    project
        With a model in use.
    names
        Of the cases; () takes all that have no labels.
    device
        As `SegmentOptions.device`.

    Yields
    ------
    Progress
        Per case.

    Returns
    -------
    Project
        With the predictions.

    Raises
    ------
    FmsegError
        If no model is in use.
    """
    version = present_version(project)
    if version is None:
        raise FmsegError("This project has no model in use yet. Train one first.")
    model = load_model(version.card, device=device)
    options = SegmentOptions(show_stages=False, device=device)
    names = tuple(names) or tuple(row.name for row in ranked(project))
    for i, name in enumerate(names):
        yield Progress("predicting", i, len(names))
        volume = read_image(project.known(name))
        found = drain(segment(volume, model, options))
        unsure = _uncertainty(volume, found, model, options)
        project = save_prediction(project, name, found, version.number, uncertainty=unsure)
    yield Progress("predicting", len(names), len(names))
    return project


def _uncertainty(volume: Volume, found: LabelMap, model: Model, options: SegmentOptions) -> float:
    box = tuple(slice(int(n * _LESS), n - int(n * _LESS)) for n in volume.geometry.shape)
    part: Box = (box[0], box[1], box[2])
    inner = Volume(volume.data[(..., *part)], volume.geometry.crop(part), volume.meta)
    again = drain(segment(inner, model, options))
    dice = dice_per_label(found.data[part], again.data, model.card.n_classes)
    told = dice[np.isfinite(dice)]
    return float(1 - told.mean()) if len(told) else 1.0
