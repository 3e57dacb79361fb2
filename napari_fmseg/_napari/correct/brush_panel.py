"""What napari's brush may paint over: an intensity range of the image, tinted while it is set, or one class."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QWidget
from superqt import QLabeledDoubleRangeSlider

from napari_fmseg._napari.choosers.label_pairing import image_of
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import start_job
from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import NO_MARGINS, allow, hbox, limit_width, push_button, vbox
from napari_fmseg._napari.correct.class_list import class_name
from napari_fmseg._napari.correct.preview import Overlay, Picture
from napari_fmseg._napari.correct.shown_slice import axis_on_screen, slice_on_screen
from napari_fmseg._napari.correct.tracking.guard import rules_of
from napari_fmseg._napari.layer_transform import same_place
from napari_fmseg._napari.layers import voxels_of
from napari_fmseg.core.errors import GeometryMismatch

__all__ = ["BrushPanel", "image_below", "range_around"]

TINT = (0.0, 0.9, 0.9, 1.0)
RADIUS = 3  # pixels around a click that a range is taken from


def image_below(layer: Any, layers: Any) -> Any:
    """Return the image layer on whose voxels labels lie, or None."""
    from napari.layers import Image

    home = image_of(layer, layers)
    own = [] if home is None else list(home.layers)
    others = [one for one in reversed(list(layers)) if isinstance(one, Image) and not one.rgb and one.visible]
    return next((one for one in (*own, *others) if one.data.ndim == 3 and same_place(layer, one)), None)


def range_around(plane: npt.NDArray[Any], row: int, column: int) -> tuple[float, float]:
    """Return the range of intensities around a pixel: mean and 2.5 standard deviations of its neighbourhood."""
    part = plane[max(row - RADIUS, 0) : row + RADIUS + 1, max(column - RADIUS, 0) : column + RADIUS + 1]
    mean, spread = float(np.nanmean(part)), float(np.nanstd(part))
    spread = max(spread, 1e-3 * max(abs(mean), 1.0))
    return mean - 2.5 * spread, mean + 2.5 * spread


class BrushPanel(QWidget):
    """The limits of the brush in one labels layer."""

    picking = Signal()  # the user wants to click on the image

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layer: Any = None
        self._image: Any = None
        self._overlay = Overlay(viewer, "Range", 0.45, TINT)
        self.limit = QCheckBox("Only intensities")
        self.range = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.range.setDecimals(0)
        self.range.setToolTip(CORRECT.range)
        self.pick = push_button("Pick…", CORRECT.pick)
        self.inside = QComboBox()
        self.inside.setToolTip(CORRECT.inside)
        limit_width(self.inside, 10)
        self.only = QCheckBox("Only inside")
        self.only.setToolTip(CORRECT.inside)
        vbox(
            hbox((self.limit, 1), self.pick), self.range, hbox(self.only, (self.inside, 1)),
            of=self, margins=NO_MARGINS, spacing=4,
        )  # fmt: skip
        self.limit.toggled.connect(self._on_rules)
        self.range.valueChanged.connect(self._on_rules)
        self.only.toggled.connect(self._on_rules)
        self.inside.currentIndexChanged.connect(self._on_rules)
        self.pick.clicked.connect(self.picking)
        self._links = Links(self)
        self._links.connect(self._on_layers, viewer.layers.events.inserted, viewer.layers.events.removed)
        self.show_layer(None, ())

    def show_layer(self, layer: Any, classes: tuple[int, ...]) -> None:
        """Set the limits of the brush in a labels layer; those of the layer before end."""
        if layer is not self._layer:
            self._let_go()
            self._layer, self._image = layer, None
        self._fill_inside(classes)
        self._find_image()

    def _on_layers(self, _: Any = None) -> None:
        """Find the image anew, if it may have come or gone."""
        if self._image is None or self._image not in self._viewer.layers:
            self._find_image()

    def _find_image(self) -> None:
        layer = self._layer
        if layer is None or self._image not in self._viewer.layers:
            self._image = None if layer is None else image_below(layer, self._viewer.layers)
            self._set_span()
        why = CORRECT.no_layer if layer is None else "" if self._image is not None else CORRECT.no_image
        for widget, tip in ((self.limit, CORRECT.limit), (self.range, CORRECT.range), (self.pick, CORRECT.pick)):
            allow(widget, why, tip)
        allow(self.only, CORRECT.no_layer if layer is None else "", CORRECT.inside)
        allow(self.inside, CORRECT.no_layer if layer is None else "", CORRECT.inside)
        self._on_rules()

    def show_slice(self) -> None:
        """Show where the brush may paint in the slice that is on the screen now."""
        if not self._is_limited or self._viewer.dims.ndisplay == 3:
            self._overlay.hide()
            return
        try:
            axis = axis_on_screen(self._viewer, self._layer)
        except GeometryMismatch:
            self._overlay.hide()
            return
        index = slice_on_screen(self._viewer, self._layer, axis)
        box = tuple(slice(index, index + 1) if k == axis else slice(0, n) for k, n in enumerate(self._layer.data.shape))
        values = np.asarray(voxels_of(self._image)[box])
        low, high = self.range.value()
        inside = (values >= low) & (values <= high)
        picture = Picture(box, inside.astype(np.uint8), (), 0, int(inside.sum()))  # type: ignore[arg-type]
        self._overlay.show(self._layer, picture)

    def set_range_around(self, voxel: tuple[int, int, int], axis: int) -> None:
        """Set the range to the intensities around a voxel in its slice, and limit the brush to it."""
        if self._image is None:
            return
        plane = np.asarray(np.take(voxels_of(self._image), voxel[axis], axis=axis), float)
        row, column = (v for k, v in enumerate(voxel) if k != axis)
        low, high = range_around(plane, row, column)
        self.range.setValue((max(low, self.range.minimum()), min(high, self.range.maximum())))
        self.limit.setChecked(True)

    def close_down(self) -> None:
        """End all limits."""
        self._links.end()
        self._let_go()
        self._layer = self._image = None

    @property
    def _is_limited(self) -> bool:
        return self._layer is not None and self._image is not None and self.limit.isChecked()

    def _let_go(self) -> None:
        self._overlay.remove()
        if self._layer is not None:
            rules = rules_of(self._layer)
            rules.inside = None
            rules.forget_image()

    def _on_rules(self, *_: object) -> None:
        if self._layer is None:
            self._overlay.hide()
            return
        rules = rules_of(self._layer)
        rules.inside = int(self.inside.currentData()) if self.only.isChecked() and self.inside.count() else None
        if self._is_limited:
            rules.limit_range(voxels_of(self._image), *self.range.value())
        else:
            rules.forget_image()
        self.show_slice()

    def _set_span(self) -> None:
        """Set the reach of the slider: at once the intensities of the contrast, soon all that there are."""
        image = self._image
        if image is None:
            return
        low, high = (float(v) for v in image.contrast_limits)
        self.range.blockSignals(True)
        self.range.setDecimals(0 if high - low > 50 else 2 if high - low > 0.5 else 4)
        self.range.setRange(low, high)
        self.range.setValue((low, high))
        self.range.blockSignals(False)
        voxels = voxels_of(image)
        job = start_job(lambda: iter([_span_of(voxels)]), parent=self)
        job.event.connect(partial(self._on_span, image))

    def _on_span(self, image: Any, span: tuple[float, float]) -> None:
        if image is self._image:
            low, high = self.range.value()
            self.range.setRange(min(span[0], low), max(span[1], high))

    def _fill_inside(self, classes: tuple[int, ...]) -> None:
        chosen = self.inside.currentData()
        self.inside.blockSignals(True)
        self.inside.clear()
        if self._layer is not None:
            for value in (0, *classes):
                self.inside.addItem("background" if not value else class_name(self._layer, value), value)
        self.inside.setCurrentIndex(max(self.inside.findData(chosen), 0) if self.inside.count() else -1)
        self.inside.blockSignals(False)


def _span_of(voxels: Any) -> tuple[float, float]:
    """Return the lowest and the highest intensity, slice by slice, so that the window's thread gets its turns."""
    spans = [(float(np.nanmin(plane)), float(np.nanmax(plane))) for plane in (np.asarray(one) for one in voxels)]
    return min(low for low, _ in spans), max(high for _, high in spans)
