"""DICOM slices: which files are images, where each slice lies, and its voxels.

Headers are read by pydicom without the pixels. Plain pixels are taken by pydicom, compressed ones (JPEG 2000, JPEG)
by the GDCM within SimpleITK, which needs no plug-in and works in threads.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_fmseg.errors import MissingExtra, UnreadableVolume

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "NOT_IMAGES",
    "Header",
    "Slice",
    "damage_told",
    "decoded",
    "headers",
    "is_dicom",
    "kind_of",
    "number",
    "quiet",
    "slices_of",
]

NOT_IMAGES = {
    "RTSTRUCT": "contours (RTSTRUCT)",
    "SEG": "a segmentation (DICOM SEG)",
    "RTDOSE": "a radiation dose (RTDOSE)",
    "RTPLAN": "a treatment plan (RTPLAN)",
    "RTRECORD": "a treatment record",
    "RTIMAGE": "a portal image (RTIMAGE)",
    "SR": "a report (SR)",
    "PR": "a presentation state (PR)",
    "KO": "a selection of key images (KO)",
    "REG": "a registration (REG)",
    "DOC": "a document",
    "PLAN": "a plan",
    "RWV": "a value mapping",
}
"""Objects that lie beside images and are none, by their Modality."""

_TAGS: list[str | tuple[int, int]] = [
         "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
         "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SamplesPerPixel",
         "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
         "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "InstanceNumber", "AcquisitionNumber",
         "TemporalPositionIdentifier", "EchoNumbers", "DiffusionBValue", "TriggerTime", "AcquisitionTime",
         "WindowCenter", "WindowWidth", "SliceThickness", "SpacingBetweenSlices", "ImageType",
         "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
         # what SUV needs, see suv.py; the last ones are private tags of Philips and GE
         "PatientWeight", "CorrectedImage", "DecayCorrection", "SUVType", "SeriesDate", "SeriesTime", "AcquisitionDate",
         "ActualFrameDuration", "RadiopharmaceuticalInformationSequence",
         (0x7053, 0x1000), (0x7053, 0x1009), (0x0009, 0x100D)]  # fmt: skip
_FIRST_BYTES = (  # of the tags that a file without a preamble starts with
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
    b"\x08\x00\x16\x00",
    b"\x02\x00\x00\x00",
    b"\x08\x00\x00\x00",
)
_PLAIN = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
          "1.2.840.10008.1.2.5"}  # fmt: skip
"""Transfer syntaxes that pydicom reads faster: uncompressed, deflated, and run lengths."""
_ELEMENT_BYTES = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12}
"""How long the tag and length before uncompressed little-endian pixels are: implicit and explicit."""
_TEXT_NUMBERS = {"PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept",
                 "SliceThickness", "SpacingBetweenSlices", "TemporalPositionIdentifier", "AcquisitionNumber",
                 "EchoNumbers", "TriggerTime", "AcquisitionTime", "InstanceNumber"}  # fmt: skip
"""Numbers written as text, which are parsed here: pydicom would make an object of each."""


class Header(NamedTuple):
    """A file's tags without the pixels, and the byte at which the pixels' element starts."""

    path: Path
    tags: Dataset
    pixels_at: int


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
    slope: float
    intercept: float
    order: tuple[float, ...]
    is_plain: bool
    raw: tuple[int, int, str, int] | None = None  # element at, voxels at, type, unused bits; None if not that simple


@contextmanager
def quiet() -> Iterator[Any]:
    """Give pydicom, without its many remarks on values that are slightly against the standard."""
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("DICOM needs pydicom, which is missing here: pip install pydicom.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pydicom


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what pydicom raises on a damaged header into a sentence; values are parsed only when asked for."""
    import pydicom.errors as lib

    try:
        yield
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, ArithmeticError, EOFError, RecursionError,
            NotImplementedError, struct.error, lib.BytesLengthException, lib.InvalidDicomError) as error:  # fmt: skip
        raise UnreadableVolume(
            f"{path.name} starts as DICOM, but its header is damaged: {str(error)[:200]}. "
            "Copy it again from its source."
        ) from error


