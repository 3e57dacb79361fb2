"""The dialog that offers public volumes: it says host, size and licence, and downloads only after consent."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import (
    QDialog,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_fmseg._napari.common.tooltips import OPEN
from napari_fmseg._napari.common.viewer_window import window_of
from napari_fmseg._napari.opening.open_files import Opening
from napari_fmseg._napari.opening.public_samples import (
    PublicSample,
    fetch,
    find_download,
    list_public_samples,
    samples_folder,
)
from napari_fmseg.core.errors import FmsegError

__all__ = ["Download", "PublicSamplesDialog", "show_public_samples"]


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


class Download(QObject):
    """Fetches one sample in a thread.

    Attributes
    ----------
    progressed : Signal(int)
        Per cent.
    done : Signal(object)
        The path, or an `FmsegError`, or None if it was stopped.
    """

    progressed = Signal(int)
    done = Signal(object)

    def __init__(self, sample: PublicSample, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._sample = sample
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin; returns at once."""
        threading.Thread(target=self._work, name="fmseg-download", daemon=True).start()

    def stop(self) -> None:
        """End at the next piece; nothing is kept."""
        self._stop.set()

    def _work(self) -> None:
        result = self._fetched()
        with suppress(RuntimeError):  # the dialog was closed meanwhile, and this object with it
            self.done.emit(result)

    def _fetched(self) -> Any:
        try:
            path = find_download(self._sample)
            if path is not None:
                return path
            pieces = fetch(self._sample)
            for piece in pieces:
                if self._stop.is_set():
                    pieces.close()  # type: ignore[attr-defined]
                    return None
                with suppress(RuntimeError):
                    self.progressed.emit(round(100 * piece.done / piece.total))
            return find_download(self._sample)
        except FmsegError as error:
            error.__traceback__ = None  # its frames would keep the dialog alive
            return error


class PublicSamplesDialog(QDialog):
    """Lists public volumes and opens the one that the user agrees to download.

    Parameters
    ----------
    viewer
        Where it is opened.
    samples
        What is offered.
    parent
        The window before which it stands.
    """

    def __init__(self, viewer: Any, samples: tuple[PublicSample, ...], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer, self._samples = viewer, samples
        self._download: Download | None = None
        self.setWindowTitle("Public sample volumes")
        self.list = QListWidget()
        for sample in samples:
            self.list.addItem(QListWidgetItem(sample.title))
        self.says = QLabel()
        self.says.setWordWrap(True)
        self.says.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.agree = QPushButton("Download and open")
        self.close_button = QPushButton("Close")
        self._lay_out()
        self.list.currentRowChanged.connect(self._on_row)
        self.agree.clicked.connect(self._on_agree)
        self.close_button.clicked.connect(self.reject)
        self.list.setCurrentRow(0)
        self._on_row(self.list.currentRow())

    def _lay_out(self) -> None:
        self.list.setVisible(bool(self._samples))
        self.list.setMaximumHeight(160)
        buttons = QHBoxLayout()
        buttons.addStretch()
        buttons.addWidget(self.agree)
        buttons.addWidget(self.close_button)
        layout = QVBoxLayout(self)
        for part in (self.list, self.says, self.bar):
            layout.addWidget(part)
        layout.addStretch()
        layout.addLayout(buttons)
        self.resize(520, 340 if self._samples else 160)

    def _on_row(self, row: int) -> None:
        self.agree.setEnabled(row >= 0)
        self.agree.setToolTip(OPEN.download if row >= 0 else OPEN.no_download)
        self.says.setText(_told(self._samples[row]) if row >= 0 else _nothing())

    def _on_agree(self) -> None:
        sample = self._samples[self.list.currentRow()]
        self.agree.setEnabled(False)
        self.list.setEnabled(False)
        self.close_button.setText("Cancel")
        self.bar.setValue(0)
        self.bar.setVisible(True)
        self._download = Download(sample, self)
        self._download.progressed.connect(self.bar.setValue)
        self._download.done.connect(self._on_done)
        self._download.start()

    def _on_done(self, result: Any) -> None:
        self._download = None
        self.bar.setVisible(False)
        self.list.setEnabled(True)
        self.agree.setEnabled(True)
        self.close_button.setText("Close")
        if isinstance(result, FmsegError):
            self.says.setText(str(result))
        elif result is not None:
            opening = Opening(self._viewer, [str(result)])
            opening.start()
            self.accept()

    def done(self, result: int) -> None:
        """End the download when the dialog ends."""
        if self._download is not None:
            self._download.stop()
        super().done(result)


def _told(sample: PublicSample) -> str:
    size = f"{sample.size / 1e6:.1f} MB"
    use = f" A fair trial for {', '.join(sample.models)}." if sample.models else ""
    return (
        f"<p><b>{sample.title}</b>.{use}</p>"
        f"<p>From: {sample.host}<br>Size: {size}<br>Licence: {sample.licence}<br>{sample.source}</p>"
        f"<p>“Download and open” fetches this file from {sample.host}, checks its sha256 and keeps it on this "
        "machine. Nothing is sent but the request.</p>"
    )


def _nothing() -> str:
    return (
        "<p>This version offers no public volume to download: none has been checked yet.</p>"
        "<p>The phantoms under File &gt; Open Sample &gt; fmseg need no download. Your laboratory can offer volumes of "
        f"its own in {samples_folder() / 'registry.toml'}.</p>"
    )
