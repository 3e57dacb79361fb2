"""Where the viewer is in a layer: the axis across the screen, its slice, the voxel under the mouse, the voxel size."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_fmseg._napari.layer_transform import geometry_of
from napari_fmseg._napari.results.navigation import layer_units_per_view
from napari_fmseg.core.errors import GeometryMismatch

__all__ = ["AXIS_NAMES", "axis_on_screen", "go_to_slice", "slice_on_screen", "spacing_of", "voxel_at"]

AXIS_NAMES = ("axial", "coronal", "sagittal")


def axis_on_screen(viewer: Any, layer: Any) -> int:
    """Return the axis (0 z, 1 y, 2 x) of a layer's voxels that runs into the screen.

    Raises
    ------
    GeometryMismatch
        If the layer has not three axes, or the screen shows another axis than its, such as time.
    """
    if layer.ndim != 3:
        raise GeometryMismatch(
            f"“{layer.name}” has {layer.ndim} axes; correcting needs three (z, y, x). Split the layer, or "
            "choose another."
        )
    axis = int(viewer.dims.order[-3]) - (viewer.dims.ndim - 3) if viewer.dims.ndim >= 3 else -1
    if not 0 <= axis <= 2:
        raise GeometryMismatch(
            "The screen shows an axis that the labels do not have, such as time. Change the order of the axes, below "
            "the list of layers."
        )
    return axis


def slice_on_screen(viewer: Any, layer: Any, axis: int) -> int:
    """Return the slice of a layer along `axis` that is on the screen, within the layer."""
    known = getattr(layer, "_data_slice", None)  # as napari itself slices, also where the layer lies obliquely
    at = float("nan") if known is None else float(known.point[axis])
    if not np.isfinite(at):
        offset = viewer.dims.ndim - 3
        sizes = layer_units_per_view(viewer, layer)
        world = [float(v) / size for v, size in zip(viewer.dims.point[offset:], sizes, strict=True)]
        at = float(layer.world_to_data(world)[axis])
    return min(max(round(at), 0), int(layer.data.shape[axis]) - 1)


def go_to_slice(viewer: Any, layer: Any, axis: int, index: int) -> None:
    """Show slice `index` of a layer along `axis`; the other axes stay where they are."""
    offset = viewer.dims.ndim - 3
    sizes = layer_units_per_view(viewer, layer)
    point = [float(v) / size for v, size in zip(viewer.dims.point[offset:], sizes, strict=True)]
    voxel = list(layer.world_to_data(point))
    voxel[axis] = index
    world = layer.data_to_world(voxel)
    viewer.dims.set_point(axis + offset, float(world[axis]) * sizes[axis])


def voxel_at(viewer: Any, layer: Any, position: Any) -> tuple[int, int, int] | None:
    """Return the voxel of a layer at a place of the viewer's world, such as the mouse's; None outside.

    The axis across the screen counts as napari slices it.
    """
    sizes = layer_units_per_view(viewer, layer)
    world = [float(v) / size for v, size in zip(tuple(position)[-3:], sizes, strict=True)]
    voxel = [round(float(v)) for v in layer.world_to_data(world)]
    if viewer.dims.ndisplay == 2:
        axis = axis_on_screen(viewer, layer)
        voxel[axis] = slice_on_screen(viewer, layer, axis)
    if any(not 0 <= v < n for v, n in zip(voxel, layer.data.shape, strict=True)):
        return None
    z, y, x = voxel
    return z, y, x


def spacing_of(layer: Any) -> tuple[float, float, float]:
    """Return the size of a layer's voxels in mm along its axes; a pixel counts as 1 mm.

    Raises
    ------
    GeometryMismatch
        As `geometry_of`.
    """
    z, y, x = (float(v) for v in geometry_of(layer).spacing)
    return z, y, x
