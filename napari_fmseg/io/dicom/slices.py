"""DICOM files: which are images, their headers, and the voxels of their slices.

Headers are read by pydicom without the pixels. Plain pixels are taken by pydicom, compressed ones (JPEG 2000, JPEG)
by the GDCM within SimpleITK, which needs no plug-in and works in threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io.compression import MAX_RATIO
from napari_fmseg.io.dicom.codestreams import check_codestreams
from napari_fmseg.io.dicom.file import (
    PIXELS,
    dataset_of,
    header_errors_as_unreadable,
    pixel_errors_as_unreadable,
    silence_pydicom,
)
from napari_fmseg.io.dicom.first_bytes import is_dicom
from napari_fmseg.io.itk import native_reader

if TYPE_CHECKING:
    from pydicom import Dataset

    from napari_fmseg.io.dicom.plane_info import Slice

__all__ = ["NOT_IMAGES", "PLAIN", "UNDEFINED", "Header", "decode_slices", "headers", "kind_of", "stored_frames"]

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

_TAGS: list[str | int] = [
         "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
         "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SamplesPerPixel",
         "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
         "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "InstanceNumber", "AcquisitionNumber",
         "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "TriggerTime", "AcquisitionTime",
         "WindowCenter", "WindowWidth", "SliceThickness", "SpacingBetweenSlices", "ImageType",
         "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence",
         "RealWorldValueMappingSequence", "BodyPartExamined", "PatientID", "PatientName", "FrameOfReferenceUID",
         # what SUV needs, see suv.py
         "PatientWeight", "CorrectedImage", "DecayCorrection", "SUVType", "SeriesDate", "SeriesTime", "AcquisitionDate",
         "ActualFrameDuration", "RadiopharmaceuticalInformationSequence"]  # fmt: skip

_PARSED = ("SeriesInstanceUID", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
           "RadiopharmaceuticalInformationSequence", "NumberOfFrames")  # fmt: skip

PLAIN = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
          "1.2.840.10008.1.2.5"}  # fmt: skip
"""Transfer syntaxes that pydicom reads faster: uncompressed, deflated, and run lengths."""

_PLAIN_RATIO = {**dict.fromkeys(PLAIN, 1), "1.2.840.10008.1.2.1.99": MAX_RATIO, "1.2.840.10008.1.2.5": 64}
"""How much more pixels they may hold than a file has bytes."""

_SMALL = 64 << 20

UNDEFINED = 0xFFFFFFFF
"""Length of pixels that are in fragments, as compressed ones are."""


class Header(NamedTuple):
    """A file's tags without the pixels, at which byte the pixels start and how many bytes they have (0, 0: unknown)."""

    path: Path
    tags: Dataset
    pixels: tuple[int, int] = (0, 0)


def headers(paths: Iterable[Path], *, whole: bool = False) -> list[Header]:
    """Read the headers of those `paths` that are DICOM, in their order; `whole` ones with their private tags."""
    found = []
    with silence_pydicom():
        for path in paths:
            if not is_dicom(path) or path.name.upper() == "DICOMDIR":
                continue
            how = {"stop_before_pixels": True, "specific_tags": None if whole else _TAGS}
            with header_errors_as_unreadable(path), dataset_of(path, **how) as (tags, file):
                _ = kind_of(tags), [tags.get(name) for name in _PARSED]  # what is damaged shows here
                found.append(Header(path, tags, _pixels(file)))
    return [header for header in found if header.tags]


def _pixels(file: BinaryIO) -> tuple[int, int]:
    """Return where the value of the pixel data starts and how long it is, as its element tells; (0, 0) if it is
    elsewhere.
    """
    at, head = file.tell(), file.read(12)
    if len(head) < 8 or head[:4] != b"\xe0\x7f\x10\x00":
        return 0, 0
    if head[4:8] in (b"OW\0\0", b"OB\0\0", b"UN\0\0"):  # explicit, whatever the file declares
        return at + 12, int.from_bytes(head[8:], "little")
    return at + 8, int.from_bytes(head[4:8], "little")


def kind_of(header: Dataset) -> str:
    """Return the type of a DICOM object if it is not an image ("" if it is one)."""
    modality = str(header.get("Modality", ""))
    if modality in NOT_IMAGES:
        return NOT_IMAGES[modality]
    return "" if header.get("Rows") and header.get("Columns") else "an object without pixels"


