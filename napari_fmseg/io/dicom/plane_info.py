"""The planes of a DICOM file: where each lies in the patient, how its values are scaled, and where its voxels stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io.dicom.file import header_errors_as_unreadable, syntax_of, unused_bits
from napari_fmseg.io.dicom.slices import PLAIN, UNDEFINED, Header, kind_of

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Slice", "number", "slices_of"]

_GE_SWAPPED = "1.2.840.113619.5.2"
"""A private transfer syntax of GE: the tags are little endian, the pixels big endian."""
_TEXT_NUMBERS = {"PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept",
                 "SliceThickness", "SpacingBetweenSlices", "TemporalPositionIdentifier", "AcquisitionNumber",
                 "EchoNumbers", "EchoTime", "TriggerTime", "AcquisitionDate", "AcquisitionTime",
                 "InstanceNumber"}  # fmt: skip
"""Numbers written as text, which are parsed here: pydicom would make an object of each."""


@dataclass(frozen=True)
class Slice:
    """One image plane: file and frame, place in LPS mm (x, y, z), and how its values are scaled."""

    path: Path
    frame: int
    uid: str
    shape: tuple[int, int]
    spacing: tuple[float, float]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float
    between: float
    slope: float
    intercept: float
    order: tuple[float, ...]
    is_plain: bool
    patient: tuple[bytes, bytes] = field(repr=False)  # id and name as they are written, to distinguish patients
    frame_of_reference: str
    pixels_at: int
    raw: tuple[int, str] | None = None  # where the voxels start and their type; None if not that simple
    unused_bits: tuple[int, int] = (0, 0)  # how many are unused above the stored ones, and above and below together
    syntax: str = ""  # as `syntax_of`
    bits: int = 16  # of a stored value


def slices_of(file: Header) -> list[Slice]:
    """Return the planes of one file: one, or as many as an enhanced multi-frame object has.

    Raises
    ------
    UnreadableVolume
        If it holds colours, values that need a table, or does not say where its planes lie.
    """
    with header_errors_as_unreadable(file.path):
        return _slices_of(file)


def _slices_of(file: Header) -> list[Slice]:
    path, header, _ = file
    if not kind_of(header):
        _check_intensities(file)
    if "MOSAIC" in (header.get("ImageType") or []):
        raise UnreadableVolume(
            f"{path.name} is a mosaic: all slices of a volume drawn into one picture. "
            "Convert the series to NIfTI with a program that takes it apart, such as dcm2niix."
        )
    n_frames = int(header.get("NumberOfFrames") or 1)
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames and n_frames > 1:
        raise UnreadableVolume(
            f"{path.name} has {n_frames} frames and does not say where each lies (a film, an ultrasound?). "
            "Choose a series whose slices have positions."
        )
    if not frames:
        return [_slice(file, 0, [header])]
    if header.get("NumberOfFrames") and n_frames != len(frames):
        raise UnreadableVolume(
            f"{path.name} says that it has {n_frames} frames, but describes {len(frames)}, so some have no place. "
            "Copy it again from its source, or export it again."
        )
    shared = header.get("SharedFunctionalGroupsSequence") or [header]
    return [_slice(file, i, [frame, shared[0]]) for i, frame in enumerate(frames)]


def _check_intensities(file: Header) -> None:
    """Refuse an image whose stored numbers are no intensities, or become some only by a table."""
    path, header, _ = file
    colours = str(header.get("PhotometricInterpretation") or "")
    if int(header.get("SamplesPerPixel") or 1) > 1 or (colours and not colours.startswith("MONOCHROME")):
        raise UnreadableVolume(
            f"{path.name} holds colours ({colours if 'PALETTE' in colours else 'RGB'}), not intensities: it is a "
            "screenshot, a photograph or a coloured map. Choose the series of original grey values."
        )
    if header.get("ModalityLUTSequence"):
        raise UnreadableVolume(
            f"{path.name} gives its values by a table (Modality LUT Sequence, 0028,3000), which is not supported. "
            "Export the series with rescale slope and intercept instead, or convert it to NIfTI with a program that "
            "applies the table."
        )


def _slice(file: Header, frame: int, groups: list[Dataset]) -> Slice:
    path, header, _ = file
    is_classic = groups[0] is header

    def find(group: str, name: str) -> Any:
        for holder in groups:
            inner = None if is_classic else holder.get(group)
            found = _value(inner[0] if inner else holder, name)
            if found is not None:
                return found
        return _value(header, name)

    values: dict[str, list[float]] = {}
    for group, name, count in (
        ("PixelMeasuresSequence", "PixelSpacing", 2),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PlanePositionSequence", "ImagePositionPatient", 3),
    ):
        numbers = _numbers(find(group, name))
        if len(numbers) != count or not np.isfinite(numbers).all():
            state = "lacks" if not numbers else "has no valid"
            raise UnreadableVolume(
                f"{path.name} {state} {name}, so its place in the patient is unknown. "
                "Export the series again from the scanner or archive, as the original images."
            )
        values[name] = numbers
    if min(values["PixelSpacing"]) <= 0:
        raise UnreadableVolume(
            f"{path.name} states a pixel spacing of {values['PixelSpacing']} mm; it must be above 0. "
            "Export the series again from the scanner or archive."
        )
    slope, intercept = (find("PixelValueTransformationSequence", f"Rescale{end}") for end in ("Slope", "Intercept"))
    if not np.isfinite([*_numbers(slope), *_numbers(intercept)]).all():
        raise UnreadableVolume(
            f"{path.name} has a RescaleSlope or RescaleIntercept that is no number, so its values are unknown. "
            "Export the series again from the scanner or archive."
        )
    content = None if is_classic else groups[0].get("FrameContentSequence")
    index = (
        [content[0].get("TemporalPositionIndex"), _value(header, "InstanceNumber"),
         *_numbers(content[0].get("DimensionIndexValues"))]
        if content
        else [_value(header, name) for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers",
                                            "EchoTime", "DiffusionBValue", "TriggerTime", "AcquisitionDate",
                                            "AcquisitionTime", "InstanceNumber")]
    )  # fmt: skip
    rows, columns = values["PixelSpacing"]
    raw = _raw(file, frame)
    return Slice(
        path,
        frame,
        f"{header.get('SOPInstanceUID') or path}/{frame}",
        (int(header.Rows), int(header.Columns)),
        (rows, columns),
        tuple(values["ImageOrientationPatient"]),
        tuple(values["ImagePositionPatient"]),
        abs(number(find("PixelMeasuresSequence", "SliceThickness"))),
        abs(number(find("PixelMeasuresSequence", "SpacingBetweenSlices"))),
        number(slope, 1.0) or 1.0,
        number(intercept),
        tuple(number(part) for part in index),
        raw is not None or syntax_of(header) in PLAIN,
        (_raw_text(header, "PatientID"), _raw_text(header, "PatientName")),
        str(header.get("FrameOfReferenceUID") or ""),
        file.pixels[0],
        raw,
        unused_bits(header),
        syntax_of(header),
        int(header.get("BitsAllocated") or 16),
    )


def _raw(file: Header, frame: int) -> tuple[int, str] | None:
    """Return where the voxels stand as plain numbers, if they do, whatever the file declares."""
    tags, (start, length) = file.tags, file.pixels
    allocated = tags.get("BitsAllocated")
    if not start or allocated not in (8, 16, 32) or syntax_of(tags) == _GE_SWAPPED:
        return None
    plane = tags.Rows * tags.Columns * (allocated // 8)
    if length == UNDEFINED or length < plane * int(tags.get("NumberOfFrames") or 1):
        return None
    return start + frame * plane, f"<{'i' if tags.get('PixelRepresentation') else 'u'}{allocated // 8}"


def _value(dataset: Dataset, name: str) -> Any:
    """Return a tag's value, None if it is missing or empty; numbers in text as floats, NaN where they make no sense."""
    if name not in _TEXT_NUMBERS:
        return dataset.get(name)
    raw = dataset.get_item(name)
    if raw is None or not isinstance(raw.value, bytes):
        return dataset.get(name)
    text = raw.value.strip(b"\0 ")
    try:
        return [float(part) for part in text.split(b"\\")] if text else None
    except ValueError:
        return [math.nan]


def _raw_text(dataset: Dataset, name: str) -> bytes:
    """Return the text of a tag as it stands in the file, without what only fills it up."""
    element = dataset.get_item(name)
    value = b"" if element is None else element.value
    return (value if isinstance(value, bytes) else str(value or "").encode()).strip(b"\0 ^").upper()


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a value that may be missing, one or several; none where one of them is no number."""
    is_several = isinstance(value, Iterable) and not isinstance(value, str)
    try:
        return [float(part) for part in (value if is_several else [value])]
    except (TypeError, ValueError):
        return []


def number(value: Any, otherwise: float = 0.0) -> float:
    """Return the first number of a value that may be missing, empty, text, bytes of an unknown kind, or several."""
    if isinstance(value, bytes):
        value = value.decode("latin-1").strip("\0 ").split("\\")
    numbers = _numbers(value)
    return numbers[0] if numbers and math.isfinite(numbers[0]) else otherwise
