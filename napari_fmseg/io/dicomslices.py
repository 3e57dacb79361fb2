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
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_fmseg.errors import MissingExtra, UnreadableVolume
from napari_fmseg.io.dicomstart import is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "NOT_IMAGES",
    "Header",
    "Slice",
    "damage_told",
    "decoded",
    "headers",
    "kind_of",
    "number",
    "quiet",
    "read_whole",
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
_PLAIN = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
          "1.2.840.10008.1.2.5"}  # fmt: skip
"""Transfer syntaxes that pydicom reads faster: uncompressed, deflated, and run lengths."""
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_GE_SWAPPED = "1.2.840.113619.5.2"
"""A private transfer syntax of GE: the tags are little endian, the pixels big endian."""
_UNDEFINED = 0xFFFFFFFF
"""Length of pixels that are in fragments, as compressed ones are."""
_TEXT_NUMBERS = {"PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept",
                 "SliceThickness", "SpacingBetweenSlices", "TemporalPositionIdentifier", "AcquisitionNumber",
                 "EchoNumbers", "TriggerTime", "AcquisitionTime", "InstanceNumber"}  # fmt: skip
"""Numbers written as text, which are parsed here: pydicom would make an object of each."""


class Header(NamedTuple):
    """A file's tags without the pixels, at which byte the pixels start and how many bytes they have (0, 0: unknown)."""

    path: Path
    tags: Dataset
    pixels: tuple[int, int] = (0, 0)


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
    raw: tuple[int, str] | None = None  # where the voxels start and their type; None if not that simple
    bits: tuple[int, int] = (0, 0)  # how many are unused above the stored ones, and above and below together


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
                found.append(Header(path, tags, _pixels(file)))
    return [header for header in found if header.tags]


def _pixels(file: BinaryIO) -> tuple[int, int]:
    """Where the value of the pixel data starts and how long it is, as its element tells; (0, 0) if it is elsewhere."""
    at, head = file.tell(), file.read(12)
    if len(head) < 8 or head[:4] != b"\xe0\x7f\x10\x00":
        return 0, 0
    if head[4:8] in (b"OW\0\0", b"OB\0\0", b"UN\0\0"):  # explicit, whatever the file declares
        return at + 12, int.from_bytes(head[8:], "little")
    return at + 8, int.from_bytes(head[4:8], "little")


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
    raw = _raw(file, frame)
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
        raw is not None or _syntax(header) in _PLAIN,
        raw,
        _unused_bits(header),
    )


def _syntax(header: Dataset) -> str:
    """Transfer syntax that the file declares, or, where it declares none, that of its tags."""
    declared = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
    implicit, little = header.original_encoding
    return declared or (_IMPLICIT if implicit else _EXPLICIT if little else _BIG_ENDIAN)


def _raw(file: Header, frame: int) -> tuple[int, str] | None:
    """Where the voxels stand as plain numbers, if they do, whatever the file declares."""
    tags, (start, length) = file.tags, file.pixels
    allocated = tags.get("BitsAllocated")
    if not start or allocated not in (8, 16, 32) or _syntax(tags) == _GE_SWAPPED:
        return None
    plane = tags.Rows * tags.Columns * (allocated // 8)
    if length == _UNDEFINED or length < plane * int(tags.get("NumberOfFrames") or 1):
        return None
    return start + frame * plane, f"<{'i' if tags.get('PixelRepresentation') else 'u'}{allocated // 8}"


def _unused_bits(tags: Dataset) -> tuple[int, int]:
    """How many bits of a voxel are unused above the stored ones, and above and below them together."""
    allocated, stored, high = (tags.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if None in (allocated, stored, high) or not 0 < stored <= high + 1 <= allocated:
        return 0, 0
    return allocated - 1 - high, allocated - stored


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
    voxels_at, kind = part.raw or (0, "u1")
    plane: npt.NDArray[Any] = np.empty(part.shape, kind)
    with part.path.open("rb", buffering=0) as file:
        file.seek(voxels_at)
        count = file.readinto(plane.reshape(-1).view(np.uint8).data)
    if count != plane.nbytes:
        raise _damaged(part.path, EOFError(f"they end after {count:,} of {plane.nbytes:,} bytes"))
    above, unused = part.bits
    if unused:  # the bits around the stored ones may hold anything: out with them, and the sign into its place
        plane <<= plane.dtype.type(above)
        plane >>= plane.dtype.type(unused)
    return plane


def read_whole(path: Path) -> Dataset:
    """Read a file with its pixels, which can be decoded even where it does not declare its transfer syntax.

    Raises
    ------
    UnreadableVolume
        If the pixels are compressed in a way that the file does not name.
    """
    import pydicom

    dataset = pydicom.dcmread(path, force=True)
    dataset.file_meta.TransferSyntaxUID = syntax = pydicom.uid.UID(_syntax(dataset))
    in_fragments = "PixelData" in dataset and dataset["PixelData"].is_undefined_length
    if in_fragments and not syntax.is_private and not syntax.is_compressed:
        raise UnreadableVolume(
            f"The pixels of {path.name} are compressed, but the file does not say how: its transfer syntax is "
            f"{syntax.name}. Export the series again, uncompressed."
        )
    return dataset


def _by_pydicom(path: Path) -> npt.NDArray[Any]:
    """Voxels (frames, y, x) as stored."""
    try:
        dataset = read_whole(path)
        above, unused = _unused_bits(dataset)
        if unused > above:  # some are below, which pydicom does not know of
            dataset.BitsStored += unused - above
        pixels: npt.NDArray[Any] = dataset.pixel_array
        pixels = pixels >> (unused - above) if unused > above else pixels
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
