"""The versions of a project's model: how good each is, where it comes from, and which is in use."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QGridLayout, QTableWidgetItem, QWidget

from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import allow, paragraph, push_button, vbox
from napari_fmseg.training.projects import Version

__all__ = ["VersionList"]

NUMBER, DICE, CASES, SOURCE, MADE = range(5)
TITLES = ("Version", "Dice", "Cases", "From", "Made")
TIPS = (TEACH.version, TEACH.version_dice, TEACH.version_cases, TEACH.version_from, TEACH.version_made)
_ROW = 22


class VersionList(QWidget):
    """All versions, the newest first, with what can be done with them: a signal for each button."""

    use = Signal(int)  # with the number of a version that the user wants in use
    roll_back = Signal()
    export = Signal()
    import_ = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._versions: dict[int, Version] = {}
        self.present = 0
        self.table = plain_table(TITLES, TIPS, row=_ROW, stretch=SOURCE)
        self.table.horizontalHeader().setMinimumSectionSize(30)
        self.facts = paragraph(selectable=True)
        self.use_button, self.back_button = push_button("&Use this version"), push_button("&Roll back")
        self.export_button = push_button("E&xport …")
        self.import_button = push_button("&Import …", TEACH.import_model)
        buttons = QGridLayout()
        for i, button in enumerate((self.use_button, self.back_button, self.export_button, self.import_button)):
            buttons.addWidget(button, i // 2, i % 2)
        vbox((self.table, 1), self.facts, buttons, of=self, margins=(6, 6, 6, 6))
        self.table.itemSelectionChanged.connect(self._on_selected)
        self.table.cellDoubleClicked.connect(lambda *_: self._on_use())
        self.use_button.clicked.connect(self._on_use)
        self.back_button.clicked.connect(self.roll_back)
        self.export_button.clicked.connect(self.export)
        self.import_button.clicked.connect(self.import_)
        self.show_versions((), ())

    @property
    def chosen(self) -> int:
        """The number of the selected version, or 0."""
        rows = self.table.selectionModel().selectedRows()
        return int(self.table.item(rows[0].row(), NUMBER).data(Qt.ItemDataRole.UserRole)) if rows else 0

    def choose(self, number: int) -> None:
        """Select a version."""
        numbers = [self.table.item(i, NUMBER).data(Qt.ItemDataRole.UserRole) for i in range(self.table.rowCount())]
        if number in numbers:
            self.table.selectRow(numbers.index(number))

    def show_versions(self, versions: Sequence[Version], used: Sequence[int]) -> None:
        """Fill the list.

        Parameters
        ----------
        versions
            All of them.
        used
            Numbers of those that were in use, the present one last.
        """
        self._versions = {version.number: version for version in versions}
        self.present = used[-1] if used else 0
        self.table.setRowCount(len(versions))
        for i, version in enumerate(reversed(versions)):
            for column, text in enumerate(_cells(version, in_use=version.number == self.present)):
                item = QTableWidgetItem(text)
                item.setData(Qt.ItemDataRole.UserRole, version.number)
                self.table.setItem(i, column, item)
        before = TEACH.roll_back.format(used[-2]) if len(used) > 1 else ""
        allow(self.back_button, "" if before else "No other version was active before this one.", before)
        none = "" if versions else "There is no version yet. Train one first."
        allow(self.export_button, none, TEACH.export_model)
        self.choose(self.present)
        self._on_selected()

    def _on_selected(self) -> None:
        version = self._versions.get(self.chosen)
        why = "Choose a version first." if version is None else ""
        if version is not None and version.number == self.present:
            why = "This version is active already."
        allow(self.use_button, why, TEACH.use_version)
        self.facts.setText(
            _facts(version) if version else "No version yet. Label some cases and press Start on the page Train."
        )

    def _on_use(self) -> None:
        if self.use_button.isEnabled():
            self.use.emit(self.chosen)


def _cells(version: Version, *, in_use: bool) -> tuple[str, ...]:
    lineage = version.lineage
    values = _by_class(version).values()
    dice = f"{sum(values) / len(values):.3f}" if values else "–"
    source = f"version {lineage.parent}" if lineage.parent else lineage.started_from or "scratch"
    return (f"{'●' if in_use else '○'} {version.number}", dice, str(len(lineage.learned)), source, lineage.made[:10])


def _by_class(version: Version) -> dict[str, float]:
    """Return the mean Dice by class over the cases that it was measured on."""
    found: dict[str, list[float]] = {}
    for scores in version.lineage.scores.values():
        for name, value in scores.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _facts(version: Version) -> str:
    dice = ", ".join(f"{name} {value:.3f}" for name, value in _by_class(version).items())
    lines = [f"<b>Dice</b> {dice}" if dice else "<b>Dice</b> not measured: no held-out cases"]
    if version.lineage.note:
        lines.append(version.lineage.note)
    if version.lineage.verdict:
        lines.append(f"<b>Why it became active, or not</b> {version.lineage.verdict}")
    return "<br>".join(lines)
