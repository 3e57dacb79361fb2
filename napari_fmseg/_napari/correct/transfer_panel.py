"""Classes as a whole: copy one from other labels, swap two, merge one into another."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import NO_MARGINS, add_row, allow, form, hbox, limit_width, push_button, vbox
from napari_fmseg._napari.correct.class_list import class_name
from napari_fmseg._napari.layers import names_of

__all__ = ["TransferPanel"]


class TransferPanel(QWidget):
    """What can be done between the active class and another."""

    copied = Signal(object, int)  # labels layer, and the class of it that goes to the active one
    swapped = Signal(int)
    merged = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.source, self.value, self.other = QComboBox(), QComboBox(), QComboBox()
        for combo in (self.source, self.value, self.other):
            limit_width(combo, 10)
        self.copy = push_button("&Copy here", CORRECT.copy)
        self.swap, self.merge = push_button("Swap", CORRECT.swap), push_button("Merge into it", CORRECT.merge)
        fields = form()
        add_row(fields, "From labels", self.source, CORRECT.source)
        add_row(fields, "Class", self.value, CORRECT.copy, shown=None)
        other = form()
        add_row(other, "Other class", self.other, CORRECT.other)
        vbox(fields, hbox(1, self.copy), other, hbox(1, self.swap, self.merge), of=self, margins=NO_MARGINS, spacing=4)
        self.source.currentIndexChanged.connect(self._on_source)
        self.copy.clicked.connect(lambda: self.copied.emit(self.source.currentData(), int(self.value.currentData())))
        self.swap.clicked.connect(lambda: self.swapped.emit(int(self.other.currentData())))
        self.merge.clicked.connect(lambda: self.merged.emit(int(self.other.currentData())))

    def show_layer(self, layer: Any, others: list[Any], classes: tuple[int, ...]) -> None:
        """List the other labels layers, and the classes of `layer` but the active one."""
        chosen = self.source.currentData()
        self.source.blockSignals(True)
        self.source.clear()
        for other in others:
            self.source.addItem(other.name, other)
        at = next((i for i, other in enumerate(others) if other is chosen), 0 if others else -1)
        self.source.setCurrentIndex(at)
        self.source.blockSignals(False)
        before = self.other.currentData()
        self.other.clear()
        active = 0 if layer is None else int(layer.selected_label)
        for value in classes:
            if value != active:
                self.other.addItem(class_name(layer, value), value)
        self.other.setCurrentIndex(max(self.other.findData(before), 0) if self.other.count() else -1)
        self._on_source()
        why = "" if self.other.count() else CORRECT.no_other
        allow(self.swap, why, CORRECT.swap)
        allow(self.merge, why, CORRECT.merge)

    def _on_source(self, _: int = 0) -> None:
        source, chosen = self.source.currentData(), self.value.currentData()
        self.value.clear()
        if source is not None:
            for value in sorted({*names_of(source), int(source.selected_label)} - {0}):
                self.value.addItem(class_name(source, value), value)
            self.value.setCurrentIndex(max(self.value.findData(chosen), 0))
        allow(self.copy, "" if self.value.count() else CORRECT.no_source, CORRECT.copy)
