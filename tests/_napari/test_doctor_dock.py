"""The Doctor dock runs the real examination beside the window and lists what it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

import psutil
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication

from napari_fmseg._napari.common.dialogs import ErrorDialog, on_screen
from napari_fmseg._napari.doctor_dock import DoctorDock

FOUND = [
    {"name": "torch", "state": "ok", "text": "torch 2", "fix": ""},
    {"name": "memory", "state": "warn", "text": "1 of 2 GB <free>", "fix": "Close other programs."},
    {"name": "model x", "state": "bad", "text": "it was altered", "fix": "Copy it again."},
]


def saying(text: str, code: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})")


@pytest.fixture
def dock_of(qtbot):
    def make(*command: str) -> DoctorDock:
        dock = DoctorDock(command=command) if command else DoctorDock()
        qtbot.addWidget(dock)
        dock.resize(360, 640)
        dock.show()
        return dock

    return make


def done(qtbot, dock: DoctorDock, timeout: int = 60_000) -> None:
    qtbot.waitUntil(lambda: dock.again_button.isEnabled(), timeout=timeout)


def children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has ended since; a zombie, too, is one that has ended
            words = " ".join(process.cmdline())
            found += [process] if "doctor" in words or "sleep" in words else []
    return found


def test_findings_stand_in_a_list_with_marks_and_fixes_the_worst_first(qtbot, dock_of):
    dock = dock_of(*saying(json.dumps(FOUND), 3))
    assert not dock.again_button.isEnabled()
    assert "now" in dock.again_button.toolTip()
    done(qtbot, dock)
    lines = [line for line in dock.list.toPlainText().splitlines() if line]
    assert lines == ["✗", "model x", "it was altered", "What to do: Copy it again.",
                     "!", "memory", "1 of 2 GB <free>", "What to do: Close other programs.",
                     "✓", "torch", "torch 2"]  # fmt: skip
    assert [f["state"] for f in dock.findings] == ["bad", "warn", "ok"]
    assert dock.summary.text() == "1 to mend, 1 could be better"
    qtbot.mouseClick(dock.copy_button, Qt.MouseButton.LeftButton)
    report = QApplication.clipboard().text()
    assert "✗ model x: it was altered\n    What to do: Copy it again." in report
    assert "napari-fmseg" in report


def test_run_again_looks_again(qtbot, dock_of, tmp_path):
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps(FOUND))
    dock = dock_of(sys.executable, "-c", f"print(open({str(answer)!r}).read())")
    done(qtbot, dock)
    answer.write_text(json.dumps(FOUND[:1]))
    qtbot.mouseClick(dock.again_button, Qt.MouseButton.LeftButton)
    done(qtbot, dock)
    assert dock.summary.text() == "Everything is in order"


def test_a_failure_is_told_and_can_be_tried_again(qtbot, dock_of):
    for command in (saying("no json"), (sys.executable + "-is-not-there",)):
        dock = dock_of(*command)
        qtbot.waitUntil(lambda: on_screen(ErrorDialog) is not None, timeout=60_000)
        dialog = on_screen(ErrorDialog)
        assert "fmseg doctor" in dialog.to_do.text()
        dialog.close()
        assert dock.again_button.isEnabled()
        qtbot.waitUntil(lambda: on_screen(ErrorDialog) is None)


def test_closing_the_dock_ends_the_process_at_once(qtbot):
    dock = DoctorDock(command=(sys.executable, "-c", "import time; time.sleep(60)"))
    dock.show()
    qtbot.waitUntil(lambda: len(children()) == 1)
    start = time.perf_counter()
    dock.close()
    assert time.perf_counter() - start < 5  # the process would run for a minute
    qtbot.waitUntil(lambda: children() == [])
    dock.deleteLater()


def test_deleting_the_dock_ends_the_process(qtbot):
    dock = DoctorDock(command=(sys.executable, "-c", "import time; time.sleep(60)"))
    dock.show()
    qtbot.waitUntil(lambda: len(children()) == 1)
    dock.deleteLater()
    qtbot.waitUntil(lambda: children() == [])


def test_the_real_examination_in_a_napari_window_lets_it_breathe(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    dock = DoctorDock(viewer)
    ticks = [time.perf_counter()]
    viewer.window.add_dock_widget(dock, name="Doctor")
    timer = QTimer(interval=10)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    qtbot.wait(500)  # the window appears
    ticks.append(time.perf_counter())
    timer.start()
    done(qtbot, dock)
    qtbot.wait(100)
    timer.stop()
    names = {f["name"] for f in dock.findings}
    assert {"torch", "device", "memory", "disk", "napari"} <= names
    longest = max(np.diff(ticks[1:]))
    assert longest < 1.5  # the examination itself takes seconds
    print(f"{len(dock.findings)} findings, longest gap {longest * 1000:.0f} ms")  # noqa: T201
    if os.environ.get("FMSEG_SHOTS"):
        for theme in ("dark", "light"):
            viewer.theme = theme
            viewer.window.resize(1280, 800)
            qtbot.wait(200)
            viewer.window.screenshot(f"{os.environ['FMSEG_SHOTS']}/doctor_{theme}.png", canvas_only=False, flash=False)


def test_opening_the_dock_loads_no_torch():
    code = (
        "import sys, napari_fmseg._napari.doctor_dock, napari_fmseg._napari.recovery.autosave; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
