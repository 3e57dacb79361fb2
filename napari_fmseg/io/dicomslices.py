"""DICOM slices: which files are images, where each slice lies, and its voxels.

Headers are read by pydicom without the pixels. Plain pixels are taken by pydicom, compressed ones (JPEG 2000, JPEG)
by the GDCM within SimpleITK, which needs no plug-in and works in threads.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.errors import MissingExtra, UnreadableVolume

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["NOT_IMAGES", "Slice", "decoded", "headers", "is_dicom", "kind_of", "slices_of"]

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

_TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
         "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SamplesPerPixel",
         "PhotometricInterpretation", "BitsAllocated", "RescaleSlope", "RescaleIntercept", "RescaleType", "Units",
         "InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "DiffusionBValue",
         "TriggerTime", "AcquisitionTime", "WindowCenter", "WindowWidth", "SliceThickness", "SpacingBetweenSlices",
         "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]  # fmt: skip
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


@contextmanager
def _quiet() -> Iterator[Any]:
    """Give pydicom, without its many remarks on values that are slightly against the standard."""
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("DICOM needs pydicom: pip install 'napari-fmseg[dicom]'.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pydicom


def is_dicom(path: Path) -> bool:
    """Whether the first bytes are those of a DICOM file, with or without the usual preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or (start[:4] in _FIRST_BYTES and path.suffix.lower() in (".dcm", ".ima", ""))


def headers(paths: Iterable[Path]) -> list[tuple[Path, Dataset]]:
    """Read the headers of those `paths` that are DICOM, in their order."""
    found = []
    with _quiet() as pydicom:
        for path in paths:
            if not is_dicom(path) or path.name.upper() == "DICOMDIR":
                continue
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            except (OSError, ValueError, KeyError, AttributeError, NotImplementedError, EOFError) as error:
                raise UnreadableVolume(
                    f"{path.name} starts as DICOM, but its header is damaged: {error}. Copy it again from its source."
                ) from error
            if header:
                found.append((path, header))
    return found


def kind_of(header: Dataset) -> str:
    """Say what a DICOM object is if it is no image ("" if it is one)."""
    modality = str(header.get("Modality", ""))
    if modality in NOT_IMAGES:
        return NOT_IMAGES[modality]
    return "" if header.get("Rows") and header.get("Columns") else "an object without pixels"


def slices_of(path: Path, header: Dataset) -> list[Slice]:
    """Return the planes of one file: one, or as many as an enhanced multi-frame object has.

    Raises
    ------
    UnreadableVolume
        If it is in colour or does not say where its planes lie.
    """
    if int(header.get("SamplesPerPixel") or 1) > 1:
        raise UnreadableVolume(
            f"{path.name} holds colours (RGB), not intensities: it is a screenshot or a photograph. "
            "Choose the series of original grey values."
        )
    n_frames = int(header.get("NumberOfFrames") or 1)
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames and n_frames > 1:
        raise UnreadableVolume(
            f"{path.name} has {n_frames} frames and does not say where each lies (a film, an ultrasound?). "
            "Choose a series whose slices have positions."
        )
    if not frames:
        return [_slice(path, header, 0, [header])]
    shared = header.get("SharedFunctionalGroupsSequence") or [header]
    return [_slice(path, header, number, [frame, shared[0]]) for number, frame in enumerate(frames)]


def _slice(path: Path, header: Dataset, frame: int, groups: list[Dataset]) -> Slice:
    def find(group: str, name: str) -> Any:
        for holder in groups:
            inner = holder.get(group)
            found = (inner[0] if inner else holder).get(name)
            if found is not None:
                return found
        return header.get(name)

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
    content = groups[0].get("FrameContentSequence")
    index = (
        [content[0].get("TemporalPositionIndex"), *(content[0].get("DimensionIndexValues") or [])]
        if content
        else [header.get(name) for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers",
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
        abs(_number(between)),
        _number(slope, 1.0) or 1.0,
        _number(find("PixelValueTransformationSequence", "RescaleIntercept")),
        tuple(_number(part) for part in index),
        str(getattr(header, "file_meta", {}).get("TransferSyntaxUID", "1.2.840.10008.1.2")) in _PLAIN,
    )


def _numbers(value: Any) -> list[float]:
    try:
        return [float(part) for part in value] if value is not None else []
    except (TypeError, ValueError):
        return []


def _number(value: Any, otherwise: float = 0.0) -> float:
    """First number of a value that may be missing, empty, text or several."""
    numbers = _numbers(value if isinstance(value, (list, tuple)) else [value])
    return numbers[0] if numbers and math.isfinite(numbers[0]) else otherwise


def decoded(slices: list[Slice], scaled_by_gdcm: bool) -> Iterator[npt.NDArray[Any]]:
    """Give the voxels (y, x) of each slice in turn; as stored, or scaled where `scaled_by_gdcm`.

    Raises
    ------
    UnreadableVolume
        If a file is cut short or its compression is not known.
    """
    planes = _by_gdcm if scaled_by_gdcm else _by_pydicom
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, _quiet():
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
