"""Which project is open: those of before, a new one, or a folder that is chosen or dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QWidget

from napari_fmseg._napari.common.dialogs import run_modal
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import NO_MARGINS, hbox, limit_width, push_button
from napari_fmseg._napari.teach.new_project_dialog import NewProject
from napari_fmseg._napari.teach.recent_projects import recent_projects, remember

__all__ = ["ProjectBar"]


class ProjectBar(QWidget):
    """A list of projects and two buttons.

    Parameters
    ----------
    suggest
        Gives what a new project is likely to be: the arguments of `NewProject`.

    Attributes
    ----------
    chosen
        Signal with a folder, and the arguments of `init_project` for a new project, else None.
    """

    chosen = Signal(object, object)

    def __init__(self, suggest: Callable[[], dict[str, Any]], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._suggest = suggest
        self.folders = QComboBox()
        self.new, self.open = push_button("New …", TEACH.new), push_button("Open …", TEACH.open)
        self.folders.setToolTip(TEACH.project)
        limit_width(self.folders, 12)
        hbox((self.folders, 1), self.new, self.open, of=self, margins=NO_MARGINS)
        self.folders.activated.connect(self._on_folder)
        self.new.clicked.connect(self._on_new)
        self.open.clicked.connect(self._on_open)
        self._fill()

    @property
    def last(self) -> Path | None:
        """The project that was open last, or None."""
        paths = recent_projects()
        return paths[0] if paths else None

    def set_folder(self, folder: Path) -> None:
        """Put the project that is open now first, and remember it."""
        remember(folder)
        self._fill()

    def _fill(self) -> None:
        paths = recent_projects()
        self.folders.clear()
        for i, path in enumerate(paths):
            self.folders.addItem(path.name, str(path))
            self.folders.setItemData(i, str(path), Qt.ItemDataRole.ToolTipRole)
        if not paths:
            self.folders.addItem("No project yet")
        self.folders.setEnabled(bool(paths))

    def _on_folder(self, at: int) -> None:
        if self.folders.itemData(at):
            self.chosen.emit(Path(self.folders.itemData(at)), None)

    def _on_open(self) -> None:
        last = self.last
        found = QFileDialog.getExistingDirectory(self, "Open a project", str(last.parent) if last else "")
        if found:
            self.chosen.emit(Path(found), None)

    def _on_new(self) -> None:
        dialog = NewProject(self.window(), **self._suggest())
        if run_modal(dialog):
            self.chosen.emit(dialog.place, dialog.arguments())
