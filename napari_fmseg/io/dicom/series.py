"""DICOM series: which are in a folder, and one of them as a volume with its exact place.

The slices' own positions decide: their order, the spacing, and a shear where a tilted gantry shifts them sideways.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import NoSuv, UnreadableVolume
from napari_fmseg.core.volume import Geometry
from napari_fmseg.io.dicom.file import header_errors_as_unreadable, silence_pydicom
from napari_fmseg.io.dicom.first_bytes import is_dicom
from napari_fmseg.io.dicom.grid import stack
from napari_fmseg.io.dicom.plane_info import Slice, number, slices_of
from napari_fmseg.io.dicom.slices import Header, decode_slices, headers, kind_of
from napari_fmseg.io.dicom.suv import UNITS, suv_factors
from napari_fmseg.io.paths import files_below
from napari_fmseg.io.voxel_values import rescale

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "SeriesInfo",
    "any_dicom",
    "any_images",
    "files_by_series",
    "is_multi_frame",
    "list_series",
    "read",
    "sorted_slices",
    "summarise_series",
]

_Headers = list[Header]


@dataclass(frozen=True)
class SeriesInfo:
    """One image series in a folder, without anything that names the patient.

    Attributes
    ----------
    uid
        What `read_volume` takes as `series`.
    description
        The scanner's name for it, or "".
    modality
        Such as ``"CT"``.
    shape
        Voxels along (z, y, x); of one time point.
    spacing
        mm along (z, y, x); 0 along z where it cannot be told.
    n_files
        How many files it has.
    """

    uid: str
    description: str
    modality: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    n_files: int


def any_dicom(files: list[Path]) -> bool:
    """Return whether one of `files` is DICOM, image or not."""
    return any(is_dicom(path) for path in files)


@silence_pydicom()
def any_images(files: list[Path]) -> bool:
    """Return whether one of `files` is a DICOM image: reports, contours, segmentations and what is damaged are none."""
    for path in files:
        with suppress(UnreadableVolume, OSError):
            if any(not kind_of(file.tags) for file in headers([path])):
                return True
    return False


@silence_pydicom()
def list_series(files: list[Path]) -> tuple[SeriesInfo, ...]:
    """List the image series among `files`, in the order of their first files."""
    return tuple(_info(uid, found) for uid, found in _image_series(_sound_headers(files)[0]).items())


@silence_pydicom()
def summarise_series(files: list[Path]) -> list[tuple[SeriesInfo, Slice | None]]:
    """List the image series among `files` as `list_series` does, each with the slice in its middle if it has places."""
    return [(_info(uid, found), _middle(found)) for uid, found in _image_series(_sound_headers(files)[0]).items()]


def _middle(found: _Headers) -> Slice | None:
    try:
        slices = [part for file in found for part in slices_of(file)]
    except UnreadableVolume:  # a screenshot, say: nothing to sort by
        return None
    row, column = np.array(slices[0].orientation[:3]), np.array(slices[0].orientation[3:])
    normal = np.cross(row, column)
    return sorted(slices, key=lambda part: float(normal @ part.position))[len(slices) // 2]


@silence_pydicom()
def files_by_series(files: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the image files of each series among `files`, and the DICOM files whose header is damaged."""
    sound, damaged = _sound_headers(files)
    return {uid: [file.path for file in found] for uid, found in _image_series(sound).items()}, damaged


@silence_pydicom()
def is_multi_frame(path: Path) -> bool:
    """Return whether a DICOM file holds many planes: it stands for itself, and not for its series."""
    return any(file.tags.get("PerFrameFunctionalGroupsSequence") for file in headers([path]))


def _image_series(found: _Headers) -> dict[str, _Headers]:
    series: dict[str, _Headers] = {}
    for file in found:
        if not kind_of(file.tags):
            series.setdefault(str(file.tags.get("SeriesInstanceUID", "")), []).append(file)
    return series


