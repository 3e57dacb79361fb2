"""The grid that the slices of a DICOM series lie on, found from their own positions; copies of a slice are dropped."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from napari_fmseg.errors import UnreadableVolume
from napari_fmseg.io.checks import REVERSED
from napari_fmseg.io.dicomplanes import Slice
from napari_fmseg.volume import Geometry

__all__ = ["stack"]


def stack(slices: list[Slice], name: str) -> tuple[list[list[Slice]], Geometry, list[str]]:
    """Sort slices into channels of ascending position, and find the grid that they lie on."""
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
    positions = np.array([part.position for part in stacks[0]])
    step, warnings = _step(positions, normal, first, name)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    affine[:3, 3] = positions[0]
    return stacks, Geometry((len(positions), *first.shape), affine[REVERSED]), warnings


def _without_copies(slices: list[Slice]) -> list[Slice]:
    """Drop files that are there twice, as happens when folders are merged."""
    return list({(part.uid, part.position): part for part in slices}.values())


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


def _step(
    positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], first: Slice, name: str
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Find the vector from one slice to the next, or refuse a stack that has no constant one."""
    if len(positions) == 1:
        if first.thickness > 0:
            return normal * first.thickness, []
        return normal, ["The series does not state how thick its only slice is; 1 mm was assumed."]
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    n_missing = int((np.rint(gaps / usual) - 1).sum())
    if n_missing > 0:
        where = positions[:-1][gaps > 1.5 * usual]
        raise UnreadableVolume(
            f"{name}: {n_missing} of {len(positions) + n_missing} slices are missing; the first gap, "
            f"{gaps[gaps > 1.5 * usual][0]:.4g} mm "
            f"instead of {usual:.4g} mm, follows the slice at {np.round(where[0], 2).tolist()} mm. "
            "Copy the whole series again."
        )
    total = positions[-1] - positions[0]
    step = total / (len(positions) - 1)
    uneven = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1).max()
    if uneven > 0.1 * np.linalg.norm(step):
        raise UnreadableVolume(
            f"{name}: the slices are not evenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm). "
            "Export or reconstruct the series with a constant spacing."
        )
    warnings = []
    if uneven > 0.02 * np.linalg.norm(step):
        warnings.append(f"The slices are up to {uneven:.2g} mm from an even spacing of {np.linalg.norm(step):.4g} mm.")
    across = float(normal @ total)
    if np.linalg.norm(total - across * normal) < 0.01 * min(first.spacing):
        return normal * across / (len(positions) - 1), warnings
    tilt = math.degrees(math.acos(min(1.0, across / float(np.linalg.norm(total)))))
    warnings.append(
        f"The gantry was tilted: the slices are stacked {tilt:.1f} degrees off their normal. "
        "The volume keeps this shear."
    )
    return step, warnings
