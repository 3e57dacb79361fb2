"""Previews of the volumes in a folder or zip: enough of each to choose by, with a small picture."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.io.damage import access_errors_as_unreadable
from napari_fmseg.io.discovery import find_volumes
from napari_fmseg.io.paths import files_below, format_of

__all__ = ["SeriesPreview", "preview_series"]

Picture = npt.NDArray[np.uint8]
_MAX_VOLUMES = 200
_MAX_PICTURES = 60  # each costs one slice to read


@dataclass(frozen=True, eq=False)
class SeriesPreview:
    """One volume that could be read.

    Attributes
    ----------
    path, series
        What `read_volume` is to be given; `series` is None where the path alone says it.
    description
        The scanner's name for a series, or the name of the file below the folder.
    modality
        Such as ``"CT"``; "" where unknown.
    shape
        Voxels along (z, y, x); zeros where unknown.
    spacing
        mm along (z, y, x); 0 where unknown.
    n_files
        How many files it has.
    picture
        Its middle slice, (rows, columns) uint8 with square pixels; None where there is none.
    """

    path: Path
    series: str | None
    description: str
    modality: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    n_files: int
    picture: Picture | None = None


def preview_series(path: Path | str, *, side: int = 96) -> tuple[SeriesPreview, ...]:
    """List what a folder, a zip or a DICOMDIR offers to read, in the order of the files.

    Parameters
    ----------
    path
        A folder with DICOM series or with volumes, a zip of DICOM series, or any single file (which offers nothing).
    side
        Pixels of a picture's longer side.

    Returns
    -------
    tuple of SeriesPreview
        Of DICOM series where there are any, else of volume files.

    Raises
    ------
    UnreadableVolume
        If the path cannot be listed.
    """
    from napari_fmseg.io.dicom import series as dicom_series
    from napari_fmseg.io.zip_archive import unzip

    path = Path(path)
    if path.name.upper() == "DICOMDIR":
        path = path.parent
    if path.is_file():
        with access_errors_as_unreadable(path):
            if format_of(path) != "zip":
                return ()
            with unzip(path) as folder:
                return _series(files_below(folder), path, side)
    if not path.is_dir():
        raise UnreadableVolume(f"{path} does not exist. Check the name, and whether its drive is connected.")
    files = files_below(path)
    return _series(files, path, side) if dicom_series.any_images(files) else _volumes(path)


def _series(files: list[Path], path: Path, side: int) -> tuple[SeriesPreview, ...]:
    from napari_fmseg.io.dicom import series as dicom_series

    offers = []
    for number, (info, middle) in enumerate(dicom_series.summarise_series(files)):
        picture = None
        if middle is not None and number < _MAX_PICTURES:
            picture = _picture(middle, side)
        offers.append(
            SeriesPreview(
                path, info.uid, info.description, info.modality, info.shape, info.spacing, info.n_files, picture
            )
        )
    return tuple(offers)


def _picture(part: Any, side: int) -> Picture | None:
    from napari_fmseg.io.dicom.slices import decode_slices

    try:
        plane = next(iter(decode_slices([part], not part.is_plain)))
    except FmsegError:  # asking for the series says what is wrong with it
        return None
    return _draw(plane, part.spacing, side)


def _draw(plane: npt.NDArray[Any], spacing: tuple[float, float], side: int) -> Picture:
    """Draw a slice (rows, columns) in grey, from the 1st to the 99th percentile, by nearest neighbours."""
    rows_mm, columns_mm = plane.shape[0] * spacing[0], plane.shape[1] * spacing[1]
    per_mm = side / max(rows_mm, columns_mm)
    rows, columns = max(1, round(rows_mm * per_mm)), max(1, round(columns_mm * per_mm))
    y = np.arange(rows) * plane.shape[0] // rows
    x = np.arange(columns) * plane.shape[1] // columns
    small = plane[np.ix_(y, x)].astype(np.float32)
    low, high = np.percentile(small, (1, 99))
    grey = np.clip((small - low) / max(float(high - low), 1e-6), 0, 1)
    return np.ascontiguousarray(np.rint(grey * 255).astype(np.uint8))


def _volumes(folder: Path) -> tuple[SeriesPreview, ...]:
    offers = []
    for path in find_volumes(folder)[:_MAX_VOLUMES]:
        shape, spacing = (0, 0, 0), (0.0, 0.0, 0.0)
        with suppress(FmsegError, OSError, RuntimeError, ValueError):  # still listed: opening it says what is wrong
            shape, spacing = _grid(path)
        offers.append(SeriesPreview(path, None, str(path.relative_to(folder)), "", shape, spacing, 1))
    return tuple(offers)


def _grid(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Read a header's shape and spacing, (z, y, x)."""
    from napari_fmseg.io import nifti
    from napari_fmseg.io.itk import reader

    sizes, spacings = reader.grid(path) if format_of(path) == "itk" else nifti.grid(path)
    (z, y, x), (dx, dy, dz) = sizes, spacings
    return (z, y, x), (dz, dy, dx)
