"""Going to a place: the planes through a voxel, in the middle of the view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_fmseg._napari.common.viewer_window import camera_of
from napari_fmseg._napari.layer_transform import unit_mm

__all__ = ["centre_on_voxel", "layer_units_per_view", "point_in"]


def centre_on_voxel(viewer: Any, layer: Any, index: Sequence[int]) -> None:
    """Show the voxel `index` (z, y, x) of a layer in every view, in the middle."""
    sizes = layer_units_per_view(viewer, layer)
    world = [float(v) * size for v, size in zip(layer.data_to_world(index), sizes, strict=True)]
    dims = viewer.dims
    axes = tuple(range(dims.ndim - 3, dims.ndim))
    dims.set_point(axes, world)
    camera_of(viewer).center = tuple(world[axis - axes[0]] for axis in dims.displayed if axis >= axes[0])


def point_in(viewer: Any, layer: Any) -> tuple[float, ...]:
    """Return the place where the view is in the world coordinates (z, y, x) of a layer, which has units of its own."""
    sizes = layer_units_per_view(viewer, layer)
    return tuple(float(v) / size for v, size in zip(viewer.dims.point[-3:], sizes, strict=True))


def layer_units_per_view(viewer: Any, layer: Any) -> tuple[float, ...]:
    """Return the factors (z, y, x) from a layer's world to the viewer's, which napari counts in the smallest unit."""
    units = getattr(viewer.dims, "units", None)  # since napari 0.9; None where the layers' units have nothing in common
    if units is None or len(units) < 3:
        return (1.0, 1.0, 1.0)
    pairs = zip(layer.units[-3:], units[-3:], strict=True)
    return tuple(1.0 if str(own) == str(shared) else unit_mm(own) / unit_mm(shared) for own, shared in pairs)
