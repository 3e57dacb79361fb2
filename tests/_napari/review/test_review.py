"""The review in a real window: case after case by key, accepted, corrected, rejected, with notes that stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pytestqt")
pytest.importorskip("napari")
pytest.importorskip("pyqtgraph")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from qtpy.QtCore import Qt

from napari_fmseg._napari.review.panel import ALL, PREDICTED, TO_REVIEW, cases_to_review
from napari_fmseg._napari.teach.dock import TeachDock
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels
from napari_fmseg.training.projects import (
    CaseRow,
    add_case,
    init_project,
    open_project,
    save_prediction,
)

PATIENCE_MS = 60_000
SHAPE = (5, 8, 9)
GRID = Geometry.from_spacing(SHAPE, (3.0, 1.0, 1.5), (5, -7, 9))
CTRL = Qt.KeyboardModifier.ControlModifier
CTRL_ALT = CTRL | Qt.KeyboardModifier.AltModifier


def labels_of(plane: int) -> LabelMap:
    data = np.zeros(SHAPE, np.uint8)
    data[1:4, 2:6, 2:6] = 1
    data[plane, 0, 0] = 1
    return LabelMap(data, GRID, {}, {1: "ball"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with a labelled case and three predicted ones."""
    project = init_project(tmp_path / "balls", ("ball",), channels=("MR",))
    for i in range(4):
        image = Volume(np.random.default_rng(i).normal(100, 9, SHAPE).astype(np.int16), GRID)
        project = add_case(project, f"case-{i}", image, labels_of(0) if i == 0 else None)
    for i in (1, 2, 3):
        project = save_prediction(project, f"case-{i}", labels_of(i), 1)
    return project.folder


@pytest.fixture
def dock(make_napari_viewer: Any, qtbot: Any, folder: Path) -> Iterator[TeachDock]:
    viewer = make_napari_viewer(show=True)
    made = TeachDock(viewer)
    viewer.window.add_dock_widget(made, name="fmseg: Teach")
    viewer.window._qt_window.resize(1280, 800)
    wait(qtbot, made)
    made.open_folder(folder)
    wait(qtbot, made)
    made.pages.setCurrentIndex(3)
    yield made
    made.close_down()


def wait(qtbot: Any, dock: TeachDock) -> None:
    qtbot.waitUntil(lambda: dock._job is None and dock.review._then is None, timeout=PATIENCE_MS)
    qtbot.wait(20)
    qtbot.waitUntil(lambda: dock._job is None, timeout=PATIENCE_MS)


