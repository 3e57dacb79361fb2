"""Which labels layer is corrected: the one that is selected in napari's list, or another that the user chooses."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_fmseg._napari.choosers.image_volumes import is_preview
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import limit_width

__all__ = ["LabelsChoice"]


class LabelsChoice(QComboBox):
    """Lists the labels layers with three axes, the uppermost first; what is chosen is selected in napari, too."""

    chosen = Signal(object)  # another layer, or None; also when the other layers changed

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        limit_width(self, 12)
        self.setToolTip(CORRECT.labels)
        self._links = Links(self)
        layers = viewer.layers
        self._links.connect(self._on_layers, layers.events.inserted, layers.events.removed, layers.events.renamed)
        self._links.connect(self._on_active, layers.selection.events.active)
        self.currentIndexChanged.connect(self._on_index)
        self._on_layers()
        self._on_active()

    @property
    def layer(self) -> Any:
        """The chosen layer, or None."""
        return self.currentData()

    @property
    def others(self) -> list[Any]:
        """The layers that are not chosen."""
        layers = [self.itemData(i) for i in range(self.count())]
        return [layer for layer in layers if layer is not self.layer]

    def close_down(self) -> None:
        """Disconnect from the viewer."""
        self._links.end()

    def _on_layers(self, _: Any = None) -> None:
        from napari.layers import Labels

        before, chosen = [self.itemData(i) for i in range(self.count())], self.layer
        found = [
            x for x in reversed(self._viewer.layers) if isinstance(x, Labels) and x.ndim == 3 and not is_preview(x)
        ]
        names = [layer.name for layer in found]
        if before == found and names == [self.itemText(i) for i in range(self.count())]:
            return
        self.blockSignals(True)
        self.clear()
        for layer in found:
            self.addItem(layer.name, layer)
        self.setCurrentIndex(next((i for i, layer in enumerate(found) if layer is chosen), 0 if found else -1))
        self.blockSignals(False)
        self.chosen.emit(self.layer)

    def _on_active(self, _: Any = None) -> None:
        active = self._viewer.layers.selection.active
        for index in range(self.count()):
            if self.itemData(index) is active:
                self.setCurrentIndex(index)

    def _on_index(self, _: int) -> None:
        if self.layer is not None and self._viewer.layers.selection.active is not self.layer:
            self._viewer.layers.selection.active = self.layer
        self.chosen.emit(self.layer)
