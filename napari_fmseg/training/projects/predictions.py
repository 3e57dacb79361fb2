"""What the present model finds in the cases without labels, to be corrected, and how unsure it is of each."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from napari_fmseg.core.errors import FmsegError, GeometryMismatch, UnreadableVolume
from napari_fmseg.core.events import Progress, StageResult, Warned
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.projects.add_case import save_prediction
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.explain.uncertainty import STAGE, uncertainty
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training.projects.case_table import rank_cases
from napari_fmseg.training.projects.versions import active_version

__all__ = ["predict"]


def predict(
    project: Project, names: Sequence[str] = (), *, device: str = "auto"
) -> Generator[Progress | Warned, None, Project]:
    """Segment cases with the project's model in use and keep what it finds, to be corrected.

    How unsure it is of a case is where it contradicts itself: see `napari_fmseg.explain.uncertainty`. The map of that
    is kept
    beside the labels, in ``fmseg/uncertainty``.

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
    Progress, Warned
        Per case; and of each that cannot be read, such as one whose channels do not lie on each other.

    Returns
    -------
    Project
        With the predictions.

    Raises
    ------
    FmsegError
        If no model is in use, or none of the cases can be segmented.
    """
    version = active_version(project)
    if version is None:
        raise FmsegError("This project has no model in use yet. Train one first.")
    model = load_model(version.card, device=device)
    options = SegmentOptions(show_stages=False, device=device)
    names = tuple(names) or tuple(row.name for row in rank_cases(project))
    failed: list[FmsegError] = []
    for i, name in enumerate(names):
        yield Progress("predicting", i, len(names))
        try:
            volume = read_channels(project.files_of(name).images)
            found, where = _labels_and_uncertainty(uncertainty(volume, model, options))
        except (UnreadableVolume, GeometryMismatch) as error:
            failed.append(error)
            yield Warned(f"{name} was left out: {error}")
            continue
        doubt = float(where.meta["doubt"])
        project = save_prediction(project, name, found, version.number, uncertainty=doubt, where=where)
    yield Progress("predicting", len(names), len(names))
    if failed and len(failed) == len(names):
        raise failed[0]
    return project


def _labels_and_uncertainty(events: Iterable[Any]) -> tuple[LabelMap, Volume]:
    """Return the labels, and the map of the doubt about them."""
    outputs = {event.stage: event.output for event in events if isinstance(event, StageResult)}
    labels, where = outputs["labels"], outputs[STAGE]
    assert isinstance(labels, LabelMap)
    return labels, where
