"""What is in a label map: for every class its volume, its voxels and a point in its middle; as a table for a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.atomic_write import atomic_write_csv
from napari_fmseg.core.volume import LabelMap

__all__ = ["Measure", "measure", "write_measures"]

COLUMNS = ("label", "name", "volume_ml", "voxels", "centre_x_mm", "centre_y_mm", "centre_z_mm")


@dataclass(frozen=True)
class Measure:
    """One class of a label map.

    Parameters
    ----------
    label, name
        Its number and its name ("" where nobody named it).
    voxels, ml
        Its size in voxels and in millilitres; nan ml where the size of a voxel is not known.
    centre
        Index (z, y, x) of a voxel of the class in the middle of its largest component, or None if the class is empty.
    centre_mm
        Where that voxel lies, in LPS mm listed z, y, x; None, too, where the size of a voxel is not known.
    """

    label: int
    name: str
    voxels: int
    ml: float
    centre: tuple[int, int, int] | None = None
    centre_mm: tuple[float, float, float] | None = None


def measure(labels: LabelMap) -> tuple[Measure, ...]:
    """Measure every class that has a name or occurs, in the order of the labels; the background is left out.

    The centre is always a voxel of the class: in the plane that halves its volume the largest component, and of
    that the voxel nearest to its middle. So a jump to "kidneys" shows a kidney and not the spine between them.
    """
    per_plane = [_count_voxels(plane) for plane in labels.data]
    found = sorted({label for counts in per_plane for label in counts} | set(labels.names))
    return tuple(_measure(labels, label, per_plane) for label in found if label != 0)


def _count_voxels(plane: npt.NDArray[Any]) -> dict[int, int]:
    """Return voxels of every label in one plane (y, x)."""
    if plane.dtype == np.uint8 or plane.dtype == np.bool_:
        counts = np.bincount(plane.reshape(-1).view(np.uint8), minlength=256)
        return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    values, sizes = np.unique(plane, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, sizes, strict=True)}


def _measure(labels: LabelMap, label: int, per_plane: Sequence[dict[int, int]]) -> Measure:
    areas = np.array([counts.get(label, 0) for counts in per_plane])
    voxels = int(areas.sum())
    voxel_ml = labels.geometry.voxel_ml if labels.has_spacing else math.nan
    name, ml = str(labels.names.get(label, "")), voxels * voxel_ml
    if not voxels:
        return Measure(label, name, 0, ml)
    z = int(np.searchsorted(np.cumsum(areas), voxels / 2))
    y, x = _middle(labels.data[z] == label)
    if not labels.has_spacing:
        return Measure(label, name, voxels, ml, (z, y, x))
    where = labels.geometry.place((z, y, x)).tolist()
    return Measure(label, name, voxels, ml, (z, y, x), (where[0], where[1], where[2]))


def _middle(mask: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return the voxel (y, x) of a mask's largest component that is nearest to its middle."""
    from scipy import ndimage

    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    largest = np.argwhere(pieces == np.argmax(np.bincount(pieces[mask])))
    y, x = largest[np.argmin(((largest - largest.mean(0)) ** 2).sum(1))].tolist()
    return y, x


def write_measures(measures: Iterable[Measure], path: Path | str) -> Path:
    """Write measures as a CSV file with one row per class; centres in LPS mm. What is not known stays empty.

    A file of that name is replaced only when the new one is complete.

    Raises
    ------
    UnwritableVolume
        If the file cannot be written.
    """
    return atomic_write_csv(path, COLUMNS, (_row(m) for m in measures))


def _row(m: Measure) -> Iterator[Any]:
    yield from (m.label, m.name, "" if math.isnan(m.ml) else f"{m.ml:.4f}", m.voxels)
    yield from ("", "", "") if m.centre_mm is None else (f"{v:.2f}" for v in reversed(m.centre_mm))
