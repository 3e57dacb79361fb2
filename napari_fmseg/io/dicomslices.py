"""DICOM files: which are images, their headers, and the voxels of their slices.

Headers are read by pydicom without the pixels. Plain pixels are taken by pydicom, compressed ones (JPEG 2000, JPEG)
by the GDCM within SimpleITK, which needs no plug-in and works in threads.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_fmseg.errors import MissingExtra, UnreadableVolume
from napari_fmseg.io.dicomstart import is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

    from napari_fmseg.io.dicomplanes import Slice

__all__ = [
    "NOT_IMAGES",
    "PLAIN",
    "UNDEFINED",
    "Header",
    "damage_told",
    "decoded",
    "headers",
    "kind_of",
    "quiet",
    "read_whole",
    "syntax_of",
    "unused_bits",
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

_TAGS: list[str | int] = [
         "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
         "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SamplesPerPixel",
         "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
         "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "InstanceNumber", "AcquisitionNumber",
         "TemporalPositionIdentifier", "EchoNumbers", "DiffusionBValue", "TriggerTime", "AcquisitionTime",
         "WindowCenter", "WindowWidth", "SliceThickness", "SpacingBetweenSlices", "ImageType",
         "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence",
         "RealWorldValueMappingSequence", "PatientID", "PatientName", "FrameOfReferenceUID",
         # what SUV needs, see suv.py
         "PatientWeight", "CorrectedImage", "DecayCorrection", "SUVType", "SeriesDate", "SeriesTime", "AcquisitionDate",
         "ActualFrameDuration", "RadiopharmaceuticalInformationSequence"]  # fmt: skip
PLAIN = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
          "1.2.840.10008.1.2.5"}  # fmt: skip
"""Transfer syntaxes that pydicom reads faster: uncompressed, deflated, and run lengths."""
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF
"""Length of pixels that are in fragments, as compressed ones are."""


class Header(NamedTuple):
    """A file's tags without the pixels, at which byte the pixels start and how many bytes they have (0, 0: unknown)."""

    path: Path
    tags: Dataset
    pixels: tuple[int, int] = (0, 0)


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


def headers(paths: Iterable[Path], *, whole: bool = False) -> list[Header]:
    """Read the headers of those `paths` that are DICOM, in their order; `whole` ones with their private tags."""
    found = []
    with quiet() as pydicom:
        for path in paths:
            if not is_dicom(path) or path.name.upper() == "DICOMDIR":
                continue
            with damage_told(path), path.open("rb") as file:
                tags = pydicom.dcmread(
                    file, stop_before_pixels=True, force=True, specific_tags=None if whole else _TAGS
                )
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


def syntax_of(header: Dataset) -> str:
    """Transfer syntax that the file declares, or, where it declares none, that of its tags."""
    declared = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
    implicit, little = header.original_encoding
    return declared or (_IMPLICIT if implicit else _EXPLICIT if little else _BIG_ENDIAN)


def unused_bits(tags: Dataset) -> tuple[int, int]:
    """How many bits of a voxel are unused above the stored ones, and above and below them together."""
    allocated, stored, high = (tags.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if None in (allocated, stored, high):
        return 0, 0
    if not 0 < stored <= allocated:
        raise ValueError(f"{stored} bits are stored of {allocated} allocated ones")
    if not stored <= high + 1 <= allocated:
        high = stored - 1
    return allocated - 1 - high, allocated - stored


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
    above, unused = part.unused_bits
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
    dataset.file_meta.TransferSyntaxUID = syntax = pydicom.uid.UID(syntax_of(dataset))
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
        above, unused = unused_bits(dataset)
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
