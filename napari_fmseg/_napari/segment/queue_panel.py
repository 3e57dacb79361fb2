"""The queue as a list: add scans, put them in order, start; click on a finished one to see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtGui import QColor, QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QFileDialog, QTableWidgetItem, QWidget

from napari_fmseg._napari.choosers.image_volumes import ImageVolume
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.table_widget import plain_table
from napari_fmseg._napari.common.tooltips import QUEUE
from napari_fmseg._napari.common.widgets import (
    NO_MARGINS,
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    Note,
    allow,
    hbox,
    paragraph,
    push_button,
    vbox,
)
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.opening.dropzone import VOLUMES_FILTER, paths_in
from napari_fmseg._napari.opening.open_files import Opening
from napari_fmseg._napari.segment.queue_run import Queue, Wish, plan_scans
from napari_fmseg._napari.segment.queue_store import CANCELLED, DONE, FAILED, RUNNING, WAITING, QueuedScan
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.models.card import ModelCard
from napari_fmseg.pipelines import SegmentOptions

__all__ = ["Plan", "QueuePanel"]

Plan = tuple[ModelCard, SegmentOptions]
"""What to run on the scans that are added."""
TITLES = ("Scan", "Model", "State")
SCAN, MODEL, STATE = range(3)
_ROW, _SHOWN = 22, 5
_COLORS = {WAITING: "#8a8a8a", RUNNING: "#3d8bd4", DONE: "#2f9e62", FAILED: "#d9534f", CANCELLED: "#b0b0b0"}


class QueuePanel(QWidget):
    """The list and its buttons.

    Parameters
    ----------
    viewer
        Where finished scans are opened.
    queue
        What runs.
    plan
        Returns what is chosen to run; raises `FmsegError` with the reason where nothing can.
    volumes
        Returns the images of the viewer.

    Attributes
    ----------
    failed
        Signal with an error.
    """

    failed = Signal(object)

    def __init__(
        self,
        viewer: Any,
        queue: Queue,
        plan: Callable[[], Plan],
        volumes: Callable[[], Sequence[ImageVolume]],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._viewer, self.queue, self._plan, self._volumes = viewer, queue, plan, volumes
        self._planning: Job | None = None
        self._later: list[Wish] = []  # of scans that are added while others are looked for
        self._opening: Opening | None = None
        self._progress = ""
        self.files_button = push_button("Add files …", QUEUE.files)
        self.folder_button = push_button("Add folder …", QUEUE.folder)
        self.images_button = push_button("Add open images", QUEUE.images)
        self.results_text, self.results_button = paragraph(plain=True), push_button("Change …", QUEUE.results)
        self.table = plain_table(TITLES, (QUEUE.scan, QUEUE.model, QUEUE.state), row=_ROW, stretch=SCAN)
        self.note = Note()
        self.start_button = push_button("Start &queue", QUEUE.start, style=PRIMARY_BUTTON)
        self.cancel_all_button = push_button("Cancel all", QUEUE.cancel_all, style=SECONDARY_BUTTON)
        self.up_button, self.down_button = push_button("▲", QUEUE.up), push_button("▼", QUEUE.down)
        self.remove_button, self.retry_button = push_button("Remove", QUEUE.remove), push_button("Retry", QUEUE.retry)
        self.cancel_button = push_button("Cancel", QUEUE.cancel)
        self._lay_out()
        self._connect()
        waiting = queue.restore()
        if waiting:
            scans = "1 scan was" if waiting == 1 else f"{waiting} scans were"
            self.note.tell([f"{scans} not finished when napari ended. Press “Start queue” to go on."])
        self._show()

    def _lay_out(self) -> None:
        for button in (self.up_button, self.down_button):
            button.setFixedWidth(30)
        self.up_button.setAccessibleName("Move up")
        self.down_button.setAccessibleName("Move down")
        self.table.setMinimumHeight(_SHOWN * _ROW)
        self.table.setAccessibleName("Queue of scans")
        add = hbox(self.files_button, self.folder_button, self.images_button, spacing=4)
        order = hbox(self.up_button, self.down_button, self.remove_button, self.retry_button, self.cancel_button)
        order.setSpacing(4)
        vbox(
            add,
            hbox((self.results_text, 1), self.results_button),
            (self.table, 1),
            order,
            self.note,
            hbox((self.start_button, 2), (self.cancel_all_button, 1)),
            of=self,
            margins=NO_MARGINS,
            spacing=4,
        )
        self.setAcceptDrops(True)

    def _connect(self) -> None:
        self.files_button.clicked.connect(self._on_files)
        self.folder_button.clicked.connect(self._on_folder)
        self.images_button.clicked.connect(self._on_images)
        self.results_button.clicked.connect(self._choose_results)
        self.start_button.clicked.connect(self._on_start)
        self.cancel_all_button.clicked.connect(self.queue.cancel_all)
        self.up_button.clicked.connect(self._on_up)
        self.down_button.clicked.connect(self._on_down)
        self.remove_button.clicked.connect(self._on_remove)
        self.retry_button.clicked.connect(self._on_retry)
        self.cancel_button.clicked.connect(self._on_cancel)
        self.table.itemSelectionChanged.connect(self._on_selected)
        self.table.cellClicked.connect(self._on_clicked)
        self.queue.changed.connect(self._show)
        self.queue.moved.connect(self._on_progress)
        self.queue.failed.connect(self.failed)

    @property
    def chosen(self) -> int:
        """The number of the selected row, or -1."""
        rows = self.table.selectionModel().selectedRows()
        return int(rows[0].row()) if rows else -1

    # --- adding ---

    def add(self, wishes: Sequence[Wish]) -> None:
        """Add scans, with the model and the options that are chosen now."""
        if self._planning is not None:
            self._later += wishes
            return
        if not wishes:
            return
        try:
            card, options = self._plan()
        except FmsegError as error:
            self.failed.emit(error)
            return
        if self.queue.results is None and not self._choose_results():
            return
        results = self.queue.results
        assert results is not None
        names = frozenset(scan.job.result for scan in self.queue.scans)
        channels = len(card.channels)
        self.note.tell(["Looking for scans …"])
        self._planning = job = start_job(
            lambda: plan_scans(wishes, results, card.name, channels, options, names), parent=self
        )
        job.event.connect(self.queue.add)
        job.failed.connect(self.failed)
        job.finished.connect(self._on_planned)

    def _on_planned(self) -> None:
        self._planning = None
        self.note.tell([])
        self._allow()
        wishes, self._later = self._later, []
        self.add(wishes)

    def _on_files(self) -> None:
        from napari.utils.history import get_open_history

        paths = QFileDialog.getOpenFileNames(self, "Add scans to the queue", get_open_history()[0], VOLUMES_FILTER)[0]
        self.add([Wish(Path(path)) for path in paths])

    def _on_folder(self) -> None:
        from napari.utils.history import get_open_history

        path = QFileDialog.getExistingDirectory(self, "Add all scans of a folder", get_open_history()[0])
        self.add([Wish(Path(path))] if path else [])

    def _on_images(self) -> None:
        wishes, without = [], []
        for case in self._volumes():
            source = str(fmseg_metadata(case.layers[0]).get("source") or "")
            if source and Path(source).exists():
                wishes.append(Wish(Path(source), str(case.meta.get("series_uid", ""))))
            else:
                without.append(case.name)
        if without:
            names = ", ".join(f"“{name}”" for name in without)
            self.failed.emit(
                FmsegError(
                    f"{names} cannot be queued: the queue reads scans from their files, and no file of it is known. "
                    "Save it (File > Save Selected Layers), and add that file."
                )
            )
        self.add(wishes)

    def _choose_results(self) -> bool:
        """Request the folder for results; return whether there is one."""
        start = str(self.queue.results or Path.home())
        path = QFileDialog.getExistingDirectory(self, "Folder for the results of the queue", start)
        if path:
            self.queue.results = Path(path)
            self.queue.add([])
        return self.queue.results is not None

    # --- the list ---

    def _on_start(self) -> None:
        self.note.tell([])
        if self.queue.active:
            self.queue.pause()
        else:
            self.queue.start()

    def _on_up(self) -> None:
        self._move(-1)

    def _on_down(self) -> None:
        self._move(1)

    def _on_remove(self) -> None:
        self.queue.remove(self.chosen)

    def _on_retry(self) -> None:
        self.queue.retry(self.chosen)

    def _on_cancel(self) -> None:
        self.queue.cancel(self.chosen)

    def _move(self, by: int) -> None:
        number = self.chosen
        if number >= 0:
            self.table.selectRow(self.queue.move(number, by))

    def _on_progress(self, stage: str, percent: int) -> None:
        self._progress = f"{stage} {percent} %"
        number = next((i for i, scan in enumerate(self.queue.scans) if scan.state == RUNNING), None)
        if number is not None:
            item = self.table.item(number, STATE)
            item.setText(f"● {self._progress}")

    def _show(self) -> None:
        """Show the list as it is now."""
        chosen, scans = self.chosen, self.queue.scans
        self.table.blockSignals(True)
        self.table.setRowCount(len(scans))
        for row, scan in enumerate(scans):
            running = scan.state == RUNNING and self._progress
            texts = (scan.name, scan.model, f"● {self._progress if running else scan.state}")
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(_describe(scan))
                self.table.setItem(row, column, item)
            self.table.item(row, STATE).setForeground(QColor(_COLORS[scan.state]))
        if 0 <= chosen < len(scans):
            self.table.selectRow(chosen)
        self.table.blockSignals(False)
        if not self.queue.running:
            self._progress = ""
        where = str(self.queue.results) if self.queue.results is not None else "not chosen yet"
        self.results_text.setText(f"Results: {where}")
        self.results_text.setToolTip(QUEUE.results)
        self._on_selected()

    def _on_selected(self) -> None:
        scans, chosen = self.queue.scans, self.chosen
        if 0 <= chosen < len(scans) and scans[chosen].state == FAILED:
            self.note.tell([f"{scans[chosen].name}: {scans[chosen].reason}"])
        elif self.note.isVisible() and any(self.note.text().startswith(f"{scan.name}: ") for scan in scans):
            self.note.tell([])
        self._allow()

    def _allow(self) -> None:
        scans, chosen = self.queue.scans, self.chosen
        state = scans[chosen].state if 0 <= chosen < len(scans) else ""
        none = "" if state else "Choose a scan in the list first."
        waits = any(scan.state == WAITING for scan in scans)
        allow(self.up_button, none or ("" if chosen > 0 else "It is the first one."), QUEUE.up)
        allow(self.down_button, none or ("" if chosen < len(scans) - 1 else "It is the last one."), QUEUE.down)
        allow(self.remove_button, none, QUEUE.remove)
        allow(self.retry_button, none or ("" if state in (DONE, FAILED, CANCELLED) else QUEUE.no_retry), QUEUE.retry)
        allow(self.cancel_button, none or ("" if state in (RUNNING, WAITING) else QUEUE.no_cancel), QUEUE.cancel)
        self.start_button.setText("Pause &queue" if self.queue.active else "Start &queue")
        allow(self.start_button, "" if waits or self.queue.active else QUEUE.nothing_waits, self._start_tip())
        allow(self.cancel_all_button, "" if waits or self.queue.running else QUEUE.nothing_waits, QUEUE.cancel_all)

    def _start_tip(self) -> str:
        return QUEUE.pause if self.queue.active else QUEUE.start

    def _on_clicked(self, row: int) -> None:
        """Open a finished scan with its result."""
        scan = self.queue.scans[row]
        if scan.state != DONE or self._opening is not None:
            return
        there = [layer for layer in self._viewer.layers if _source(layer) == str(scan.job.result)]
        if there:
            self._viewer.layers.selection.active = there[-1]
            return
        images = [path for path in (scan.job.image, *scan.job.others) if not self._is_open(path)]
        self._opening = opening = Opening(self._viewer, [str(path) for path in (*images, scan.job.result)], self)
        opening.failed.connect(self.failed)
        opening.finished.connect(self._on_opened)
        opening.start()

    def _is_open(self, path: Path) -> bool:
        return any(_source(layer) == str(path) for layer in self._viewer.layers)

    def _on_opened(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None and opening.layers:
            self._viewer.layers.selection.active = opening.layers[-1]

    # --- files that are dropped ---

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:
        """Accept files and folders."""
        if event is not None and paths_in(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent | None) -> None:
        """Add what was dropped."""
        paths = paths_in(event.mimeData()) if event is not None else []
        if event is not None and paths:
            event.acceptProposedAction()
            self.add([Wish(Path(path)) for path in paths])

    def close_down(self) -> None:
        """End what runs; the list stays on disk."""
        if self._planning is not None:
            self._planning.abandon()
        self.queue.close()


def _source(layer: Any) -> str:
    return str(fmseg_metadata(layer).get("source") or "")


def _describe(scan: QueuedScan) -> str:
    """Return all that is known of a scan, for the tooltip."""
    others = [f"Further channel: {path}" for path in scan.job.others]
    reason = [scan.reason] if scan.reason else []
    end = ["Click to open the scan and its result."] if scan.state == DONE else []
    return "\n".join([str(scan.job.image), *others, f"Result: {scan.job.result}", *reason, *end])
