"""Read and write volumes and label maps: by suffix, by the first bytes, or from a folder.

Inside the house arrays are (z, y, x) and positions LPS millimetres; the turning happens here and nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_fmseg.errors import GeometryMismatch, UnreadableVolume, UnwritableVolume
from napari_fmseg.io.checks import checked, smallest_integer, to_labels
from napari_fmseg.volume import LabelMap, Volume

__all__ = ["read_labels", "read_volume", "suffix_of", "write_labels", "write_volume"]

_SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")
_WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", ".mhd")


def suffix_of(path: Path | str) -> str:
    """Return the suffix that names a volume's format, in lower case: ``".nii.gz"``, not ``".gz"``; "" if none does."""
    name = Path(path).name.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def read_volume(path: Path | str, *, series: str | None = None) -> Volume:
    """Read an image with its place in the patient.

    Parameters
    ----------
    path
        A NIfTI file.
    series
        Which DICOM series to take.

    Returns
    -------
    Volume
        (z, y, x), or (c, z, y, x) with several channels or time points; C-contiguous, native, writable.
        ``meta["repaired"]`` and ``meta["warnings"]`` are sentences that the user should see.

    Raises
    ------
    UnreadableVolume
        If it is missing, damaged, or no volume; the message says what to do.
    """
    data, geometry, meta, path = _read(Path(path), series)
    meta = {key: value for key, value in meta.items() if key not in ("names", "colors")}
    return checked(data, geometry, meta, path)


def _read(path: Path, series: str | None) -> tuple[Any, Any, dict[str, Any], Path]:
    from napari_fmseg.io import nifti

    try:
        return *nifti.read(path), path
    except OSError as error:
        raise UnreadableVolume(
            f"{path} cannot be read: {error.strerror or error}. Check the name and your permission."
        ) from error


def read_labels(path: Path | str) -> LabelMap:
    """Read a label map; values are rounded, never truncated.

    Raises
    ------
    UnreadableVolume
        As `read_volume`, and if there are several channels or values that are not near whole numbers.
    """
    data, geometry, meta, path = _read(Path(path), None)
    names, colors = meta.pop("names", {}), meta.pop("colors", {})
    volume = checked(data, geometry, meta, path)
    return to_labels(volume, path, names, colors)


def write_labels(labels: LabelMap, path: Path | str, *, source: Volume | None = None) -> Path:
    """Write a label map in the smallest integer type that fits.

    Parameters
    ----------
    labels
        What to write; names and colours are kept where the format has room.
    path
        Ends in .nii.gz, .nii.
    source
        The volume that was segmented; its place is repeated exactly.

    Raises
    ------
    UnwritableVolume
        If the suffix is unknown, the disk is full (`exit_code` 3) or the place is not writable.
    GeometryMismatch
        If `labels` does not lie on the grid of `source`.
    """
    path = Path(path)
    if source is not None and not labels.geometry.matches(source.geometry):
        raise GeometryMismatch(
            f"The labels {labels.geometry.shape} do not lie on the grid of the source {source.geometry.shape}. "
            "Resample them onto it, or write them without a source."
        )
    geometry = labels.geometry if source is None else source.geometry
    data = labels.data
    low, high = (int(data.min()), int(data.max()))
    small = LabelMap(
        data.astype(smallest_integer(low, high), copy=False), geometry, labels.meta, labels.names, labels.colors
    )
    _write(small, path, source)
    return path


def write_volume(volume: Volume, path: Path | str) -> Path:
    """Write an image or a map of real numbers, as it is."""
    path = Path(path)
    _write(volume, path, None)
    return path


def _write(volume: Volume, path: Path, source: Volume | None) -> None:
    if suffix_of(path) not in (".nii.gz", ".nii"):
        raise UnwritableVolume(f"{path.name} has no suffix that can be written. Use one of {', '.join(_WRITABLE)}.")
    from napari_fmseg.io import nifti

    nifti.write(volume, path, source=source)