def _info(uid: str, found: _Headers) -> SeriesInfo:
    first = found[0].tags
    description, modality = (" ".join(str(first.get(key, "")).split()) for key in ("SeriesDescription", "Modality"))
    try:
        with header_errors_as_unreadable(found[0].path):
            _, geometry, _ = stack([part for file in found for part in slices_of(file)], description)
            shape, spacing = geometry.shape, geometry.spacing
    except UnreadableVolume:  # still listed: asking for it says what is wrong
        rows, columns = int(number(first.Rows)), int(number(first.Columns))
        shape, spacing = (len(found), rows, columns), (0.0, 0.0, 0.0)
    return SeriesInfo(uid, description, modality, shape, spacing, len(found))


def _sound_headers(files: list[Path]) -> tuple[_Headers, list[Path]]:
    """Return the headers of the files that have one, and the DICOM files whose header is damaged."""
    found: _Headers = []
    damaged = []
    for path in files:
        try:
            found += headers([path])
        except (UnreadableVolume, OSError):
            damaged.append(path)
    return found, damaged


@silence_pydicom()
def read(
    path: Path, series: str | None, suv: str = "auto"
) -> tuple[npt.NDArray[Any], Geometry, dict[str, Any]]:  # fmt: skip
    """Read one series.

    Parameters
    ----------
    path
        A folder, or one file: then its series in the same folder.
    series
        A uid of `list_series`, or a description if only one series has it.
    suv
        ``"auto"``, ``"never"`` or ``"required"``: whether a PET is given in SUV.

    Raises
    ------
    UnreadableVolume
        If there is no image, several series to choose from, a slice missing, or no common grid.
    NoSuv
        If SUV is required and cannot be computed.
    """
    with header_errors_as_unreadable(path):
        chosen, n_series, damaged = _select_series(path, series)
        data, geometry, meta = _volume(chosen, path.name, suv)
    if damaged:
        listed = ", ".join(file.name for file in damaged[:5]) + (", …" if len(damaged) > 5 else "")
        meta["warnings"].append(
            f"{len(damaged)} DICOM files of the folder are damaged and were left out ({listed}). If one of them is a "
            "slice of this series, the volume is not complete: copy the series again."
        )
    if series is None and n_series > 1:
        meta["warnings"].append(
            f"The folder holds {n_series - 1} more series that make no volume of intensities, such as screenshots or "
            "coloured maps; they were left out."
        )
    return data, geometry, meta


@silence_pydicom()
def sorted_slices(path: Path | Sequence[Path], series: str | None) -> tuple[list[Slice], Geometry]:
    """Return the slices of one series as `read` stacks them, and their grid, without the voxels.

    Parameters
    ----------
    path
        As for `read`, or the files themselves.
    series
        As for `read`.

    Returns
    -------
    tuple
        The slices along z, of the first channel or time point, and the grid of the volume.

    Raises
    ------
    UnreadableVolume
        As `read`.
    """
    name = path.name if isinstance(path, Path) else "The series"
    chosen, _, _ = _select_series(path, series)
    stacks, geometry, _ = stack([part for file in chosen for part in slices_of(file)], name)
    return stacks[0], geometry


def _select_series(path: Path | Sequence[Path], series: str | None) -> tuple[_Headers, int, list[Path]]:
    """Return the headers of the one series that is wanted, how many there are, and the damaged files beside them."""
    damaged: list[Path] = []
    if not isinstance(path, Path):
        every, path = headers(path), Path("The list of files")
    elif path.is_dir():
        every, damaged = _sound_headers(files_below(path))
        if damaged and not every:
            headers(damaged[:1])  # says what is wrong with it
    else:
        every = headers([path])
        if not every:
            raise UnreadableVolume(
                f"{path.name} is no DICOM file. Was it renamed? Give it the suffix of what it really is."
            )
        if kind_of(every[0].tags):
            raise UnreadableVolume(_no_image(path, every))
        if not every[0].tags.get("PerFrameFunctionalGroupsSequence"):
            uid = every[0].tags.get("SeriesInstanceUID")
            beside, damaged = _sound_headers(sorted(p for p in path.parent.iterdir() if p.is_file()))
            every = [file for file in beside if file.tags.get("SeriesInstanceUID") == uid]
    found = _image_series(every)
    if not found:
        raise UnreadableVolume(_no_image(path, every))
    return _choose(found, series, path), len(found), damaged


