"""Models of nnU-Net that were dropped on the segment dock: converted in a thread, then chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qtpy.QtCore import QObject, Signal

from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg.models.nnunet import Imported, import_nnunet

__all__ = ["ModelImport"]


class ModelImport(QObject):
    """Imports models into those of the user, one path after the other.

    Attributes
    ----------
    imported : Signal(object)
        What came out of one path, an `Imported`.
    failed : Signal(object)
        An `FmsegError`; nothing further is imported.
    """

    imported = Signal(object)
    failed = Signal(object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.job: Job | None = None

    def start(self, paths: Sequence[str]) -> None:
        """Begin; returns at once."""
        self.job = start_job(lambda: _import_each(paths), parent=self)
        self.job.event.connect(self.imported)
        self.job.failed.connect(self.failed)


def _import_each(paths: Sequence[str]) -> Iterator[Imported]:
    for path in paths:
        yield import_nnunet(path)
