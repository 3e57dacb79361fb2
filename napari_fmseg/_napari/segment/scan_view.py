"""What a viewer keeps while layers of ours are in it: the scan's own slice numbers, and a view direction in 3-D."""

from __future__ import annotations

from typing import Any
from weakref import ref

from napari_fmseg._napari.common.viewer_window import set_view_direction, unwrap_viewer
from napari_fmseg._napari.layer_transform import fmseg_metadata

__all__ = ["DERIVED", "attend"]

DERIVED = "derived"  # in a layer's own metadata: computed from an image, perhaps on another grid


def attend(viewer: Any) -> None:
    """Keep a viewer's slice numbers and view direction right from now on; again does no harm.

    The slider counts the slices of the finest layer. The stages of a run have grids of their own, mostly finer and a
    little to the side, so that slice 12 of the scan would become slice 30 of the viewer. They do not count here.

    In 3-D, napari describes the layer that becomes active along the view direction, which the cursor does not know
    before it has moved: labels with class names then raise an error, and the layer is lost.
    """
    viewer = unwrap_viewer(viewer)
    known = ref(viewer)
    if not any(getattr(callback, "is_of_fmseg", False) for callback in viewer.dims.events.range.callbacks):

        def on_range(_event: Any = None) -> None:
            if (there := known()) is not None:
                _count_slices_of_scans(there)

        def on_ndisplay(_event: Any = None) -> None:
            if (there := known()) is not None:
                set_view_direction(there)

        on_range.is_of_fmseg = True  # type: ignore[attr-defined]
        viewer.dims.events.range.connect(on_range)
        viewer.dims.events.ndisplay.connect(on_ndisplay, position="first")
    set_view_direction(viewer)
    _count_slices_of_scans(viewer)


def _count_slices_of_scans(viewer: Any) -> None:
    """Set the range of the sliders to that of the layers that were not derived from others, where there are any."""
    layers = list(viewer.layers)
    scans = [layer for layer in layers if not fmseg_metadata(layer).get(DERIVED)]
    ndim = max((layer.ndim for layer in layers), default=0)
    if not scans or len(scans) == len(layers) or max(layer.ndim for layer in scans) < ndim:
        return
    extent = viewer.layers.get_extent(scans)
    wanted = tuple(zip(*extent.world.tolist(), extent.step.tolist(), strict=True))
    if tuple(tuple(axis) for axis in viewer.dims.range) != wanted:
        viewer.dims.range = wanted
