"""The Doctor dock: what this machine has and lacks, with the fix for each, and the servers that run on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from qtpy.QtGui import QTextOption
from qtpy.QtWidgets import QApplication, QFrame, QTabWidget, QTextBrowser, QWidget

from napari_fmseg._napari.common.dialogs import ResearchOnly, show_error, text_label, versions
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.tooltips import DOCTOR
from napari_fmseg._napari.common.widgets import allow, hbox, push_button, vbox
from napari_fmseg._napari.serve_page import ServePage
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.processes import ChildProcess, python_module

__all__ = ["DoctorDock"]

# mark and colour of a state; all three can be read on napari's dark and light grounds
_MARKS = {"ok": ("✓", "#2f9e57"), "warn": ("!", "#c77f00"), "bad": ("✗", "#dd4b4b")}
_RANK = {"bad": 0, "warn": 1, "ok": 2}
COMMAND = tuple(python_module("napari_fmseg", "doctor", "--json"))


class DoctorDock(Dock):
    """Checks torch, devices, memory, packages and models in a separate process; beside that the servers.

    Parameters
    ----------
    command
        What to run; it writes a JSON list of findings.

    Attributes
    ----------
    list
        Shows the findings, the worst first.
    findings
        The last ones: dicts with "name", "state", "text" and "fix".
    serve_page
        Starts and shows servers.
    """

    def __init__(self, napari_viewer: Any = None, *, command: Sequence[str] = COMMAND) -> None:
        super().__init__()
        self.setObjectName("fmseg_doctor")
        self.command = tuple(command)
        self.findings: list[dict[str, str]] = []
        self.summary = text_label("", bold=True)
        self.summary.setToolTip(DOCTOR.report)
        self.list = QTextBrowser()
        self.list.setFrameShape(QFrame.Shape.NoFrame)
        self.list.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.again_button = push_button("Run again", DOCTOR.again)
        self.copy_button = push_button("Copy report", DOCTOR.copy)
        buttons = hbox(self.again_button, self.copy_button)
        check = QWidget()
        vbox(self.summary, (self.list, 1), buttons, of=check)
        self.serve_page = ServePage()
        self.pages = QTabWidget()
        self.pages.addTab(check, "This computer")
        self.pages.addTab(self.serve_page, "Serve")
        vbox((self.pages, 1), ResearchOnly(), of=self)
        self.setMinimumWidth(300)
        self.again_button.clicked.connect(self.run)
        self.copy_button.clicked.connect(self._on_copy)
        self._job: Job | None = None
        self.run()

    def run(self) -> None:
        """Inspect; the list is there in a few seconds."""
        if self._job is not None:
            return
        self._say("Checking this machine …", busy=True)
        examination = _Examination(self.command)
        self._job = start_job(examination.events, examination.stop, self)
        self._job.event.connect(self._on_found)
        self._job.failed.connect(self._on_failed)

    def report(self) -> str:
        """Return the findings as text."""
        lines = [versions(), ""]
        for f in self.findings:
            lines.append(f"{_MARKS[f['state']][0]} {f['name']}: {f['text']}")
            lines += [f"    What to do: {f['fix']}"] if f["fix"] else []
        return "\n".join(lines)

    def close_down(self) -> None:
        """End the processes."""
        self.serve_page.close_down()
        if self._job is not None:
            self._job.abandon()
            self._job = None

    def closeEvent(self, event: Any) -> None:
        """End the processes with the dock."""
        self.close_down()
        super().closeEvent(event)

    def _on_found(self, findings: list[dict[str, str]]) -> None:
        self._job, self.findings = None, findings
        self.list.setHtml(_report_of(findings))
        self._say(_summary_of(findings))

    def _on_failed(self, error: FmsegError) -> None:
        self._job = None
        self._say("The check did not finish")
        show_error(self, error, title="Doctor")

    def _say(self, text: str, *, busy: bool = False) -> None:
        self.summary.setText(text)
        why = "It is checking now." if busy else ""
        allow(self.again_button, why, DOCTOR.again)
        allow(self.copy_button, why or ("" if self.findings else "There is no report yet."), DOCTOR.copy)
        self.copy_button.setText("Copy report")

    def _on_copy(self) -> None:
        QApplication.clipboard().setText(self.report())
        self.copy_button.setText("Copied")


def _report_of(findings: Sequence[dict[str, str]]) -> str:
    """Write every finding with its mark, and under it what to do."""
    rows = []
    for finding in findings:
        sign, color = _MARKS[finding["state"]]
        fix = f"<br><b>What to do:</b> {escape(finding['fix'])}" if finding["fix"] else ""
        cell = f"<b>{escape(finding['name'])}</b><br>{escape(finding['text'])}{fix}"
        rows.append(
            f'<tr><td style="color: {color}; font-size: large; padding-right: 8px"><b>{sign}</b></td>'
            f'<td style="padding-bottom: 8px">{cell}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"


def _summary_of(findings: Sequence[dict[str, str]]) -> str:
    """Return in a line how things stand."""
    bad, warn = (sum(f["state"] == state for f in findings) for state in ("bad", "warn"))
    parts = [f"{bad} to mend"] if bad else []
    parts += [f"{warn} could be better"] if warn else []
    return ", ".join(parts) or "Everything is in order"


class _Examination:
    """The process that checks the machine, and its findings."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command, self._lock, self._stopped = command, threading.Lock(), False
        self._child: ChildProcess | None = None

    def events(self) -> Iterator[list[dict[str, str]]]:
        """Yield the findings, the worst first."""
        with self._lock:
            if self._stopped:
                return
            self._child = child = ChildProcess(self._command, "check of this machine")
        with child:
            text = child.stdout.read()
            try:
                findings = sorted(json.loads(text), key=lambda finding: _RANK[finding["state"]])
            except (ValueError, KeyError, TypeError) as error:
                reason = child.last_words(lines=1) or "it wrote nothing that can be read"
                raise FmsegError(
                    f"This machine could not be checked: {reason}. Run `fmseg doctor` in a terminal, which shows more."
                ) from error
        yield findings

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()
