"""A DICOM SEG as a label map: its segments on one grid, with their names and colours. Needs no highdicom."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.errors import UnreadableVolume
from napari_fmseg.io.checks import REVERSED, smallest_integer
from napari_fmseg.io.dicomplanes import Slice, slices_of
from napari_fmseg.io.dicomslices import Header, damage_told, headers, quiet, read_whole
from napari_fmseg.io.dicomstart import is_dicom
from napari_fmseg.io.finding import files_below
from napari_fmseg.volume import Geometry, LabelMap

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["find_seg", "is_seg", "read"]

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentation, label map segmentation


@quiet()
def is_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG."""
    if not path.is_file() or not is_dicom(path):
        return False
    with damage_told(path):
        return any(str(file.tags.get("SOPClassUID", "")) in _CLASSES for file in headers([path]))


def find_seg(path: Path) -> Path | None:
    """Return the DICOM SEG that a path stands for: the file itself, or the only one in a folder; None if there is none.

    Raises
    ------
    UnreadableVolume
        If a folder holds several.
    """
    if not path.is_dir():
        return path if is_seg(path) else None
    found = []
    for file in files_below(path):
        with suppress(UnreadableVolume):  # a damaged header is no SEG that could be read
            found += [file] * is_seg(file)
    if len(found) > 1:
        listed = "\n".join(f"  {file.relative_to(path)}" for file in found[:20])
        raise UnreadableVolume(f"{path.name} holds {len(found)} DICOM SEG. Choose one of them:\n{listed}")
    return found[0] if found else None


@quiet()
def read(path: Path) -> LabelMap:
    """Read the segments of a DICOM SEG; the label of each is its segment number.

    The grid spans the slices that the file holds: those without any label are often left out.

    Raises
    ------
    UnreadableVolume
        If it holds probabilities, segments that overlap, or slices that form no grid.
    """
    with damage_told(path):
        tags = read_whole(path)
        kind = str(tags.get("SegmentationType", ""))
        if kind not in ("BINARY", "LABELMAP"):
            raise UnreadableVolume(
                f"{path.name} is a DICOM SEG of {kind.lower() or 'unknown'} values, not of segments with clear "
                "borders. Export it as a binary segmentation."
            )
        planes, numbers = slices_of(Header(path, tags)), _numbers(tags)
        frames = tags.pixel_array.reshape(-1, *planes[0].shape)
        names, colors = _segments(tags)
        geometry, z = _grid(planes, path)
        data = _stacked(frames, numbers, z, geometry, path)
    meta = {"format": "DICOM SEG", "modality": "SEG", "repaired": [], "warnings": []}
    return LabelMap(data, geometry, meta, names, colors)


def _stacked(
    frames: npt.NDArray[Any], numbers: list[int], z: list[int], geometry: Geometry, path: Path
) -> npt.NDArray[Any]:
    """Labels (z, y, x) from frames of one segment each, or of all (number 0)."""
    data = np.zeros(geometry.shape, smallest_integer(0, max(max(numbers), int(frames.max()))))
    for frame, number, at in zip(frames, numbers, z, strict=True):
        if number == 0:
            data[at] = frame
            continue
        inside = frame > 0
        if data[at][inside].any():
            raise UnreadableVolume(
                f"{path.name} has segments that overlap, which one label map cannot hold. Export them one by one."
            )
        data[at][inside] = number
    return data


def _numbers(tags: Dataset) -> list[int]:
    """Segment number of each frame; it stands with the frame, or once for all."""
    shared = tags.get("SharedFunctionalGroupsSequence") or [{}]
    found = []
    for frame in tags.PerFrameFunctionalGroupsSequence:
        said = frame.get("SegmentIdentificationSequence") or shared[0].get("SegmentIdentificationSequence")
        found.append(int(said[0].ReferencedSegmentNumber) if said else 0)
    return found


def _grid(planes: list[Slice], path: Path) -> tuple[Geometry, list[int]]:
    """Find the grid of the planes, and the z of each; empty planes may be missing."""
    first = planes[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions: npt.NDArray[np.float64] = np.array([part.position for part in planes])
    heights = positions @ normal
    lowest = int(heights.argmin())
    rising = np.diff(np.unique(np.round(heights, 3)))
    spacing = float(rising.min()) if len(rising) else (first.between or first.thickness or 1.0)
    z = np.rint((heights - heights[lowest]) / spacing).astype(int)
    highest = int(z.argmax())
    step: Any = normal * spacing
    if z[highest]:
        step = (positions[highest] - positions[lowest]) / z[highest]
    off = np.linalg.norm(positions - positions[lowest] - z[:, None] * step, axis=1).max()
    turned = max(np.abs(np.subtract(part.orientation, first.orientation)).max() for part in planes)
    if off > 0.1 * spacing or turned > 1e-3:
        raise UnreadableVolume(f"{path.name}: its slices form no even grid. Export the segmentation again.")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = positions[lowest]
    return Geometry((int(z[highest]) + 1, *first.shape), affine[REVERSED]), z.tolist()


def _segments(tags: Dataset) -> tuple[dict[int, str], dict[int, tuple[float, float, float]]]:
    """Names and colours, by segment number."""
    from skimage.color import lab2rgb

    names: dict[int, str] = {}
    colors: dict[int, tuple[float, float, float]] = {}
    for segment in tags.get("SegmentSequence") or ():
        number = int(segment.get("SegmentNumber", 0))
        if number < 1:  # the background of a label map segmentation
            continue
        names[number] = str(segment.get("SegmentLabel", "")) or f"label {number}"
        stored = segment.get("RecommendedDisplayCIELabValue")
        if stored:
            light, a, b = (float(part) / 0xFFFF for part in stored)  # as the standard scales them to 16 bits
            red, green, blue = lab2rgb([[100 * light, 255 * a - 128, 255 * b - 128]])[0].clip(0, 1).tolist()
            colors[number] = (red, green, blue)
    return names, colors
