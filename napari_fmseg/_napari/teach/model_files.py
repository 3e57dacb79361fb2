"""A model as one file: where it is written to, and where it is taken from."""

from __future__ import annotations

from qtpy.QtWidgets import QFileDialog, QWidget

from napari_fmseg.models.archive import export_model, import_model
from napari_fmseg.training.projects import Version

__all__ = ["ask_and_export", "ask_and_import"]

_KIND = "Models (*.zip)"


def ask_and_export(parent: QWidget, version: Version) -> str:
    """Write a version to a place that the user chooses; gives what to say, or "" if nothing was done.

    Raises
    ------
    FmsegError
        If it cannot be written.
    """
    name = f"{version.card.name}-{version.number}.zip"
    path, _ = QFileDialog.getSaveFileName(parent, "Export the model", name, _KIND)
    if not path:
        return ""
    written = export_model(version.card, path if path.lower().endswith(".zip") else f"{path}.zip")
    return f"Version {version.number} was written to {written.name}."


def ask_and_import(parent: QWidget) -> str:
    """Import a model from a file that the user chooses; return a message, or "" if nothing was done.

    Raises
    ------
    FmsegError
        If it is no such file, or was altered.
    """
    path, _ = QFileDialog.getOpenFileName(parent, "Import a model", "", _KIND)
    if not path:
        return ""
    card = import_model(path)
    return f"{card.title} can be chosen in the Segment panel, and to start from."
