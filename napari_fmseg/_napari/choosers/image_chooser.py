"""Choosing the volume: the image layers of the viewer that are volumes, and the part of it to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_fmseg._napari.choosers.image_volumes import ImageVolume, case_with, cases_of, why_no_volume
from napari_fmseg._napari.choosers.label_pairing import image_of, note_new_labels
from napari_fmseg._napari.choosers.roi import box_of_shapes, box_of_view
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.tooltips import SEGMENT
from napari_fmseg._napari.common.widgets import NO_MARGINS, hbox, limit_width, push_button
from napari_fmseg._napari.layer_transform import AXES, UNITS, moves_of
from napari_fmseg._napari.segment.stage_layers import provenance_of
from napari_fmseg.core.volume import Box

__all__ = ["ImageChooser", "RegionChooser"]

WHOLE, VIEW = "Whole volume", "Current view"


class ImageChooser(QComboBox):
    """The volumes of a viewer, kept up to date; a volume that is dropped, or whose layer becomes active, is chosen.

    Of active labels the image is chosen that they were made on.

    Parameters
    ----------
    viewer
        Whose volumes are offered.
    follow
        Whether a new volume, or the one whose layer becomes active, is chosen by itself; may be changed.

    Attributes
    ----------
    chosen
        Signal: another volume, or the same under another name.
    refusal
        Why the images that are open are no volumes, or nothing.
    """

    chosen = Signal()

    def __init__(self, viewer: Any, parent: QWidget | None = None, *, follow: bool = True) -> None:
        super().__init__(parent)
        self._viewer, self.follow = viewer, follow
        self._cases: list[ImageVolume] = []
        self.refusal = self._tip = ""
        self.setToolTip(SEGMENT.image)
        limit_width(self, 12)
        self._links, self._names = Links(self), Links(self)
        events = viewer.layers.events
        self._links.connect(self._on_inserted, events.inserted)
        self._links.connect(self._on_layers, events.removed, events.reordered)
        self._links.connect(self._on_active, viewer.layers.selection.events.active)
        events.inserted.connect(note_new_labels)  # once per viewer, however many choosers there are
        self.currentIndexChanged.connect(self.chosen)
        self._fill()
        self._on_active()

    @property
    def case(self) -> ImageVolume | None:
        """The chosen volume, or None."""
        return self._cases[self.currentIndex()] if 0 <= self.currentIndex() < len(self._cases) else None

    @property
    def cases(self) -> tuple[ImageVolume, ...]:
        """All volumes of the viewer."""
        return tuple(self._cases)

    def choose_other(self, taken: Sequence[str], name: str) -> None:
        """Choose a volume of one channel that is none of the `taken` ones (their ids), best one that is a `name`.

        Its file says so, or what it is called. The present choice stays if it is such a one.
        """
        free = [case for case in self._cases if case.id not in taken and case.n_channels == 1]
        kind = {"PET": "PT"}.get(name.upper(), name.upper())
        fitting = [c for c in free if name.lower() in c.name.lower() or c.meta.get("modality") == kind]
        if free and self.case not in fitting:
            self.setCurrentIndex(self._cases.index((fitting or free)[0]))

    def choose(self, case: ImageVolume) -> None:
        """Choose a volume, if it is still there."""
        ids = [one.id for one in self._cases]
        if case.id in ids:
            self.setCurrentIndex(ids.index(case.id))

    def close_down(self) -> None:
        """Disconnect from the viewer."""
        self._links.end()
        self._names.end()

    def _on_inserted(self, event: Any) -> None:
        self._fill(event.value)

    def _on_layers(self) -> None:
        self._fill()

    def _on_active(self) -> None:
        layer = self._viewer.layers.selection.active
        if layer is not None and self.follow:
            self.choose_image_of(layer)

    def choose_image_of(self, layer: Any) -> None:
        """Choose the image that a layer is, or belongs to; if there is none the choice stays."""
        case = case_with(self._cases, layer) or (image_of(layer, self._viewer.layers) if _has_image(layer) else None)
        if case is not None:
            self.choose(case)

    def _fill(self, newest: Any = None) -> None:
        before = self.case
        self._cases = cases_of(self._viewer.layers)
        now = case_with(self._cases, newest) if self.follow else None
        if now is None and before is not None:
            now = next((case for case in self._cases if case.id == before.id), None)
        self.blockSignals(True)
        self.clear()
        self.refusal = "" if self._cases else why_no_volume(self._viewer.layers)
        none = "No open image is a volume" if self.refusal else "No volume is open"
        self.addItems([case.name for case in self._cases] or [none])
        self.setToolTip(self._tip)
        self.setEnabled(bool(self._cases))
        self.setCurrentIndex(self._cases.index(now) if now is not None else 0)
        self.blockSignals(False)
        self._names.end()
        for layer in (layer for case in self._cases for layer in case.layers):
            self._names.connect(self._on_layers, layer.events.name, *moves_of(layer))
        self.chosen.emit()

    def setToolTip(self, text: str | None) -> None:
        """Set what is shown unless no image can be chosen: then the reason is."""
        self._tip = text or ""
        super().setToolTip(self.refusal or self._tip)


class RegionChooser(QWidget):
    """The whole volume, what the view shows, or a box in a Shapes layer."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._shapes: list[Any] = []
        self.combo = QComboBox()
        self.combo.setToolTip(f"{SEGMENT.region} A rectangle in one plane applies to the whole depth.")
        limit_width(self.combo, 10)
        self.draw = push_button("Draw &box", SEGMENT.region_draw)
        self.draw.clicked.connect(self._on_draw)
        hbox((self.combo, 1), self.draw, of=self, margins=NO_MARGINS)
        self.setFocusProxy(self.combo)
        self._links = Links(self)
        self._links.connect(self._on_layers, viewer.layers.events.inserted, viewer.layers.events.removed)
        self._fill()

    @property
    def region(self) -> str:
        """What the results are named with: ``"box"``, ``"view"``, or nothing for the whole volume."""
        return "" if self.combo.currentIndex() <= 0 else "view" if self.combo.currentIndex() == 1 else "box"

    def box(self, image: Any) -> Box | None:
        """Return the voxels of an image layer to look at, None for all.

        Raises
        ------
        GeometryMismatch
            If nothing is drawn, or beside the image.
        """
        at = self.combo.currentIndex()
        if at <= 0:
            return None
        dims = self._viewer.dims
        first = dims.ndim - image.ndim
        displayed = [axis - first for axis in dims.displayed]
        return box_of_view(image, displayed) if at == 1 else box_of_shapes(self._shapes[at - 2], image)

    def close_down(self) -> None:
        """Disconnect from the viewer."""
        self._links.end()

    def _on_layers(self) -> None:
        self._fill()

    def _fill(self, chosen: Any = None) -> None:
        from napari.layers import Shapes

        at = self.combo.currentIndex()
        chosen = chosen or (self._shapes[at - 2] if at >= 2 else None)
        self._shapes = [layer for layer in self._viewer.layers if isinstance(layer, Shapes)]
        self.combo.clear()
        self.combo.addItems([WHOLE, VIEW, *(f"Box in “{layer.name}”" for layer in self._shapes)])
        places = [i + 2 for i, layer in enumerate(self._shapes) if layer is chosen]
        self.combo.setCurrentIndex(places[0] if places else 1 if at == 1 else 0)

    def _on_draw(self) -> None:
        place: dict[str, Any] = {}
        if self._viewer.dims.ndim == 3:
            active = self._viewer.layers.selection.active
            units = active.units if active is not None and active.ndim == 3 else UNITS
            place = {"units": units, "axis_labels": AXES}
        layer = self._viewer.add_shapes(
            name="region of interest", ndim=3, edge_color="#ffd54a", face_color="transparent", edge_width=2, **place
        )
        layer.mode = "add_rectangle"
        self._fill(layer)


def _has_image(layer: Any) -> bool:
    """Return whether a layer is one that belongs to an image: labels, or a map of ours."""
    from napari.layers import Image, Labels

    return isinstance(layer, Labels) or (isinstance(layer, Image) and bool(provenance_of(layer)))
