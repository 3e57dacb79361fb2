"""A DICOM SEG as a label map: its segments on one grid, with their names and colours. Needs no highdicom."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.io.dicom.file import header_errors_as_unreadable, read_whole, silence_pydicom, syntax_of
from napari_fmseg.io.dicom.first_bytes import is_dicom
from napari_fmseg.io.dicom.plane_info import Slice, slices_of
from napari_fmseg.io.dicom.slices import PLAIN, Header, headers, stored_frames
from napari_fmseg.io.paths import files_below
from napari_fmseg.io.voxel_values import REVERSED, check_memory, smallest_integer

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["find_seg", "is_seg", "read"]

_MOST_PARTS = 5  # of the least gap: any gaps are nearly multiples of something small
_ROUNDING = 0.1  # mm, of positions that are given to a tenth
_MOST_PLANES = 8192  # a whole body in slices of a quarter of a millimetre
_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentation, label map segmentation


@silence_pydicom()
def is_seg(path: Path) -> bool:
    """Return whether a file is a DICOM SEG."""
    if not path.is_file() or not is_dicom(path):
        return False
    with header_errors_as_unreadable(path):
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


@silence_pydicom()
def read(path: Path) -> LabelMap:
    """Read the segments of a DICOM SEG; the label of each is its segment number.

    The grid spans the slices that the file holds, as far apart as it states; those without a label are often left out.

    Raises
    ------
    UnreadableVolume
        If it holds probabilities, segments that overlap, or slices that form no grid.
    """
    with header_errors_as_unreadable(path):
        tags = read_whole(path)
        kind = str(tags.get("SegmentationType", ""))
        if kind not in ("BINARY", "LABELMAP"):
            raise UnreadableVolume(
                f"{path.name} is a DICOM SEG of {kind.lower() or 'unknown'} values, not of segments with clear "
                "borders. Export it as a binary segmentation."
            )
        is_packed = syntax_of(tags) not in PLAIN
        pixels = headers([path])[0].pixels if is_packed else (0, 0)
        planes, numbers = slices_of(Header(path, tags, pixels)), _numbers(tags)
        names, colors = _segments(tags)
        geometry, z, warnings = _grid(planes, path)
        _check_extent(geometry, path)
        frames = stored_frames(tags, planes).reshape(-1, *planes[0].shape)
        data = _stack(frames, numbers, z, geometry, path)
    meta = {"format": "DICOM SEG", "modality": "SEG", "repaired": [], "warnings": warnings}
    return LabelMap(data, geometry, meta, names, colors)


def _check_extent(geometry: Geometry, path: Path) -> None:
    """Refuse a grid that one far plane makes longer than any patient, before memory is allocated."""
    if geometry.shape[0] > _MOST_PLANES:
        raise UnreadableVolume(
            f"{path.name}: its slices lie up to {geometry.shape[0] * geometry.spacing[0]:,.0f} mm apart, "
            f"{geometry.shape[0]:,} planes of {geometry.spacing[0]:.3g} mm; expected at most {_MOST_PLANES:,}. "
            "A position is damaged; export the segmentation again."
        )
    check_memory(math.prod(geometry.shape), path)


def _stack(
    frames: npt.NDArray[Any], numbers: list[int], z: list[int], geometry: Geometry, path: Path
) -> npt.NDArray[Any]:
    """Return labels (z, y, x) from frames of one segment each, or of all (number 0)."""
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
    """Return the segment number of each frame; it is stated per frame, or once for all."""
    shared = tags.get("SharedFunctionalGroupsSequence") or [{}]
    found = []
    for frame in tags.PerFrameFunctionalGroupsSequence:
        said = frame.get("SegmentIdentificationSequence") or shared[0].get("SegmentIdentificationSequence")
        found.append(int(said[0].ReferencedSegmentNumber) if said else 0)
    return found


def _grid(planes: list[Slice], path: Path) -> tuple[Geometry, list[int], list[str]]:
    """Find the grid of the planes, the z of each, and warnings; empty planes may be missing."""
    first = planes[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions: npt.NDArray[np.float64] = np.array([part.position for part in planes])
    heights = positions @ normal
    lowest = int(heights.argmin())
    rising = np.diff(np.sort(heights))
    spacing, warnings = _spacing(rising[rising > 1e-3], planes)
    z = np.rint((heights - heights[lowest]) / spacing).astype(int)
    highest = int(z.argmax())
    total, step = positions[highest] - positions[lowest], normal * spacing
    if np.linalg.norm(total - z[highest] * step) > _ROUNDING:  # the slices are stacked aslant
        step = total / z[highest]
    off = np.linalg.norm(positions - positions[lowest] - z[:, None] * step, axis=1).max()
    turned = max(np.abs(np.subtract(part.orientation, first.orientation)).max() for part in planes)
    resized = max(np.abs(np.subtract(part.spacing, first.spacing)).max() for part in planes)
    if off > max(0.1 * spacing, min(_ROUNDING, 0.3 * spacing)) or turned > 1e-3 or resized > 1e-3 * min(first.spacing):
        raise UnreadableVolume(f"{path.name}: its slices form no even grid. Export the segmentation again.")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = positions[lowest]
    return Geometry((int(z[highest]) + 1, *first.shape), affine[REVERSED]), z.tolist(), warnings


def _spacing(gaps: npt.NDArray[np.float64], planes: list[Slice]) -> tuple[float, list[str]]:
    """Find how far apart the slices of the grid are, of which some may be missing, and warnings.

    What the file declares holds if the slices lie on multiples of it; else a spacing of which all gaps are multiples.
    """
    declared, thickness = ({getattr(part, name) for part in planes} for name in ("between", "thickness"))
    for told, values in (("SpacingBetweenSlices", declared), ("SliceThickness", thickness)):
        spacing = min(values)
        if len(values) == 1 and spacing > 0 and _are_multiples(gaps, spacing):
            spacing = _on_average(gaps, spacing)
            if told == "SliceThickness" and len(gaps) and gaps.min() > 1.5 * spacing:
                return spacing, [
                    f"The segmentation does not state how far apart its slices are. Those that it holds lie "
                    f"{gaps.min():.4g} mm apart or more; their thickness of {spacing:.4g} mm was taken."
                ]
            return spacing, []
    if not len(gaps):
        return 1.0, ["The segmentation does not state how thick its only slice is; 1 mm was assumed."]
    found = next((gaps.min() / n for n in range(1, _MOST_PARTS) if _are_multiples(gaps, gaps.min() / n)), gaps.min())
    spacing = _on_average(gaps, found, within_mm=0)
    told = (
        f"The segmentation states {' and '.join(f'{part:.4g}' for part in sorted(declared))} mm between its slices, "
        "which does not fit their positions"
        if max(declared) > 0
        else "The segmentation does not state how far apart its slices are"
    )
    return spacing, [f"{told}; {spacing:.4g} mm was taken, of which all their distances are multiples."]


def _are_multiples(gaps: npt.NDArray[np.float64], spacing: float) -> bool:
    """Return whether slices can lie on a grid of `spacing`; their places may be rounded to a tenth of a millimetre."""
    steps = np.rint(gaps / spacing)
    return bool(
        (steps > 0).all()
        and (np.abs(gaps - steps * spacing) <= min(max(0.05 * spacing, 2 * _ROUNDING), 0.2 * spacing)).all()
    )


def _on_average(gaps: npt.NDArray[np.float64], spacing: float, within_mm: float = _ROUNDING) -> float:
    """Return `spacing`; or that of the slices, if they drift off it by more over the whole grid."""
    n_steps = np.rint(gaps / spacing).sum()
    drifts = abs(gaps.sum() - n_steps * spacing) > within_mm
    return float(gaps.sum() / n_steps) if drifts else spacing


def _segments(tags: Dataset) -> tuple[dict[int, str], dict[int, tuple[float, float, float]]]:
    """Return names and colours, by segment number."""
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
