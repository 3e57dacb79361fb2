"""The dock that sets how scans and labels are looked at: three planes, the window, the opacity of a structure."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QShortcut
from qtpy.QtWidgets import QCheckBox, QComboBox, QMainWindow, QSlider, QWidget

from napari_fmseg._napari.choosers.label_pairing import image_of
from napari_fmseg._napari.common.dialogs import ErrorBox
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.shortcuts import bind
from napari_fmseg._napari.common.tooltips import VIEW
from napari_fmseg._napari.common.viewer_window import unwrap_viewer, window_of
from napari_fmseg._napari.common.widgets import (
    add_row,
    allow,
    form,
    hbox,
    limit_width,
    paragraph,
    push_button,
    vbox,
)
from napari_fmseg._napari.layers import names_of
from napari_fmseg._napari.results.class_colors import color_icon, colors_of, set_colors
from napari_fmseg._napari.segment.scan_view import attend
from napari_fmseg._napari.views.planes import Planes
from napari_fmseg._napari.views.structures import Structures
from napari_fmseg._napari.views.window_presets import presets_of, range_text

__all__ = ["ViewDock"]

_SHARE = 0.5  # of the window's height that the two further planes take at first


class ViewDock(Dock):
    """How the viewer shows its layers; opening it opens the planes."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = unwrap_viewer(napari_viewer)
        self.planes: Planes | None = None
        self.image: Any = None
        self.labels: Any = None
        self.structures = Structures(self.viewer, self)
        self.planes_box, self.crosshair_box = QCheckBox("Three pla&nes"), QCheckBox("&Crosshair")
        self.reset_button = push_button("Show &all", VIEW.reset)
        self.image_name = paragraph(plain=True)
        self.window_box, self.class_box = QComboBox(), QComboBox()
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.same_button = push_button("&Same for all", VIEW.same)
        self.previous_button = push_button("◀ Previous", VIEW.previous)
        self.next_button = push_button("Next ▶", VIEW.next)
        self.error = ErrorBox()
        self._build()
        self._links, self._of_image, self._of_labels = Links(self), Links(self), Links(self)
        self._connect()
        attend(self.viewer)
        self._on_layers()
        self._shortcuts = self._bind_keys()
        self.crosshair_box.setChecked(True)
        self.planes_box.setChecked(self._window is not None)

    # --- how it looks ---

    def _build(self) -> None:
        for box in (self.window_box, self.class_box):
            limit_width(box, 10)
        self.window_box.setPlaceholderText("Set by hand")
        self.planes_box.setToolTip(VIEW.planes)
        self.crosshair_box.setToolTip(VIEW.crosshair)
        self.opacity.setRange(0, 100)
        self.opacity.setAccessibleName("Opacity of the structure")
        of_image, of_labels = form(), form()
        add_row(of_image, "Image", self.image_name)
        add_row(of_image, "W&indow", self.window_box, VIEW.window)
        add_row(of_labels, "S&tructure", self.class_box, VIEW.structure)
        add_row(of_labels, "&Opacity", self.opacity, VIEW.opacity)
        vbox(
            hbox(self.planes_box, self.crosshair_box, 1, self.reset_button),
            paragraph(VIEW.move),
            of_image,
            of_labels,
            hbox(1, self.same_button),
            hbox(self.previous_button, self.next_button),
            self.error,
            1,
            of=self,
            margins=(8, 8, 8, 4),
            spacing=6,
        )
        self.setMinimumWidth(280)

    def _connect(self) -> None:
        self.planes_box.toggled.connect(self._on_planes)
        self.crosshair_box.toggled.connect(self._on_crosshair)
        self.reset_button.clicked.connect(self._on_reset)
        self.window_box.activated.connect(self._on_window)
        self.class_box.activated.connect(self._on_class)
        self.opacity.valueChanged.connect(self._on_opacity)
        self.same_button.clicked.connect(self._on_same)
        self.previous_button.clicked.connect(partial(self.structures.go, -1))
        self.next_button.clicked.connect(partial(self.structures.go, 1))
        self.structures.failed.connect(self.error.tell)
        layers = self.viewer.layers
        self._links.connect(self._on_layers, layers.selection.events.active, layers.events.removed)

    @property
    def _window(self) -> QMainWindow | None:
        window = window_of(self.viewer)
        return window if isinstance(window, QMainWindow) else None

    def _bind_keys(self) -> list[QShortcut]:
        """Bind the keys to the window: they shall work while another dock of ours lies over this one."""
        owner: QWidget = self._window or self
        keys = {
            "crosshair": self._on_move,
            "next structure": self.next_button.click,
            "previous structure": self.previous_button.click,
        }
        made = [bind(owner, self.viewer, name, action) for name, action in keys.items()]
        return [shortcut for shortcut in made if shortcut is not None]

    # --- planes ---

    def _on_planes(self, shown: bool) -> None:
        if shown and self.planes is None:
            self._open_planes()
        elif not shown and self.planes is not None:
            self.viewer.window.remove_dock_widget(self.planes)
        allow(self.crosshair_box, "" if self.planes is not None else "Show the three planes first.", VIEW.crosshair)

    def _open_planes(self) -> None:
        window = self._window
        if window is None:
            return
        self.planes = planes = Planes(self.viewer)
        planes.closed.connect(self._on_closed)
        window.setCorner(Qt.Corner.BottomLeftCorner, Qt.DockWidgetArea.LeftDockWidgetArea)
        window.setCorner(Qt.Corner.BottomRightCorner, Qt.DockWidgetArea.RightDockWidgetArea)
        dock = self.viewer.window.add_dock_widget(planes, name="Planes", area="bottom", add_vertical_stretch=False)
        window.resizeDocks([dock], [int(_SHARE * window.height())], Qt.Orientation.Vertical)
        planes.show_crosshair(self.crosshair_box.isChecked())

    def _on_closed(self) -> None:
        self.planes = None
        self.planes_box.setChecked(False)

    def _on_crosshair(self, shown: bool) -> None:
        if self.planes is not None:
            self.planes.show_crosshair(shown)

    def _on_move(self) -> None:
        if self.planes is not None:
            self.planes.move_to_mouse()

    def _on_reset(self) -> None:
        if self.planes is not None:
            self.planes.reset_view()
        else:
            self.viewer.reset_view()

    # --- which layers ---

    def _on_layers(self, _event: Any = None) -> None:
        """Show the chosen layer: an image, or labels with the image that they belong to."""
        active, layers = self.viewer.layers.selection.active, list(self.viewer.layers)
        if active is not None and active._type_string == "labels":
            self._show_labels(active)
            home = image_of(active, layers)
            self._show_image(home.layers[0] if home is not None else self._last(layers, "image"))
        elif active is not None and active._type_string == "image":
            self._show_image(active)
            if self.labels is not None and self.labels not in self.viewer.layers:
                self._show_labels(self._last(layers, "labels"))
        else:
            self._show_image(self.image if self.image in self.viewer.layers else self._last(layers, "image"))
            self._show_labels(self.labels if self.labels in self.viewer.layers else self._last(layers, "labels"))

    @staticmethod
    def _last(layers: list[Any], kind: str) -> Any:
        return next((layer for layer in reversed(layers) if layer._type_string == kind), None)

    def _show_image(self, layer: Any) -> None:
        self._of_image.end()
        self.image = layer if layer is not None and not layer.rgb else None
        self.window_box.clear()
        if self.image is not None:
            for name, limits in presets_of(self.image).items():
                self.window_box.addItem(f"{name} ({range_text(*limits)})", limits)
            self._of_image.connect(self._on_look, self.image.events.name, self.image.events.contrast_limits)
        allow(self.window_box, "" if self.image is not None else VIEW.no_image, VIEW.window)
        self._on_look()

    def _on_look(self, _event: Any = None) -> None:
        """Show the name of the image, and which window is set, if it is one of the list."""
        self.image_name.setText("none" if self.image is None else self.image.name)
        near = [i for i in range(self.window_box.count()) if self._is_set(self.window_box.itemData(i))]
        self.window_box.setCurrentIndex(near[0] if near else -1)

    def _is_set(self, limits: tuple[float, float]) -> bool:
        low, high = (float(v) for v in self.image.contrast_limits)
        return max(abs(low - limits[0]), abs(high - limits[1])) <= 1e-3 * (limits[1] - limits[0])

    def _show_labels(self, layer: Any) -> None:
        if layer is not self.labels:
            self._of_labels.end()
            self.labels = layer
            self.structures.set_layer(layer)
            if layer is not None:
                events = layer.events
                self._of_labels.connect(self._on_classes, events.features, events.colormap, events.selected_label)
        self._on_classes()

    def _on_classes(self, _event: Any = None) -> None:
        """List the structures, and show the opacity of the one that is painted with."""
        with QSignalBlocker(self.class_box), QSignalBlocker(self.opacity):
            self.class_box.clear()
            names = names_of(self.labels) if self.labels is not None else {}
            if self.labels is not None and self.labels.selected_label > 0:
                names.setdefault(int(self.labels.selected_label), f"label {self.labels.selected_label}")
            for label, color in colors_of(self.labels, sorted(names)).items() if names else ():
                self.class_box.addItem(color_icon(color), names[label], label)
            now = self.class_box.findData(int(self.labels.selected_label)) if names else -1
            self.class_box.setCurrentIndex(max(0, now) if names else -1)
            label = self.class_box.currentData()
            self.opacity.setValue(round(100 * colors_of(self.labels, [label])[label][3]) if names else 100)
        why = VIEW.no_labels if self.labels is None else "" if names else VIEW.no_class
        for widget, tip in (
            (self.class_box, VIEW.structure),
            (self.opacity, VIEW.opacity),
            (self.same_button, VIEW.same),
            (self.next_button, VIEW.next),
            (self.previous_button, VIEW.previous),
        ):
            allow(widget, why, tip)

    # --- what the user does ---

    def _on_window(self, index: int) -> None:
        if self.image is not None and index >= 0:
            self.image.contrast_limits = self.window_box.itemData(index)

    def _on_class(self, _index: int) -> None:
        if self.labels is not None:
            self.labels.selected_label = self.class_box.currentData()

    def _on_opacity(self, value: int) -> None:
        if self.labels is not None and self.class_box.count():
            self._set_opacity([self.class_box.currentData()], value / 100)

    def _on_same(self) -> None:
        labels = [self.class_box.itemData(i) for i in range(self.class_box.count())]
        self._set_opacity(labels, self.opacity.value() / 100)

    def _set_opacity(self, labels: list[int], alpha: float) -> None:
        colors = {label: (*color[:3], alpha) for label, color in colors_of(self.labels, labels).items()}
        set_colors(self.labels, colors)

    # --- coming and going ---

    def close_down(self) -> None:
        """Close the planes and let go of the viewer; the dock may be deleted afterwards."""
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts.clear()
        if self.planes is not None:
            self.viewer.window.remove_dock_widget(self.planes)
        for links in (self._links, self._of_image, self._of_labels):
            links.end()
        self.structures.close_down()
