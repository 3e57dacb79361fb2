"""What a tool would change, shown in a layer of its own: what is added in its class's colour, what goes in magenta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.layer_transform import KEY, TOOL
from napari_fmseg._napari.results.class_colors import Rgba, colors_of
from napari_fmseg.core.volume import Box
from napari_fmseg.pipelines.correction import Edit

__all__ = ["GOES", "Overlay", "Picture", "picture_of"]

GOES = (1.0, 0.0, 1.0, 1.0)  # what becomes background
_BACKGROUND, _FIRST, _MOST = 1, 2, 253  # codes of the overlay: what goes; the classes that come


@dataclass(frozen=True, eq=False)
class Picture:
    """An edit as the overlay shows it.

    Parameters
    ----------
    box
        Where it lies in the labels.
    codes
        Of every voxel of the box: 0 stays, 1 becomes background, 2... becomes the first, second... of `classes`.
    classes
        The classes that voxels become.
    n_more, n_less
        Number of voxels that become a class, and that become background.
    """

    box: Box
    codes: npt.NDArray[np.uint8]
    classes: tuple[int, ...]
    n_more: int
    n_less: int


def picture_of(labels: npt.NDArray[Any], edit: Edit) -> Picture:
    """Return how the overlay shows what an edit changes in labels."""
    changes = labels[edit.box] != edit.values
    values = [int(v) for v in np.unique(edit.values[changes])]
    classes = tuple(value for value in values if value)[:_MOST]
    codes = np.zeros(edit.values.shape, np.uint8)
    gone = changes & (edit.values == 0)
    codes[gone] = _BACKGROUND
    for i, value in enumerate(classes):
        codes[changes & (edit.values == value)] = i + _FIRST
    n_less = int(np.count_nonzero(gone))
    return Picture(edit.box, codes, classes, int(np.count_nonzero(changes)) - n_less, n_less)


class Overlay:
    """A layer over labels that shows one picture after the other.

    Between two pictures it is hidden and stays: napari takes longer to add a layer than a tool to compute a slice.
    """

    def __init__(self, viewer: Any, name: str = "Preview", opacity: float = 0.9, color: Rgba = GOES) -> None:
        self._viewer, self._name, self._opacity, self._color = viewer, name, opacity, color
        self._layer: Any = None
        self._below: Any = None
        self._box: Box | None = None
        self._classes: tuple[int, ...] | None = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a picture."""
        return self._is_there and bool(self._layer.visible)

    @property
    def _is_there(self) -> bool:
        return self._layer is not None and self._layer in self._viewer.layers

    def show(self, below: Any, picture: Picture) -> None:
        """Show a picture over the labels layer `below`, which stays the one that is painted on."""
        if not self._is_there or self._below is not below or self._layer.data.shape != below.data.shape:
            self.remove()
            self._add(below)
        layer = self._layer
        if picture.classes != self._classes:
            self._classes = picture.classes
            layer.colormap = self._colormap(below, picture.classes)
        if self._box is not None:
            layer.data[self._box] = 0
        layer.data[picture.box] = picture.codes
        self._box = picture.box
        if layer.visible:
            layer.refresh(extent=False, thumbnail=False)
        else:
            layer.visible = True

    def hide(self) -> None:
        """Show nothing."""
        if self.is_shown:
            self._layer.visible = False
        if self._is_there and self._box is not None:
            self._layer.data[self._box] = 0
        self._box = None

    def remove(self) -> None:
        """Remove the layer."""
        if self._is_there:
            active = self._viewer.layers.selection.active
            self._viewer.layers.remove(self._layer)
            if self._below in self._viewer.layers and active in (self._layer, self._below, None):
                self._viewer.layers.selection.active = self._below
        self._layer = self._below = self._box = self._classes = None

    def _add(self, below: Any) -> None:
        from napari.layers import Labels

        place = {name: getattr(below, name) for name in ("scale", "translate", "rotate", "shear", "affine")}
        place |= {"units": below.units, "axis_labels": below.axis_labels}
        self._layer = Labels(
            np.zeros(below.data.shape, np.uint8),
            name=self._name,
            opacity=self._opacity,
            colormap=self._colormap(below, ()),
            metadata={KEY: {"role": TOOL}},
            **place,
        )
        self._below, self._classes = below, ()
        self._viewer.layers.insert(list(self._viewer.layers).index(below) + 1, self._layer)
        self._layer.editable = False
        self._viewer.layers.selection.active = below

    def _colormap(self, below: Any, classes: tuple[int, ...]) -> dict[int | None, Any]:
        shown: dict[int | None, Any] = {None: self._color, 0: (0.0, 0.0, 0.0, 0.0), _BACKGROUND: self._color}
        for i, (red, green, blue, _) in enumerate(colors_of(below, classes).values()):
            shown[i + _FIRST] = (red, green, blue, 1.0)
        return shown
