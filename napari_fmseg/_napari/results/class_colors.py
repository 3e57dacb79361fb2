"""Colour and visibility of single classes of a labels layer, which napari itself keeps per layer only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QPixmap

__all__ = ["SWATCH", "Rgba", "color_icon", "colors_of", "rename", "set_colors"]

Rgba: TypeAlias = tuple[float, float, float, float]
SWATCH = 14  # pixels
_CYCLE = 256  # as many labels of a cycle of colours are written out, and those that occur
NAMELESS = (1.0, 1.0, 1.0, 1.0)  # what has no colour of its own is white: a transparent one would paint invisibly


def colors_of(layer: Any, labels: Iterable[int]) -> dict[int, Rgba]:
    """Return the colour of labels, each red, green, blue, alpha in 0..1; alpha 0 where the class is hidden."""
    own = getattr(layer.colormap, "color_dict", {})
    found: dict[int, Rgba] = {}
    for label in labels:
        color = own.get(label)
        if color is None:
            color = layer.colormap.map(np.array([label])).reshape(-1)
        red, green, blue, alpha = (float(v) for v in color)
        found[label] = (red, green, blue, alpha)
    return found


def color_icon(color: tuple[float, ...] | None) -> QIcon:
    """Return a square of a colour (its first three of red, green, blue, alpha), transparent for None."""
    picture = QPixmap(SWATCH, SWATCH)
    picture.fill(QColor.fromRgbF(*color[:3], 1.0) if color is not None else QColor(Qt.GlobalColor.transparent))
    icon = QIcon(picture)
    icon.addPixmap(picture, QIcon.Mode.Selected)  # or Qt tints it where its row is selected
    return icon


def set_colors(layer: Any, colors: Mapping[int, Rgba], present: Iterable[int] = ()) -> None:
    """Set the colours of labels; the others keep theirs.

    Parameters
    ----------
    layer
        A labels layer, also of another plugin: where its colours come from a cycle, that is written out.
    colors
        Of some labels.
    present
        Labels that are known to occur in it.
    """
    from napari.utils.colormaps import DirectLabelColormap

    kept = dict(getattr(layer.colormap, "color_dict", {}))
    if not kept:
        known = {int(label) for label in present} | set(range(1, _CYCLE)) | {int(layer.selected_label)}
        kept = dict(colors_of(layer, sorted(known - {0})))
    kept = {None: NAMELESS, 0: (0.0, 0.0, 0.0, 0.0), **kept}
    layer.colormap = DirectLabelColormap(color_dict={**kept, **colors})


def rename(layer: Any, label: int, name: str) -> None:
    """Name a class; the name stands in the status bar and goes along on export."""
    features = layer.features
    names: dict[int, str] = {0: "background"}
    if "index" in features and "name" in features:
        names |= {int(i): str(n) for i, n in zip(features["index"], features["name"], strict=True)}
    names[label] = name
    layer.features = {"index": list(names), "name": list(names.values())}
