"""A place to drop files and folders on, which always opens them with our own reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QMimeData, Qt, Signal
from qtpy.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent
from qtpy.QtWidgets import QFileDialog, QFrame, QProgressBar, QSizePolicy, QWidget

from napari_fmseg._napari.common.tooltips import OPEN
from napari_fmseg._napari.common.widgets import hbox, paragraph, push_button, vbox
from napari_fmseg._napari.opening.open_files import Opening, tell
from napari_fmseg.models.nnunet import is_nnunet

__all__ = ["VOLUMES_FILTER", "DropZone", "paths_in"]

VOLUMES_FILTER = (
    "Volumes (*.nii *.nii.gz *.hdr *.img *.nrrd *.nhdr *.mha *.mhd *.dcm *.zip DICOMDIR);;"
    "All files, also DICOM without a suffix (*)"
)
_FRAME = "#fmsegDropZone { border: 2px dashed rgba(128, 128, 128, 200); border-radius: 6px; }"
_HOVER = "#fmsegDropZone { border: 2px solid rgb(0, 122, 204); border-radius: 6px; background: rgba(0, 122, 204, 40); }"


class DropZone(QWidget):
    """Takes files and folders by drop, or by two buttons.

    Parameters
    ----------
    parent
        The widget that it lies in.
    viewer
        If given, what is dropped is opened in it, while the zone shows that it is busy; without, `dropped` is all.

    Attributes
    ----------
    dropped : Signal(list)
        The paths, as text.
    opened : Signal(list)
        The layers of one path, when it was opened in `viewer`.
    failed : Signal(object)
        An `FmsegError`; where nothing is connected, a dialog shows it.
    models : Signal(list)
        Paths of models that nnU-Net trained; where nothing is connected, they are opened as files.
    idle : Signal
        Everything that was dropped has been read, or could not be.
    """

    dropped = Signal(list)
    opened = Signal(list)
    failed = Signal(object)
    models = Signal(list)
    idle = Signal()

    def __init__(self, parent: QWidget | None = None, *, viewer: Any = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._opening: Opening | None = None
        self._frame = QFrame()
        self._frame.setObjectName("fmsegDropZone")
        self._says = paragraph()
        self._says.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._busy = QProgressBar()
        self._busy.setRange(0, 0)
        self._busy.setTextVisible(False)
        self._busy.setMaximumHeight(6)
        self.file_button = push_button("&Open file…", OPEN.file)
        self.folder_button = push_button("Ope&n folder…", OPEN.folder)
        self.setToolTip(OPEN.drop_zone)
        vbox(self._says, self._busy, hbox(self.file_button, self.folder_button), of=self._frame)
        vbox(self._frame, of=self, margins=(2, 2, 2, 2))
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self.setAcceptDrops(True)
        self.setAccessibleName("Drop a volume here")
        self.setTabOrder(self.file_button, self.folder_button)
        self.file_button.clicked.connect(self._on_file)
        self.folder_button.clicked.connect(self._on_folder)
        self.dropped.connect(self._on_dropped)
        self.show_busy("")

    @property
    def busy(self) -> bool:
        """Whether something is being read; nothing more is taken meanwhile."""
        return not self.file_button.isEnabled()

    def show_busy(self, name: str) -> None:
        """Show that `name` is being read and take nothing more; "" ends that."""
        self._frame.setStyleSheet(_FRAME)
        self._busy.setVisible(bool(name))
        self._says.setText(
            f"Reading {name} …"
            if name
            else "<b>Drop a scan here</b><br>NIfTI, NRRD, MetaImage, a DICOM folder, or a zip of these"
        )
        for button in (self.file_button, self.folder_button):
            button.setEnabled(not name)

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:
        """Accept drags with files, unless busy."""
        if event is None:
            return
        if self.busy or not paths_in(event.mimeData()):
            event.ignore()
            return
        self._frame.setStyleSheet(_HOVER)
        event.acceptProposedAction()

    def dragLeaveEvent(self, event: QDragLeaveEvent | None) -> None:
        """Inspect as before."""
        self._frame.setStyleSheet(_FRAME)

    def dropEvent(self, event: QDropEvent | None) -> None:
        """Emit the files and folders that were dropped."""
        self._frame.setStyleSheet(_FRAME)
        paths = paths_in(event.mimeData()) if event is not None else []
        if event is None or self.busy or not paths:
            return
        event.acceptProposedAction()
        self.dropped.emit(paths)

    def _on_file(self) -> None:
        self._emit_chosen(lambda start: QFileDialog.getOpenFileNames(self, "Open volumes", start, VOLUMES_FILTER)[0])

    def _on_folder(self) -> None:
        self._emit_chosen(lambda start: [QFileDialog.getExistingDirectory(self, "Open a folder", start)])

    def _emit_chosen(self, ask: Callable[[str], list[str]]) -> None:
        """Request paths, starting where napari opened something last, which it remembers for the next time."""
        from napari.utils.history import get_open_history, update_open_history

        paths = [path for path in ask(get_open_history()[0]) if path]
        if paths:
            update_open_history(paths[0])
            self.dropped.emit(paths)

    def _on_dropped(self, paths: list[str]) -> None:
        if self._viewer is None or self.busy:
            return
        if self.receivers(self.models) > 0 and (models := [path for path in paths if is_nnunet(path)]):
            self.models.emit(models)
            paths = [path for path in paths if path not in models]
        if not paths:
            return
        self.show_busy(f"{len(paths)} items" if len(paths) > 1 else "…")
        self._opening = Opening(self._viewer, paths, self)
        self._opening.reading.connect(self.show_busy)
        self._opening.opened.connect(self.opened)
        self._opening.failed.connect(self._on_failed)
        self._opening.finished.connect(self._on_finished)
        self._opening.start()

    def _on_failed(self, error: Any) -> None:
        if self.receivers(self.failed) > 0:
            self.failed.emit(error)
        else:
            tell(error, self.window())

    def _on_finished(self) -> None:
        self._opening = None
        self.show_busy("")
        self.idle.emit()


def paths_in(mime: QMimeData | None) -> list[str]:
    """Return the files and folders that are dragged."""
    if mime is None or not mime.hasUrls():
        return []
    return [url.toLocalFile().rstrip("/") or "/" for url in mime.urls() if url.isLocalFile()]
