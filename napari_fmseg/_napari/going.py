"""Going to a place: the planes through a voxel, in the middle of the view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["go_to"]


def go_to(viewer: Any, layer: Any, index: Sequence[int]) -> None:
    """Show the voxel `index` (z, y, x) of a layer in every view, in the middle."""
    world = [float(v) for v in layer.data_to_world(index)]
    dims = viewer.dims
    axes = tuple(range(dims.ndim - 3, dims.ndim))
    dims.set_point(axes, world)
    _camera(viewer).center = tuple(world[axis - axes[0]] for axis in dims.displayed if axis >= axes[0])


def _camera(viewer: Any) -> Any:
    """Give the viewer's camera, which napari 0.9 has moved into the scene."""
    scene = getattr(viewer, "scene", None)
    return viewer.camera if scene is None else scene.camera