def _no_image(path: Path, every: _Headers) -> str:
    kinds = sorted({kind_of(file.tags) for file in every})
    return (
        f"{path.name} holds {' and '.join(kinds)}, but no image. "
        "Choose the folder of the CT, MR or PET series that it belongs to."
    )


def _choose(found: dict[str, _Headers], series: str | None, path: Path) -> _Headers:
    if series is None and len(found) == 1:
        return next(iter(found.values()))
    placed = [part for part in found.values() if _is_placed(part)]
    if series is None and len(placed) == 1:
        return placed[0]
    infos = [_info(uid, part) for uid, part in found.items()]
    fitting = [info for info in infos if series is not None and series in (info.uid, info.description)]
    if len(fitting) == 1:
        return found[fitting[0].uid]
    listed = "\n".join(
        f"  {info.uid}  {info.modality} {info.description!r}, {'×'.join(map(str, info.shape))}, {info.n_files} files"
        for info in infos
    )
    trouble = (
        f"holds {len(infos)} image series"
        if series is None
        else f"has no single series {series!r} among its {len(infos)}"
    )
    raise UnreadableVolume(f"{path.name} {trouble}. Choose one with series=, by its uid:\n{listed}")


def _is_placed(found: _Headers) -> bool:
    """Return whether every slice states its position: a screenshot beside a CT does not."""
    try:
        return bool([slices_of(file) for file in found])
    except UnreadableVolume:
        return False


def _volume(found: _Headers, name: str, suv: str) -> tuple[npt.NDArray[Any], Geometry, dict[str, Any]]:
    header = found[0].tags
    stacks, geometry, warnings = stack([part for file in found for part in slices_of(file)], name)
    is_inverted = any(str(file.tags.get("PhotometricInterpretation", "")) == "MONOCHROME1" for file in found)
    if is_inverted:
        warnings.append("The series is stored inverted for display (MONOCHROME1); its values were left as they are.")
    if len({file.tags.get_item("RescaleSlope") is None for file in found}) > 1:
        warnings.append("Some slices state no rescale slope and intercept; their values were left as they are stored.")
    with header_errors_as_unreadable(found[0].path):
        warnings += _other_mapping(header, stacks[0][0])
    factors = _suv_factors(found, stacks, suv, warnings)  # before the voxels: what is required may be missing
    data = _voxels(stacks, is_inverted)
    meta: dict[str, Any] = {
        "format": "DICOM",
        "warnings": warnings,
        "series_uid": str(header.get("SeriesInstanceUID", "")),
    }
    for key, tag in (("modality", "Modality"), ("units", "Units"), ("body_part", "BodyPartExamined")):
        if header.get(tag):
            meta[key] = str(header.get(tag))
    if meta.get("modality") == "CT":
        kind = str(header.get("RescaleType") or "US")
        meta.setdefault("units", "HU" if kind == "US" else kind)  # unspecified, or a map that is derived from the CT
    for key, tag in (("window_center", "WindowCenter"), ("window_width", "WindowWidth")):
        if header.get(tag) is not None:
            meta[key] = number(header.get(tag))
    if "units" in meta:
        meta["units"] = UNITS.get(meta["units"], meta["units"])
    if factors:
        data = np.multiply(data, np.array(factors, np.float32).reshape(len(stacks), -1, 1, 1), dtype=np.float32)
        meta["units"] = "SUV"
        for key in ("window_center", "window_width"):
            meta.pop(key, None)
    return (data[0] if len(data) == 1 else data), geometry, meta


