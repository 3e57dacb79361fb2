"""The page on which a server for 3D Slicer and OHIF is started and stopped, and that shows who uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QFileDialog,
    QFrame,
    QListWidget,
    QListWidgetItem,
    QSpinBox,
    QTextBrowser,
    QWidget,
)

from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.tooltips import DOCTOR
from napari_fmseg._napari.common.widgets import (
    PRIMARY_BUTTON,
    TICK_BOXES,
    Note,
    add_row,
    allow,
    form,
    hbox,
    limit_width,
    push_button,
    vbox,
)
from napari_fmseg._napari.teach.recent_projects import recent_projects
from napari_fmseg.cli.server.record import ServerStatus, list_servers
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.processes import ChildProcess
from napari_fmseg.models.registry import list_models
from napari_fmseg.workers.training import PROGRAM

__all__ = ["ServePage"]

_LOOK_EVERY_MS = 2000
_END_S = 8.0


class ServePage(QWidget):
    """Starts one server for this computer, in a process that ends with the dock, and lists all that run here.

    Parameters
    ----------
    program
        The words before ``serve``.
    find_servers
        Returns those that run.

    Attributes
    ----------
    servers
        Those that were found last.
    """

    def __init__(
        self,
        *,
        program: Sequence[str] = PROGRAM,
        find_servers: Callable[[], tuple[ServerStatus, ...]] = list_servers,
    ) -> None:
        super().__init__()
        self._program, self._find = tuple(program), find_servers
        self._child: ChildProcess | None = None
        self._job: Job | None = None
        self.servers: tuple[ServerStatus, ...] = ()
        self.project = QComboBox()
        self.project.setEditable(True)
        self.project.addItems(["", *map(str, recent_projects())])
        self.project.setCurrentIndex(min(1, self.project.count() - 1))
        limit_width(self.project, 16)
        self.choose_button = push_button("…", DOCTOR.serve_choose)
        self.models = QListWidget()
        self.models.setMaximumHeight(110)
        self.models.setStyleSheet(TICK_BOXES)
        for card in list_models():
            item = QListWidgetItem(card.name)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Unchecked)
            self.models.addItem(item)
        self.port = QSpinBox()
        self.port.setRange(0, 65535)
        self.port.setValue(8000)
        self.start_button = push_button("Start server", DOCTOR.serve_start, style=PRIMARY_BUTTON)
        self.copy_button = push_button("Copy address", DOCTOR.serve_copy)
        self.note = Note()
        self.list = QTextBrowser()
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setToolTip(DOCTOR.serve_list)
        fields = form()
        chosen = QWidget()
        hbox((self.project, 1), self.choose_button, of=chosen, margins=(0, 0, 0, 0))
        add_row(fields, "Pro&ject", self.project, DOCTOR.serve_project, shown=chosen)
        add_row(fields, "&Models", self.models, DOCTOR.serve_models)
        add_row(fields, "P&ort", self.port, DOCTOR.serve_port)
        vbox(fields, hbox((self.start_button, 1), self.copy_button), self.note, (self.list, 1), of=self)
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_EVERY_MS)
        self._timer.timeout.connect(self.look)
        self.choose_button.clicked.connect(self._on_choose)
        self.start_button.clicked.connect(self._on_start_or_stop)
        self.copy_button.clicked.connect(self._on_copy)
        self._show()

    @property
    def is_serving(self) -> bool:
        """Whether the server that was started here runs."""
        return self._child is not None and self._child.is_running

    @property
    def address(self) -> str:
        """The address of the server that was started here, else of another one; "" where none answers."""
        own = self._child.pid if self._child is not None else 0
        found = sorted((one for one in self.servers if one.answers), key=lambda one: one.pid != own)
        return found[0].url if found else ""

    def look(self) -> None:
        """Find the servers, beside the window."""
        if self._job is None:
            self._job = start_job(self._search, parent=self)
            self._job.event.connect(self._on_found)
            self._job.finished.connect(self._on_looked)

    def close_down(self) -> None:
        """End the server and look no longer."""
        self._timer.stop()
        if self._job is not None:
            self._job.abandon()
            self._job = None
        child, self._child = self._child, None
        if child is not None:
            threading.Thread(target=_end, args=(child,), daemon=True, name="fmseg stop").start()

    def showEvent(self, event: QShowEvent | None) -> None:
        """Refresh while the page can be seen."""
        super().showEvent(event)
        self._timer.start()
        self.look()

    def hideEvent(self, event: QHideEvent | None) -> None:
        """Refresh no longer."""
        super().hideEvent(event)
        self._timer.stop()

    def _search(self) -> Iterator[tuple[ServerStatus, ...]]:
        yield self._find()

    def _on_found(self, servers: tuple[ServerStatus, ...]) -> None:
        self.servers = servers
        self._show()

    def _on_looked(self) -> None:
        self._job = None

    def _on_choose(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose a project", self.project.currentText())
        if folder:
            self.project.setEditText(folder)

    def _on_start_or_stop(self) -> None:
        if self.is_serving:
            self._stop()
        else:
            self._start()

    def _start(self) -> None:
        items = [self.models.item(row) for row in range(self.models.count())]
        models = [item.text() for item in items if item is not None and item.checkState() == Qt.CheckState.Checked]
        project = self.project.currentText().strip()
        if not project and not models:
            self.note.tell(["Choose a project, or tick a model."])
            return
        words = [*([str(Path(project).expanduser())] if project else []), *(["--models", *models] if models else [])]
        command = [*self._program, "serve", *words, "--port", str(self.port.value())]
        try:
            self._child = ChildProcess(command, "server", with_descendants=True)
        except FmsegError as error:
            self.note.tell([str(error)])
            return
        self.note.tell([])
        self._show()

    def _stop(self) -> None:
        child = self._child
        if child is not None:
            threading.Thread(target=child.stop, args=(_END_S,), daemon=True, name="fmseg stop").start()
            allow(self.start_button, "It is ending.", DOCTOR.serve_stop)

    def _on_copy(self) -> None:
        QApplication.clipboard().setText(self.address)
        self.copy_button.setText("Copied")

    def _show(self) -> None:
        """Show what is known."""
        child = self._child
        if child is not None and not child.is_running:
            code, words = child.wait(), child.last_words(lines=40)
            child.close()
            self._child = None
            if code and code > 0 and "fmseg: " in words:
                self.note.tell([words.rpartition("fmseg: ")[2].strip()])
        starting = self.is_serving and self._child is not None and not self._answers(self._child.pid)
        self.start_button.setText("Starting …" if starting else "Stop server" if self.is_serving else "Start server")
        allow(self.start_button, "", DOCTOR.serve_stop if self.is_serving else DOCTOR.serve_start)
        for field in (self.project, self.choose_button, self.models, self.port):
            field.setEnabled(not self.is_serving)
        allow(self.copy_button, "" if self.address else "No server runs.", DOCTOR.serve_copy)
        self.copy_button.setText("Copy address")
        html = _html_of(self.servers, self._child.pid if self._child is not None else 0)
        if html != self.list.property("shown"):  # or a selection would be lost every two seconds
            self.list.setProperty("shown", html)
            self.list.setHtml(html)

    def _answers(self, pid: int) -> bool:
        return any(one.pid == pid and one.answers for one in self.servers)


def _end(child: ChildProcess) -> None:
    with suppress(OSError):
        child.stop(_END_S)
    child.close()


def _html_of(servers: Sequence[ServerStatus], own: int) -> str:
    """Write every server with what it serves and who uses it."""
    if not servers:
        return "<p>No server runs on this computer.</p>"
    return "".join(_server_html(server, server.pid == own) for server in servers)


def _server_html(server: ServerStatus, is_own: bool) -> str:
    where = "started here" if is_own else f"started elsewhere, process {server.pid}"
    head = f"<p><b>{escape(server.url)}</b> ({where})"
    if not server.answers:
        return f"{head}<br>It does not answer: it is starting or ending.</p>"
    facts: Any = server.facts
    lines = [f"Project: {escape(facts['project'])}"] if facts["project"] else []
    lines.append(f"Models: {escape(', '.join(facts['models']) or 'none yet')}")
    if facts["training"]:
        task = facts["training"]
        lines.append(f"Training: {escape(task['status'])}, {escape(task['details'][-1])}")
    if facts["waiting"]:
        lines.append(f"Images that wait for a model: {facts['waiting']}")
    rows = "".join(
        f"<tr><td style='padding-right: 16px'>{escape(one['address'])}</td>"
        f"<td style='padding-right: 16px' align='right'>{one['requests']}</td><td>{_ago(one['seconds_ago'])}</td></tr>"
        for one in facts["clients"]
    )
    table = f"<table><tr><th align='left'>Client</th><th>Requests </th><th align='left'>Last</th></tr>{rows}</table>"
    return f"{head}<br>{'<br>'.join(lines)}</p>{table if rows else '<p>No client yet.</p>'}"


def _ago(seconds: float) -> str:
    """Return how long ago something was; roughly, so that the text rests."""
    if seconds < 60:
        return "just now"
    return f"{seconds / 60:.0f} min ago" if seconds < 3600 else f"{seconds / 3600:.0f} h ago"
