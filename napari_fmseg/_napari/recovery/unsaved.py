"""The question before a window closes with labels that were painted and not saved: save, discard, or stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog, QPushButton, QStyle, QWidget

from napari_fmseg._napari.common.dialogs import ErrorBox, TextDialog, text_label
from napari_fmseg._napari.common.job import start_job
from napari_fmseg._napari.common.preferences import load
from napari_fmseg._napari.common.tooltips import RECOVERY
from napari_fmseg._napari.export.label_origin import label_map_to_write
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.recovery.autosave_store import KEPT_DAYS
from napari_fmseg.core.errors import UnwritableVolume
from napari_fmseg.io import write_labels

__all__ = ["UnsavedDialog"]

MOST_NAMES = 12
_FILTER = "NIfTI (*.nii.gz);;NRRD (*.nrrd);;MetaImage (*.mha)"


class UnsavedDialog(TextDialog):
    """Lists painted `layers` with Save, Discard and Cancel; accepted means that the window may close.

    `others` are all layers of the viewer, among which the image of each is.
    """

    def __init__(self, layers: Sequence[Any], others: tuple[Any, ...], parent: QWidget | None = None) -> None:
        n = len(layers)
        title = f"{n} layer{'s were' if n > 1 else ' was'} painted and not saved"
        super().__init__(title, QStyle.StandardPixmap.SP_MessageBoxWarning, parent)
        self.setObjectName("fmseg_unsaved")
        self._layers, self._others = list(layers), others
        self.saved: list[Any] = []  # the layers that were written to files
        names = [f"•  {layer.name}" for layer in layers[:MOST_NAMES]]
        names += [f"and {n - MOST_NAMES} more"] if n > MOST_NAMES else []
        kept = load().autosave
        after = (
            f"Discarded labels can be put back for {KEPT_DAYS} days: File > IO Utilities > Recently removed labels."
            if kept
            else "Autosaving is switched off: discarded labels cannot be put back."
        )
        for text in ("\n".join(names), after):
            self.body.addWidget(text_label(text))
        self.error = ErrorBox()
        self.error.more.hide()
        self.column.insertWidget(2, self.error)
        self.save_button, self.discard_button = QPushButton("Save …"), QPushButton("Discard")
        self.cancel_button = QPushButton("Cancel")
        discard = RECOVERY.discard if kept else RECOVERY.discard_for_good
        cancel, save = (self.cancel_button, RECOVERY.cancel), (self.save_button, RECOVERY.save)
        self.add_buttons((self.discard_button, discard), cancel, save)
        self.save_button.clicked.connect(self._on_save)
        self.discard_button.clicked.connect(self.accept)
        self.cancel_button.clicked.connect(self.reject)

    def _on_save(self) -> None:
        paths = self._ask_paths()
        if not paths:
            return
        self.error.tell(None)
        self._allow(False)
        jobs = [(layer, path) for layer, path in zip(self._layers, paths, strict=True) if layer not in self.saved]
        job = start_job(lambda: _write(jobs, self._others), parent=self)
        job.event.connect(self.saved.append)
        job.failed.connect(self.error.tell)
        job.finished.connect(self._on_finished)

    def _on_finished(self, done: bool) -> None:
        self._allow(True)
        if done:
            self.accept()

    def _allow(self, yes: bool) -> None:
        for button in (self.save_button, self.discard_button, self.cancel_button):
            button.setEnabled(yes)

    def _ask_paths(self) -> list[Path]:
        """Request a file for one layer, for a folder for several; none if the user cancels."""
        folder = _folder_of(self._layers[0])
        if len(self._layers) == 1:
            suffix = _suffix(self._layers[0])
            kinds = _FILTER if suffix == ".nii.gz" else "TIFF (*.tif)"
            start = str(folder / f"{_stem(self._layers[0])}{suffix}")
            chosen, _ = QFileDialog.getSaveFileName(self, "Save the labels", start, kinds)
            return [Path(chosen if Path(chosen).suffix else chosen + suffix)] if chosen else []
        chosen = QFileDialog.getExistingDirectory(self, "A folder for the labels, one file each", str(folder))
        return _free_paths(self._layers, Path(chosen)) if chosen else []


def _write(jobs: list[tuple[Any, Path]], others: tuple[Any, ...]) -> Iterator[Any]:
    """Write layers, each whole or not at all, and give each one that is written."""
    for layer, path in jobs:
        if layer.ndim == 3:
            write_labels(label_map_to_write(layer, others), path)
        elif not layer.save(str(path)):
            raise UnwritableVolume(f"{layer.name!r} has {layer.ndim} axes and could not be written to {path}.")
        yield layer


def _folder_of(layer: Any) -> Path:
    """Return the folder of the scan that labels belong to, else the user's own."""
    source = str(fmseg_metadata(layer).get("source") or "")
    return Path(source).parent if source and Path(source).parent.is_dir() else Path.home()


def _stem(layer: Any) -> str:
    return re.sub(r"[^\w-]+", "_", layer.name).strip("_") or "labels"


def _free_paths(layers: Sequence[Any], folder: Path) -> list[Path]:
    """Return a path for each layer that is no file yet."""
    paths: list[Path] = []
    for layer in layers:
        stem, suffix = _stem(layer), _suffix(layer)
        names = (folder / f"{stem}{'' if n == 1 else f'-{n}'}{suffix}" for n in count(1))
        paths.append(next(path for path in names if path not in paths and not path.exists()))
    return paths


def _suffix(layer: Any) -> str:
    return ".nii.gz" if layer.ndim == 3 else ".tif"