def _other_mapping(header: Dataset, first: Slice) -> list[str]:
    """Return a warning if the series states values beside those of its rescale slope and intercept, if they differ."""
    groups = (header, *(header.get("SharedFunctionalGroupsSequence") or ()),
              *(header.get("PerFrameFunctionalGroupsSequence") or ())[:1])  # fmt: skip
    for mapping in (item for group in groups for item in group.get("RealWorldValueMappingSequence") or ()):
        scaling = [
            number(mapping.get(f"RealWorldValue{end}"), otherwise)
            for end, otherwise in (("Slope", 1.0), ("Intercept", 0.0))
        ]
        if not np.allclose(scaling, [first.slope, first.intercept], rtol=1e-5):
            unit = str((mapping.get("MeasurementUnitsCodeSequence") or [{}])[0].get("CodeValue") or "an unnamed unit")
            return [
                f"The series also states real-world values (stored x {scaling[0]:g} + {scaling[1]:g}, in {unit}); "
                "they were not applied, only its rescale slope and intercept."
            ]
    return []


def _suv_factors(found: _Headers, stacks: list[list[Slice]], suv: str, warnings: list[str]) -> list[float]:
    """Return a factor to SUV for every slice of every stack; none, with a warning, where there is none."""
    modality = str(found[0].tags.get("Modality", ""))
    if suv == "never" or (modality != "PT" and suv == "auto"):
        return []
    if modality != "PT":
        raise NoSuv(f"The series is {modality or 'of no stated kind'} and no PET, so it has no SUV. Choose the PET.")
    tags = {file.path: file.tags for file in found}
    try:
        with header_errors_as_unreadable(found[0].path):
            paths = [part.path for stack in stacks for part in stack]
            private = paths if str(found[0].tags.get("Units")) == "CNTS" else paths[:1]  # slow: every tag is read
            tags |= {file.path: file.tags for file in headers(dict.fromkeys(private), whole=True)}
            return suv_factors([tags[path] for path in paths])
    except (NoSuv, UnreadableVolume) as error:
        if suv == "required":
            raise
        units = str(found[0].tags.get("Units") or "")
        warnings.append(f"{error} The values were left in {UNITS.get(units, units or 'an unknown unit')}.")
        return []


def _voxels(stacks: list[list[Slice]], is_inverted: bool) -> npt.NDArray[Any]:
    """Return voxels (c, z, y, x), scaled; `is_inverted` where some are for display (MONOCHROME1)."""
    flat = [part for stack in stacks for part in stack]
    scalings = {(part.slope, part.intercept) for part in flat}
    # GDCM would apply the first frame's scaling to all frames, and gives inverted values for MONOCHROME1.
    own_scalings = len(scalings) > 1 and any(part.frame for part in flat)
    by_gdcm = not (all(part.is_plain for part in flat) or own_scalings or is_inverted)
    data: npt.NDArray[Any] = np.empty(0)
    for i, (part, plane) in enumerate(zip(flat, decode_slices(flat, by_gdcm), strict=True)):
        if plane.shape != part.shape:
            raise UnreadableVolume(f"{part.path.name} has {plane.shape} pixels instead of {part.shape}. Copy it again.")
        if len(scalings) > 1 and not by_gdcm:
            plane = plane * np.float64(part.slope) + part.intercept
        if i == 0:
            mixed = len(scalings) > 1 or plane.dtype.kind == "f"
            data = np.empty((len(flat), *plane.shape), np.float32 if mixed else plane.dtype.newbyteorder("="))
        if not np.can_cast(plane.dtype, data.dtype, "same_kind" if plane.dtype.kind == "f" else "safe"):
            data = data.astype(np.promote_types(data.dtype, plane.dtype))  # a slice of more bits than those before
        data[i] = plane
    if len(scalings) == 1 and not by_gdcm:
        slope, intercept = next(iter(scalings))
        data = rescale(data, slope, intercept)
    return data.reshape(len(stacks), -1, *data.shape[1:])
