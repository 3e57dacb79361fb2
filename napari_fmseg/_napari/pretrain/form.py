"""What to pretrain, on what, how long and where to save: the upper part of the Pretrain dock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_fmseg._napari.common.number_boxes import CountBox
from napari_fmseg._napari.common.preferences import list_device_names, load
from napari_fmseg._napari.common.tooltips import PRETRAIN
from napari_fmseg._napari.common.widgets import NO_MARGINS, Collapsible, add_row, form, hbox, limit_width, vbox
from napari_fmseg._napari.pretrain.panels import FolderRow
from napari_fmseg._napari.pretrain.plan import NETWORKS, Plan, Size, next_folder, recipe_in
from napari_fmseg.core.errors import FmsegError

__all__ = ["PATCHES", "PretrainForm"]

PATCHES: tuple[tuple[str, Size], ...] = (
    ("16 × 32 × 32, a trial", (16, 32, 32)),
    ("32 × 64 × 64, CPU", (32, 64, 64)),
    ("48 × 96 × 96", (48, 96, 96)),
    ("64 × 128 × 128, published", (64, 128, 128)),
)
_MINUTES, _STEPS = 30, 2000


class PretrainForm(QWidget):
    """The form; `more` are fields of the recipe that it does not show."""

    changed = Signal()  # a start may have become possible or impossible

    def __init__(self, more: Mapping[str, Any] | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.more_fields = dict(more or {})  # for the next run
        self._proposed = ""
        self.volumes = FolderRow("Drop a folder with scans", "A folder with scans", PRETRAIN.volumes)
        self.out = FolderRow("A folder of its own", "Where to save", PRETRAIN.out)
        self.network, self.unit, self.patch, self.device = (QComboBox() for _ in range(4))
        self.budget, self.batch, self.cache_gb = CountBox(), CountBox(), CountBox()
        self._fill()
        self._lay_out()
        self.propose()
        self.volumes.changed.connect(self._on_changed)
        self.out.changed.connect(self.changed)
        for combo in (self.network, self.patch, self.device):
            combo.currentIndexChanged.connect(self._on_changed)
        for spin in (self.budget, self.batch):
            spin.valueChanged.connect(self._on_changed)
        self.unit.currentIndexChanged.connect(self._on_unit)

    def _fill(self) -> None:
        for name, title in NETWORKS.items():
            self.network.addItem(title, name)
        self.unit.addItems(("minutes", "steps"))
        for title, size in PATCHES:
            self.patch.addItem(title, size)
        self.patch.setCurrentIndex(1)
        self.device.addItems(list_device_names())
        self.device.setCurrentText(load().device)
        for spin, value, most in (
            (self.budget, _MINUTES, 1_000_000),
            (self.batch, 2, 64),
            (self.cache_gb, 20, 100_000),
        ):
            spin.setRange(1, most)
            spin.setValue(value)
        self.cache_gb.setSuffix(" GB")
        for combo in (self.network, self.unit, self.patch, self.device):  # a long name must not widen the panel
            limit_width(combo, 5)

    def _lay_out(self) -> None:
        how_long = QWidget()
        hbox((self.budget, 1), (self.unit, 1), of=how_long, margins=NO_MARGINS)
        self.unit.setToolTip(PRETRAIN.unit)
        details = QWidget()
        above, below = form(), form(details, margins=(12, 0, 0, 0))
        for where, name, widget, shown, tip in (
            (above, "Sc&ans", self.volumes.edit, self.volumes, PRETRAIN.volumes),
            (above, "&Network", self.network, self.network, PRETRAIN.network),
            (above, "&Budget", self.budget, how_long, PRETRAIN.budget),
            (above, "Save &in", self.out.edit, self.out, PRETRAIN.out),
            (below, "Sa&mples", self.patch, self.patch, PRETRAIN.patch),
            (below, "Per step", self.batch, self.batch, PRETRAIN.batch),
            (below, "&Device", self.device, self.device, PRETRAIN.device),
            (below, "Disk space", self.cache_gb, self.cache_gb, PRETRAIN.cache),
        ):
            add_row(where, name, widget, tip, shown=shown)
        self.more = Collapsible("Mor&e options", details, "Sample size, device and disk space.")
        vbox(above, self.more, of=self, margins=NO_MARGINS, spacing=6)

    def disabled_reason(self) -> str:
        """Return why nothing can be started, or nothing."""
        folder = self.volumes.path
        if folder is None:
            return PRETRAIN.start_no_folder
        if not folder.is_dir():
            return f"There is no folder {folder}. Choose another one."
        return "" if self.out.path is not None else PRETRAIN.start_no_place

    def plan(self) -> Plan:
        """Return what is chosen; only while `disabled_reason` is empty."""
        folder, out = self.volumes.path, self.out.path
        if folder is None or out is None:
            raise FmsegError(self.disabled_reason())
        amount = self.budget.value()
        minutes = self.unit.currentText() == "minutes"
        return Plan(
            folder,
            out,
            str(self.network.currentData()),
            minutes=float(amount) if minutes else 0.0,
            steps=0 if minutes else amount,
            patch=self.patch.currentData(),
            batch=self.batch.value(),
            device=self.device.currentText(),
            cache_gb=float(self.cache_gb.value()),
            more=self.more_fields,
        )

    def propose(self) -> None:
        """Propose a place of its own for the next run, unless the user has said one."""
        if self.out.edit.text() in ("", self._proposed):
            self._proposed = str(next_folder(str(self.network.currentData())))
            self.out.set_path(self._proposed)

    def _on_changed(self) -> None:
        """Something else is to be pretrained: a run that lies in the proposed place would not fit it."""
        out = self.out.path
        if out is not None and (recipe_in(out) is not None or not out.exists()):
            self.propose()
        self.changed.emit()

    def _on_unit(self) -> None:
        self.budget.setValue(_MINUTES if self.unit.currentText() == "minutes" else _STEPS)
        self._on_changed()
