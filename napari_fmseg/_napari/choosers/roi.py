"""The part of an image to segment: a box drawn in a Shapes layer, or what the view shows; in voxels of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.layer_transform import mm_matrix, unit_mm
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Box, LabelMap, Volume

__all__ = ["box_of_shapes", "box_of_view", "crop_to", "paste_into"]

_FLAT_MM = 1e-3  # what is thinner than this was drawn in one plane


def box_of_shapes(shapes: Any, image: Any) -> Box:
    """Return the voxels of `image` that the shapes touch: the selected ones, or all if none is selected.

    Parameters
    ----------
    shapes
        A Shapes layer. What is drawn in one plane holds for the whole depth across it.
    image
        An Image layer with three axes, or four of which the last three count.

    Raises
    ------
    GeometryMismatch
        If nothing is drawn, or it lies beside the image.
    """
    drawn = [shapes.data[i] for i in sorted(shapes.selected_data)] or list(shapes.data)
    if not drawn:
        raise GeometryMismatch(
            f"Nothing is drawn in {shapes.name!r}. Draw a rectangle over the image, or use it whole."
        )
    world = np.array([shapes.data_to_world(point) for shape in drawn for point in np.asarray(shape)], float)
    low, high = np.full(3, -np.inf), np.full(3, np.inf)
    axes = min(world.shape[1], 3)  # a layer with two axes says nothing of the depth
    world[:, -axes:] *= [unit_mm(unit, str(shapes.name)) for unit in shapes.units[-axes:]]
    low[-axes:], high[-axes:] = world[:, -axes:].min(0), world[:, -axes:].max(0)
    flat = high - low < _FLAT_MM
    low[flat], high[flat] = -np.inf, np.inf
    return _box(low, high, image, f"What is drawn in {shapes.name!r}")


def box_of_view(image: Any, displayed: Sequence[int]) -> Box:
    """Return the voxels of `image` that the canvas shows, over the whole depth.

    Parameters
    ----------
    image
        An Image layer that is drawn now.
    displayed
        Axes of the viewer that lie in the picture; with all three of them it is the whole image.

    Raises
    ------
    GeometryMismatch
        If the view shows none of the image.
    """
    shape = [int(n) for n in image.data.shape[-3:]]
    first = image.data.ndim - 3
    corners = np.asarray(image.corner_pixels, float)
    if getattr(image, "multiscale", False):  # they count the voxels of the level that is drawn
        factors = np.asarray(image.downsample_factors[image.data_level])
        corners = np.stack([corners[0] * factors, (corners[1] + 1) * factors - 1])
    corners = corners[:, first:]
    shown = {axis - first for axis in displayed} if len(displayed) == 2 else set()
    low = [int(corners[0, axis]) if axis in shown else 0 for axis in range(3)]
    high = [int(corners[1, axis]) + 1 if axis in shown else shape[axis] for axis in range(3)]
    return _box_between(np.array(low), np.array(high), shape, "The view")


def _box(low: npt.NDArray[Any], high: npt.NDArray[Any], image: Any, what: str) -> Box:
    """Return all voxels that lie, with some part of them, between two corners in the world in mm."""
    shape = [int(n) for n in image.data.shape[-3:]]
    matrix = mm_matrix(image)
    reach = _corners(np.full(3, -0.5), np.array(shape) - 0.5) @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = np.where(np.isinf(low), reach.min(0), low), np.where(np.isinf(high), reach.max(0), high)
    ends = np.linalg.solve(matrix[:3, :3], (_corners(low, high) - matrix[:3, 3]).T).T + 0.5
    first = np.clip(np.floor(ends.min(0) + 1e-6), 0, shape).astype(int)
    last = np.clip(np.ceil(ends.max(0) - 1e-6), 0, shape).astype(int)
    return _box_between(first, last, shape, what)


def _corners(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the eight corners (8, 3) of a box."""
    pairs = np.stack([low, high])
    return np.array([[pairs[i, 0], pairs[j, 1], pairs[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)


def _box_between(first: npt.NDArray[Any], last: npt.NDArray[Any], shape: Sequence[int], what: str) -> Box:
    first, last = np.clip(first, 0, shape), np.clip(last, 0, shape)
    if (last <= first).any():
        raise GeometryMismatch(f"{what} lies beside the image: no voxel of it is inside. Move it over the image.")
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return z, y, x


def crop_to(volume: Volume, box: Box) -> Volume:
    """Return the part of `volume` inside `box`, in its true place; a view."""
    return Volume(volume.data[(..., *box)], volume.geometry.crop(box), volume.meta)


def paste_into(labels: LabelMap, box: Box, whole: Volume) -> LabelMap:
    """Put labels of the part inside `box` on the grid of the whole image; background outside."""
    data = np.zeros(whole.geometry.shape, labels.data.dtype)
    data[box] = labels.data
    return LabelMap(data, whole.geometry, labels.meta, labels.names, labels.colors)
