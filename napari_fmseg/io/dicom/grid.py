"""The grid that the slices of a DICOM series lie on, found from their own positions; copies of a slice are dropped."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.volume import Geometry
from napari_fmseg.io.dicom.plane_info import Slice
from napari_fmseg.io.voxel_values import REVERSED

__all__ = ["stack"]

_ROUNDING = 0.05 * 3**0.5 + 1e-3
"""mm that a position may be off if its coordinates were rounded to a tenth."""


def stack(slices: list[Slice], name: str) -> tuple[list[list[Slice]], Geometry, list[str]]:
    """Sort slices into channels of ascending position, and find the grid that they lie on."""
    warnings = _check_one_patient(slices, name)
    slices = _without_copies(slices)
    _check_alike(slices, name)
    first = slices[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    groups = _by_position(slices, normal, 0.01 * min(first.spacing))
    counts = {len(group) for group in groups}
    if len(counts) > 1:
        raise UnreadableVolume(
            f"{name}: some places have {min(counts)} images and others {max(counts)}. A slice is missing from one "
            "time point, or two acquisitions share a series. Export them as separate series."
        )
    stacks = [list(stack) for stack in zip(*groups, strict=True)]
    places = np.array([[part.position for part in stack] for stack in stacks])
    _check_not_beside(places, 0.1 * min(first.spacing), name)
    positions = places[0]
    step, remarks = _step(stacks[0], positions, normal, name)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = positions[0]
    return stacks, Geometry((len(positions), *first.shape), affine[REVERSED]), [*warnings, *remarks]


def _check_one_patient(slices: list[Slice], name: str) -> list[str]:
    """Refuse images of two patients, or of two scans, that share a series, as anonymising can make them."""
    patients = sorted({part.patient for part in slices})
    if any(_are_two(one, other) for one in patients for other in patients):
        raise UnreadableVolume(
            f"{name}: the images under this one series UID belong to different patients, by PatientID (0010,0020) or "
            "PatientName (0010,0010). Nothing was mixed; put the files of each patient into a folder of its own."
        )
    frames = {part.frame_of_reference for part in slices} - {""}
    if len(frames) < 2:
        return []
    if len(frames) == len({part.path for part in slices}):
        return ["Every image names a frame of reference of its own, as some anonymisers do; their positions were used."]
    raise UnreadableVolume(
        f"{name}: the images under this one series UID lie in {len(frames)} frames of reference (0020,0052), so their "
        "positions cannot be compared: they are of several scans or patients. Put each into a folder of its own."
    )


def _are_two(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> bool:
    """Return whether two pairs of id and name are of two patients; of one id the name may be written in several
    ways.
    """
    ids, names = zip(one, other, strict=True)
    return ids[0] != ids[1] if all(ids) else all(names) and names[0] != names[1]


def _without_copies(slices: list[Slice]) -> list[Slice]:
    """Drop images that exist twice, as happens when folders are merged.

    A copy has the same place, time and pixels. UIDs say little: some anonymisers give one to all images, and others
    give new ones to each copy.
    """
    groups: dict[tuple[object, ...], list[Slice]] = {}
    for part in slices:
        groups.setdefault((part.position, part.order[:-1], part.frame), []).append(part)
    kept = []
    for group in groups.values():
        known: set[tuple[object, bytes]] = set()
        for part in group:
            content = _content(part) if len(group) > 1 else b""
            marks = {(part.uid, content), (part.order[-1:], content)}
            if not marks & known:
                kept.append(part)
            known |= marks
    return kept


def _content(part: Slice) -> bytes:
    """Return a hash of the stored pixels of a file."""
    with part.path.open("rb") as file:
        file.seek(part.pixels_at)
        return hashlib.file_digest(file, "blake2b").digest()


def _check_alike(slices: list[Slice], name: str) -> None:
    orientations = np.array([part.orientation for part in slices])
    n_planes = len(np.unique(np.round(orientations, 2), axis=0))
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise UnreadableVolume(
            f"{name}: the slices are tilted against each other, in about {n_planes} directions, so they form "
            "no volume. It may be a localizer; choose a series of parallel slices."
        )
    row, column = orientations[0, :3], orientations[0, 3:]
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise UnreadableVolume(
            f"{name}: ImageOrientationPatient {orientations[0].tolist()} is no pair of perpendicular unit vectors. "
            "Export the series again from the scanner or archive."
        )
    if len({part.shape for part in slices}) > 1:
        sizes = ", ".join(f"{y}×{x}" for y, x in sorted({part.shape for part in slices}))
        raise UnreadableVolume(
            f"{name}: the slices differ in size ({sizes}). Choose or export a series of equal slices."
        )
    spacings = np.array([part.spacing for part in slices])
    if np.abs(spacings / spacings[0] - 1).max() > 1e-3:
        raise UnreadableVolume(
            f"{name}: the slices differ in pixel spacing. Choose or export a series of equal slices."
        )


def _by_position(slices: list[Slice], normal: npt.NDArray[np.float64], same_mm: float) -> list[list[Slice]]:
    groups: list[list[Slice]] = []
    last = -math.inf
    for height, part in sorted(((float(normal @ part.position), part) for part in slices), key=lambda pair: pair[0]):
        if height - last > same_mm:
            groups.append([])
            last = height
        groups[-1].append(part)
    return [sorted(group, key=lambda part: (part.order, part.path, part.frame)) for group in groups]


def _check_not_beside(places: npt.NDArray[np.float64], apart_mm: float, name: str) -> None:
    """Refuse stacks, (c, z, 3) in mm, that lie beside each other at the same heights, as the stations of a table do."""
    beside = float(np.linalg.norm(places - places[0], axis=-1).max())
    if beside > max(apart_mm, _ROUNDING):
        raise UnreadableVolume(
            f"{name}: images at the same height lie up to {beside:.4g} mm beside each other: several stations or "
            "fields of view share a series. Export them as separate series, or put each into a folder of its own."
        )


def _step(
    stack: list[Slice], positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], name: str
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Find the vector from one slice to the next, or refuse a stack that has no constant one."""
    first = stack[0]
    if len(positions) == 1:
        thickness = first.between or first.thickness
        if thickness > 0:
            return normal * thickness, []
        return normal, ["The series does not state how thick its only slice is; 1 mm was assumed."]
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    n_missing = int((np.rint(gaps / usual) - 1).sum())
    if n_missing > 0 and not _are_numbered_evenly(stack):
        where = positions[:-1][gaps > 1.5 * usual]
        raise UnreadableVolume(
            f"{name}: {n_missing} of {len(positions) + n_missing} slices are missing; the first gap, "
            f"{gaps[gaps > 1.5 * usual][0]:.4g} mm "
            f"instead of {usual:.4g} mm, follows the slice at {np.round(where[0], 2).tolist()} mm. "
            "Copy the whole series again."
        )
    total = positions[-1] - positions[0]
    step = total / (len(positions) - 1)
    number = np.arange(len(positions))
    slope, start = np.polyfit(number, positions, 1)
    uneven = float(np.linalg.norm(positions - start - number[:, None] * slope, axis=1).max())
    rounding = _ROUNDING if np.allclose(10 * positions, np.rint(10 * positions), rtol=0, atol=1e-4) else 0.0
    if uneven > max(0.1 * float(np.linalg.norm(step)), min(rounding, 0.3 * usual)):
        raise UnreadableVolume(f"{name}: {_unevenness(gaps, positions)}")
    warnings = []
    if uneven > 0.02 * np.linalg.norm(step):
        warnings.append(f"The slices are up to {uneven:.2g} mm from an even spacing of {np.linalg.norm(step):.4g} mm.")
    across = float(normal @ total)
    if np.linalg.norm(total - across * normal) < max(0.01 * min(first.spacing), 2 * rounding):
        return normal * across / (len(positions) - 1), warnings
    tilt = math.degrees(math.acos(min(1.0, across / float(np.linalg.norm(total)))))
    warnings.append(
        f"The gantry was tilted: the slices are stacked {tilt:.1f} degrees off their normal. "
        "The volume keeps this shear."
    )
    return step, warnings


def _are_numbered_evenly(stack: list[Slice]) -> bool:
    """Return whether the images' own numbers leave none out."""
    numbers = np.diff([part.order[-1] if part.order else 0 for part in stack])
    return bool(numbers[0] != 0 and (numbers == numbers[0]).all())


def _unevenness(gaps: npt.NDArray[np.float64], positions: npt.NDArray[np.float64]) -> str:
    """Return how the spacing of slices varies: whether it changes once, from one value to another, or all along."""
    change = int(np.argmax(np.abs(gaps - gaps[0]) > 0.1 * gaps[0]))
    lower, upper = gaps[:change], gaps[change:]
    if change and all(np.ptp(part) <= 0.1 * part.min() for part in (lower, upper)):
        return (
            f"the slices are not evenly spaced: they lie {lower.mean():.4g} mm apart, and from the one at "
            f"{np.round(positions[change], 2).tolist()} mm on {upper.mean():.4g} mm. A volume has one spacing: "
            "reconstruct the scan with a constant one, or put each part into a folder of its own."
        )
    return (
        f"the slices are not evenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm). "
        "Export or reconstruct the series with a constant spacing."
    )
