"""Every tool of the Correct dock in a real window, with real mouse and keys: preview, one undo step, exact voxels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_fmseg._napari.correct.preview import Overlay

from .conftest import LEFT, SHAPE, ball, tilt

CTRL_ALT = (Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.AltModifier)


def test_slices_painted_with_the_mouse_are_filled_between_previewed_and_undone_exactly(
    make_scene: Callable[..., Any],
) -> None:
    scene = make_scene(np.zeros(SHAPE, np.uint8))
    scene.brush(1, 9)
    for z in (4, 10):
        scene.show(z)
        scene.click((z, 20, 24))
    painted = scene.data.copy()
    assert scene.dock.slices.slices == (4, 10)
    scene.show(7)
    scene.key(Qt.Key.Key_F, *CTRL_ALT)
    scene.wait_for_preview()
    assert np.array_equal(scene.data, painted)  # nothing is written before it is accepted
    assert scene.viewer.layers["Preview"].data[7].any()
    assert "added" in scene.dock.preview.text.text()
    scene.key(Qt.Key.Key_Return)
    filled = scene.data.copy()
    assert not scene.viewer.layers["Preview"].visible
    assert [z for z in range(SHAPE[0]) if filled[z].any()] == list(range(4, 11))
    assert np.array_equal(filled[7], painted[4])  # the same disc at both ends
    scene.undo()
    assert np.array_equal(scene.data, painted)
    scene.redo()
    assert np.array_equal(scene.data, filled)
    scene.undo()
    scene.undo()
    assert not scene.data[10].any()
    assert scene.dock.slices.slices == (4,)


def test_the_layer_of_the_preview_is_there_before_the_first_tool_and_nothing_else_is_selected(
    make_scene: Callable[..., Any],
) -> None:
    scene = make_scene(ball((10, 20, 24), 14).astype(np.uint8))
    layers = scene.viewer.layers
    scene.wait_until(lambda: "Preview" in layers)
    prepared = layers["Preview"]
    assert not prepared.visible
    assert layers.selection.active is scene.layer
    scene.press(scene.dock.shape.grow)
    scene.wait_for_preview()
    assert layers["Preview"] is prepared
    assert prepared.visible
    shown = np.unique(prepared.data)
    np.testing.assert_allclose(prepared.get_color(int(shown[-1]))[:3], scene.layer.get_color(1)[:3], atol=1e-6)
    scene.key(Qt.Key.Key_Escape)


@pytest.mark.parametrize("previewed", [False, True])
def test_labels_and_their_preview_are_deleted_at_once_without_an_error(
    make_scene: Callable[..., Any], previewed: bool
) -> None:
    scene = make_scene(ball((10, 20, 24), 14).astype(np.uint8))
    layers = scene.viewer.layers
    for i in range(4):
        layers.append(type(scene.layer)(np.ones(scene.data.shape, np.uint8), name=f"others {i}"))
    layers.selection.active = scene.layer
    scene.wait_until(lambda: "Preview" in layers and scene.dock.layer is scene.layer)
    if previewed:
        scene.press(scene.dock.shape.grow)
        scene.wait_for_preview()
    preview = layers["Preview"]
    layers.remove(layers["others 3"])
    layers.remove(scene.layer)
    assert preview in layers  # napari may still be on its way to it, through a list of what to delete
    scene.wait_until(lambda: preview not in layers)
    layers.selection.clear()
    layers.selection.update(layer for layer in layers if layer is not scene.image)
    QTest.mouseClick(scene.viewer.window._qt_viewer.layerButtons.deleteButton, Qt.MouseButton.LeftButton)
    scene.wait_until(lambda: list(layers) == [scene.image])
    assert scene.dock.layer is None


@pytest.mark.parametrize("n_selected", [0, 1, 2])
def test_preparing_the_preview_leaves_the_selection_as_it_is(n_selected: int) -> None:
    viewer = ViewerModel()
    layers = [viewer.add_image(np.zeros(SHAPE)), viewer.add_labels(np.zeros(SHAPE, np.uint8))]
    viewer.layers.selection.clear()
    viewer.layers.selection.update(layers[:n_selected])
    before = set(viewer.layers.selection), viewer.layers.selection.active
    Overlay(viewer).prepare(layers[1], (1, 2))
    assert "Preview" in viewer.layers
    assert (set(viewer.layers.selection), viewer.layers.selection.active) == before


def test_a_correction_spreads_with_a_live_preview_of_its_fade_and_escape_forgets_it(
    make_scene: Callable[..., Any],
) -> None:
    answer = ball((10, 20, 24), 14).astype(np.uint8)
    scene = make_scene(answer)
    scene.brush(1, 7)
    scene.show(10)
    edge = max(x for x in range(SHAPE[2]) if answer[10, 20, x])
    scene.drag((10, 18, edge), (10, 20, edge + 1), (10, 22, edge))
    corrected = scene.data.copy()
    assert scene.dock.slices.slices == (10,)
    scene.show(11)
    scene.press(scene.dock.spread)
    scene.wait_for_preview()
    near = int(scene.dock.session.draft.picture.n_more)
    QTest.keyClick(scene.dock.fade, Qt.Key.Key_End)
    scene.wait_until(lambda: scene.dock.session.draft.picture.n_more > near)
    scene.wait_for_preview()
    far = int(scene.dock.session.draft.picture.n_more)
    scene.key(Qt.Key.Key_Escape)
    assert np.array_equal(scene.data, corrected)
    assert not scene.viewer.layers["Preview"].visible
    scene.key(Qt.Key.Key_W, *CTRL_ALT)
    scene.wait_for_preview()
    scene.press(scene.dock.preview.accept)
    spread = scene.data.copy()
    assert np.count_nonzero(spread != corrected) >= far > near > 0
    assert (spread[11] != answer[11]).any()
    assert np.array_equal(spread[10], corrected[10])
    scene.undo()
    assert np.array_equal(scene.data, corrected)
    scene.redo()
    assert np.array_equal(scene.data, spread)


def test_a_slice_painted_empty_on_purpose_and_one_that_is_right_count_and_can_be_dropped(
    make_scene: Callable[..., Any],
) -> None:
    scene = make_scene(ball((10, 20, 24), 14).astype(np.uint8))
    scene.brush(1, 60, "erase")
    scene.show(8)
    scene.click((8, 20, 24))
    assert not scene.data[8].any()
    scene.show(12)
    scene.key(Qt.Key.Key_Y, *CTRL_ALT)
    assert scene.dock.slices.slices == (8, 12)
    item = scene.dock.slices.list.item(0)
    at = scene.dock.slices.list.visualItemRect(item).center()
    QTest.mouseClick(scene.dock.slices.list.viewport(), LEFT, Qt.KeyboardModifier.NoModifier, at)
    assert int(scene.viewer.dims.point[0] // 3) == int(scene.layer.data_to_world((8, 0, 0))[0] // 3)
    scene.press(scene.dock.slices.drop)
    assert scene.dock.slices.slices == (12,)


def test_a_finished_class_stays_under_naparis_brush_eraser_bucket_and_polygon_and_under_every_tool(
    make_scene: Callable[..., Any],
) -> None:
    labels = ball((10, 20, 24), 12).astype(np.uint8)
    labels[ball((10, 20, 24), 6)] = 2
    scene = make_scene(labels)
    before = labels == 2
    table = scene.dock.classes.table
    at = table.visualItemRect(table.item(1, 2))
    QTest.mouseClick(table.viewport(), LEFT, Qt.KeyboardModifier.NoModifier, at.topLeft() + QPoint(9, at.height() // 2))
    assert table.item(1, 2).checkState() == Qt.CheckState.Checked
    scene.show(10)
    scene.brush(3, 20)
    scene.drag((10, 20, 10), (10, 20, 24), (10, 20, 40))
    assert (scene.data == 3).any()
    scene.brush(3, 20, "erase")
    scene.drag((10, 20, 10), (10, 20, 24), (10, 20, 40))
    scene.brush(3, 1, "fill")
    scene.click((10, 20, 24))
    scene.layer.paint_polygon([(10, 5, 5), (10, 5, 40), (10, 35, 40), (10, 35, 5)], 1)
    scene.layer.data_setitem(tuple(np.array([v]) for v in (10, 12, 14)), 1)
    assert np.array_equal(scene.data == 2, before)
    scene.brush(2, 20)  # nor does it get more
    scene.drag((10, 5, 5), (10, 5, 12))
    assert np.array_equal(scene.data == 2, before)
    assert not scene.dock.shape.smooth.isEnabled()
    scene.layer.selected_label = 1
    scene.open("Shape")
    scene.dock.shape.distance.setValue(9)
    scene.press(scene.dock.shape.grow)
    scene.wait_for_preview()
    scene.key(Qt.Key.Key_Return)
    assert np.array_equal(scene.data == 2, before)


def test_the_brush_paints_only_in_the_picked_range_of_intensities_shown_while_it_is_on_and_only_inside_a_class(
    make_scene: Callable[..., Any],
) -> None:
    image = np.zeros(SHAPE, np.int16)
    image[:, :, 24:] = 200
    labels = np.zeros(SHAPE, np.uint8)
    labels[10, :16] = 2
    scene = make_scene(labels, image)
    scene.open("Brush")
    scene.show(10)
    scene.press(scene.dock.brush.pick)
    scene.click((10, 20, 40))
    low, high = scene.dock.brush.range.value()
    assert 0 < low < 200 <= high
    assert np.array_equal(scene.viewer.layers["Range"].data[10] > 0, image[10] == 200)
    scene.show(11)
    assert not scene.viewer.layers["Range"].data[10].any()
    scene.show(10)
    scene.brush(3, 12)
    scene.drag((10, 20, 16), (10, 20, 32))
    painted = scene.data == 3
    assert painted.any()
    assert (image[painted] == 200).all()
    scene.press(scene.dock.brush.limit)
    assert not scene.viewer.layers["Range"].visible
    scene.dock.brush.inside.setCurrentIndex(scene.dock.brush.inside.findData(2))
    scene.press(scene.dock.brush.only)
    scene.drag((10, 16, 6), (10, 16, 20))
    more = (scene.data == 3) & ~painted
    assert more.any()
    assert (labels[more] == 2).all()


def test_smooth_grow_shrink_and_holes_are_in_mm_and_one_step_each(make_scene: Callable[..., Any]) -> None:
    labels = ball((10, 20, 24), 12).astype(np.uint8)
    labels[10, 20, 24] = 0
    scene = make_scene(labels)
    scene.open("Shape")
    scene.show(10)
    shape = scene.dock.shape
    shape.distance.setValue(2)
    state = labels
    for act in (
        lambda: scene.key(Qt.Key.Key_H, *CTRL_ALT),
        lambda: scene.press(shape.grow),
        lambda: scene.press(shape.shrink),
        lambda: scene.key(Qt.Key.Key_U, *CTRL_ALT),
    ):
        act()
        scene.wait_for_preview()
        scene.key(Qt.Key.Key_Return)
        after = scene.data.copy()
        assert not np.array_equal(after, state)
        scene.undo()
        assert np.array_equal(scene.data, state)
        scene.redo()
        assert np.array_equal(scene.data, after)
        state = after
    assert state[10, 20, 24] == 1
    scene.undo()
    scene.undo()
    grown = np.argwhere(scene.data)
    size = (np.ptp(grown, axis=0) + 1) * np.array((3.0, 1.0, 1.5))
    assert (np.abs(size - 28) <= 3).all()  # 24 mm, and 2 mm on each side


def test_islands_are_kept_by_a_click_and_removed_by_a_key_at_the_mouse(make_scene: Callable[..., Any]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    islands = [ball((10, 20, x), 5) for x in (8, 24, 40)]
    for island in islands:
        labels[island] = 1
    scene = make_scene(labels)
    scene.open("Shape")
    scene.show(10)
    scene.brush(1, 5)
    scene.hover((10, 20, 40))
    scene.key(Qt.Key.Key_V, *CTRL_ALT)
    scene.wait_for_preview()
    scene.key(Qt.Key.Key_Return)
    assert np.array_equal(scene.data > 0, islands[0] | islands[1])
    scene.press(scene.dock.shape.keep)
    assert "Click" in scene.dock.preview.text.text()
    scene.click((10, 20, 8))
    scene.wait_for_preview()
    scene.key(Qt.Key.Key_Return)
    assert np.array_equal(scene.data > 0, islands[0])  # the click did not paint
    assert scene.layer.mode == "paint"
    scene.undo()
    scene.undo()
    assert np.array_equal(scene.data, labels)


def test_an_island_is_split_by_a_painted_cut(make_scene: Callable[..., Any]) -> None:
    labels = ball((10, 20, 24), 14).astype(np.uint8)
    scene = make_scene(labels)
    scene.open("Shape")
    scene.show(10)
    scene.press(scene.dock.shape.cut)
    scene.drag((10, 2, 24), (10, 38, 24))
    assert scene.viewer.layers["Cut"].data.any()
    assert np.array_equal(scene.data, labels)
    scene.dock.shape.part.setCurrentIndex(scene.dock.shape.part.findData(2))
    scene.press(scene.dock.shape.divide)
    scene.click((10, 20, 30))
    scene.wait_for_preview()
    scene.key(Qt.Key.Key_Return)
    assert "Cut" not in scene.viewer.layers
    assert np.array_equal(scene.data > 0, labels > 0)
    assert (scene.data[labels > 0][np.argwhere(labels)[:, 2] > 26] == 2).all()
    assert (scene.data[labels > 0][np.argwhere(labels)[:, 2] < 22] == 1).all()
    scene.undo()
    assert np.array_equal(scene.data, labels)


def test_classes_are_swapped_merged_and_copied_from_other_labels(make_scene: Callable[..., Any]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:9, 5:9, 5:9], labels[12:15, 12:15, 12:15] = 1, 2
    scene = make_scene(labels)
    other = np.zeros(SHAPE, np.uint8)
    other[2:4, 20:24, 20:24] = 1
    scene.viewer.add_labels(
        other, name="other", scale=scene.layer.scale, translate=scene.layer.translate, units=scene.layer.units
    )
    scene.viewer.layers.selection.active = scene.layer
    scene.layer.selected_label = 1
    scene.dock.at_once.setChecked(True)
    scene.open("Whole classes")
    transfer = scene.dock.transfer
    scene.press(transfer.copy)
    scene.wait_until(lambda: (scene.data == 1)[other > 0].all())
    transfer.other.setCurrentIndex(transfer.other.findData(2))
    scene.press(transfer.swap)
    scene.wait_until(lambda: (scene.data[labels == 1] == 2).all() and (scene.data[labels == 2] == 1).all())
    scene.press(transfer.merge)
    scene.wait_until(lambda: not (scene.data == 1).any())
    for _ in range(3):
        scene.undo()
    assert np.array_equal(scene.data, labels)


def test_an_oblique_anisotropic_flipped_scan_is_filled_along_the_axis_that_is_shown(
    make_scene: Callable[..., Any],
) -> None:
    turn = tilt(17) @ np.diag([-1.0, 1.0, -1.0])
    scene = make_scene(np.zeros(SHAPE, np.uint8), turn=turn)
    scene.brush(1, 9)
    for axis, (first, last) in ((2, (10, 16)), (1, (8, 13))):
        for index in (first, last):
            scene.show(index, axis)
            scene.click([index if k == axis else (10, 20, 24)[k] for k in range(3)])
        assert scene.dock.slices.slices == (first, last)
        painted = scene.data.copy()
        scene.key(Qt.Key.Key_F, *CTRL_ALT)
        scene.wait_for_preview()
        scene.key(Qt.Key.Key_Return)
        filled = np.moveaxis(scene.data, axis, 0)
        assert all(filled[k].any() for k in range(first, last + 1))
        scene.undo()
        assert np.array_equal(scene.data, painted)
        scene.undo()
        scene.undo()
        assert not scene.data.any()


def test_what_cannot_be_done_is_a_sentence_in_the_dock(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(ball((10, 20, 24), 12).astype(np.uint8))
    scene.layer.selected_label = 1
    scene.show(10)
    scene.press(scene.dock.fill)
    scene.wait_until(scene.dock.error.isVisible)
    assert "Filling needs two or more" in scene.dock.error.text.text()
    assert not scene.dock.spread.isEnabled()
    assert "Correct a slice" in scene.dock.spread.toolTip()
    scene.hover((10, 2, 2))
    scene.key(Qt.Key.Key_K, *CTRL_ALT)
    scene.wait_until(lambda: "background under the cursor" in scene.dock.error.text.text())
    scene.open("Shape")
    scene.press(scene.dock.shape.fill_holes)
    scene.wait_until(lambda: "has no hole" in scene.dock.told.text())


def test_what_was_said_of_some_labels_goes_when_others_are_chosen(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(ball((10, 20, 24), 12).astype(np.uint8))
    scene.layer.selected_label = 1
    others = scene.viewer.add_labels(np.ones((4, 4, 4), np.uint8), name="others", units=scene.layer.units)
    for button in ("fill_holes", "fill"):
        scene.viewer.layers.selection.active = scene.layer
        scene.open("Shape")
        part = scene.dock.shape.fill_holes if button == "fill_holes" else scene.dock.fill
        scene.press(part)
        scene.wait_until(lambda: scene.dock.told.isVisible() or scene.dock.error.isVisible())
        scene.viewer.layers.selection.active = others
        assert scene.dock.layer is others
        assert scene.dock.told.isHidden()
        assert scene.dock.error.isHidden()


def test_a_stroke_while_a_preview_is_open_is_kept_and_the_preview_is_cancelled(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(ball((10, 20, 24), 12).astype(np.uint8))
    scene.brush(1, 5)
    scene.show(10)
    scene.open("Shape")
    scene.press(scene.dock.shape.smooth)
    scene.wait_for_preview()
    scene.click((10, 3, 3))
    assert scene.data[10, 3, 3] == 1
    assert not scene.dock.preview.isVisible()
    assert "preview was cancelled" in scene.dock.told.text()
    scene.key(Qt.Key.Key_Return)
    assert scene.data[10, 3, 3] == 1
