"""The dialog that makes a project: a folder, the names of the structures, what kind of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QComboBox, QDialog, QDialogButtonBox, QFileDialog, QFormLayout, QLineEdit, QWidget

from napari_fmseg._napari.common.number_boxes import CountBox
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import hbox, paragraph, push_button, vbox

__all__ = ["NewProject"]

KINDS = {"MR": "MR", "CT": "CT", "PET": "PET", "Something else": "image"}
WIDTH = 460


class NewProject(QDialog):
    """Asks for what a new project needs.

    Parameters
    ----------
    parent
        The dock.
    names
        Structures to begin with, such as those of the labels in the viewer.
    n_channels
        Channels of the image in the viewer.
    modality
        Of that image, or "".
    """

    def __init__(
        self, parent: QWidget | None = None, *, names: tuple[str, ...] = (), n_channels: int = 1, modality: str = ""
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("New project")
        self.folder, self.names = QLineEdit(), QLineEdit(", ".join(names))
        self.folder.setPlaceholderText("An empty or a new folder")
        self.names.setPlaceholderText("such as: prostate, tumour")
        self.kind, self.channels = QComboBox(), CountBox()
        self.kind.addItems(list(KINDS))
        if modality in KINDS:
            self.kind.setCurrentText(modality)
        self.channels.setRange(1, 20)
        self.channels.setValue(n_channels)
        self.browse, self.why = push_button("Browse …"), paragraph()
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setText("Make project")
        form = QFormLayout()
        form.addRow("Folder", hbox((self.folder, 1), self.browse))
        form.addRow("Structures", self.names)
        form.addRow("Images are", self.kind)
        form.addRow("Channels", self.channels)
        tips = ((self.folder, TEACH.new_folder), (self.names, TEACH.new_names), (self.kind, TEACH.new_kind))
        for widget, tip in (*tips, (self.channels, TEACH.new_channels)):
            widget.setToolTip(tip)
        vbox(form, self.why, self.buttons, of=self)
        self.setMinimumWidth(WIDTH)
        self.browse.clicked.connect(self._on_browse)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        for line in (self.folder, self.names):
            line.textChanged.connect(self._on_changed)
        self._on_changed()

    @property
    def place(self) -> Path:
        """The folder."""
        return Path(self.folder.text().strip()).expanduser()

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `init_project`."""
        kind, n = KINDS[self.kind.currentText()], self.channels.value()
        channels = (kind,) if n == 1 else tuple(f"{kind} {i + 1}" for i in range(n))
        known = (self.place / "dataset.json").exists()
        return {"labels": () if known else self._names(), "channels": channels}

    def _names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.names.text().split(",") if name.strip())

    def _on_browse(self) -> None:
        found = QFileDialog.getExistingDirectory(self, "A folder for the project", self.folder.text())
        if found:
            self.folder.setText(found)

    def _on_changed(self) -> None:
        names, why = self._names(), ""
        known = self.folder.text().strip() != "" and (self.place / "dataset.json").exists()
        if not self.folder.text().strip():
            why = "Choose a folder."
        elif known:
            why = ""
        elif not names:
            why = "Name at least one structure; a comma stands between two."
        elif len({name.casefold() for name in names}) < len(names):
            why = "Every structure is named once."
        self.names.setEnabled(not known)
        hint = "This folder has a dataset.json: it is taken up as it is, with its structures." if known else why
        self.why.setText(hint)
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setEnabled(not why)