def decode_slices(slices: list[Slice], scaled_by_gdcm: bool) -> Iterator[npt.NDArray[Any]]:
    """Yield the voxels (y, x) of each slice in turn; as stored, or scaled where `scaled_by_gdcm`.

    Raises
    ------
    UnreadableVolume
        If a file is cut short or its compression is not known.
    """
    if not scaled_by_gdcm and all(part.raw for part in slices):
        yield from map(_straight, slices)
        return
    _check_sizes(slices)
    files = list(dict.fromkeys(part.path for part in slices))
    frames = _frames(files, scaled_by_gdcm, here=all(part.is_plain for part in slices))
    if len(files) == len(slices):
        for part, found in zip(slices, frames, strict=True):
            yield _frame(found, part)
        return
    frames_of = dict(zip(files, frames, strict=True))
    for part in slices:
        yield _frame(frames_of[part.path], part)


def stored_frames(tags: Dataset, slices: list[Slice]) -> npt.NDArray[Any]:
    """Return the voxels (frames, y, x) of one file, whose tags were read whole, as they are stored."""
    _check_sizes(slices)
    path = slices[0].path
    if slices[0].is_plain:
        with pixel_errors_as_unreadable(path):
            pixels: npt.NDArray[Any] = tags.pixel_array
            return pixels
    return next(_frames([path], False, here=False))


def _frames(files: list[Path], scaled_by_gdcm: bool, *, here: bool) -> Iterator[npt.NDArray[Any]]:
    """Yield the voxels (frames, y, x) of each file; what only native code can read, as `native` says."""
    parser, detail = ("itk_image", "GDCMImageIO") if scaled_by_gdcm else ("dicom_frames", "")
    parsed = native_reader.each(parser, files, detail, here=here and not scaled_by_gdcm)
    with silence_pydicom():
        for path in files:
            with pixel_errors_as_unreadable(path):
                pixels = next(parsed).voxels
            yield pixels if pixels.ndim == 3 else pixels[None]


def _frame(frames: npt.NDArray[Any], part: Slice) -> npt.NDArray[Any]:
    if part.frame >= len(frames):
        raise _as_unreadable(part.path, EOFError(f"it has {len(frames)} images, and says that it has more"))
    plane: npt.NDArray[Any] = frames[part.frame]
    return plane


def _as_unreadable(path: Path, error: Exception) -> UnreadableVolume:
    return UnreadableVolume(PIXELS.format(name=path.name, reason=str(error).strip().splitlines()[-1][:200]))


def _check_sizes(slices: list[Slice]) -> None:
    """Refuse files that promise more pixels than they can hold, before memory is allocated."""
    promised: dict[Path, int] = {}
    for part in slices:
        promised[part.path] = promised.get(part.path, 0) + math.prod(part.shape) * part.bits // 8
    for path, part in {part.path: part for part in slices}.items():
        size = path.stat().st_size
        ratio = 1 if part.raw else _PLAIN_RATIO.get(part.syntax, 0)
        if promised[path] > (size * ratio or max(_SMALL, size * MAX_RATIO)):
            raise _as_unreadable(
                path, ValueError(f"it promises {promised[path]:,} bytes of pixels, but has only {size:,}")
            )
        if not ratio:
            with pixel_errors_as_unreadable(path):
                check_codestreams(path, part.pixels_at, part.shape)


def _straight(part: Slice) -> npt.NDArray[Any]:
    """Return voxels (y, x) as stored, taken from the file without a detour."""
    voxels_at, kind = part.raw or (0, "u1")
    _check_sizes([part])
    plane: npt.NDArray[Any] = np.empty(part.shape, kind)
    with part.path.open("rb", buffering=0) as file:
        file.seek(voxels_at)
        count = file.readinto(plane.reshape(-1).view(np.uint8).data)
    if count != plane.nbytes:
        raise _as_unreadable(part.path, EOFError(f"they end after {count:,} of {plane.nbytes:,} bytes"))
    above, unused = part.unused_bits
    if unused:  # the bits around the stored ones may hold anything: out with them, and the sign into its place
        plane <<= plane.dtype.type(above)
        plane >>= plane.dtype.type(unused)
    return plane
