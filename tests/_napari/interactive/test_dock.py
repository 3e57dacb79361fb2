"""The nnInteractive dock in a real window, against a stub of the server on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt, QTimer

from napari_fmseg._napari.common.dialogs import Question, on_screen
from napari_fmseg._napari.common.viewer_window import qt_viewer_of
from napari_fmseg._napari.correct.tracking.guard import protect
from napari_fmseg._napari.interactive.dock import InteractiveDock
from napari_fmseg._napari.layers import image_layers
from napari_fmseg.core.volume import Geometry, Volume

SHAPE, SPACING, ORIGIN = (8, 30, 40), (5.0, 1.5, 1.0), (-310.0, 120.0, -75.0)
PATIENCE_MS = 30_000
TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]


@pytest.fixture
def dock(make_napari_viewer: Any, qtbot: Any, stub: Any) -> Iterator[InteractiveDock]:
    viewer = make_napari_viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    turn = TURN * np.sign(np.diag(TURN))
    data = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    volume = Volume(data, Geometry.from_spacing(SHAPE, SPACING, ORIGIN, turn), {"modality": "CT"})
    [(data, options, _)] = image_layers(volume, "CT")
    viewer.add_image(data, **options)
    made = InteractiveDock(viewer)
    viewer.window.add_dock_widget(made, name="nnInteractive")
    made.address.setText(stub.address)
    viewer.reset_view()
    yield made
    made.close_down()


def answer(yes: bool) -> list[str]:
    """Answer the next question, and note what it says."""
    asked: list[str] = []

    def look() -> None:
        question = on_screen(Question)
        if question is None:
            QTimer.singleShot(20, look)
            return
        asked.append(question.windowTitle())
        (question.yes_button if yes else question.no_button).click()

    QTimer.singleShot(20, look)
    return asked


def press(qtbot: Any, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def idle(dock: InteractiveDock) -> bool:
    return dock._job is None and not dock._waiting


def connect(qtbot: Any, dock: InteractiveDock) -> None:
    asked = answer(yes=True)
    press(qtbot, dock.connect_button)
    qtbot.waitUntil(lambda: dock.server is not None and idle(dock), timeout=PATIENCE_MS)
    assert len(asked) == 1


def pixel(dock: InteractiveDock, voxel: tuple[int, int, int]) -> QPoint:
    world = np.asarray(dock.viewer.layers["CT"].data_to_world(voxel))
    y, x = world[list(dock.viewer.dims.displayed)]
    px, py, _, w = qt_viewer_of(dock.viewer).canvas.view.scene.transform.map([x, y, 0, 1])
    return QPoint(round(px / w), round(py / w))


def click(qtbot: Any, dock: InteractiveDock, voxel: tuple[int, int, int]) -> None:
    dock.viewer.dims.set_point(0, dock.viewer.layers["CT"].data_to_world(voxel)[0])
    native = qt_viewer_of(dock.viewer).canvas.native
    with qtbot.waitSignal(dock.replied, timeout=PATIENCE_MS):
        qtbot.mouseClick(native, Qt.MouseButton.LeftButton, pos=pixel(dock, voxel))
    qtbot.waitUntil(lambda: idle(dock), timeout=PATIENCE_MS)


def test_the_licence_is_accepted_once_before_the_first_use(dock: InteractiveDock, qtbot: Any, stub: Any) -> None:
    answer(yes=False)
    press(qtbot, dock.connect_button)
    qtbot.waitUntil(lambda: stub.leases == 0 and idle(dock), timeout=PATIENCE_MS)
    assert dock.server is None
    connect(qtbot, dock)
    assert "CC BY-NC-SA 4.0" in dock.licence.text()
    press(qtbot, dock.connect_button)  # it was accepted: nothing is asked
    qtbot.waitUntil(lambda: dock.server is not None and idle(dock), timeout=PATIENCE_MS)
    assert stub.leases == 1


def test_a_click_shows_a_preview_that_is_accepted_into_the_labels_as_one_step(
    dock: InteractiveDock, qtbot: Any, stub: Any
) -> None:
    viewer = dock.viewer
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 10:13, 20] = 5
    image = viewer.layers["CT"]
    target = viewer.add_labels(
        labels,
        name="mine",
        scale=image.scale,
        translate=image.translate,
        units=image.units,
        axis_labels=image.axis_labels,
    )
    target.selected_label = 2
    before = labels.copy()
    connect(qtbot, dock)
    assert viewer.layers.selection.active.name == "Point for nnInteractive"
    click(qtbot, dock, (3, 12, 20))
    assert stub.prompts == [("point", True, [3, 12, 20])]
    ball = ((np.indices(SHAPE) - np.reshape((3, 12, 20), (3, 1, 1, 1))) ** 2).sum(0) <= 4
    np.testing.assert_array_equal(dock.preview.data > 0, ball)
    np.testing.assert_allclose(dock.preview.data_to_world((1, 2, 3)), image.data_to_world((1, 2, 3)), atol=1e-6)
    press(qtbot, dock.accept_button)
    np.testing.assert_array_equal(target.data == 2, ball & (before == 0))
    np.testing.assert_array_equal(target.data == 5, before == 5)  # what others have stays theirs
    assert dock.preview is None
    target.undo()
    np.testing.assert_array_equal(target.data, before)
    dock.keep.setChecked(False)
    protect(target, [5])
    viewer.layers.selection.active = dock._tool
    click(qtbot, dock, (3, 12, 20))
    press(qtbot, dock.accept_button)
    np.testing.assert_array_equal(target.data == 5, before == 5)  # finished, so it stays although the box is unticked
    assert (target.data == 2).any()
    protect(target, [2, 5])
    marked = np.array(target.data)
    viewer.layers.selection.active = dock._tool
    click(qtbot, dock, (4, 6, 6))
    press(qtbot, dock.accept_button)
    np.testing.assert_array_equal(target.data, marked)
    assert dock.preview is not None  # another label can still be chosen for it


def test_prompts_are_taken_back_and_thrown_away(dock: InteractiveDock, qtbot: Any, stub: Any) -> None:
    connect(qtbot, dock)
    click(qtbot, dock, (3, 12, 20))
    dock.include.setCurrentIndex(1)
    click(qtbot, dock, (3, 12, 20))
    assert not dock.preview.data.any()
    with qtbot.waitSignal(dock.replied, timeout=PATIENCE_MS):
        press(qtbot, dock.undo_button)
    qtbot.waitUntil(lambda: idle(dock), timeout=PATIENCE_MS)
    assert dock.preview.data[3, 12, 20] == 1
    press(qtbot, dock.cancel_button)
    qtbot.waitUntil(lambda: idle(dock), timeout=PATIENCE_MS)
    assert dock.preview is None
    assert not stub.found.any()
    assert [layer.name for layer in dock.viewer.layers] == ["CT", "Point for nnInteractive"]


def test_without_labels_on_the_image_what_is_accepted_becomes_a_layer_of_its_own(
    dock: InteractiveDock, qtbot: Any, stub: Any
) -> None:
    connect(qtbot, dock)
    click(qtbot, dock, (3, 12, 20))
    found = dock.preview.data > 0
    press(qtbot, dock.accept_button)
    layer = dock.viewer.layers["CT · labels"]
    np.testing.assert_array_equal(layer.data == 1, found)
    np.testing.assert_allclose(
        layer.data_to_world((1, 2, 3)), dock.viewer.layers["CT"].data_to_world((1, 2, 3)), atol=1e-6
    )
    assert dock.preview is None


def test_a_stroke_and_a_rectangle_are_prompts_in_their_slice(dock: InteractiveDock, qtbot: Any, stub: Any) -> None:
    connect(qtbot, dock)
    dock.viewer.dims.set_point(0, dock.viewer.layers["CT"].data_to_world((3, 0, 0))[0])
    native = qt_viewer_of(dock.viewer).canvas.native
    for tool in ("Scribble", "Box"):
        dock.tool.setCurrentText(tool)
        dock.tool.activated.emit(dock.tool.currentIndex())
        qtbot.wait(50)
        with qtbot.waitSignal(dock.replied, timeout=PATIENCE_MS):
            qtbot.mousePress(native, Qt.MouseButton.LeftButton, pos=pixel(dock, (3, 8, 10)))
            for x in (14, 18, 22):
                qtbot.mouseMove(native, pixel(dock, (3, 8 + x // 4, x)))
                qtbot.wait(20)
            qtbot.mouseRelease(native, Qt.MouseButton.LeftButton, pos=pixel(dock, (3, 13, 22)))
        qtbot.waitUntil(lambda: idle(dock), timeout=PATIENCE_MS)
    kinds = [kind for kind, *_ in stub.prompts]
    assert kinds == ["scribble", "box"]
    (a, b), (c, d), (e, f) = stub.prompts[1][2]
    assert (a, b) == (3, 4)
    assert abs(c - 8) <= 1
    assert abs(d - 14) <= 1
    assert abs(e - 10) <= 1
    assert abs(f - 23) <= 1


def test_a_server_that_is_gone_is_told_and_can_be_connected_to_again(
    dock: InteractiveDock, qtbot: Any, stub: Any
) -> None:
    connect(qtbot, dock)
    stub.expired = True
    native = qt_viewer_of(dock.viewer).canvas.native
    qtbot.mouseClick(native, Qt.MouseButton.LeftButton, pos=pixel(dock, (3, 12, 20)))
    qtbot.waitUntil(lambda: dock.error.isVisible() and idle(dock), timeout=PATIENCE_MS)
    assert "has ended the session" in dock.error.text.text()
    stub.expired = False
    press(qtbot, dock.connect_button)
    qtbot.waitUntil(lambda: dock.server is not None and idle(dock), timeout=PATIENCE_MS)
    click(qtbot, dock, (3, 12, 20))
    assert dock.preview.data[3, 12, 20] == 1
