"""Validation during training, on held-out cases, by the pipeline that users run."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.events import Progress, TrainEvent, drain
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training.data.samples import ValidationCase

__all__ = ["dice_on_labelled_voxels", "validate_model", "write_plane"]


def validate_model(
    model: Model,
    until: str,
    cases: Sequence[ValidationCase],
    labels: Sequence[str],
    old: Sequence[str] = (),
    *,
    mirror: bool = True,
) -> Generator[TrainEvent, None, tuple[dict[str, float], LabelMap | None]]:
    """Run a model as far as a stage on held-out cases.

    Parameters
    ----------
    model
        With the networks of that stage and of those before it.
    until
        The stage.
    cases
        Those that are only watched do not count in the mean that chooses the best epoch.
    labels
        The recipe's classes.
    old
        Those of them that a model of before knew.
    mirror
        Whether windows are mirrored, too, where the model's card says so.

    Returns
    -------
    tuple
        ``"dice"``: the mean that chooses; ``"old"``: that of the old classes; ``"dice/NAME"`` of every class that any
        case was labelled with. And what was found in the first case.
    """
    options = SegmentOptions(until=until, show_stages=False, precision="float32", mirror=mirror)
    table, first = [], None
    for i, case in enumerate(cases):
        yield Progress("validating", i, len(cases))
        found = drain(segment(case.volume, model, options))
        table.append(dice_on_labelled_voxels(found, case, len(labels) + 1))
        first = found if i == 0 else first
    rows, watched = np.array(table), np.array([case.watched for case in cases])
    chosen, shown = _means(rows[~watched].reshape(-1, len(labels))), _means(rows[watched].reshape(-1, len(labels)))
    both = np.where(np.isnan(shown), chosen, shown)
    named = {f"dice/{name}": float(m) for name, m in zip(labels, both, strict=True) if m == m}
    told = {"dice": chosen, "old": np.array([v for n, v in zip(labels, both, strict=True) if n in old])}
    means = {name: float(_means(values[:, None])[0]) for name, values in told.items() if np.isfinite(values).any()}
    return {**means, **named}, first


def dice_on_labelled_voxels(found: LabelMap, case: ValidationCase, n_classes: int) -> np.ndarray:
    """Return Dice per class on the voxels that were labelled; nan for classes that the case was never labelled with."""
    told = case.truth.data != IGNORE
    dice = dice_per_label(found.data * told, case.truth.data * told, n_classes)
    dice[[label - 1 for label in case.missing]] = np.nan
    return dice


def write_plane(volume: Volume, truth: LabelMap, found: LabelMap, path: Path, *, small: bool = False) -> Path:
    """Write the axial plane that shows most of the structures: "image", "labels" and "prediction", (1, y, x) each.

    Parameters
    ----------
    volume, truth, found
        On one grid; voxels of `truth` that nobody labelled carry `IGNORE`.
    path
        An npz file without pickle, with "spacing", (3,) in mm; it is replaced whole.
    small
        Whether the image is kept in 8 bits, between its 1st and 99th percentile, to be looked at only.
    """
    grid, order, flips = volume.geometry.canonical()
    image, mine, its = (
        np.flip(np.asarray(data).transpose(order), flips) for data in (volume.channels[0], truth.data, found.data)
    )
    structure = (mine > 0) & (mine != IGNORE)
    plane = int((structure if structure.any() else its > 0).sum((1, 2)).argmax())
    shown: dict[str, Any] = {
        "image": _in_8_bits(image[plane, None]) if small else image[plane, None].astype(np.float32),
        "labels": np.where(mine == IGNORE, 0, mine)[plane, None].astype(np.uint8),
        "prediction": its[plane, None].astype(np.uint8),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, spacing=np.array(grid.spacing), **shown)
    return path


def _in_8_bits(image: np.ndarray) -> np.ndarray:
    """Return intensities as 0 to 255, what is beyond the 1st and 99th percentile cut off."""
    low, high = np.percentile(image, (1, 99))
    shown: np.ndarray = np.rint(255 * np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    return shown


def _means(table: np.ndarray) -> np.ndarray:
    """Return the means over the first axis of what is a number; nan where nothing is."""
    counts = np.isfinite(table).sum(0)
    means: np.ndarray = np.divide(np.nansum(table, 0), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return means
