"""Lesions in a segmented image: for each its volume, its uptake and where it is; as a table and for a file.

A lesion is a connected part of a label (26 neighbours). Only an image in SUV gives SUV; of any other image the same
figures are given in its own unit, and never called SUV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.atomic_write import atomic_write_csv
from napari_fmseg.core.components import components, label_boxes
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Box, LabelMap, Volume

__all__ = ["Lesion", "LesionTable", "columns", "lesions", "write_lesions"]

_PEAK_MM = (3000 / (4 * math.pi)) ** (1 / 3)
"""Radius of a sphere of 1 ml: 6.2 mm."""


@dataclass(frozen=True)
class Lesion:
    """One connected part of a label.

    Parameters
    ----------
    number
        1 for the largest, and so on.
    label, name
        Of its class; the name is "" where nobody gave one.
    voxels, ml
        Its size in voxels and in millilitres. Where the size of a voxel is not known, ml, peak and total are nan.
    max, mean
        Largest and mean intensity, in the table's unit.
    peak
        Largest mean over a sphere of 1 ml whose centre is a voxel of the lesion; the sphere may reach beyond the
        lesion, not beyond the image.
    total
        Mean times volume, in the unit times ml: the total lesion glycolysis (TLG) of an FDG-PET in SUV.
    hottest
        Index (z, y, x) of the voxel with the largest intensity.
    centroid_mm
        Mean place of its voxels in LPS mm, listed z, y, x.
    """

    number: int
    label: int
    name: str
    voxels: int
    ml: float
    max: float
    mean: float
    peak: float
    total: float
    hottest: tuple[int, int, int]
    centroid_mm: tuple[float, float, float]


@dataclass(frozen=True)
class LesionTable:
    """All lesions of an image.

    Parameters
    ----------
    unit
        Of the intensities, as the image states: ``"SUV"``, ``"Bq/ml"``...; "" where it does not.
    lesions
        The largest first.
    left_out
        How many parts were smaller than requested.
    has_spacing
        Whether the size of a voxel is known; else there is no ml, and nothing that needs one.
    """

    unit: str
    lesions: tuple[Lesion, ...]
    left_out: int = 0
    has_spacing: bool = True

    @property
    def count_text(self) -> str:
        """How many there are, in words."""
        return "1 lesion" if len(self.lesions) == 1 else f"{len(self.lesions)} lesions"

    @property
    def is_suv(self) -> bool:
        """Whether the intensities are standardised uptake values."""
        return self.unit == "SUV"

    @property
    def ml(self) -> float:
        """Volume of all lesions in millilitres: the metabolic tumour volume, where they are tumours on PET."""
        return sum(lesion.ml for lesion in self.lesions)

    @property
    def total(self) -> float:
        """Sum of the lesions' mean times volume (TLG of an image in SUV)."""
        return sum(lesion.total for lesion in self.lesions)

    @property
    def max(self) -> float:
        """Largest intensity in any lesion; nan without one."""
        return max((lesion.max for lesion in self.lesions), default=math.nan)

    @property
    def peak(self) -> float:
        """Largest peak of any lesion; nan without one."""
        return max((lesion.peak for lesion in self.lesions), default=math.nan)

    @property
    def mean(self) -> float:
        """Mean intensity over the voxels of all lesions; nan without one."""
        voxels = sum(lesion.voxels for lesion in self.lesions)
        return sum(lesion.mean * lesion.voxels for lesion in self.lesions) / voxels if voxels else math.nan


def lesions(
    labels: LabelMap, volume: Volume, *, label: int | None = None, min_ml: float = 0.0, channel: int = 0
) -> LesionTable:
    """Measure every lesion of a segmented image.

    Parameters
    ----------
    labels
        Lesions (z, y, x), on the grid of `volume`.
    volume
        The image, in SUV or any other unit: see `napari_fmseg.io.dicom.suv`.
    label
        Take the parts of this label only; None takes all labels, each for itself.
    min_ml
        Leave out parts smaller than so many millilitres.
    channel
        Which channel of the volume is measured.

    Returns
    -------
    LesionTable
        Empty where there is no lesion.

    Raises
    ------
    GeometryMismatch
        If labels and volume do not lie on one grid.
    FmsegError
        If `min_ml` is negative or cannot be measured for want of a spacing, or there is no such channel.

    References
    ----------
    Wahl et al., From RECIST to PERCIST, J Nucl Med 2009 (SUVpeak, a sphere of 1 ml; TLG).
    """
    _check(labels, volume, min_ml, channel)
    image = volume.channels[channel]
    mask = labels.data if label is None else np.where(labels.data == label, labels.data, 0)
    parts = components(mask)
    sizes = np.bincount(parts.reshape(-1))[1:]
    kept = sizes * labels.geometry.voxel_ml >= min_ml * (1 - 1e-9)
    sphere = _sphere(labels.geometry.affine[:3, :3]) if labels.has_spacing else None
    found = [
        _measure(labels, image, parts, number, box, sphere)
        for number, box in label_boxes(parts)
        if kept[number - 1]
    ]  # fmt: skip
    found.sort(key=lambda pair: -pair["voxels"])
    table = tuple(Lesion(number, **facts) for number, facts in enumerate(found, 1))
    return LesionTable(_unit(volume), table, int((~kept).sum()), labels.has_spacing)


