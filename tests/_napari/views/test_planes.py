"""Three planes in one window: they move together, and what is painted in one is there in all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QCursor

from napari_fmseg._napari.common.viewer_window import history_of, qt_viewer_of
from napari_fmseg._napari.correct.tracking.guard import protect
from napari_fmseg._napari.layers import image_layers, labels_layer
from napari_fmseg._napari.views.dock import ViewDock
from napari_fmseg._napari.views.planes import Plane, Planes
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

SHAPE, SPACING, ORIGIN = (12, 30, 40), (5.0, 1.5, 1.0), (-310.0, 120.0, -75.0)
CTRL_ALT = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier
TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]


@pytest.fixture
def dock(make_napari_viewer: Any, qtbot: Any) -> Iterator[ViewDock]:
    """A window with a scan that is oblique, anisotropic and far from the origin, its labels, and three planes."""
    viewer = make_napari_viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    turn = TURN * np.sign(np.diag(TURN))
    geometry = Geometry.from_spacing(SHAPE, SPACING, ORIGIN, turn)
    ct = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    [(data, options, _)] = image_layers(Volume(ct, geometry, {"modality": "CT"}), "CT")
    viewer.add_image(data, **options)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 3:6, 4:8] = 1
    labels[8:10, 20:24, 30:34] = 2
    found = LabelMap(labels, geometry, {}, {1: "liver", 2: "spleen", 3: "empty"})
    data, options, _ = labels_layer(found, "labels")
    viewer.add_labels(np.ascontiguousarray(data), **options)
    made = ViewDock(viewer)
    viewer.window.add_dock_widget(made, name="View")
    qtbot.waitUntil(lambda: made.planes is not None and made.planes.planes[0].qt_viewer.canvas.native.width() > 50)
    viewer.reset_view()
    qtbot.wait(100)
    yield made
    if made.viewer.layers:
        made.close_down()


def canvas_of(dock: ViewDock, plane: Plane | None) -> Any:
    return (plane.qt_viewer if plane is not None else qt_viewer_of(dock.viewer)).canvas


def pixel(dock: ViewDock, plane: Plane | None, voxel: tuple[int, int, int]) -> QPoint:
    """Where a voxel of the labels is on the screen, in a canvas."""
    layer = dock.viewer.layers["labels"]
    model = plane.model if plane is not None else dock.viewer
    world = np.asarray(layer.data_to_world(voxel))
    y, x = world[list(model.dims.displayed)]
    px, py, _, w = canvas_of(dock, plane).view.scene.transform.map([x, y, 0, 1])
    return QPoint(round(px / w), round(py / w))


def voxel_of(dock: ViewDock) -> tuple[int, ...]:
    layer = dock.viewer.layers["labels"]
    return tuple(round(v) for v in layer.world_to_data(dock.viewer.dims.point))


def stroke(qtbot: Any, dock: ViewDock, plane: Plane | None, first: Any, last: Any) -> None:
    native = canvas_of(dock, plane).native
    qtbot.mousePress(native, Qt.MouseButton.LeftButton, pos=pixel(dock, plane, first))
    qtbot.mouseMove(native, pixel(dock, plane, last))
    qtbot.wait(20)
    qtbot.mouseRelease(native, Qt.MouseButton.LeftButton, pos=pixel(dock, plane, last))
    qtbot.wait(50)


def active_window(dock: ViewDock, qtbot: Any) -> Any:
    window = dock.viewer.window._qt_window
    with qtbot.waitActive(window):
        window.activateWindow()
    window.setFocus()
    return window


def shown(layer: Any) -> np.ndarray:
    """The labels that a layer draws now."""
    return np.asarray(layer._slice.image.raw)


def test_a_click_in_any_plane_moves_all_of_them_to_that_voxel(dock: ViewDock, qtbot: Any) -> None:
    coronal, sagittal = dock.planes.planes
    assert (coronal.axis, sagittal.axis) == (1, 2)
    for plane, voxel, expected in (
        (None, (0, 11, 22), (None, 11, 22)),
        (coronal, (7, 0, 25), (7, None, 25)),
        (sagittal, (4, 17, 0), (4, 17, None)),
    ):
        before = voxel_of(dock)
        qtbot.mouseClick(canvas_of(dock, plane).native, Qt.MouseButton.LeftButton, pos=pixel(dock, plane, voxel))
        wanted = tuple(b if e is None else e for b, e in zip(before, expected, strict=True))
        qtbot.waitUntil(lambda wanted=wanted: voxel_of(dock) == wanted, timeout=2000)
        for other in dock.planes.planes:
            np.testing.assert_allclose(other.model.dims.point, dock.viewer.dims.point)


def test_the_crosshair_crosses_at_the_same_voxel_in_every_plane(dock: ViewDock, qtbot: Any) -> None:
    layer, voxel = dock.viewer.layers["labels"], (5, 13, 31)
    dock.viewer.dims.point = layer.data_to_world(voxel)
    for plane in (None, *dock.planes.planes):
        crosshair = plane.crosshair if plane is not None else dock.planes._main_crosshair
        x, y = crosshair.position
        px, py, _, w = canvas_of(dock, plane).view.scene.transform.map([x, y, 0, 1])
        at = pixel(dock, plane, voxel)
        assert max(abs(px / w - at.x()), abs(py / w - at.y())) <= 1
        assert crosshair._line.visible
    dock.crosshair_box.setChecked(False)
    assert not any(plane.crosshair._line.visible for plane in dock.planes.planes)


def test_the_crosshair_is_drawn_where_the_planes_meet(dock: ViewDock, qtbot: Any) -> None:
    coronal = dock.planes.planes[0]
    dock.viewer.layers["CT"].visible = dock.viewer.layers["labels"].visible = False
    dock.viewer.dims.point = dock.viewer.layers["labels"].data_to_world((5, 13, 31))
    qtbot.wait(100)
    found = coronal.qt_viewer.screenshot(flash=False)[:, :, 2].astype(int)
    at = pixel(dock, coronal, (5, 13, 31))
    assert found[:, at.x() - 1 : at.x() + 2].max(1).min() > 100  # a bright line from the top to the bottom
    assert found[at.y() - 1 : at.y() + 2].max(0).min() > 100


@pytest.mark.parametrize("which", [None, 0, 1], ids=["axial", "coronal", "sagittal"])
def test_what_limits_the_brush_holds_in_every_plane(dock: ViewDock, qtbot: Any, which: int | None) -> None:
    layer = dock.viewer.layers["labels"]
    plane = None if which is None else dock.planes.planes[which]
    dock.viewer.dims.point = layer.data_to_world((3, 4, 6))
    dock.viewer.layers.selection.active = layer
    layer.selected_label, layer.brush_size, layer.mode = 2, 8, "paint"
    before = np.array(layer.data)
    protect(layer, [1])
    qtbot.wait(50)
    stroke(qtbot, dock, plane, (3, 4, 6), (3, 4, 6))
    assert (np.asarray(layer.data) != before).any()
    np.testing.assert_array_equal(np.asarray(layer.data) == 1, before == 1)
    protect(layer, [])
    stroke(qtbot, dock, plane, (3, 4, 6), (3, 4, 6))
    assert (np.asarray(layer.data)[before == 1] == 2).any()


@pytest.mark.parametrize("which", [None, 0, 1], ids=["axial", "coronal", "sagittal"])
def test_a_stroke_in_one_plane_is_seen_in_all_and_undone_in_any(dock: ViewDock, qtbot: Any, which: int | None) -> None:
    layer = dock.viewer.layers["labels"]
    planes = dock.planes.planes
    plane = None if which is None else planes[which]
    dock.viewer.dims.point = layer.data_to_world((6, 14, 20))
    dock.viewer.layers.selection.active = layer
    layer.selected_label, layer.brush_size, layer.mode = 3, 3, "paint"
    strokes: list[Any] = []
    layer.events.paint.connect(strokes.append)
    before = layer.data.copy()
    stroke(qtbot, dock, plane, (6, 14, 20), (6, 14, 20))
    assert layer.data[6, 14, 20] == 3
    assert len(strokes) == 1
    assert history_of(layer) == (1, 0)
    for other in planes:
        copy = other.copy_of(layer)
        assert copy.data is layer.data
        np.testing.assert_array_equal(shown(copy), np.take(layer.data, (6, 14, 20)[other.axis], other.axis))
        assert 3 in shown(copy)
    after = layer.data.copy()
    for where in (layer, *(other.copy_of(layer) for other in planes)):
        where.undo()
        qtbot.wait(30)
        np.testing.assert_array_equal(layer.data, before)
        assert not any(3 in shown(other.copy_of(layer)) for other in planes)
        assert 3 not in shown(layer)
        where.redo()
        qtbot.wait(30)
        np.testing.assert_array_equal(layer.data, after)
        assert all(3 in shown(other.copy_of(layer)) for other in planes)
        assert 3 in shown(layer)


def test_ctrl_z_in_a_plane_undoes_what_was_painted_in_another(dock: ViewDock, qtbot: Any) -> None:
    layer, coronal = dock.viewer.layers["labels"], dock.planes.planes[0]
    dock.viewer.layers.selection.active = layer
    dock.viewer.dims.point = layer.data_to_world((6, 14, 20))
    layer.selected_label, layer.brush_size, layer.mode = 3, 1, "paint"
    stroke(qtbot, dock, None, (6, 14, 20), (6, 14, 22))
    assert 3 in layer.data
    qtbot.keyClick(coronal.qt_viewer.canvas.native, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(lambda: 3 not in layer.data, timeout=2000)


def test_a_click_with_a_tool_paints_and_does_not_move_but_the_key_does(dock: ViewDock, qtbot: Any) -> None:
    layer, coronal = dock.viewer.layers["labels"], dock.planes.planes[0]
    dock.viewer.layers.selection.active = layer
    layer.mode = "paint"
    dock.viewer.dims.point = layer.data_to_world((6, 14, 20))
    stroke(qtbot, dock, coronal, (8, 14, 25), (8, 14, 25))
    assert voxel_of(dock) == (6, 14, 20)
    native = canvas_of(dock, coronal).native
    at = pixel(dock, coronal, (3, 14, 9))
    QCursor.setPos(native.mapToGlobal(at))
    qtbot.mouseMove(native, at)
    qtbot.wait(50)
    coronal.model.cursor.position = tuple(layer.data_to_world((3, 14, 9)))
    if not native.underMouse():
        pytest.skip("the screen has no pointer that can be moved")
    qtbot.keyClick(active_window(dock, qtbot), Qt.Key.Key_X, CTRL_ALT)
    qtbot.waitUntil(lambda: voxel_of(dock) == (3, 14, 9), timeout=2000)


def test_layers_come_go_and_change_their_look_in_every_plane(dock: ViewDock) -> None:
    viewer, [coronal, _] = dock.viewer, dock.planes.planes
    labels, image = viewer.layers["labels"], viewer.layers["CT"]
    image.contrast_limits = (-50, 60)
    labels.opacity, labels.visible = 0.3, False
    assert coronal.copy_of(image).contrast_limits == [-50, 60]
    assert (coronal.copy_of(labels).opacity, coronal.copy_of(labels).visible) == (0.3, False)
    viewer.layers.move(0, 2)
    assert [layer.name for layer in coronal.model.layers] == [layer.name for layer in viewer.layers]
    viewer.add_points([[1, 2, 3]], name="points")
    assert coronal.copy_of(viewer.layers["points"]) is None
    viewer.layers.remove("points")
    labels.data = np.zeros_like(labels.data)
    assert coronal.copy_of(labels).data is labels.data
    viewer.layers.remove("labels")
    assert [layer.name for layer in coronal.model.layers] == ["CT"]


def test_the_head_is_up_in_the_coronal_and_the_sagittal_plane(dock: ViewDock) -> None:
    for plane in dock.planes.planes:
        assert pixel(dock, plane, (11, 5, 5)).y() < pixel(dock, plane, (0, 5, 5)).y()


def test_the_planes_can_be_closed_and_opened_again(dock: ViewDock, qtbot: Any) -> None:
    qtbot.mouseClick(dock.planes_box, Qt.MouseButton.LeftButton, pos=QPoint(8, dock.planes_box.height() // 2))
    assert dock.planes is None
    assert not any("on_press" in str(callback) for callback in dock.viewer.mouse_drag_callbacks)
    qtbot.mouseClick(dock.planes_box, Qt.MouseButton.LeftButton, pos=QPoint(8, dock.planes_box.height() // 2))
    assert dock.planes is not None
    dock.viewer.theme = "light"
    assert {plane.model.theme for plane in dock.planes.planes} == {"light"}
    dock.viewer.window.remove_dock_widget(dock)  # as its cross does
    assert dock.planes is None
    assert dock.viewer.window._qt_window.findChildren(Planes) == []


# --- window presets and opacity ---


def test_a_window_of_ct_sets_the_contrast_of_the_image(dock: ViewDock, qtbot: Any) -> None:
    box = dock.window_box
    assert [box.itemText(i).split(" (")[0] for i in range(box.count())] == [
        "Soft tissue", "Lung", "Bone", "Brain", "Liver",
    ]  # fmt: skip
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_End)
    qtbot.keyClick(box, Qt.Key.Key_Home)
    qtbot.keyClick(box, Qt.Key.Key_Down)
    assert tuple(dock.viewer.layers["CT"].contrast_limits) == (-1350.0, 150.0)


def test_the_window_box_follows_the_contrast_and_the_name_that_the_user_gives_the_image(dock: ViewDock) -> None:
    image = dock.viewer.layers["CT"]
    assert dock.window_box.currentText().startswith("Soft tissue")
    image.contrast_limits = (-20.0, 300.0)
    assert (dock.window_box.currentIndex(), dock.window_box.currentText()) == (-1, "")
    image.contrast_limits = (-500.0, 1300.0)
    assert dock.window_box.currentText().startswith("Bone")
    image.name = "neck"
    assert dock.image_name.text() == "neck"
    dock.viewer.layers.selection.active = image
    dock.viewer.layers.remove(image)
    image.name = "gone"
    assert dock.image_name.text() == "none"


def test_the_opacity_of_one_structure_leaves_the_others_as_they_are(dock: ViewDock, qtbot: Any) -> None:
    layer = dock.viewer.layers["labels"]
    dock.viewer.layers.selection.active = layer
    layer.selected_label = 2
    assert dock.class_box.currentText() == "spleen"
    qtbot.keyClick(dock.opacity, Qt.Key.Key_Home)
    assert layer.colormap.color_dict[2][3] == 0
    assert layer.colormap.color_dict[1][3] == 1
    dock.opacity.setValue(40)
    qtbot.mouseClick(dock.same_button, Qt.MouseButton.LeftButton)
    assert [round(float(layer.colormap.color_dict[i][3]), 2) for i in (1, 2, 3)] == [0.4] * 3


def test_keys_go_from_structure_to_structure_and_skip_empty_ones(dock: ViewDock, qtbot: Any) -> None:
    layer = dock.viewer.layers["labels"]
    dock.viewer.layers.selection.active = layer
    layer.selected_label = 1
    window = active_window(dock, qtbot)
    with qtbot.waitSignal(dock.structures.arrived, timeout=20_000):
        qtbot.keyClick(window, Qt.Key.Key_PageDown, CTRL_ALT)
    assert layer.selected_label == 2
    assert layer.data[voxel_of(dock)] == 2
    with qtbot.waitSignal(dock.structures.arrived, timeout=20_000):
        qtbot.keyClick(window, Qt.Key.Key_PageDown, CTRL_ALT)  # "empty" has no voxel
    assert layer.selected_label == 1
    assert layer.data[voxel_of(dock)] == 1
    layer.data[...] = 0
    layer.data[1, 1, 1] = 3
    layer.refresh()
    with qtbot.waitSignal(dock.structures.arrived, timeout=20_000):
        qtbot.keyClick(window, Qt.Key.Key_PageUp, CTRL_ALT)
    assert (layer.selected_label, voxel_of(dock)) == (3, (1, 1, 1))
