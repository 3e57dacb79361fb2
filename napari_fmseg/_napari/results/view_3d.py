"""The labels in three dimensions, the patient upright and seen from the front."""

from __future__ import annotations

from typing import Any

from napari_fmseg._napari.common.viewer_window import camera_of

__all__ = ["ThreeD"]

AHEAD, UP = (0, 1, 0), (1, 0, 0)  # z, y, x of the patient: towards the back, towards the head


class ThreeD:
    """Turns a viewer between slices and the whole body, as often as asked, and never shows a mirror image.

    Left to itself, napari (since 0.6) shows left-handed axes in three dimensions, and z, y, x of a patient are such:
    the heart would lie on the right. From the moment that this object exists its viewer has the other handedness.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        _unmirror(viewer)

    def toggle(self) -> None:
        """Show the labels in three dimensions without the images, which would cover them; or the slices again."""
        from napari.layers import Image

        dims = self._viewer.dims
        if dims.ndisplay == 3:
            dims.ndisplay = 2
            return
        hidden = [layer for layer in self._viewer.layers if isinstance(layer, Image) and layer.visible]

        def on_ndisplay(_event: Any) -> None:  # also by napari's own button, and after the dock was closed
            if dims.ndisplay == 2:
                dims.events.ndisplay.disconnect(on_ndisplay)
                for layer in hidden:
                    layer.visible = True

        for layer in hidden:
            layer.visible = False
        dims.ndisplay = 3
        dims.events.ndisplay.connect(on_ndisplay)
        _unmirror(self._viewer)
        self._viewer.reset_view()
        camera_of(self._viewer).set_view_direction(view_direction=AHEAD, up_direction=UP)


def _unmirror(viewer: Any) -> None:
    """Point the first axis away from the eye, as the axes z, y, x of a patient require; slices look as before."""
    camera = camera_of(viewer)
    if hasattr(camera, "orientation"):  # older ones know nothing else
        camera.orientation = ("away", "down", "right")