def press(qtbot: Any, dock: TeachDock, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    wait(qtbot, dock)


def key(qtbot: Any, dock: TeachDock, which: Qt.Key, modifiers: Any) -> None:
    window = dock.viewer.window._qt_window
    with qtbot.waitActive(window):
        window.activateWindow()
    window.setFocus()
    qtbot.keyClick(window, which, modifiers)
    wait(qtbot, dock)


def test_keys_go_through_the_cases_and_accept_and_reject_them(dock: TeachDock, qtbot: Any, folder: Path) -> None:
    panel = dock.reviewing
    key(qtbot, dock, Qt.Key.Key_PageDown, CTRL)
    assert panel.case == "case-1"
    assert dock.viewer.layers.selection.active.name == "case-1 · predicted, to be corrected"
    panel.note.setFocus()
    qtbot.keyClicks(panel.note, "clear borders")
    key(qtbot, dock, Qt.Key.Key_A, CTRL_ALT)
    assert panel.case == "case-2"
    record = open_project(folder).record("case-1")
    assert (record.verdict, record.note) == ("accepted", "clear borders")
    np.testing.assert_array_equal(read_labels(open_project(folder).files["case-1"].labels).data, labels_of(1).data)
    key(qtbot, dock, Qt.Key.Key_J, CTRL_ALT)
    assert panel.case == "case-3"
    record = open_project(folder).record("case-2")
    assert (record.verdict, record.excluded) == ("rejected", False)
    assert "2 of 4 cases are reviewed" in panel.facts.text()
    key(qtbot, dock, Qt.Key.Key_PageDown, CTRL)
    assert panel.case == "case-0"
    key(qtbot, dock, Qt.Key.Key_PageUp, CTRL)
    assert panel.case == "case-3"


def test_what_was_painted_is_saved_as_a_correction_and_the_next_case_opens(
    dock: TeachDock, qtbot: Any, folder: Path
) -> None:
    panel = dock.reviewing
    press(qtbot, dock, panel.next_button)
    layer = dock.viewer.layers.selection.active
    assert not panel.correct_button.isEnabled()
    layer.data_setitem((np.array([0]), np.array([7]), np.array([8])), 1)
    assert not panel.accept_button.isEnabled()
    assert "You have changed these labels" in panel.accept_button.toolTip()
    panel.note.setPlainText("apex was missing")
    press(qtbot, dock, panel.correct_button)
    assert dock.error.error is None
    project = open_project(folder)
    assert read_labels(project.files["case-1"].labels).data[0, 7, 8] == 1
    assert (project.record("case-1").verdict, project.record("case-1").note) == ("corrected", "apex was missing")
    assert panel.case == "case-2"


def test_what_was_painted_and_not_saved_is_still_a_change_when_one_comes_back(
    dock: TeachDock, qtbot: Any, folder: Path
) -> None:
    panel = dock.reviewing
    press(qtbot, dock, panel.next_button)
    layer = dock.viewer.layers.selection.active
    layer.data_setitem((np.array([0]), np.array([7]), np.array([8])), 1)
    press(qtbot, dock, panel.next_button)
    assert panel.case == "case-2"
    assert panel.accept_button.isEnabled()
    press(qtbot, dock, panel.previous_button)
    assert (panel.case, dock.viewer.layers.selection.active) == ("case-1", layer)
    assert not panel.accept_button.isEnabled()  # it would take the labels of before, not those on the screen
    press(qtbot, dock, panel.correct_button)
    assert read_labels(open_project(folder).files["case-1"].labels).data[0, 7, 8] == 1
    press(qtbot, dock, panel.next_button)
    press(qtbot, dock, panel.previous_button)
    assert not panel.correct_button.isEnabled()


def test_labels_that_were_accepted_can_be_corrected_afterwards(dock: TeachDock, qtbot: Any, folder: Path) -> None:
    panel = dock.reviewing
    press(qtbot, dock, panel.next_button)
    press(qtbot, dock, panel.accept_button)
    panel.which.setCurrentText(ALL)
    dock._on_case("case-1")
    wait(qtbot, dock)
    layer = dock.viewer.layers.selection.active
    layer.data_setitem((np.array([0]), np.array([7]), np.array([8])), 1)
    press(qtbot, dock, panel.correct_button)
    assert dock.error.error is None  # nobody else has changed them
    assert len(open_project(folder).record("case-1").earlier) == 1
    assert open_project(folder).record("case-1").verdict == "corrected"


def test_a_note_is_stored_when_one_goes_on_and_shown_when_one_comes_back(
    dock: TeachDock, qtbot: Any, folder: Path
) -> None:
    panel = dock.reviewing
    press(qtbot, dock, panel.next_button)
    qtbot.keyClicks(panel.note, "ask again")
    press(qtbot, dock, panel.next_button)
    assert open_project(folder).record("case-1").note == "ask again"
    press(qtbot, dock, panel.previous_button)
    assert (panel.case, panel.note.toPlainText()) == ("case-1", "ask again")


def test_the_cases_to_review_are_ranked_and_those_that_were_reviewed_are_passed_over() -> None:
    rows = [
        CaseRow("a", "corrected"),
        CaseRow("b", "predicted", uncertainty=0.1),
        CaseRow("c", "predicted", uncertainty=0.5),
        CaseRow("d", "predicted", uncertainty=0.9, verdict="rejected"),
        CaseRow("e", "unlabelled"),
        CaseRow("f", "corrected", problem="gone"),
        CaseRow("g", "excluded"),
    ]
    order: Callable[[str], list[str]] = lambda which: cases_to_review(rows, which)  # noqa: E731
    assert order(TO_REVIEW) == ["c", "b", "a"]
    assert order(PREDICTED) == ["d", "c", "b"]
    assert order(ALL) == ["d", "c", "b", "a", "e", "g"]