def is_dicom(path: Path) -> bool:
    """Whether the first bytes are those of a DICOM file, with or without the usual preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or (start[:4] in _FIRST_BYTES and path.suffix.lower() in (".dcm", ".ima", ""))


def headers(paths: Iterable[Path]) -> list[Header]:
    """Read the headers of those `paths` that are DICOM, in their order."""
    found = []
    with quiet() as pydicom:
        for path in paths:
            if not is_dicom(path) or path.name.upper() == "DICOMDIR":
                continue
            with damage_told(path), path.open("rb") as file:
                tags = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
                kind_of(tags)  # what is damaged shows here
                found.append(Header(path, tags, file.tell()))
    return [header for header in found if header.tags]


def kind_of(header: Dataset) -> str:
    """Say what a DICOM object is if it is no image ("" if it is one)."""
    modality = str(header.get("Modality", ""))
    if modality in NOT_IMAGES:
        return NOT_IMAGES[modality]
    return "" if header.get("Rows") and header.get("Columns") else "an object without pixels"


def slices_of(file: Header) -> list[Slice]:
    """Return the planes of one file: one, or as many as an enhanced multi-frame object has.

    Raises
    ------
    UnreadableVolume
        If it is in colour or does not say where its planes lie.
    """
    with damage_told(file.path):
        return _slices_of(file)


def _slices_of(file: Header) -> list[Slice]:
    path, header, _ = file
    if int(header.get("SamplesPerPixel") or 1) > 1:
        raise UnreadableVolume(
            f"{path.name} holds colours (RGB), not intensities: it is a screenshot or a photograph. "
            "Choose the series of original grey values."
        )
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
    shared = header.get("SharedFunctionalGroupsSequence") or [header]
    return [_slice(file, i, [frame, shared[0]]) for i, frame in enumerate(frames)]


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
    between = find("PixelMeasuresSequence", "SpacingBetweenSlices") or find("PixelMeasuresSequence", "SliceThickness")
    slope = find("PixelValueTransformationSequence", "RescaleSlope")
    content = None if is_classic else groups[0].get("FrameContentSequence")
    index = (
        [content[0].get("TemporalPositionIndex"), *(content[0].get("DimensionIndexValues") or [])]
        if content
        else [_value(header, name) for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers",
                                            "DiffusionBValue", "TriggerTime", "AcquisitionTime", "InstanceNumber")]
    )  # fmt: skip
    rows, columns = values["PixelSpacing"]
    return Slice(
        path,
        frame,
        f"{header.get('SOPInstanceUID') or path}/{frame}",
        (int(header.Rows), int(header.Columns)),
        (rows, columns),
        tuple(values["ImageOrientationPatient"]),
        tuple(values["ImagePositionPatient"]),
        abs(number(between)),
        number(slope, 1.0) or 1.0,
        number(find("PixelValueTransformationSequence", "RescaleIntercept")),
        tuple(number(part) for part in index),
        _syntax(header) in _PLAIN,
        _raw(file, frame),
    )


def _syntax(header: Dataset) -> str:
    return str(getattr(header, "file_meta", {}).get("TransferSyntaxUID", "1.2.840.10008.1.2"))


def _raw(file: Header, frame: int) -> tuple[int, int, str, int] | None:
    """Where the voxels stand as plain numbers, if they do."""
    tags = file.tags
    before = _ELEMENT_BYTES.get(_syntax(tags))
    allocated, stored = tags.get("BitsAllocated"), tags.get("BitsStored")
    if before is None or allocated not in (8, 16, 32) or not stored or tags.get("HighBit") != stored - 1:
        return None
    kind = f"<{'i' if tags.get('PixelRepresentation') else 'u'}{allocated // 8}"
    start = file.pixels_at + before + frame * tags.Rows * tags.Columns * (allocated // 8)
    return file.pixels_at, start, kind, allocated - stored


def _value(dataset: Dataset, name: str) -> Any:
    """Return a tag's value; numbers in text as a list of floats, None if they are missing or senseless."""
    if name not in _TEXT_NUMBERS:
        return dataset.get(name)
    raw = dataset.get_item(name)
    if raw is None or not isinstance(raw.value, bytes):
        return dataset.get(name)
    try:
        return [float(part) for part in raw.value.rstrip(b"\0 ").split(b"\\")]
    except ValueError:
        return None


