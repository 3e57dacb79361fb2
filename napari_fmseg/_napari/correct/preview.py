"""What a tool would change, shown in a layer of its own: what is added in its class's colour, what goes in magenta."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.layer_transform import KEY, TOOL
from napari_fmseg._napari.results.class_colors import Rgba, colors_of
from napari_fmseg.core.volume import Box
from napari_fmseg.pipelines.correction import Edit

__all__ = ["GOES", "Overlay", "Picture", "code_of", "picture_of"]

GOES = (1.0, 0.0, 1.0, 1.0)  # what becomes background
_BACKGROUND, _FIRST, _MOST = 1, 2, 254  # codes of the overlay: what goes; the classes that come, 1... of them


@dataclass(frozen=True, eq=False)
class Picture:
    """An edit as the overlay shows it.

    Parameters
    ----------
    box
        Where it lies in the labels.
    codes
        Of every voxel of the box, see `code_of`: 0 stays, 1 becomes background.
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
    codes = np.zeros(edit.values.shape, np.uint8)
    for value in values:
        codes[changes & (edit.values == value)] = code_of(value)
    n, n_less = int(np.count_nonzero(changes)), int(np.count_nonzero(codes == _BACKGROUND))
    return Picture(edit.box, codes, tuple(value for value in values if value), n - n_less, n_less)


def code_of(value: int) -> int:
    """Return how the overlay encodes that a voxel becomes a class; only of 255 and more do some share a code."""
    return (value - 1) % _MOST + _FIRST if value else _BACKGROUND


class Overlay:
    """A layer over labels that shows one picture after the other.

    Between two pictures it is hidden and stays: napari takes longer to add a layer, or to change its colours, than a
    tool to compute a slice.
    """

    def __init__(self, viewer: Any, name: str = "Preview", opacity: float = 0.9, color: Rgba = GOES) -> None:
        self._viewer, self._name, self._opacity, self._color = viewer, name, opacity, color
        self._layer: Any = None
        self._below: Any = None
        self._box: Box | None = None
        self._colors: dict[int | None, Rgba] = {}

    @property
    def is_shown(self) -> bool:
        """Whether there is a picture."""
        return self._is_there and bool(self._layer.visible)

    @property
    def _is_there(self) -> bool:
        return self._layer is not None and self._layer in self._viewer.layers

    def prepare(self, below: Any, classes: Iterable[int] = ()) -> None:
        """Add the layer, hidden, over the labels layer `below`, with the colours of classes that may come."""
        if not self._is_there or self._below is not below or self._layer.data.shape != below.data.shape:
            self.remove()
            self._add(below, classes)
        else:
            self._color_classes(classes)

    def show(self, below: Any, picture: Picture) -> None:
        """Show a picture over the labels layer `below`, which stays the one that is painted on."""
        self.prepare(below, picture.classes)
        layer = self._layer
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
        self._layer = self._below = self._box = None

    def _add(self, below: Any, classes: Iterable[int]) -> None:
        from napari.layers import Labels

        self._colors = {None: self._color, 0: (0.0, 0.0, 0.0, 0.0), _BACKGROUND: self._color}
        self._colors |= _colors(below, classes)
        place = {name: getattr(below, name) for name in ("scale", "translate", "rotate", "shear", "affine")}
        place |= {"units": below.units, "axis_labels": below.axis_labels}
        data = np.zeros(below.data.shape, np.uint8)
        data.fill(0)  # the first write of a page takes longer than the second: not while a tool is waited for
        self._layer = Labels(
            data,
            name=self._name,
            opacity=self._opacity,
            colormap=dict(self._colors),
            metadata={KEY: {"role": TOOL}},
            visible=False,
            **place,
        )
        selection = self._viewer.layers.selection
        self._below, selected, active = below, set(selection), selection.active
        self._viewer.layers.insert(list(self._viewer.layers).index(below) + 1, self._layer)
        self._layer.editable = False
        selection.clear()
        selection.update(selected)
        if active is not None:
            selection.active = active

    def _color_classes(self, classes: Iterable[int]) -> None:
        """Set the colours of the classes, where they do not have them."""
        wanted = _colors(self._below, classes)
        if any(self._colors.get(code) != color for code, color in wanted.items()):
            self._colors |= wanted
            self._layer.colormap = dict(self._colors)


def _colors(below: Any, classes: Iterable[int]) -> dict[int | None, Rgba]:
    """Return the colours of the codes of classes: those that they have in the labels, but never transparent."""
    return {code_of(v): (red, green, blue, 1.0) for v, (red, green, blue, _) in colors_of(below, classes).items()}
