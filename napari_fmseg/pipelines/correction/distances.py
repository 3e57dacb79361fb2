"""Signed distances in mm to the border of a shape: positive inside, negative outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Distances", "signed_distance", "within_reach"]

Distances = npt.NDArray[np.float32]


def signed_distance(mask: npt.NDArray[np.bool_], spacing: Sequence[float]) -> Distances:
    """Compute the distance in mm of every pixel or voxel to the border of a shape.

    Parameters
    ----------
    mask
        The shape, in two or three dimensions.
    spacing
        Distance of neighbours in mm along each axis.

    Returns
    -------
    numpy.ndarray
        Positive inside, negative outside, half the smallest spacing at the border; -inf everywhere for an empty shape
        and inf for one that fills the array.
    """
    if not mask.any():
        return np.full(mask.shape, -np.inf, np.float32)
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    half = np.float32(min(spacing) / 2)
    return np.where(mask, _to_background(mask, spacing) - half, half - _to_background(~mask, spacing))


def within_reach(mask: npt.NDArray[np.bool_], reach_mm: float, spacing: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Return the voxels whose centre lies at most `reach_mm` from that of a voxel of a shape.

    The squared distance is the smallest sum over the axes, one axis after the other and no further than the reach: for
    the few voxels that tools grow by, several times as fast as a distance transform.
    """
    squares = np.where(mask, np.float32(0), np.float32(np.inf))
    for axis, mm in enumerate(spacing):
        nearest = squares.copy()
        lines, found = np.moveaxis(squares, axis, 0), np.moveaxis(nearest, axis, 0)
        for k in range(1, min(math.floor(reach_mm / mm * (1 + 1e-6)), len(lines) - 1) + 1):
            away = lines + np.float32((k * mm) ** 2)
            np.minimum(found[k:], away[:-k], out=found[k:])
            np.minimum(found[:-k], away[k:], out=found[:-k])
        squares = nearest
    return squares <= np.float32(reach_mm**2 * (1 + 1e-5))


def _to_background(mask: npt.NDArray[np.bool_], spacing: Sequence[float]) -> Distances:
    """Compute the distance in mm of every voxel of a shape to the nearest one outside it."""
    from scipy import ndimage

    found: npt.NDArray[Any] = ndimage.distance_transform_edt(mask, sampling=tuple(spacing))
    return found.astype(np.float32)