def _numbers(value: Any) -> list[float]:
    try:
        return [float(part) for part in value] if value is not None else []
    except (TypeError, ValueError):
        return []


def number(value: Any, otherwise: float = 0.0) -> float:
    """First number of a value that may be missing, empty, text or several."""
    is_several = isinstance(value, Iterable) and not isinstance(value, str)
    numbers = _numbers(value if is_several else [value])
    return numbers[0] if numbers and math.isfinite(numbers[0]) else otherwise


def decoded(slices: list[Slice], scaled_by_gdcm: bool) -> Iterator[npt.NDArray[Any]]:
    """Give the voxels (y, x) of each slice in turn; as stored, or scaled where `scaled_by_gdcm`.

    Raises
    ------
    UnreadableVolume
        If a file is cut short or its compression is not known.
    """
    if not scaled_by_gdcm and all(part.raw for part in slices):
        yield from map(_straight, slices)
        return
    planes = _by_gdcm if scaled_by_gdcm else _by_pydicom
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, quiet():
        files = list(dict.fromkeys(part.path for part in slices))
        if len(files) == len(slices):
            # A few slices ahead, not all: the stack should not lie in memory twice.
            for start in range(0, len(files), 4 * workers):
                for frames in pool.map(planes, files[start : start + 4 * workers]):
                    yield frames[0]
            return
        frames_of = {path: planes(path) for path in files}
        for part in slices:
            yield frames_of[part.path][part.frame]


def _damaged(path: Path, error: Exception) -> UnreadableVolume:
    return UnreadableVolume(
        f"The pixels of {path.name} cannot be read: {str(error).strip().splitlines()[-1][:200]}. "
        "The file was cut short or uses an unusual compression; export the series again, uncompressed."
    )


def _straight(part: Slice) -> npt.NDArray[Any]:
    """Voxels (y, x) as stored, taken from the file without a detour."""
    element_at, voxels_at, kind, unused = part.raw or (0, 0, "u1", 0)
    plane: npt.NDArray[Any] = np.empty(part.shape, kind)
    with part.path.open("rb", buffering=0) as file:
        file.seek(element_at)
        if file.read(4) != b"\xe0\x7f\x10\x00":
            other: npt.NDArray[Any] = _by_pydicom(part.path)[part.frame]
            return other
        file.seek(voxels_at)
        count = file.readinto(plane.reshape(-1).view(np.uint8).data)
    if count != plane.nbytes:
        raise _damaged(part.path, EOFError(f"they end after {count:,} of {plane.nbytes:,} bytes"))
    if unused:  # bits above the stored ones may hold anything: out with them, and the sign into their place
        plane <<= plane.dtype.type(unused)
        plane >>= plane.dtype.type(unused)
    return plane


def _by_pydicom(path: Path) -> npt.NDArray[Any]:
    """Voxels (frames, y, x) as stored."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        pixels: npt.NDArray[Any] = dataset.pixel_array
    except (ValueError, AttributeError, RuntimeError, KeyError, TypeError, EOFError, IndexError) as error:
        raise _damaged(path, error) from error
    return pixels if pixels.ndim == 3 else pixels[None]


def _by_gdcm(path: Path) -> npt.NDArray[Any]:
    """Voxels (frames, y, x) with slope and intercept applied."""
    import SimpleITK as sitk

    try:
        pixels: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    except RuntimeError as error:  # all that SimpleITK raises
        raise _damaged(path, error) from error
    return pixels if pixels.ndim == 3 else pixels[None]
