"""Parts of the export dock: which classes, where to, and what became of it."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QSize, Qt, QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QApplication, QFileDialog, QFrame, QLineEdit, QListWidget, QListWidgetItem, QWidget

from napari_fmseg._napari.common.tooltips import EXPORT
from napari_fmseg._napari.common.widgets import NO_MARGINS, TICK_BOXES, allow, hbox, paragraph, push_button, vbox
from napari_fmseg._napari.export.format_form import SUFFIXES
from napari_fmseg._napari.results.class_colors import SWATCH, color_icon
from napari_fmseg.core.volume import LabelMap

__all__ = ["ClassList", "Destination", "Outcome"]

_SHOWN = 8  # rows, before the list scrolls
_DONE = "QFrame#done { border: 1px solid #3a9d5d; border-radius: 3px; }"


class ClassList(QWidget):
    """The classes of the labels, with a box to tick each."""

    changed = Signal()  # a box was ticked or cleared

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.list = QListWidget()
        self.list.setToolTip(EXPORT.classes)
        self.list.setIconSize(QSize(SWATCH, SWATCH))
        self.list.setUniformItemSizes(True)
        self.list.setStyleSheet(f"QListWidget {{ padding: 2px 4px; }} {TICK_BOXES}")
        self.all, self.none = push_button("&All"), push_button("&None")
        vbox(self.list, hbox(self.all, self.none, 1), of=self, margins=NO_MARGINS, spacing=4)
        self.list.itemChanged.connect(self.changed)
        self.all.clicked.connect(lambda: self._tick(Qt.CheckState.Checked))
        self.none.clicked.connect(lambda: self._tick(Qt.CheckState.Unchecked))

    def show_classes(self, labels: LabelMap | None) -> None:
        """List the named classes of `labels`; what was cleared before stays so while the class is the same."""
        cleared = {self._key(item) for item in self._items() if item.checkState() != Qt.CheckState.Checked}
        self.list.blockSignals(True)
        self.list.clear()
        for value, name in sorted((labels.names if labels is not None else {}).items()):
            item = QListWidgetItem(color_icon(labels.colors.get(value) if labels is not None else None), name)
            item.setData(Qt.ItemDataRole.UserRole, int(value))
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Unchecked if self._key(item) in cleared else Qt.CheckState.Checked)
            self.list.addItem(item)
        if labels is not None and not labels.names:
            item = QListWidgetItem("all painted numbers")
            item.setFlags(Qt.ItemFlag.NoItemFlags)
            item.setToolTip(EXPORT.painted)
            self.list.addItem(item)
        self.list.blockSignals(False)
        rows = min(max(self.list.count(), 1), _SHOWN)
        height = self.list.sizeHintForRow(0) if self.list.count() else 18
        self.list.setFixedHeight(rows * height + 2 * self.list.frameWidth() + 8)
        none = "" if self._items() else EXPORT.no_names
        allow(self.all, none, EXPORT.all_classes)
        allow(self.none, none, EXPORT.no_classes)
        self.changed.emit()

    @property
    def values(self) -> tuple[int, ...] | None:
        """The ticked classes, or None if all are: then unnamed numbers are exported too."""
        items = self._items()
        ticked = tuple(self._key(item)[0] for item in items if item.checkState() == Qt.CheckState.Checked)
        return None if len(ticked) == len(items) else ticked

    def _items(self) -> list[QListWidgetItem]:
        items = [self.list.item(row) for row in range(self.list.count())]
        return [item for item in items if item is not None and item.data(Qt.ItemDataRole.UserRole) is not None]

    @staticmethod
    def _key(item: QListWidgetItem) -> tuple[int, str]:
        return int(item.data(Qt.ItemDataRole.UserRole)), str(item.text())

    def _tick(self, state: Qt.CheckState) -> None:
        for item in self._items():
            item.setCheckState(state)


class Destination(QWidget):
    """A line for a file or a folder, and a button to choose it."""

    changed = Signal()  # another place was typed or chosen

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.line, self.browse = QLineEdit(), push_button("&Browse…", EXPORT.browse)
        self.line.setToolTip(EXPORT.destination)
        hbox((self.line, 1), self.browse, of=self, margins=NO_MARGINS, spacing=4)
        self._suffix = ""
        self.line.textChanged.connect(self._on_typed)
        self.browse.clicked.connect(self._on_browse)

    @property
    def path(self) -> Path | None:
        """Where to write, with the suffix that the format needs; None while nothing is typed."""
        text = self.line.text().strip()
        if not text:
            return None
        path = Path(text).expanduser()
        if not path.name:  # the root, or a drive: a folder, and no file
            return None if self._suffix else path
        if self._suffix and not path.name.lower().endswith(self._suffix):
            path = path.with_name(path.name + self._suffix)
        return path

    def suggest(self, name: str) -> None:
        """Propose a name in the folder that is set, the user's own at first."""
        path = self.path
        folder = Path.home() if path is None else path.parent
        self.line.setText(str(folder / f"{name}{self._suffix}"))

    @property
    def stem(self) -> str:
        """The name without a suffix, or ""."""
        path = self.path
        if path is None:
            return ""
        return next((path.name[: -len(end)] for end in SUFFIXES if path.name.lower().endswith(end)), path.name)

    def set_suffix(self, suffix: str) -> None:
        """Return the file with `suffix`, or with "" the folder, that the user chooses in a dialog."""
        path, stem = self.path, self.stem
        self._suffix = suffix
        if path is not None and stem:
            self.line.setText(str(path.with_name(f"{stem}{suffix}")))

    def _on_typed(self, text: str) -> None:
        self.line.setToolTip(f"{text}\n{EXPORT.destination}".strip())
        self.changed.emit()

    def _on_browse(self) -> None:
        start = str(self.path or Path.home())
        if self._suffix:
            # We ask ourselves, once, whatever the way the name came in.
            free = QFileDialog.Option.DontConfirmOverwrite
            chosen, _ = QFileDialog.getSaveFileName(self, "Export to", start, f"*{self._suffix}", options=free)
        else:
            chosen = QFileDialog.getExistingDirectory(self, "Export into this folder", start)
        if chosen:
            self.line.setText(chosen)


class Outcome(QFrame):
    """What was written, and two ways to it; hidden until then."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("done")
        self.setStyleSheet(_DONE)
        self.paths: list[Path] = []
        self.text = paragraph(selectable=True)
        self.folder = push_button("Show &folder", EXPORT.show_folder)
        self.copy = push_button("Copy &path", EXPORT.copy_path)
        vbox(self.text, hbox(self.folder, self.copy, 1), of=self, margins=(6, 6, 6, 6))
        self.folder.clicked.connect(self._on_folder)
        self.copy.clicked.connect(self._on_copy)
        self.hide()

    def tell(self, paths: list[Path]) -> None:
        """Show these files, or with none that there is nothing to tell."""
        self.paths = paths
        if len(paths) == 1:
            self.text.setText(f"Written: {_breakable(paths[0])}")
        elif paths:
            self.text.setText(f"{len(paths)} files written into {_breakable(paths[0].parent)}")
        self.setVisible(bool(paths))

    def _on_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.paths[0].parent)))

    def _on_copy(self) -> None:
        one = self.paths[0] if len(self.paths) == 1 else self.paths[0].parent
        QApplication.clipboard().setText(str(one))


def _breakable(path: Path) -> str:
    """Return a path that may break into lines behind its separators."""
    return str(path).replace("/", "/\u200b").replace("\\", "\\\u200b")
