"""The Correct dock: from a model's answer to a finished mask, with a preview of what a tool would do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QCheckBox, QSlider

from napari_fmseg._napari.choosers.label_pairing import label_map
from napari_fmseg._napari.common.dialogs import ErrorBox, ResearchOnly
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.shortcuts import bind
from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.viewer_window import unwrap_viewer
from napari_fmseg._napari.common.widgets import (
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    Collapsible,
    Column,
    Note,
    add_row,
    allow,
    form,
    hbox,
    paragraph,
    push_button,
    vbox,
)
from napari_fmseg._napari.correct import tools
from napari_fmseg._napari.correct.brush_panel import BrushPanel
from napari_fmseg._napari.correct.class_list import ClassList, class_name
from napari_fmseg._napari.correct.cut_layer import CutLayer
from napari_fmseg._napari.correct.labels_choice import LabelsChoice
from napari_fmseg._napari.correct.picker import Picker
from napari_fmseg._napari.correct.preview_bar import PreviewBar
from napari_fmseg._napari.correct.session import Session
from napari_fmseg._napari.correct.shape_panel import ShapePanel
from napari_fmseg._napari.correct.shown_slice import axis_on_screen, go_to_slice, slice_on_screen, spacing_of, voxel_at
from napari_fmseg._napari.correct.slice_list import SliceList
from napari_fmseg._napari.correct.tools import Place, Tool
from napari_fmseg._napari.correct.tracking.guard import rules_of
from napari_fmseg._napari.correct.tracking.tracker import Tracker
from napari_fmseg._napari.correct.transfer_panel import TransferPanel
from napari_fmseg._napari.layer_transform import has_spacing
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg.core.errors import FmsegError, GeometryMismatch

__all__ = ["CorrectDock"]

FADE_STEP = 0.25  # slices that one step of the slider stands for
MOST_FADE = 8.0


class CorrectDock(Dock):
    """Corrects the labels of one layer of a viewer."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer = unwrap_viewer(napari_viewer)
        self.tracker = Tracker.of(viewer)
        self.session = Session(viewer, self.tracker, self)
        self.picker, self.cut = Picker(viewer, self), CutLayer(viewer)
        self._soon = QTimer(self, singleShot=True, interval=0)  # not while napari still inserts or removes labels
        self._shown: Any = None  # the layer that all parts show
        self._spread: tuple[Any, tools.Spread] | None = None  # what it was measured from, and the measures
        self.labels, self.classes, self.slices = LabelsChoice(viewer), ClassList(), SliceList()
        self.fill = push_button("Fill be&tween slices", CORRECT.fill, style=PRIMARY_BUTTON)
        self.spread = push_button("&Spread correction", CORRECT.spread, style=SECONDARY_BUTTON)
        self.fade, self.fade_text = QSlider(Qt.Orientation.Horizontal), paragraph()
        self.at_once = QCheckBox("Apply without preview")
        self.at_once.setToolTip(CORRECT.at_once)
        self.brush, self.shape, self.transfer = BrushPanel(viewer), ShapePanel(), TransferPanel()
        self.preview, self.error, self.told = PreviewBar(), ErrorBox(title="The tool did not work"), Note()
        self._build()
        self._connect()
        self._on_layer()
        self._recovery = Recovery.start(viewer)
        self._bind()

    # --- how it looks ---

    def _build(self) -> None:
        self.fade.setToolTip(CORRECT.fade)
        self.fade.setRange(0, round(MOST_FADE / FADE_STEP))
        self.fade.setValue(round(2.0 / FADE_STEP))
        column = Column()
        fields = form()
        add_row(fields, "La&bels", self.labels)
        column.rows.addLayout(fields)
        for part in (self.classes, self.slices):
            column.rows.addWidget(part)
        column.rows.addLayout(hbox((self.fill, 1), (self.spread, 1), spacing=4))
        column.rows.addLayout(hbox(self.fade_text, (self.fade, 1), spacing=6))
        for title, inside, tip in (
            ("Brush", self.brush, "Limit napari's brush to intensities of the image, or to the inside of a class."),
            ("Shape", self.shape, "Smooth, grow, shrink, fill holes, keep or remove islands, split."),
            ("Whole classes", self.transfer, "Copy a class from other labels, swap or merge classes."),
        ):
            column.rows.addWidget(Collapsible(title, inside, tip))
        column.rows.addStretch(1)
        below = vbox(
            self.told, self.error, self.preview, self.at_once, ResearchOnly(centred=True), margins=(8, 0, 8, 0)
        )
        vbox((column, 1), below, of=self, margins=(0, 0, 0, 4), spacing=4)

    def _connect(self) -> None:
        self.labels.chosen.connect(self._on_layer)
        self._soon.timeout.connect(self._on_soon)
        self.classes.finished.connect(self._on_finished_classes)
        self.classes.activated.connect(self._on_class)
        self.slices.chosen.connect(self._on_go)
        self.slices.dropped.connect(self._on_drop)
        self.slices.marked.connect(self._on_mark)
        self.fill.clicked.connect(self._on_fill)
        self.spread.clicked.connect(self._on_spread)
        self.fade.valueChanged.connect(self._on_fade)
        self.brush.picking.connect(self._on_pick_range)
        self.shape.smoothed.connect(self._on_smooth)
        self.shape.resized.connect(self._on_resize)
        self.shape.holes.connect(self._on_holes)
        self.shape.island.connect(self._on_island)
        self.shape.cutting.connect(self._on_cut)
        self.shape.split.connect(self._on_split)
        self.transfer.copied.connect(self._on_copy)
        self.transfer.swapped.connect(self._on_swap)
        self.transfer.merged.connect(self._on_merge)
        self.session.changed.connect(self._on_session)
        self.session.failed.connect(self._tell)
        self.session.told.connect(lambda text: self.told.tell([text]))
        self.session.accepted.connect(self._on_accepted)
        self.picker.waiting.connect(self.preview.show_waiting)
        self.preview.accepted.connect(self.session.accept)
        self.preview.cancelled.connect(self._on_cancel)
        self.tracker.changed.connect(self._on_record)
        self._links = Links(self)
        events = self.viewer.dims.events
        self._links.connect(self._on_dims, events.point, events.order, events.ndisplay)

    def _bind(self) -> None:
        for name, action in (
            ("fill", self.fill.click),
            ("spread", self.spread.click),
            ("slice is right", self.slices.mark.click),
            ("range", self.brush.limit.click),
            ("smooth", self.shape.smooth.click),
            ("holes", self.shape.fill_holes.click),
            ("keep island", partial(self._island_at_mouse, keep=True)),
            ("remove island", partial(self._island_at_mouse, keep=False)),
        ):
            bind(self, self.viewer, name, action)

    def close_down(self) -> None:
        """End what runs, and all limits of the brush; finished classes stay finished."""
        self._soon.stop()
        self.session.close_down()
        self.picker.stop()
        self.cut.close()
        self.labels.close_down()
        self.brush.close_down()
        self.classes.close_down()
        self._links.end()

    # --- what is chosen ---

    @property
    def layer(self) -> Any:
        """The labels layer that is corrected, or None."""
        return self.labels.layer

    @property
    def value(self) -> int:
        """The active class; 0 without one."""
        return 0 if self.layer is None else int(self.layer.selected_label)

    def _name(self, value: int | None = None) -> str:
        return class_name(self.layer, self.value if value is None else value)

    def _on_layer(self, _: Any = None) -> None:
        if self.layer is not self._shown:
            self.session.cancel()
            self.picker.stop()
            self._tell(None)
            self._shown, self._spread = self.layer, None
        finished = frozenset() if self.layer is None else rules_of(self.layer).finished
        self.classes.show_layer(self.layer, finished)
        self._on_class()

    def _on_class(self, _: int = 0) -> None:
        classes = self.classes.classes
        self.brush.show_layer(self.layer, classes)
        self.transfer.show_layer(self.layer, self.labels.others, classes)
        self.shape.show_classes({0: "background"} | {value: self._name(value) for value in classes})
        self._soon.start()
        self._on_record()

    def _on_soon(self) -> None:
        if self.layer is not None and self.layer in self.viewer.layers:
            self.session.prepare(self.layer, self.classes.classes)
        else:
            self.session.close_down()

    def _on_finished_classes(self, finished: frozenset[int]) -> None:
        self.session.cancel()
        self.tracker.finish(self.layer, finished)

    def _on_dims(self, _: Any = None) -> None:
        self.brush.show_slice()
        self._on_record()

    def _on_record(self, layer: Any = None) -> None:
        """Show the corrected slices of the layer; those of others do not matter."""
        if layer is not None and layer is not self.layer:
            return
        axis, shown = self._view()
        record = self.tracker.record(self.layer) if self.layer is not None else None
        slices = record.slices(axis) if record is not None else ()
        self.slices.show_slices(axis, slices, shown, record.axes() if record is not None else ())
        self._look()

    def _view(self) -> tuple[int, int | None]:
        """Return the axis and the slice on the screen."""
        if self.layer is None:
            return 0, None
        try:
            axis = axis_on_screen(self.viewer, self.layer)
            return axis, slice_on_screen(self.viewer, self.layer, axis)
        except GeometryMismatch:
            return 0, None

    def _look(self) -> None:
        """Enable what can be done, or state in the tooltip why it cannot."""
        layer, value = self.layer, self.value
        why = CORRECT.no_layer if layer is None else "" if value else CORRECT.no_class
        if layer is not None and value in rules_of(layer).finished:
            why = CORRECT.is_finished
        shape = self.shape
        for widget, tip in (
            (self.fill, CORRECT.fill), (shape.smooth, CORRECT.smooth), (shape.grow, CORRECT.grow),
            (shape.shrink, CORRECT.grow), (shape.fill_holes, CORRECT.holes),
        ):  # fmt: skip
            allow(widget, why, tip)
        no_layer = CORRECT.no_layer if layer is None else ""
        for widget, tip in (
            (shape.keep, CORRECT.keep), (shape.remove, CORRECT.remove), (shape.cut, CORRECT.cut),
            (self.slices.mark, CORRECT.mark),
        ):  # fmt: skip
            allow(widget, no_layer, tip)
        allow(self.spread, no_layer or ("" if self.slices.slices else CORRECT.no_slices), CORRECT.spread)
        allow(shape.divide, no_layer or ("" if self.cut.is_open else CORRECT.no_cut), CORRECT.split)
        fade = self.fade.value() * FADE_STEP
        self.fade_text.setText(f"Fades over {fade:g} slices")

    # --- corrected slices ---

    def _on_go(self, index: int) -> None:
        axis, _ = self._view()
        go_to_slice(self.viewer, self.layer, axis, index)

    def _on_drop(self, index: int) -> None:
        self._spread = None
        self.tracker.drop(self.layer, self._view()[0], index)

    def _on_mark(self) -> None:
        axis, shown = self._view()
        if self.layer is not None and shown is not None:
            self.tracker.mark(self.layer, axis, shown)

    # --- tools ---

    def _place(self) -> Place:
        axis = axis_on_screen(self.viewer, self.layer)
        index = slice_on_screen(self.viewer, self.layer, axis)
        return Place(self.value, axis, index, spacing_of(self.layer), tuple(sorted(rules_of(self.layer).finished)))

    def _run(self, make: Callable[[Place], Tool]) -> None:
        """Run a tool on the layer where the user works."""
        if self.layer is None:
            return
        self._tell(None)
        self.picker.stop()
        try:
            tool = make(self._place())
        except FmsegError as error:
            self._tell(error)
            return
        self.session.run(self.layer, tool, at_once=self.at_once.isChecked())

    def _on_fill(self) -> None:
        layer = self.layer

        def make(place: Place) -> Tool:
            corrected = self.tracker.record(layer).slices(place.axis, place.value)
            return tools.fill(place, corrected, partial(self.tracker.answer, layer), self._name())

        self._run(make)

    def _on_spread(self) -> None:
        self._run(self._make_spread)

    def _make_spread(self, place: Place) -> Tool:
        slices = self.tracker.record(self.layer).slices(place.axis)
        key = (self.layer, self.tracker.version(self.layer), slices, place)
        if self._spread is None or self._spread[0] != key:
            self._spread = (key, tools.Spread(place, slices, partial(self.tracker.answer, self.layer)))
        return tools.spread(self._spread[1], self.fade.value() * FADE_STEP)

    def _on_fade(self, _: int) -> None:
        self._look()
        if self.session.is_open and self.session.title == tools.SPREAD:
            self._on_spread()

    def _on_smooth(self, radius_mm: float) -> None:
        self._run(lambda place: tools.smoothing(place, radius_mm, self._name()))

    def _on_resize(self, distance_mm: float) -> None:
        self._run(lambda place: tools.resize(place, distance_mm, self._name()))

    def _on_holes(self, in_slices: bool) -> None:
        self._run(lambda place: tools.holes(place, self._name(), in_slices=in_slices))

    def _on_swap(self, other: int) -> None:
        self._run(lambda place: tools.swap(place, other, self._name(), self._name(other)))

    def _on_merge(self, other: int) -> None:
        self._run(lambda place: tools.merge(place, other, self._name(), self._name(other)))

    def _on_copy(self, source: Any, value: int) -> None:
        layers = list(self.viewer.layers)

        def make(place: Place) -> Tool:
            there, here = label_map(source, layers), label_map(self.layer, layers)
            return tools.copy(place, there, value, here, self._name())

        self._run(make)

    # --- tools that need a click ---

    def _on_pick_range(self) -> None:
        self._wait("Click on the image: what is to be painted.", self._pick_range)

    def _pick_range(self, position: Any) -> None:
        voxel = voxel_at(self.viewer, self.layer, position)
        if voxel is not None:
            self.brush.set_range_around(voxel, self._view()[0])

    def _on_island(self, keep: bool) -> None:
        what = "Click on the island to keep." if keep else "Click on the island to remove."
        self._wait(what, partial(self._run_island, keep=keep))

    def _island_at_mouse(self, *, keep: bool) -> None:
        if self.layer is not None:
            self._run_island(self.viewer.cursor.position, keep=keep)

    def _run_island(self, position: Any, *, keep: bool) -> None:
        self._run(lambda place: tools.islands(place, self._voxel(position), keep=keep))

    def _on_cut(self) -> None:
        self.session.cancel()
        self.cut.open(self.layer)
        self.told.tell(["Paint a line across the island in this slice, from border to border. Then press Split."])
        self._look()

    def _on_split(self) -> None:
        self._wait("Click on the part beside the cut that is to change.", self._run_split)

    def _run_split(self, position: Any) -> None:
        cut, new = self.cut.cut, int(self.shape.part.currentData())
        if cut is None:
            self._tell(FmsegError(CORRECT.no_cut))
            return
        through = self.shape.through.isChecked()
        self._run(lambda place: tools.split(place, self._voxel(position), cut, new, through=through))

    def _wait(self, what: str, use: Callable[[Any], None]) -> None:
        self._tell(None)
        self.session.cancel()
        self.picker.wait(what, use)

    def _voxel(self, position: Any) -> tuple[int, int, int]:
        """Return the voxel at a place.

        Raises
        ------
        FmsegError
            If it lies outside.
        """
        voxel = voxel_at(self.viewer, self.layer, position)
        if voxel is None:
            raise FmsegError("The mouse is outside the labels. Point at an island inside.")
        return voxel

    # --- what became of it ---

    def _on_session(self) -> None:
        ml = float("nan")
        if self.layer is not None and self.session.is_open and has_spacing(self.layer):
            z, y, x = spacing_of(self.layer)
            ml = z * y * x / 1000
        self.preview.show_session(self.session, ml)

    def _on_accepted(self, title: str) -> None:
        self.cut.close()
        self.told.tell([])
        self._look()

    def _on_cancel(self) -> None:
        self.picker.stop()
        self.session.cancel()
        self.told.tell([])

    def _tell(self, error: FmsegError | None) -> None:
        self.told.tell([])
        self.error.tell(error)
