"""The dialog that offers public volumes: it says host, size and licence, and downloads only after consent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QListWidget, QProgressBar, QWidget

from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.tooltips import OPEN
from napari_fmseg._napari.common.viewer_window import window_of
from napari_fmseg._napari.common.widgets import allow, hbox, paragraph, push_button, vbox
from napari_fmseg._napari.opening.open_files import Opening
from napari_fmseg._napari.opening.public_samples import (
    PublicSample,
    fetch,
    find_download,
    list_public_samples,
    samples_folder,
)
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress

__all__ = ["PublicSamplesDialog", "show_public_samples"]


def show_public_samples() -> None:
    """Show the dialog over the current viewer; a menu command."""
    import napari
    from napari.utils.notifications import show_error

    viewer = napari.current_viewer()
    if viewer is None:
        return
    try:
        dialog = PublicSamplesDialog(viewer, list_public_samples(), window_of(viewer))
    except FmsegError as error:
        show_error(str(error))
        return
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.open()


class PublicSamplesDialog(QDialog):
    """Lists public volumes and opens the one that the user agrees to download in the viewer."""

    def __init__(self, viewer: Any, samples: tuple[PublicSample, ...], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer, self._samples = viewer, samples
        self._download: Job | None = None
        self.setWindowTitle("Public sample volumes")
        self.list = QListWidget()
        self.list.addItems([sample.title for sample in samples])
        self.says = paragraph(selectable=True)
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.agree, self.close_button = push_button("Download and open"), push_button("Close")
        self.list.setVisible(bool(self._samples))
        self.list.setMaximumHeight(160)
        vbox(self.list, self.says, self.bar, 0, hbox(0, self.agree, self.close_button), of=self)
        self.resize(520, 340 if self._samples else 160)
        self.list.currentRowChanged.connect(self._on_row)
        self.agree.clicked.connect(self._on_agree)
        self.close_button.clicked.connect(self.reject)
        self.finished.connect(self._stop)
        self.list.setCurrentRow(0)
        self._on_row(self.list.currentRow())

    def _on_row(self, row: int) -> None:
        allow(self.agree, "" if row >= 0 else OPEN.no_download, OPEN.download)
        self.says.setText(_describe(self._samples[row]) if row >= 0 else _no_samples_text())

    def _on_agree(self) -> None:
        sample = self._samples[self.list.currentRow()]
        self.agree.setEnabled(False)
        self.list.setEnabled(False)
        self.close_button.setText("Cancel")
        self.bar.setValue(0)
        self.bar.setVisible(True)
        self._download = start_job(lambda: _download(sample), parent=self)
        self._download.event.connect(self._on_event)
        self._download.failed.connect(lambda error: self.says.setText(str(error)))
        self._download.finished.connect(self._on_downloaded)

    def _on_event(self, event: Progress | Path) -> None:
        if isinstance(event, Progress):
            self.bar.setValue(round(100 * event.done / event.total))
        else:
            Opening(self._viewer, [str(event)]).start()
            self.accept()

    def _on_downloaded(self) -> None:
        self._download = None
        self.bar.setVisible(False)
        self.list.setEnabled(True)
        self.agree.setEnabled(True)
        self.close_button.setText("Close")

    def _stop(self) -> None:
        """Stop the download when the dialog ends."""
        if self._download is not None:
            self._download.abandon()


def _download(sample: PublicSample) -> Iterator[Progress | Path]:
    """Yield the progress of a download, and last the file; one that is there already is not fetched again."""
    if find_download(sample) is None:
        yield from fetch(sample)
    path = find_download(sample)
    if path is not None:
        yield path


def _describe(sample: PublicSample) -> str:
    """Return what a user should know before a download, as HTML."""
    size = f"{sample.size / 1e6:.1f} MB"
    use = f" A fair trial for {', '.join(sample.models)}." if sample.models else ""
    return (
        f"<p><b>{sample.title}</b>.{use}</p>"
        f"<p>From: {sample.host}<br>Size: {size}<br>Licence: {sample.licence}<br>{sample.source}</p>"
        f"<p>“Download and open” fetches this file from {sample.host}, checks its sha256 and keeps it on this "
        "machine. Nothing is sent but the request.</p>"
    )


def _no_samples_text() -> str:
    return (
        "<p>This version offers no public volume to download: none has been checked yet.</p>"
        "<p>The phantoms under File &gt; Open Sample &gt; fmseg need no download. Your laboratory can offer volumes of "
        f"its own in {samples_folder() / 'registry.toml'}.</p>"
    )
