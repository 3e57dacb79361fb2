"""The layer in which the user paints a cut across an island."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.layer_transform import KEY, TOOL

__all__ = ["CutLayer"]

WHITE = (1.0, 1.0, 1.0, 1.0)


class CutLayer:
    """A white labels layer over the labels, there only while a cut is painted."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._layer: Any = None
        self._below: Any = None

    @property
    def is_open(self) -> bool:
        """Whether a cut is being painted."""
        return self._layer is not None and self._layer in self._viewer.layers

    @property
    def cut(self) -> npt.NDArray[Any] | None:
        """What was painted; None if nothing was."""
        return self._layer.data if self.is_open and self._layer.data.any() else None

    def open(self, below: Any, brush_size: int = 3) -> None:
        """Add the layer over `below`, and choose the brush in it."""
        from napari.layers import Labels

        self.close()
        place = {name: getattr(below, name) for name in ("scale", "translate", "rotate", "shear", "affine")}
        place |= {"units": below.units, "axis_labels": below.axis_labels}
        colormap = {None: WHITE, 0: (0.0, 0.0, 0.0, 0.0), 1: WHITE}
        metadata = {KEY: {"role": TOOL}}
        data = np.zeros(below.data.shape, np.uint8)
        self._layer = Labels(data, name="Cut", opacity=1.0, colormap=colormap, metadata=metadata, **place)
        self._below = below
        self._viewer.layers.insert(list(self._viewer.layers).index(below) + 1, self._layer)
        self._layer.brush_size = brush_size
        self._layer.mode = "paint"
        self._viewer.layers.selection.active = self._layer

    def close(self) -> None:
        """Remove the layer; the labels are selected again."""
        if self.is_open:
            self._viewer.layers.remove(self._layer)
            if self._below in self._viewer.layers:
                self._viewer.layers.selection.active = self._below
        self._layer = self._below = None
