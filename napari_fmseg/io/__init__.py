"""Read and write volumes and label maps: by suffix, by the first bytes, or from a folder.

Inside the house arrays are (z, y, x) and positions LPS millimetres; the turning happens here and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError, GeometryMismatch, NoSuv, UnreadableVolume, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io.damage import access_errors_as_unreadable
from napari_fmseg.io.discovery import broken_files, find_volumes, packer_of
from napari_fmseg.io.paths import files_below, format_of, suffix_of
from napari_fmseg.io.voxel_values import as_label_map, sanitise_voxels, smallest_integer

if TYPE_CHECKING:
    from napari_fmseg.io.dicom.seg_writer import Source
    from napari_fmseg.io.dicom.series import SeriesInfo

__all__ = [
    "check_destination",
    "find_volumes",
    "list_series",
    "read_labels",
    "read_volume",
    "suffix_of",
    "write_labels",
    "write_volume",
]

_WRITABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_Parts = tuple[npt.NDArray[Any], Geometry, dict[str, Any], Path]


def read_volume(path: Path | str, *, series: str | None = None, suv: str = "auto") -> Volume:
    """Read an image with its place in the patient.

    Parameters
    ----------
    path
        A NIfTI (.nii, .nii.gz, .hdr/.img), NRRD, MetaImage or DICOM file, a folder with one DICOM series or one volume,
        or a zip of these. Without a known suffix the first bytes decide. One DICOM file stands for its series in the
        same folder.
    series
        Which DICOM series to take where there are several: a uid of `list_series`, or a description that only one has.
    suv
        Whether a DICOM PET is given in standardised uptake values by body weight. ``"auto"``: where the series says
        what it takes, else as it is stored, with a warning that names what is missing. ``"never"``: as it is stored.
        ``"required"``: or not at all.

    Returns
    -------
    Volume
        (z, y, x), or (c, z, y, x) with several channels or time points, in the smallest number type that holds the
        scaled values faithfully; C-contiguous, native and writable, so that ``torch.from_numpy`` needs no copy.
        ``meta`` has "format", and where known "modality", "units", "window_center", "window_width", "series_uid";
        its lists "repaired" and "warnings" are sentences that the user should see.

    Raises
    ------
    UnreadableVolume
        If it is missing, damaged, no volume, or one of several series; the message states what to do.
    NoSuv
        If SUV is required and cannot be computed; names every tag that is missing.
    """
    if suv not in ("auto", "never", "required"):
        raise FmsegError(f"suv is 'auto', 'never' or 'required', not {suv!r}.")
    data, geometry, meta, path = _read(Path(path), series, suv)
    if suv == "required" and meta.get("units") != "SUV":
        raise NoSuv(
            f"{path.name} does not say in which unit its values are, as a DICOM PET does, so it cannot be given in "
            "SUV. Read the DICOM series instead, or go on without SUV."
        )
    meta = {key: value for key, value in meta.items() if key not in ("names", "colors")}
    return sanitise_voxels(data, geometry, meta, path)


def read_labels(path: Path | str) -> LabelMap:
    """Read a label map, with the names and colours that its format may carry.

    Values are rounded, never truncated. NaN is background, with a sentence in ``meta["repaired"]``.

    Parameters
    ----------
    path
        As for `read_volume`, or a DICOM SEG: the file, or a folder or zip with one, also beside its images.

    Raises
    ------
    UnreadableVolume
        As `read_volume`; and if there are several channels, or values that are infinite or not near whole numbers.
    """
    path = Path(path)
    with access_errors_as_unreadable(path):
        labels = _read_seg(path)
    if labels is not None:
        return labels
    data, geometry, meta, path = _read(path, None)
    if meta.get("format") == "DICOM":
        _check_series_as_labels(data, meta, path)
    names, colors = meta.pop("names", {}), meta.pop("colors", {})
    return as_label_map(sanitise_voxels(data, geometry, meta, path, is_image=False), path, names, colors)


def _read_seg(path: Path) -> LabelMap | None:
    """Read the DICOM SEG that is, or lies in, `path`; None if there is none."""
    from napari_fmseg.io.dicom import seg_reader
    from napari_fmseg.io.zip_archive import unzip

    if path.is_file() and format_of(path) == "zip":
        with unzip(path) as folder:
            return _read_seg(folder)
    seg = seg_reader.find_seg(path)
    return None if seg is None else seg_reader.read(seg)


def _check_series_as_labels(data: npt.NDArray[Any], meta: dict[str, Any], path: Path) -> None:
    """Refuse a series of images as labels if its values cannot be any; else warn that it is one."""
    kind = meta.get("modality") or "of an unnamed kind"
    if data.min() < 0:
        raise UnreadableVolume(
            f"{path.name} is a DICOM series of images ({kind}) with values from {data.min():g} to {data.max():g}, and "
            "no label map. Choose the DICOM SEG or another label file that was drawn on it."
        )
    meta["warnings"].append(f"The labels are a DICOM series of images ({kind}), not a DICOM SEG; check that they are.")


def list_series(folder: Path | str) -> tuple[SeriesInfo, ...]:
    """List the DICOM image series in a folder (with those below it) or a zip: what `read_volume` takes as `series`.

    Raises
    ------
    UnreadableVolume
        If it is missing, or cannot be listed.
    """
    from napari_fmseg.io.dicom import series as dicom_series
    from napari_fmseg.io.zip_archive import unzip

    path = Path(folder)
    if path.is_dir():
        return dicom_series.list_series(files_below(path))
    with access_errors_as_unreadable(path):
        if format_of(path) != "zip":
            return dicom_series.list_series([path])
        with unzip(path) as unpacked:
            return dicom_series.list_series(files_below(unpacked))


def write_labels(labels: LabelMap, path: Path | str, *, source: Volume | Source | None = None) -> Path:
    """Write a label map in the smallest integer type that fits, atomically.

    Parameters
    ----------
    labels
        What to write. Names and colours are kept: in NIfTI as a label table in a header extension, in NRRD and
        MetaImage as the fields of a 3D Slicer segmentation.
    path
        Ends in .nii.gz, .nii, .nrrd, .nhdr, .mha or .mhd; or in .dcm for a DICOM SEG. Missing folders are made. An
        existing file is replaced.
    source
        The volume that was segmented: its affine is written exactly, and for a NIfTI its sform, qform and codes.
        For a DICOM SEG the folder or the files of the series (see `napari_fmseg.io.dicom.seg_writer`).

    Raises
    ------
    UnwritableVolume
        If the suffix is unknown, the disk is full (`exit_code` 3) or the place is not writable.
    GeometryMismatch
        If `labels` does not lie on the grid of `source`.
    """
    if suffix_of(path) == ".dcm":
        return _write_seg(labels, Path(path), source)
    if source is not None and not isinstance(source, Volume):
        raise UnwritableVolume(f"{Path(path).name} needs the volume itself as source, not its files. Read it first.")
    if source is not None and not labels.geometry.matches(source.geometry):
        raise GeometryMismatch(
            f"The labels (shape {labels.geometry.shape}, origin {np.round(labels.geometry.origin, 2).tolist()} "
            "mm) do not "
            f"lie on the grid of the source ({source.geometry.shape}, "
            f"{np.round(source.geometry.origin, 2).tolist()} mm). "
            "Resample them onto it, or write them without a source."
        )
    data = labels.data
    if data.dtype != np.uint8:  # which is as small as can be
        data = data.astype(smallest_integer(int(data.min()), int(data.max())), copy=False)
    geometry = labels.geometry if source is None else source.geometry
    _write(LabelMap(data, geometry, labels.meta, labels.names, labels.colors), Path(path), source)
    return Path(path)


def _write_seg(labels: LabelMap, path: Path, source: Volume | Source | None) -> Path:
    from napari_fmseg.io.dicom.seg_writer import write_dicom_seg

    if source is None or isinstance(source, Volume):
        raise UnwritableVolume(
            f"{path.name} would be a DICOM SEG, which refers to the files of a DICOM series. "
            "Say which with source=, the folder of the series; or use .nii.gz, .nrrd or .mha."
        )
    return write_dicom_seg(labels, path, source)


def write_volume(volume: Volume, path: Path | str) -> Path:
    """Write an image or a map of real numbers as it is, atomically.

    Parameters
    ----------
    volume
        (z, y, x) or (c, z, y, x).
    path
        As for `write_labels`.

    Raises
    ------
    UnwritableVolume
        As `write_labels`; and if the format has no such number type.
    """
    _write(volume, Path(path), None)
    return Path(path)


def check_destination(path: Path | str) -> Path:
    """Raise `UnwritableVolume` before hours of work if suffix, folder or permission keep `path` from being written."""
    from napari_fmseg.core.atomic_write import check_folder, check_name, remove_folders

    path = Path(path)
    _check_file_name(path)
    if suffix_of(path) in (".nhdr", ".mhd"):
        check_name(path.with_suffix(".raw.gz"))  # where the voxels go
    remove_folders(check_folder(path))
    return path


def _read(path: Path, series: str | None, suv: str = "never") -> _Parts:
    with access_errors_as_unreadable(path):
        if path.is_dir():
            return _read_folder(path, series, suv)
        if path.name.upper() == "DICOMDIR":  # the index of a disc: what it lists lies beside it
            return _read_folder(path.parent, series, suv)
        kind = format_of(path)
        if kind == "nifti":
            from napari_fmseg.io import nifti

            return *nifti.read(path), path
        if kind == "itk":
            from napari_fmseg.io.itk import reader

            return *reader.read(path), path
        if kind == "dicom":
            from napari_fmseg.io.dicom import series as dicom_series

            return *dicom_series.read(path, series, suv), path
        if kind == "zip":
            return _read_zip(path, series, suv)
    if packer := packer_of(path):
        raise UnreadableVolume(f"{path.name} is packed with {packer}, which is not read. Unpack it first.")
    raise UnreadableVolume(
        f"{path.name} is of no known format. Expected NIfTI (.nii, .nii.gz, .hdr/.img), NRRD (.nrrd, .nhdr), "
        "MetaImage (.mha, .mhd), DICOM, a folder or a zip of these."
    )


def _read_folder(path: Path, series: str | None, suv: str) -> _Parts:
    from napari_fmseg.io.dicom import series as dicom_series

    files = files_below(path)
    broken = broken_files(files)
    if dicom_series.any_images(files):
        return _with_broken((*dicom_series.read(path, series, suv), path), broken)
    found = find_volumes(path)
    if not found and dicom_series.any_dicom(files):  # it says what they are
        return *dicom_series.read(path, series, suv), path
    if len(found) == 1:
        return _with_broken(_read(found[0], series, suv), broken)
    if found:
        listed = "\n".join(f"  {volume.relative_to(path)}" for volume in found[:20])
        raise UnreadableVolume(f"{path.name} holds {len(found)} volumes. Choose one of them:\n{listed}")
    raise UnreadableVolume(
        f"{path.name} holds no volume: "
        f"{'it is empty' if not files else f'none of its {len(files)} files is an image'}. "
        f"{''.join(f'{text} ' for text in _broken(broken))}"
        "Choose a folder with a DICOM series, or a NIfTI, NRRD or MetaImage file."
    )


def _with_broken(parts: _Parts, broken: list[Path]) -> _Parts:
    """Return the volume with a warning about the files in the folder that could not be read."""
    data, geometry, meta, path = parts
    return data, geometry, {**meta, "warnings": [*meta.get("warnings", ()), *_broken(broken)]}, path


def _broken(files: list[Path]) -> list[str]:
    if not files:
        return []
    some = ", ".join(path.name for path in files[:3]) + (", …" if len(files) > 3 else "")
    return [f"{len(files)} of its files are empty, or links to what is not there: {some}."]


def _read_zip(path: Path, series: str | None, suv: str) -> _Parts:
    from napari_fmseg.io.itk.text_header import check_inside, is_header
    from napari_fmseg.io.zip_archive import in_zip, unzip

    with unzip(path) as folder:
        for header in (file for file in files_below(folder) if is_header(file)):
            check_inside(header, folder, path)
        data, geometry, meta, _ = _read_folder(folder, series, suv)
        for kind in ("repaired", "warnings"):
            meta[kind] = [in_zip(text, folder, path) for text in meta.get(kind, ())]
    return data, geometry, meta, path


def _check_file_name(path: Path) -> None:
    if suffix_of(path) not in _WRITABLE:
        raise UnwritableVolume(
            f"{path.name} does not end in a suffix that can be written. Use one of {', '.join(_WRITABLE)}; "
            ".nii.gz if unsure."
        )
    if suffix_of(path) in (".nhdr", ".mhd") and (path.name.startswith("LIST") or set("%:\\") & set(path.name)):
        raise UnwritableVolume(
            f"{path.name} keeps its voxels in a second file of that name, which other programs take for a pattern or a "
            "list of files. Choose a name without %, : and \\ that does not begin with LIST, or write .nrrd or .mha."
        )


def _write(volume: Volume, path: Path, source: Volume | None) -> None:
    _check_file_name(path)
    if volume.data.dtype == bool:
        volume = replace(volume, data=volume.data.view(np.uint8))
    if suffix_of(path) in (".nii.gz", ".nii"):
        from napari_fmseg.io import nifti

        nifti.write(volume, path, source=source)
    else:
        from napari_fmseg.io.itk import reader

        reader.write(volume, path)
