"""Signed distances in mm to the border of a shape: positive inside, negative outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["distance_to", "signed_distance"]

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
    inside = distance_to(~mask, spacing)
    outside = distance_to(mask, spacing)
    return np.where(mask, inside - half, half - outside)


def distance_to(mask: npt.NDArray[np.bool_], spacing: Sequence[float]) -> Distances:
    """Compute the distance in mm from every voxel to the nearest one of a shape, 0 inside; the shape is not empty."""
    from scipy import ndimage

    found: npt.NDArray[Any] = ndimage.distance_transform_edt(~mask, sampling=tuple(spacing))
    return found.astype(np.float32)
