"""The dialog that offers a model of somebody else's: licence, size, address, citation; it downloads after consent."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from qtpy.QtWidgets import QProgressBar, QStyle, QWidget

from napari_fmseg._napari.common.dialogs import TextDialog, text_label
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.widgets import allow, paragraph, push_button
from napari_fmseg.core.events import Progress
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.published import PublishedModel, fetch_published

__all__ = ["DownloadDialog"]

ACCEPT = "Fetches the files from the address above, checks them, and adds the model to the list. Nothing else is sent."
BUSY = "The download is going on."


class DownloadDialog(TextDialog):
    """Shows the terms of a published model and downloads it when they are accepted.

    Attributes
    ----------
    card
        Of the model, once it is there.
    """

    def __init__(self, model: PublishedModel, parent: QWidget | None = None) -> None:
        super().__init__("Download this model?", QStyle.StandardPixmap.SP_MessageBoxQuestion, parent)
        self.setObjectName("fmseg_download")
        self._model = model
        self._job: Job | None = None
        self.card: ModelCard | None = None
        for line in model.terms().splitlines():
            what, colon, text = line.partition(": ")
            said = f"<b>{escape(what)}</b> {escape(text)}" if colon else escape(line)
            self.body.addWidget(paragraph(said, selectable=True))
        self.error = text_label("", bold=True)
        self.error.setVisible(False)
        self.column.insertWidget(2, self.error)
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.column.insertWidget(3, self.bar)
        self.accept_button = push_button("Accept the licence and download", auto_default=False)
        self.cancel_button = push_button("Cancel")
        self.add_buttons((self.accept_button, ACCEPT), (self.cancel_button, "Closes this window. Nothing is fetched."))
        self.accept_button.clicked.connect(self._on_accept)
        self.cancel_button.clicked.connect(self.reject)
        self.finished.connect(self._stop)

    def _on_accept(self) -> None:
        allow(self.accept_button, BUSY, ACCEPT)
        self.error.setVisible(False)
        self.bar.setValue(0)
        self.bar.setVisible(True)
        self._job = start_job(lambda: _fetch(self._model), parent=self)
        self._job.event.connect(self._on_event)
        self._job.failed.connect(self._on_failed)
        self._job.finished.connect(self._on_finished)

    def _on_event(self, event: Progress | ModelCard) -> None:
        if isinstance(event, Progress):
            self.bar.setValue(round(100 * event.done / event.total))
        else:
            self.card = event

    def _on_failed(self, error: BaseException) -> None:
        self.error.setText(str(error))
        self.error.setVisible(True)

    def _on_finished(self) -> None:
        self._job = None
        self.bar.setVisible(False)
        allow(self.accept_button, "", ACCEPT)
        if self.card is not None:
            self.accept()

    def _stop(self) -> None:
        """Stop the download when the dialog ends."""
        if self._job is not None:
            self._job.abandon()


def _fetch(model: PublishedModel) -> Iterator[Progress | ModelCard]:
    """Yield the progress of a download, and last the card of the installed model."""
    card = yield from fetch_published(model)
    yield card
