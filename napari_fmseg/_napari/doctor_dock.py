"""The Doctor dock: what this machine has and lacks, with the fix for each, as `fmseg doctor` finds it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from typing import Any

from qtpy.QtCore import QProcess, QProcessEnvironment
from qtpy.QtGui import QTextOption
from qtpy.QtWidgets import (
    QApplication,
    QFrame,
    QHBoxLayout,
    QPushButton,
    QTextBrowser,
    QVBoxLayout,
)

from napari_fmseg._napari.common.dialogs import ResearchOnly, show_error, text_label, versions
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.tooltips import DOCTOR
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.package import import_root

__all__ = ["DoctorDock"]

# mark and colour of a state; all three can be read on napari's dark and light grounds
_MARKS = {"ok": ("✓", "#2f9e57"), "warn": ("!", "#c77f00"), "bad": ("✗", "#dd4b4b")}
_RANK = {"bad": 0, "warn": 1, "ok": 2}
COMMAND = (sys.executable, "-m", "napari_fmseg", "doctor", "--json")


class DoctorDock(Dock):
    """Looks at torch, devices, memory, packages and models in a process of its own and lists the findings.

    Parameters
    ----------
    napari_viewer
        Not needed; docks are given it.
    command
        What to run; it writes a JSON list of findings.

    Attributes
    ----------
    again_button, copy_button
        To be clicked.
    list
        Shows the findings, the worst first.
    findings
        The last ones: dicts with "name", "state", "text" and "fix".
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
        self.again_button, self.copy_button = QPushButton("Run again"), QPushButton("Copy report")
        self.again_button.setToolTip(DOCTOR.again)
        self.copy_button.setToolTip(DOCTOR.copy)
        buttons = QHBoxLayout()
        buttons.addWidget(self.again_button)
        buttons.addWidget(self.copy_button)
        column = QVBoxLayout(self)
        column.addWidget(self.summary)
        column.addWidget(self.list, 1)
        column.addLayout(buttons)
        column.addWidget(ResearchOnly())
        self.setMinimumWidth(300)
        self.again_button.clicked.connect(self.run)
        self.copy_button.clicked.connect(self._on_copy)
        self._process: QProcess | None = None
        self.run()

    def run(self) -> None:
        """Inspect; the list is there in a few seconds."""
        if self._process is not None:
            return
        self._say("Looking at this machine …", busy=True)
        process = QProcess()
        environment = QProcessEnvironment.systemEnvironment()
        paths = [str(import_root()), environment.value("PYTHONPATH")]
        environment.insert("PYTHONPATH", os.pathsep.join(path for path in paths if path))  # also from a source folder
        process.setProcessEnvironment(environment)
        process.finished.connect(self._on_finished)
        process.errorOccurred.connect(self._on_failed)
        self.destroyed.connect(lambda: _end(process))
        self._process = process
        process.start(self.command[0], list(self.command[1:]))

    def report(self) -> str:
        """Return the findings as text."""
        lines = [versions(), ""]
        for f in self.findings:
            lines.append(f"{_MARKS[f['state']][0]} {f['name']}: {f['text']}")
            lines += [f"    What to do: {f['fix']}"] if f["fix"] else []
        return "\n".join(lines)

    def closeEvent(self, event: Any) -> None:
        """End the process with the dock."""
        if self._process is not None:
            _end(self._process)
            self._process = None
        super().closeEvent(event)

    def _on_finished(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            found = json.loads(bytes(process.readAllStandardOutput().data()).decode())
            self.findings = sorted(found, key=lambda f: _RANK[f["state"]])
        except (ValueError, KeyError, TypeError) as error:
            lines = bytes(process.readAllStandardError().data()).decode(errors="replace").strip().splitlines()
            self._fail(lines[-1] if lines else "it gave no reason", error)
            return
        self.list.setHtml(_report_of(self.findings))
        self._say(_summary_of(self.findings))

    def _on_failed(self, _error: Any = None) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            self._fail(process.errorString(), None)

    def _fail(self, reason: str, cause: Exception | None) -> None:
        self._say("The examination did not finish")
        error = FmsegError(
            f"The machine could not be examined: {reason}. Run `fmseg doctor` in a terminal, which shows more."
        )
        error.__cause__ = cause
        show_error(self, error, title="Doctor")

    def _say(self, text: str, *, busy: bool = False) -> None:
        self.summary.setText(text)
        self.again_button.setEnabled(not busy)
        self.again_button.setToolTip("It is looking now." if busy else DOCTOR.again)
        self.copy_button.setEnabled(not busy and bool(self.findings))
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


def _end(process: QProcess) -> None:
    """Stop a process and wait for its end, at most a second; again, or when Qt has deleted it, does no harm."""
    with suppress(RuntimeError):
        process.blockSignals(True)
        if process.state() != QProcess.ProcessState.NotRunning:
            process.kill()
            process.waitForFinished(1000)
