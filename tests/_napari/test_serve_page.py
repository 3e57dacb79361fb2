"""The Serve page of the Doctor dock: a real server is started with a click, shown with its clients, and stopped."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
pytest.importorskip("uvicorn")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_fmseg._napari.doctor_dock import DoctorDock
from napari_fmseg._napari.serve_page import ServePage
from napari_fmseg.cli.server.record import ServerStatus

LEFT = Qt.MouseButton.LeftButton
CLIENTS = [
    {"address": "127.0.0.1", "requests": 12, "seconds_ago": 3.0},
    {"address": "10.0.0.<7>", "requests": 1, "seconds_ago": 600.0},
]
FACTS = {"project": "/data/liver", "models": ["liver-1", "gaps"], "clients": CLIENTS, "waiting": 2, "sessions": 0,
         "training": {"status": "RUNNING", "details": ["epoch 3 of 9"]}}  # fmt: skip
ELSEWHERE = ServerStatus(4711, "http://127.0.0.1:8000", True, FACTS)


@pytest.fixture
def page_of(qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make(*servers: ServerStatus, **options: Any) -> ServePage:
        page = ServePage(find_servers=lambda: servers, **options)
        qtbot.addWidget(page, before_close_func=lambda page: page.close_down())
        page.resize(360, 640)
        page.show()
        qtbot.waitUntil(lambda: page.servers == servers)
        return page

    return make


def text_of(page: ServePage) -> list[str]:
    return [line for line in page.list.toPlainText().splitlines() if line.strip()]


def test_a_server_is_shown_with_its_project_models_training_and_clients(page_of: Any, qtbot: Any) -> None:
    page = page_of(ELSEWHERE)
    assert text_of(page)[0].startswith("http://127.0.0.1:8000 (started elsewhere, process 4711)")
    shown = page.list.toPlainText()
    for word in ("Project: /data/liver", "liver-1, gaps", "RUNNING, epoch 3 of 9", "wait for a model: 2",
                 "127.0.0.1", "12", "just now", "10.0.0.<7>", "10 min ago"):  # fmt: skip
        assert word in shown
    qtbot.mouseClick(page.copy_button, LEFT)
    assert QApplication.clipboard().text() == "http://127.0.0.1:8000"
    assert page.start_button.text() == "Start server"


def test_without_a_server_there_is_nothing_to_copy(page_of: Any) -> None:
    page = page_of()
    assert "No server runs" in page.list.toPlainText()
    assert not page.copy_button.isEnabled()
    assert "No server" in page.copy_button.toolTip()


def test_a_server_that_does_not_answer_says_so(page_of: Any) -> None:
    page = page_of(ServerStatus(1, "http://127.0.0.1:9"))
    assert "does not answer" in page.list.toPlainText()
    assert page.address == ""


def test_nothing_chosen_is_told_before_anything_starts(page_of: Any, qtbot: Any) -> None:
    page = page_of()
    page.project.setEditText("")
    qtbot.mouseClick(page.start_button, LEFT)
    assert "Choose a project" in page.note.text()
    assert not page.is_serving


def test_why_a_server_did_not_start_is_shown(page_of: Any, qtbot: Any) -> None:
    code = "import sys; sys.stderr.write('fmseg: Port 80 is taken. Choose another.\\n'); sys.exit(1)"
    page = page_of(program=(sys.executable, "-c", code))
    page.project.setEditText("/data/liver")
    qtbot.mouseClick(page.start_button, LEFT)
    qtbot.waitUntil(lambda: page.note.text() == "Port 80 is taken. Choose another.", timeout=60_000)
    assert page.start_button.text() == "Start server"
    assert page.project.isEnabled()


def tick(page: ServePage, name: str) -> None:
    (item,) = page.models.findItems(name, Qt.MatchFlag.MatchExactly)
    item.setCheckState(Qt.CheckState.Checked)


def test_a_real_server_is_started_used_and_stopped(qtbot: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dock = DoctorDock(command=(sys.executable, "-c", "print([])"))
    qtbot.addWidget(dock)
    dock.resize(380, 680)
    dock.show()
    dock.pages.setCurrentWidget(dock.serve_page)
    page = dock.serve_page
    tick(page, "fmsf-phantom-ct")
    page.port.setValue(port)
    qtbot.mouseClick(page.start_button, LEFT)
    assert page.start_button.text() == "Starting …"
    assert not page.port.isEnabled()
    qtbot.waitUntil(lambda: page.start_button.text() == "Stop server", timeout=240_000)
    assert page.address == f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{page.address}/info/") as answer:
        assert b"fmsf-phantom-ct" in answer.read()
    qtbot.waitUntil(lambda: "just now" in page.list.toPlainText(), timeout=60_000)
    assert "(started here)" in page.list.toPlainText()
    if os.environ.get("FMSEG_SHOTS"):
        dock.grab().save(f"{os.environ['FMSEG_SHOTS']}/serve.png")
    qtbot.mouseClick(page.start_button, LEFT)
    assert "ending" in page.start_button.toolTip()
    qtbot.waitUntil(lambda: page.start_button.text() == "Start server", timeout=60_000)
    qtbot.waitUntil(lambda: "No server runs" in page.list.toPlainText(), timeout=60_000)


def test_the_server_ends_with_the_dock(qtbot: Any, tmp_path: Path) -> None:
    code = "import sys, time; open(sys.argv[-1], 'w').close(); time.sleep(600)"
    page = ServePage(program=(sys.executable, "-c", code), find_servers=tuple)
    qtbot.addWidget(page)
    page.show()
    page.project.setEditText("/data/liver")
    qtbot.mouseClick(page.start_button, LEFT)
    assert page._child is not None
    child = page._child
    assert page.is_serving
    page.close_down()
    assert not page.is_serving
    qtbot.waitUntil(lambda: not child.is_running, timeout=60_000)
