"""Prompts out of what somebody draws with napari's own tools: points, rectangles, a lasso and brush strokes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.interactive.client import Box, Mask, Point

__all__ = ["box_of", "lasso_of", "point_of"]


def point_of(index: Sequence[float], shape: Sequence[int], *, include: bool) -> Point | None:
    """Return the prompt of a point at an index (z, y, x) of the image; None beside it."""
    z, y, x = (round(float(v)) for v in index)
    inside = all(0 <= v < n for v, n in zip((z, y, x), shape, strict=True))
    return Point((z, y, x), include) if inside else None


def box_of(corners: npt.NDArray[np.float64], shape: Sequence[int], *, include: bool) -> Box | None:
    """Return the prompt of a rectangle in a slice, by its corners as indices (n, 3); None beside the image."""
    low = np.maximum(np.round(corners.min(0)).astype(int), 0)
    high = np.minimum(np.round(corners.max(0)).astype(int) + 1, shape)
    if (high <= low).any():
        return None
    a, b = (tuple(int(v) for v in side) for side in (low, high))
    return Box((a[0], a[1], a[2]), (b[0], b[1], b[2]), include)


def lasso_of(outline: npt.NDArray[np.float64], shape: Sequence[int], *, include: bool) -> Mask | None:
    """Return the prompt of a closed outline in a slice, by its points as indices (n, 3): the slice's inside.

    None where it lies in no slice of the image, or surrounds no voxel.
    """
    from skimage.draw import polygon2mask

    spread = np.ptp(outline, axis=0)
    axis = int(np.argmin(spread))
    plane = round(float(outline[:, axis].mean()))
    if not 0 <= plane < shape[axis]:
        return None
    rest = [a for a in range(3) if a != axis]
    inside = polygon2mask(tuple(shape[a] for a in rest), outline[:, rest])
    if not inside.any():
        return None
    mask = np.zeros(tuple(shape), bool)
    where: list[Any] = [slice(None)] * 3
    where[axis] = plane
    mask[tuple(where)] = inside
    return Mask(mask, include, is_lasso=True)
