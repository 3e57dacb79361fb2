"""DICOM SEG: a label map as archives and clinical viewers know it, tied to the series it was drawn on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import GeometryMismatch, MissingExtra, UnreadableVolume, UnwritableVolume
from napari_fmseg.core.terminology import Code, label_info
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.io.dicom.file import dataset_of, header_errors_as_unreadable, silence_pydicom
from napari_fmseg.io.dicom.plane_info import Slice, number
from napari_fmseg.io.label_classes import class_name, present

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Made", "Source", "on_grid", "write_dicom_seg"]

Source = Path | str | Sequence[Path | str]
Made = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]

USE = "Research use only. Not a medical device."
_COPIED = ("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
           "PatientIdentityRemoved", "DeidentificationMethod", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
           "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
"""Attributes of patient and study that all objects of a study share; nothing else is copied."""
_PLACING = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "Rows", "Columns",
            "FrameOfReferenceUID", "PositionReferenceIndicator", "PixelSpacing", "SliceThickness",
            "ImageOrientationPatient", "ImagePositionPatient", "NumberOfFrames", "SharedFunctionalGroupsSequence",
            "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence",
            "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")  # fmt: skip
_EMPTY_IF_MISSING = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                     "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
_INTERPRETED = ("PatientName", "ReferringPhysicianName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
"""Attributes that highdicom parses, and refuses where they break the rules; copied unchanged."""
_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
_SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def write_dicom_seg(
    labels: LabelMap,
    path: Path | str,
    source: Source,
    *,
    series: str | None = None,
    model: str = "",
    made: Made = "SEMIAUTOMATIC",
) -> Path:
    """Write labels as a DICOM SEG that refers to the series they lie on, atomically.

    Each class that occurs becomes one binary segment, numbered from 1, with its name, colour and SNOMED CT codes
    (`label_info`). Of the patient only what every object of the study must share is copied: name, id, birth date,
    sex, study, accession number and referring physician, as they stand in the source. Where anonymising has blanked
    the identifiers of the source, derived ones take their place.

    Parameters
    ----------
    labels
        On the grid of the series, in any order of slices, rows and columns.
    path
        Where to write; an existing file is replaced, missing folders are made.
    source
        The folder, one file or all files of the series.
    series
        Which series of the folder, as for `read_volume`.
    model
        What made the labels, for the record.
    made
        By the machine alone, by it and a person, or by a person.

    Raises
    ------
    MissingExtra
        If highdicom is not installed.
    GeometryMismatch
        If the labels do not lie on the grid of the series.
    UnreadableVolume
        If the series cannot be read.
    UnwritableVolume
        If no class has a voxel, the series cannot be referred to, or the place cannot be written to.
    """
    hd = _highdicom()
    values = present(labels)
    if not values:
        raise UnwritableVolume("The labels are empty, but a DICOM SEG needs at least one voxel. Segment first.")
    slices, geometry = _slices(source, series)
    lying = on_grid(labels, geometry)
    with silence_pydicom() as pydicom:
        files = _sources(slices, geometry)
        array, shown = _frames(lying.data, values, slices, files)
        as_it_stands = {name: shown[0].get(name) for name in _INTERPRETED}
        for name in _INTERPRETED:
            setattr(shown[0], name, "")
        with _errors_as_unwritable():
            seg = hd.seg.Segmentation(
                source_images=shown,
                pixel_array=array,
                segmentation_type="BINARY",
                segment_descriptions=[_segment(i, value, lying, model, made) for i, value in enumerate(values, 1)],
                series_instance_uid=hd.UID(),
                series_number=_series_number(shown[0]),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                content_description=USE,
                content_label="SEGMENTATION",
                series_description=f"Segmentation, {model}"[:64] if model else "Segmentation",
                specific_character_set="ISO_IR 192",
                manufacturer="napari-fmseg",
                manufacturer_model_name="napari-fmseg",
                software_versions=_version(),
                device_serial_number="none",
            )
        _refer_to_frames(seg, slices)
        seg.ContentQualification = "RESEARCH"
        with pydicom.config.disable_value_validation():
            for name, value in as_it_stands.items():
                setattr(seg, name, value)
        with atomic_write(Path(path)) as file:
            seg.save_as(file)
    return Path(path)


def on_grid(labels: LabelMap, geometry: Geometry) -> LabelMap:
    """List labels in the order of a grid that has the same voxels; none is interpolated.

    Raises
    ------
    GeometryMismatch
        If the voxels do not lie on each other, to a hundredth of their size.
    """
    near_mm = max(1e-3, 0.01 * min(geometry.spacing))
    if labels.geometry.matches(geometry, atol_mm=near_mm):
        return labels
    ours, order, flips = labels.geometry.canonical()
    theirs, their_order, their_flips = geometry.canonical()
    if not ours.matches(theirs, atol_mm=near_mm):
        raise GeometryMismatch(
            f"The labels ({_size(labels.geometry)}) do not lie on the grid of the DICOM series ({_size(geometry)}). "
            "Use labels made on this series, or resample them onto it first."
        )
    data = np.flip(np.flip(labels.data.transpose(order), flips), their_flips).transpose(np.argsort(their_order))
    return LabelMap(np.ascontiguousarray(data), geometry, labels.meta, labels.names, labels.colors)


def _size(grid: Geometry) -> str:
    sizes, corner = " × ".join(map(str, grid.shape)), ", ".join(f"{mm:.1f}" for mm in reversed(grid.origin))
    return f"{sizes} voxels from x, y, z = {corner} mm"


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise MissingExtra(
            "DICOM SEG is written by highdicom, which is missing here: pip install 'napari-fmseg[dicom]'."
        ) from error
    return highdicom


def _slices(source: Source, series: str | None) -> tuple[list[Slice], Geometry]:
    """Return slices along z, and their grid."""
    from napari_fmseg.io.dicom.series import sorted_slices

    if not isinstance(source, str | Path):
        return sorted_slices([Path(file) for file in source], series)
    if not Path(source).exists():
        raise UnreadableVolume(f"The DICOM series is no longer at {source}. Connect its drive, or choose its folder.")
    if Path(source).suffix.lower() == ".zip":
        raise UnwritableVolume(
            f"{Path(source).name} is a zip. Unpack it and name the folder: a DICOM SEG refers to files."
        )
    return sorted_slices(Path(source), series)


def _sources(slices: list[Slice], geometry: Geometry) -> dict[Path, Dataset]:
    """Read what the SEG needs of each file, and nothing more, so that nothing more can be copied."""
    from pydicom.uid import generate_uid

    files: dict[Path, Dataset] = {}
    for path in dict.fromkeys(part.path for part in slices):
        wanted = [*_PLACING, *(() if files else _COPIED), "StudyInstanceUID"]  # the first speaks for the patient
        with (
            header_errors_as_unreadable(path),
            dataset_of(path, stop_before_pixels=True, specific_tags=wanted) as (tags, _),
        ):
            if not files:
                tags.decode()  # its text is written again in another character set
        if not tags.get("FrameOfReferenceUID"):
            raise UnwritableVolume(
                "The series has no Frame of Reference UID, so nothing can be placed on it in DICOM. "
                "Export it again from the scanner or archive, or write the labels as NRRD or NIfTI."
            )
        for name in _EMPTY_IF_MISSING:
            if name not in tags:
                setattr(tags, name, "")
        frame = str(tags.FrameOfReferenceUID)
        meta = tags.file_meta
        for name, blank in (
            ("SOPClassUID", meta.get("MediaStorageSOPClassUID") or _CLASSES.get(str(tags.get("Modality")), "")),
            ("SOPInstanceUID", meta.get("MediaStorageSOPInstanceUID") or generate_uid(entropy_srcs=[frame, path.name])),
            ("SeriesInstanceUID", generate_uid(entropy_srcs=[frame, "series"])),
            ("StudyInstanceUID", generate_uid(entropy_srcs=[frame, "study"])),
        ):
            if not tags.get(name):
                setattr(tags, name, blank)
        _check_uids(tags, path)
        _place(tags, slices[0], geometry)
        files[path] = tags
    if len({str(tags.SOPInstanceUID) for tags in files.values()}) < len(files):
        raise UnwritableVolume(
            "Several images of the series have the same SOPInstanceUID (0008,0018), so a DICOM SEG cannot say which of "
            "them it belongs to. Export the series again from the archive, or write the labels as NRRD or NIfTI."
        )
    return files


def _check_uids(tags: Dataset, path: Path) -> None:
    """Refuse a file whose UIDs are several where one is expected."""
    for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        if not isinstance(tags.get(name), str):
            tag = tags[name].tag
            raise UnwritableVolume(
                f"{name} ({tag.group:04X},{tag.element:04X}) of {path.name} is not one UID, so "
                "a DICOM SEG cannot refer to it. Export the series again, or write the labels as NRRD or NIfTI."
            )


def _place(tags: Dataset, first: Slice, geometry: Geometry) -> None:
    """Write shared attributes once for all slices: files differ in the last digits, or state them per frame."""
    import highdicom as hd

    between = 1000 * geometry.voxel_ml / math.prod(geometry.spacing[1:])  # along the normal; slices may be sheared
    thickness = first.thickness or between
    if tags.get("PerFrameFunctionalGroupsSequence"):
        if not tags.get("SharedFunctionalGroupsSequence"):
            tags.SharedFunctionalGroupsSequence = [type(tags.PerFrameFunctionalGroupsSequence[0])()]
        shared = tags.SharedFunctionalGroupsSequence[0]
        shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(first.spacing, thickness, between)
        shared.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", first.orientation)
        return
    tags.PixelSpacing, tags.SliceThickness, tags.SpacingBetweenSlices = list(first.spacing), thickness, between
    tags.ImageOrientationPatient = list(first.orientation)


def _frames(
    data: npt.NDArray[Any], values: list[int], slices: list[Slice], files: dict[Path, Dataset]
) -> tuple[npt.NDArray[Any], list[Dataset]]:
    """Return segment numbers (slice, y, x), and the source with what it says of these slices only."""
    if len(files) > 1 and len(files) != len(slices):
        raise UnwritableVolume(
            f"The series is spread over {len(files)} files of several frames each, which a DICOM SEG cannot refer to "
            "at once. Convert it to one file, or write the labels as NRRD or NIfTI."
        )
    tags = list(files.values())
    frames = tags[0].get("PerFrameFunctionalGroupsSequence")
    if len(tags) == 1 and frames:
        tags[0].PerFrameFunctionalGroupsSequence = [frames[part.frame] for part in slices]
        tags[0].NumberOfFrames = len(slices)
    array = np.zeros(data.shape, np.uint8 if len(values) < 256 else np.uint16)  # as highdicom wants them
    known = np.array(values)
    for plane, out in zip(data, array, strict=True):
        place = np.searchsorted(known, plane).clip(max=len(known) - 1)
        out[:] = np.where(known[place] == plane, place + 1, 0)
    return array, tags


def _refer_to_frames(seg: Dataset, slices: list[Slice]) -> None:
    """Write the numbers that the source gives to the frames that were drawn on; others may be of other times."""
    sources = {
        id(source): source  # which the frames of several segments share
        for frame in seg.PerFrameFunctionalGroupsSequence
        for derivation in frame.get("DerivationImageSequence") or ()
        for source in derivation.SourceImageSequence
    }
    for source in sources.values():
        if "ReferencedFrameNumber" in source:
            source.ReferencedFrameNumber = slices[source.ReferencedFrameNumber - 1].frame + 1


def _segment(number: int, value: int, labels: LabelMap, model: str, made: Made) -> Any:
    """Describe one segment."""
    import highdicom as hd

    name = class_name(labels, value).replace("\\", "/")  # which parts values in DICOM
    info = label_info(name, model=model)
    color = labels.colors.get(value) or info.color
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=_code(info.category),
        segmented_property_type=_code(info.kind),
        algorithm_type=made,
        algorithm_identification=None if made == "MANUAL" else _algorithm(model),
        display_color=None if color is None else hd.color.CIELabColor.from_rgb(*(255 * part for part in color)),
    )
    segment.SegmentDescription = f"{info.title}. {USE}"
    if info.modifiers:
        modifiers = [_code(code) for code in info.modifiers]
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return segment


def _code(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def _algorithm(model: str) -> Any:
    import highdicom as hd

    family = _code(Code("123110", "Artificial Intelligence", "DCM"))
    return hd.AlgorithmIdentificationSequence(
        f"napari-fmseg {model}".strip()[:64], family, _version(), source="napari-fmseg", parameters={"use": "research"}
    )


def _version() -> str:
    from napari_fmseg.core.package import __version__

    return __version__


def _series_number(tags: Dataset) -> int:
    """Place the SEG after the series it belongs to, whose number may be none."""
    element = tags.get_item("SeriesNumber")
    own = int(number(None if element is None else element.value))
    return 1000 + (own if 0 <= own < 1 << 30 else 0)


@contextmanager
def _errors_as_unwritable() -> Iterator[None]:
    """Turn what highdicom raises on a source against the standard into an UnwritableVolume."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip()[:200]
        if isinstance(error, KeyError):  # what it looks up by the kind of image
            reason = f"its SOPClassUID (0008,0016), {reason}, is none of a known kind of image"
        raise UnwritableVolume(
            f"The series cannot be referred to in a DICOM SEG: {reason}. "
            "Export it again from the scanner or archive, or write the labels as NRRD or NIfTI."
        ) from error