def _check(labels: LabelMap, volume: Volume, min_ml: float, channel: int) -> None:
    if not labels.geometry.matches(volume.geometry, atol_mm=0.01):
        raise GeometryMismatch(
            f"The labels have {labels.geometry.shape} voxels of {np.round(labels.geometry.spacing, 3).tolist()} mm, "
            f"the image {volume.geometry.shape} of {np.round(volume.geometry.spacing, 3).tolist()} mm, or they lie "
            "elsewhere. "
            "Uptake is measured voxel by voxel: segment this image, or read the labels on its grid "
            "(napari_fmseg.core.resampling.resample, order=0)."
        )
    if not min_ml >= 0:
        raise FmsegError(f"The smallest lesion is {min_ml} ml. Expected 0 ml or more.")
    if min_ml and not labels.has_spacing:
        raise FmsegError(
            f"The smallest lesion is {min_ml} ml, but the labels have no spacing, so that nobody knows how many ml a "
            "voxel has. Ask for all lesions (0 ml), or give the labels their spacing."
        )
    if not 0 <= channel < volume.n_channels:
        raise FmsegError(f"There is no channel {channel}: the image has {volume.n_channels}, counted from 0.")


def _unit(volume: Volume) -> str:
    unit = str(volume.meta.get("units", ""))
    return "" if unit.lower() in ("", "unknown", "none") else unit


def _measure(
    labels: LabelMap,
    image: npt.NDArray[Any],
    parts: npt.NDArray[Any],
    number: int,
    box: Box,
    sphere: npt.NDArray[Any] | None,
) -> dict[str, Any]:
    inside = parts[box] == number
    places = np.argwhere(inside) + [s.start for s in box]
    values = np.asarray(image[box][inside], np.float64)
    z, y, x = places[int(values.argmax())].tolist()
    label = int(labels.data[z, y, x])
    ml = len(values) * labels.geometry.voxel_ml if sphere is not None else math.nan
    peak = _peak(image, box, inside, sphere) if sphere is not None else math.nan
    mean = float(values.mean())
    middle = labels.geometry.place(places.mean(0)).tolist()
    return {
        "label": label, "name": str(labels.names.get(label, "")), "voxels": len(values), "ml": ml,
        "max": float(values.max()), "mean": mean, "peak": peak, "total": mean * ml,
        "hottest": (z, y, x), "centroid_mm": (middle[0], middle[1], middle[2]),
    }  # fmt: skip


def _sphere(axes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return voxels (z, y, x) whose centres lie within a sphere of 1 ml around the one in the middle; odd sizes."""
    reach = np.floor(_PEAK_MM * np.linalg.norm(np.linalg.inv(axes), axis=1) + 1e-9).astype(int)
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1)
    inside: npt.NDArray[np.float64] = (np.linalg.norm(offsets @ axes.T, axis=-1) <= _PEAK_MM + 1e-9).astype(np.float64)
    return inside


def _peak(
    image: npt.NDArray[Any], box: Box, inside: npt.NDArray[np.bool_], sphere: npt.NDArray[np.float64]
) -> float:  # fmt: skip
    """Return the largest mean over the sphere around a voxel of the lesion."""
    from scipy.signal import oaconvolve

    reach = [n // 2 for n in sphere.shape]
    wide = tuple(
        slice(max(0, s.start - r), min(n, s.stop + r)) for s, r, n in zip(box, reach, image.shape, strict=True)
    )
    part = np.asarray(image[wide], np.float64)
    sums = oaconvolve(part, sphere, mode="same")
    counts = oaconvolve(np.ones_like(part), sphere, mode="same")  # fewer at the border of the image
    own = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    return float((sums[own][inside] / np.rint(counts[own][inside])).max())


# --- as a table ---


def columns(table: LesionTable) -> tuple[str, ...]:
    """Name the columns of intensities: max, mean, peak and total, with their unit."""
    if table.is_suv:
        return ("SUVmax", "SUVmean", "SUVpeak", "TLG")
    unit = table.unit or "no unit"
    return (f"max ({unit})", f"mean ({unit})", f"peak ({unit})", f"mean x volume ({unit} x ml)")


def write_lesions(table: LesionTable, path: Path | str) -> Path:
    """Write lesions as a CSV file, one row each and a last one for all of them; places in LPS mm.

    A file of that name is replaced only when the new one is complete.

    Raises
    ------
    UnwritableVolume
        If the file cannot be written.
    """
    places = ("centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
    return atomic_write_csv(
        path, ("lesion", "label", "name", "volume_ml", "voxels", *columns(table), *places), _rows(table)
    )


def _rows(table: LesionTable) -> Iterator[tuple[Any, ...]]:
    for each in table.lesions:
        uptake = map(_figure, (each.max, each.mean, each.peak, each.total))
        where = (f"{v:.2f}" if table.has_spacing else "" for v in reversed(each.centroid_mm))
        ml = f"{each.ml:.4f}" if table.has_spacing else ""
        yield each.number, each.label, each.name, ml, each.voxels, *uptake, *where
    totals = (table.max, table.mean, table.peak, table.total)
    voxels = sum(each.voxels for each in table.lesions)
    ml = f"{table.ml:.4f}" if table.has_spacing else ""
    yield "all", "", table.count_text, ml, voxels, *map(_figure, totals), "", "", ""


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.5g}"
